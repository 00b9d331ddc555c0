"""``dithead-export``: a checkpoint to a bundle of ONNX files and TensorRT engines."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dithead.errors import BackendUnavailable, ConfigError, DitheadError

if TYPE_CHECKING:
    from dithead.export.bundle import ExportReport
    from dithead.export.tensorrt import Flavour


def _terminate(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that nothing half-written is left


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dithead-export",
        description="Export every graph of a checkpoint to ONNX and TensorRT engines, each file "
        "compared with PyTorch.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("bundle"), help="the bundle"
    )
    parser.add_argument(
        "--checkpoint", default="tiny", help="name of a packaged checkpoint, or a .safetensors file"
    )
    parser.add_argument(
        "--audio-weights",
        metavar="FOLDER",
        type=Path,
        help="speech encoder of a checkpoint that does not use the packaged one (wav2vec2)",
    )
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision", default="fp16", help="of the graphs for a GPU: fp32 or fp16"
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
        help="narrow TensorRT-RTX engines to one kind of GPU, such as 8.9",
    )
    parser.add_argument(
        "--largest-rectangle",
        metavar="PX",
        type=int,
        default=1024,
        help="side of the largest square round a face that is provided for",
    )
    parser.add_argument(
        "--graphs",
        default="",
        help="only these, separated by commas; such a bundle cannot be streamed from",
    )
    parser.add_argument(
        "--clip",
        metavar="VIDEO",
        type=Path,
        help="a video with a face: files are compared on what it gives, too (the packaged speech "
        "is heard); default: the demo's clip where it is installed",
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


def _flavour(choice: str, say: Callable[[str], None]) -> Flavour | None:
    from dithead.export.tensorrt import installed_flavour, load_flavour

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
    load_flavour(choice)  # type: ignore[arg-type]
    return choice  # type: ignore[return-value]


def _demo_clip() -> Path | None:
    from dithead.bench import footage

    try:
        return footage.carphone()
    except BackendUnavailable:
        return None


def _run(args: argparse.Namespace) -> ExportReport:
    from dithead.export.bundle import ExportOptions, export_bundle
    from dithead.export.record import record_real_inputs
    from dithead.pipeline import Models

    def say(line: str) -> None:
        if not args.quiet:
            print(line, file=sys.stderr, flush=True)

    options = ExportOptions(
        precision=args.precision,
        targets=tuple(part for part in args.targets.split(",") if part),
        largest_rectangle=args.largest_rectangle,
        graphs=tuple(part for part in args.graphs.split(",") if part),
        flavour=_flavour(args.engines, say),
        compute_capability=args.compute_capability,
    )
    if args.clip is not None and not args.clip.is_file():
        raise ConfigError(f"--clip {args.clip}: no such file")
    clip = args.clip or _demo_clip()
    models = Models.load(args.checkpoint, "cpu", args.audio_weights)
    if clip is None:
        say("comparing on random inputs alone: give --clip VIDEO to compare on real ones, too")
        real = None
    else:
        real = partial(record_real_inputs, models, clip, options.largest_rectangle)
    return export_bundle(
        args.checkpoint, args.output, options, models=models, real=real, progress=say
    )


def _as_text(report: ExportReport) -> str:
    built = f"{len(report.built)} files made, {report.kept} kept"
    lines = [
        f"{report.folder}: {built}, {report.bytes / 1e6:.0f} MB, {report.engines} engines, "
        f"{report.seconds:.0f} s"
    ]
    if report.built:
        real = ", and on real ones where the clip gave them" if report.real_inputs else ""
        lines.append(
            f"every ONNX file made was run and compared with PyTorch on random inputs{real}"
        )
    if report.engines:
        lines.append(
            "engines are not run by this: dithead-export --verify does, on a machine with a GPU"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``dithead-export``.

    Returns:
        0 done, 1 failed, 2 misused, 130 interrupted.
    """
    args = _parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    logging.basicConfig(level=logging.WARNING)
    try:
        if args.verify is not None:
            from dithead.export.verify import verify_bundle

            results = verify_bundle(args.verify)
            print(json.dumps(results, indent=2))
            return 0
        report = _run(args)
    except ConfigError as error:
        print(f"dithead-export: {error}", file=sys.stderr)
        return 2
    except DitheadError as error:
        print(f"dithead-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dithead-export: interrupted; the bundle is as it was", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps({**asdict(report), "folder": str(report.folder)}, indent=2))
    elif not args.quiet:
        print(_as_text(report))
    return 0
