"""``dithead-export``: a checkpoint to a bundle of ONNX files and TensorRT engines."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dithead.bundle.libraries import Flavour, installed_flavour, load_flavour
from dithead.command import (
    CommandParser,
    add_checkpoint_arguments,
    add_face_model_arguments,
    run_command,
)
from dithead.errors import BackendUnavailable, ConfigError

if TYPE_CHECKING:
    from dithead.export.bundle import ExportOptions, ExportReport


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=prog,
        description="Export every graph of a checkpoint to ONNX and TensorRT engines, each file "
        "compared with PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        type=Path,
        default=Path("bundle"),
        help="the bundle's folder",
    )
    add_checkpoint_arguments(parser)
    add_face_model_arguments(parser)
    parser.add_argument(
        "--preset",
        help="random weights in the shapes of a preset, instead of a checkpoint: to measure sizes, "
        "times and memory",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision", default="fp16", help="precision of the graphs for a GPU: fp32, fp16 or bf16"
    )
    precision.add_argument(
        "--fp16", dest="precision", action="store_const", const="fp16", help="--precision fp16"
    )
    parser.add_argument(
        "--targets", default="cpu,gpu", help="what the bundle runs on: cpu, gpu or cpu,gpu"
    )
    parser.add_argument(
        "--engines",
        choices=("auto", "tensorrt-rtx", "tensorrt", "none"),
        default="auto",
        help="what builds the engines; auto takes what is installed, TensorRT-RTX first",
    )
    parser.add_argument(
        "--compute-capability",
        metavar="X.Y",
        default="portable",
        help="restrict TensorRT-RTX engines to one kind of GPU, such as 8.9",
    )
    parser.add_argument(
        "--batch",
        metavar="N,...",
        default="1",
        help="build engines for this many streams at once, such as 1,2,4,8",
    )
    parser.add_argument(
        "--largest-rectangle",
        metavar="PX",
        type=int,
        default=1024,
        help="side of the largest square round a face that the bundle supports",
    )
    parser.add_argument(
        "--graphs",
        default="",
        help="export only these, separated by commas; such a bundle cannot be streamed from",
    )
    parser.add_argument(
        "--clip",
        metavar="VIDEO",
        type=Path,
        help="a video with a face: the new files are also compared on its frames (with the "
        "packaged speech); default: the demo's clip if it is installed",
    )
    parser.add_argument(
        "--verify",
        metavar="BUNDLE",
        type=Path,
        help="load, run and compare every engine of a bundle on this machine's GPU",
    )
    parser.add_argument("--json", action="store_true", help="the report as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress, no report")
    return parser


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--batch takes numbers separated by commas, such as 1,2,4,8, not {text!r}"
        ) from None


def _flavour(choice: str, say: Callable[[str], None]) -> Flavour | None:
    if choice == "none":
        return None
    if choice == "auto":
        found = installed_flavour()
        if found is None:
            say(
                "no engines will be built: neither TensorRT-RTX nor TensorRT is installed "
                "(pip install 'dithead[tensorrt-rtx]'); --engines none says so on purpose"
            )
        return found
    load_flavour(choice)
    return choice  # type: ignore[return-value]


def _demo_clip() -> Path | None:
    from dithead import footage

    try:
        return footage.carphone()
    except BackendUnavailable:
        return None


def _options(args: argparse.Namespace, say: Callable[[str], None]) -> ExportOptions:
    from dithead.export.bundle import ExportOptions

    if args.preset is not None and (hasattr(args, "checkpoint") or args.audio_weights):
        raise ConfigError("--preset draws its weights: leave --checkpoint and --audio-weights out")
    if args.clip is not None and not args.clip.is_file():
        raise ConfigError(f"--clip {args.clip}: no such file")
    graphs = tuple(part for part in args.graphs.split(",") if part)
    if args.graphs and not graphs:
        raise ConfigError(f"--graphs takes names separated by commas, not {args.graphs!r}")
    return ExportOptions(
        precision=args.precision,
        targets=tuple(part for part in args.targets.split(",") if part),
        largest_rectangle=args.largest_rectangle,
        graphs=graphs,
        flavour=_flavour(args.engines, say),
        compute_capability=args.compute_capability,
        batches=_batches(args.batch),
    )


def _export(args: argparse.Namespace) -> ExportReport:
    from dithead.config import preset
    from dithead.export.bundle import export_bundle
    from dithead.export.inputs import record_real_inputs
    from dithead.face.networks import FaceNetworks
    from dithead.torchgraphs import TorchGraphs

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    options = _options(args, say)
    clip = args.clip
    faces = FaceNetworks.load(args.face_models or "mediapipe", args.face_weights)
    if args.preset is None:
        source = getattr(args, "checkpoint", "tiny")
        models = TorchGraphs.load(source, "cpu", args.audio_weights, faces=faces)
        clip = clip or _demo_clip()
    else:
        source, models = None, TorchGraphs.random(preset(args.preset), faces)
    if clip is None:
        say("comparing on random inputs alone: give --clip VIDEO to compare on real ones, too")
        real = None
    else:
        real = partial(record_real_inputs, models, clip, options.largest_rectangle)
    return export_bundle(source, args.output, options, models=models, real=real, progress=say)


def _as_text(report: ExportReport) -> str:
    built = f"{len(report.built)} files made, {report.kept} kept"
    lines = [
        f"{report.folder}: {built}, {report.bytes / 1e6:.0f} MB, {report.engines} engines, "
        f"{report.seconds:.0f} s"
    ]
    if any(name.endswith(".onnx") for name in report.built):
        real = ", and on real ones where the clip gave them" if report.real_inputs else ""
        lines.append(
            f"every ONNX file made was run and compared with PyTorch on random inputs{real}"
        )
    if report.engines:
        lines.append(
            "engines are not run by this: dithead-export --verify does, on a machine with a GPU"
        )
    return "\n".join(lines)


def _verify(args: argparse.Namespace) -> None:
    from dithead.export.verify import verify_bundle

    errors = verify_bundle(args.verify)
    if args.json:
        print(json.dumps(errors, indent=2))
    elif not args.quiet:
        for name, error in errors.items():
            print(f"{name}: off by {error:.1e} relative")


def main(argv: list[str] | None = None, prog: str = "dithead-export") -> int:
    """Entry point of ``dithead-export``.

    Returns:
        0 done, 1 failed, 2 misused, 130 or 143 interrupted.
    """
    args = _parser(prog).parse_args(argv)
    logging.basicConfig(level=logging.WARNING)

    def run() -> None:
        if args.verify is not None:
            return _verify(args)
        report = _export(args)
        if args.json:
            print(json.dumps({**asdict(report), "folder": str(report.folder)}, indent=2))
        elif not args.quiet:
            print(_as_text(report))

    report = sys.stdout if args.json else None
    return run_command(prog, run, "the bundle is as it was", report)
