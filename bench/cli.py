"""``dithead-bench``: how fast it is, by stage, end to end, and with several streams."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dithead.bench.case import PAPER_STEPS, Case, run_case
from dithead.checkpoint import random_preset
from dithead.command import add_checkpoint_arguments, run_command
from dithead.errors import ConfigError, DitheadError
from dithead.jsontext import parse_json
from dithead.runtime.defaults import IN_FLIGHT, default_backend

if TYPE_CHECKING:
    import torch

SCHEMA = 1
INCLUDED = {
    "stages": "decode, track, encode face, audio, denoise, decode face, blend, detail, composite, "
    "encode video: one stage after the other in one thread, each timed by itself",
    "stream": "everything from decoding the input's video to encoding the output's, from files to "
    "a file; loading the model is not",
    "talk": "from flush_audio() to the first frame of the speech that follows it at once, of a "
    "stream that shows the clip at its own pace; latency is that",
    "sessions": "everything from a pushed RGB picture to a pulled one; no decoding or encoding of "
    "video",
}


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2, found {text!r}") from None


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure throughput and latency; every figure comes with the hardware.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    stages = commands.add_parser("stages", help="each stage by itself, one after the other")
    stream = commands.add_parser(
        "stream",
        help="end to end from files to a file: stages in parallel, one after the other, and at "
        "the paper's setting",
    )
    sessions = commands.add_parser("sessions", help="streams of one session in parallel")
    talk = commands.add_parser(
        "talk", help="a stream that is interrupted: how soon the next speech is seen"
    )
    for command in (stages, stream, sessions, talk):
        _add_common(command)
    sessions.add_argument(
        "--streams", type=_numbers, default=[1, 2], help="streams at a time, such as 1,2,4"
    )
    sessions.add_argument(
        "--pace",
        action="store_true",
        help="push frames and sound at the clip's rate, as a call would: a frame's latency counts "
        "from when it is due, and it waits for sound up to 0.38 s after it",
    )
    stream.add_argument(
        "--paper-frames",
        type=int,
        default=3,
        help=f"frames at the paper's setting ({PAPER_STEPS} steps, stages in turn), from which its "
        "speed is extrapolated; 0 leaves it out (default: 3)",
    )
    stream.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a Chrome trace of the overlapped run"
    )
    counts = commands.add_parser(
        "counts",
        help="bytes, arithmetic and launches of every operation of a frame, with and without the "
        "Triton kernels, and the least time that GPUs need for them; counted, not measured",
    )
    counts.add_argument("--presets", default="tiny,paper", help="one or more (default: tiny,paper)")
    kernels = commands.add_parser(
        "kernels",
        help="each Triton kernel against eager PyTorch, torch.compile and other attention, on "
        "a GPU",
    )
    kernels.add_argument("--device", help="(default: cuda; cpu with --dry-run)")
    kernels.add_argument(
        "--dry-run",
        action="store_true",
        help="compare them in Triton's interpreter, at small sizes, and time nothing",
    )
    kernels.add_argument(
        "--tune",
        action="store_true",
        help="instead of timing them, find the fastest block sizes for this GPU and keep them "
        "for streams and later timings",
    )
    kernels.add_argument("-o", "--output", type=Path, default=Path("kernels.json"))
    report = commands.add_parser(
        "report", help="one HTML page from the JSON of the others (extra 'bench')"
    )
    report.add_argument("results", type=Path, nargs="+", metavar="JSON")
    report.add_argument("-o", "--output", type=Path, default=Path("bench.html"))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--video", type=Path, help="clip (default: the packaged demo's)")
    parser.add_argument("--audio", type=Path, help="speech (default: the packaged demo's)")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--bundle",
        type=Path,
        help="for every back end except torch (default: on a CPU, that of the user's cache)",
    )
    parser.add_argument(
        "--backend",
        help="one or more, such as torch,onnxruntime (default: as for dithead stream)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=_numbers, default=[1], help="such as 1,2 (default: 1)")
    parser.add_argument(
        "--threads",
        type=_numbers,
        default=[1, 2],
        help="CPU threads of each stage, swept where stages take turns (default: 1,2)",
    )
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="frames denoised together: of one stream, or, for sessions, of several (default: 1)",
    )
    parser.add_argument("--interpolate", type=int, choices=(1, 2), default=1)
    parser.add_argument(
        "--generate-every", type=_numbers, default=[1], help="1, 2 or both, as 1,2 (default: 1)"
    )
    parser.add_argument("--reference", choices=("previous", "fixed"), default="fixed")
    parser.add_argument("--frames", type=int, default=120, help="measured frames (default: 120)")
    parser.add_argument("--warm-up", type=int, default=20, help="frames before those (default: 20)")
    parser.add_argument("-o", "--output", type=Path, default=Path("bench.json"))


def cases_of(args: argparse.Namespace) -> list[Case]:
    """The cases that a command measures, in order."""
    from dithead import footage

    common = {
        "video": str(args.video or footage.carphone()),
        "audio": str(args.audio or footage.speech()),
        "checkpoint": getattr(args, "checkpoint", "tiny"),
        "audio_weights": None if args.audio_weights is None else str(args.audio_weights),
        "device": args.device,
        "in_flight": args.in_flight,
        "batch": args.batch,
        "interpolate": args.interpolate,
        "reference": args.reference,
        "frames": args.frames,
        "warm_up": args.warm_up,
    }
    made: list[Case] = []
    bundle = args.bundle
    backends = (args.backend or _default_backend(args)).split(",")
    if bundle is None and "onnxruntime" in backends and args.device == "cpu":
        bundle = _cached(common["checkpoint"])
    if bundle is None and any(name != "torch" for name in backends):
        raise ConfigError("every back end but torch needs --bundle FOLDER, from dithead-export")
    for backend, steps, every in product(backends, args.steps, args.generate_every):
        name = f"{backend}, {_many(steps, 'step')}"
        name += ", every 2nd generated" if every == 2 else ""
        name += f", batches of {args.batch}" if args.batch > 1 else ""
        settings: dict[str, Any] = {
            **common,
            "backend": backend,
            "bundle": None if backend == "torch" else str(bundle),
            "steps": steps,
            "generate_every": every,
        }
        if args.command == "sessions":
            made += [
                Case("sessions", f"{name}, {label}", streams=n, pace=args.pace, **settings)
                for n, label in _counted(args.streams, "stream")
            ]
            continue
        if args.command == "talk":
            made += [
                Case("talk", f"{name}, speech {how}", pace=pace, **settings)
                for pace, how in ((False, "at once"), (True, "as it is spoken"))
            ]
            continue
        if args.command == "stream":
            made.append(Case("file", f"{name}, side by side", **settings))
        made += [
            Case("file", f"{name}, in turn, {label}", overlap=False, threads=n, **settings)
            for n, label in _counted(args.threads, "thread")
        ]
    if args.command == "stream" and args.paper_frames > 0:
        paper = {**common, "frames": args.paper_frames, "warm_up": 1, "reference": "previous"}
        paper["batch"] = 1
        made.append(
            Case(
                "file",
                f"paper's setting: torch, {PAPER_STEPS} steps, in turn",
                steps=PAPER_STEPS,
                overlap=False,
                threads=max(args.threads),
                **paper,
            )
        )
    return made


def _default_backend(args: argparse.Namespace) -> str:
    if args.bundle is not None:
        return "onnxruntime"
    drawn = random_preset(getattr(args, "checkpoint", "tiny")) is not None
    only_torch = args.audio_weights is not None or args.batch > 1 or drawn
    return "torch" if only_torch else default_backend(args.device)


def _cached(checkpoint: str) -> Path:
    """The checkpoint's bundle in the user's cache."""
    from dithead.export.cached import cached_bundle

    return cached_bundle(checkpoint, begin=lambda folder: print(f"making {folder}, once"))


def _counted(numbers: Sequence[int], what: str) -> list[tuple[int, str]]:
    return [(n, _many(n, what)) for n in numbers]


def _many(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def measure_all(command: str, cases: Sequence[Case], tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure cases one after the other; a case that fails is reported, and the others go on.

    Raises:
        DitheadError: every one failed.
    """
    import torch

    from dithead.bench.machine import describe

    results: list[dict[str, Any]] = []
    error: DitheadError | None = None
    for case in cases:
        try:
            figures = run_case(case)
        except DitheadError as raised:
            error = raised
            tell(f"  {error}")
            results.append({"case": case.label, "error": str(error)})
            continue
        results.append(figures)
        tell(as_line(figures))
    if all("error" in result for result in results) and error is not None:
        raise error
    return {
        "schema": SCHEMA,
        "command": command,
        "included": INCLUDED[command],
        "machine": describe(torch.device(cases[0].device)),
        "results": results,
    }


def as_line(figures: dict[str, Any]) -> str:
    """A case's main figures in one line."""
    latency = figures["latency_ms"]
    return (
        f"  {figures['case']['label']}: {figures['fps']:.2f} fps (real-time factor "
        f"{figures['real_time_factor']:.2f}), latency p50 {latency['p50']:.0f} p95 "
        f"{latency['p95']:.0f} ms, first frame {figures['first_frame_s']:.2f} s, "
        f"{figures['cores_busy']:.2f} of {figures['cores']} cores, "
        f"{figures['host_peak_mib']:.0f} MiB"
    )


def _measure(args: argparse.Namespace) -> None:
    if not args.output.parent.is_dir():
        raise ConfigError(f"{args.output}: the folder {args.output.parent} does not exist")
    cases = cases_of(args)
    print(f"{args.command}: {len(cases)} cases of {args.frames} frames, each in its own process")
    found = measure_all(args.command, cases, lambda line: print(line, flush=True))
    trace = getattr(args, "trace", None)
    for number, result in enumerate(found["results"]):
        chrome = result.pop("chrome", None)
        if number == 0 and trace is not None and chrome is not None:
            trace.write_text(json.dumps(chrome))
            print(f"{trace}: open it in chrome://tracing or ui.perfetto.dev")
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{args.output}: written; dithead-bench report {args.output} draws it")


def _count(args: argparse.Namespace) -> None:
    from dithead.bench.counting import report

    print(report(args.presets.split(",")))


def _kernels(args: argparse.Namespace) -> None:
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    if not args.tune and not args.output.parent.is_dir():
        raise ConfigError(f"{args.output}: the folder {args.output.parent} does not exist")
    import torch

    from dithead.bench.kernels import as_line, failures, measure
    from dithead.bench.machine import describe

    try:
        device = torch.device(args.device or ("cpu" if args.dry_run else "cuda"))
    except RuntimeError as error:
        raise ConfigError(f"--device {args.device}: PyTorch knows no such device") from error
    if args.tune:
        _tune(device, args.dry_run)
        return
    found = measure(device, small=args.dry_run, timed=not args.dry_run)
    for figure in found.figures:
        print(as_line(figure))
    values = {"schema": SCHEMA, "command": "kernels", "machine": describe(device), **asdict(found)}
    args.output.write_text(json.dumps(values, indent=1) + "\n")
    print(f"{args.output}: written")
    if failures(found.figures):
        raise DitheadError("a kernel differs from its reference: see the lines above")


def _tune(device: torch.device, dry_run: bool) -> None:
    from dithead.bench.kernels import tune
    from dithead.kernels.settings import keep

    found = tune(device, small=dry_run)
    for one in found:
        told = "every block size gives the same"
        if not dry_run:
            told = f"{one.microseconds:.1f} us, with fixed sizes {one.fixed_microseconds:.1f} us"
        print(f"  {one.operation} {one.shape} {one.dtype}: {told}")
    if not dry_run:
        print(f"{keep(found, device)}: written; streams on this device use it")


def _report(args: argparse.Namespace) -> None:
    from dithead.bench.report import render

    found = []
    for path in args.results:
        try:
            values = parse_json(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not a result of dithead-bench ({error})") from error
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ConfigError(f"{path}: not a result of this version of dithead-bench")
        found.append(values)
    args.output.write_text(render(found))
    print(f"{args.output}: written")


def main(argv: list[str] | None = None, prog: str = "dithead-bench") -> int:
    """Entry point of ``dithead-bench``.

    Returns:
        0 done, 1 failed, 2 misused, 130 or 143 interrupted.
    """
    args = _parser(prog).parse_args(argv)
    actions = {"report": _report, "counts": _count, "kernels": _kernels}
    action = actions.get(args.command, _measure)
    return run_command(prog, lambda: action(args), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
