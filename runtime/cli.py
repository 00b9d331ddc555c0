"""``dithead-stream``: re-voice a video."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dithead.command import add_checkpoint_arguments, run_command
from dithead.errors import BackendUnavailable, ConfigError
from dithead.runtime.defaults import IN_FLIGHT, default_threads

if TYPE_CHECKING:
    from dithead.runtime.pipeline import Summary


def _face(text: str) -> str | int:
    if text == "largest":
        return text
    if text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 'largest' or an index from 0, found {text!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dithead-stream",
        description="Re-voice a video: generate a lower face that speaks the audio.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("video", metavar="IN", type=Path, help="any video FFmpeg opens")
    parser.add_argument(
        "audio", metavar="AUDIO", type=Path, help="any file with an audio track, IN itself included"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=Path, default=Path("out.mp4"), help="file to write"
    )
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--bundle",
        metavar="FOLDER",
        type=Path,
        help="run from a bundle of dithead-export instead of a checkpoint",
    )
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "tensorrt", "tensorrt-rtx"),
        default=argparse.SUPPRESS,
        help="what runs the model, and nothing else does (default: torch, or onnxruntime with "
        "--bundle)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N, as asked for")
    parser.add_argument("--steps", type=int, help="denoising steps (the checkpoint's own)")
    parser.add_argument(
        "--interpolate",
        type=int,
        choices=(1, 2),
        default=1,
        help="2 doubles the frame rate with RIFE: N frames become 2N - 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise")
    parser.add_argument(
        "--reference",
        choices=("previous", "fixed"),
        default="fixed",
        help="what the model sees of the face: its first frame, or the frame generated before",
    )
    parser.add_argument(
        "--extend",
        choices=("trim", "loop", "pingpong", "freeze"),
        default="trim",
        help="what to do when the audio is longer than the video",
    )
    parser.add_argument(
        "--face", type=_face, default="largest", help="'largest', or an index from the left"
    )
    parser.add_argument(
        "--on-no-face",
        choices=("pass", "error"),
        default="pass",
        help="hand faceless frames through untouched, or stop at the first",
    )
    parser.add_argument(
        "--generate-every",
        type=int,
        choices=(1, 2),
        default=1,
        help="2 generates every second face and lets RIFE fill in those between",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=IN_FLIGHT,
        help="frames on their way through the stages at a time",
    )
    parser.add_argument(
        "--no-overlap", action="store_true", help="run the stages one after the other"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=argparse.SUPPRESS,
        help="CPU threads of each stage (default: a quarter of the cores; all without overlap)",
    )
    parser.add_argument("--json", action="store_true", help="the summary as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    return parser


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ConfigError(f"unknown device {name!r}: expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise BackendUnavailable(
                f"device {name!r} was asked for and this PyTorch sees {count} CUDA devices: "
                "install a CUDA build of torch and the driver, or choose --device cpu"
            )
    return device


def _progress(total: int | None) -> Callable[[int, float], None]:
    start = last = time.monotonic()

    def show(frames: int, _: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.5:
            return
        last = now
        rate = frames / (now - start)
        eta = f", {max(0.0, (total - frames) / rate):.0f} s left" if total else ""
        of = f" of {total}" if total else ""
        print(f"\r{frames}{of} frames, {rate:.1f} fps{eta}   ", end="", file=sys.stderr)

    return show


def _run(args: argparse.Namespace) -> Summary:
    import torch

    from dithead.pipeline import Options
    from dithead.runtime.backends import Backend, open_graphs
    from dithead.runtime.media import AudioSource, VideoSource
    from dithead.runtime.pipeline import stream_file

    overlap = not args.no_overlap
    threads = getattr(args, "threads", default_threads(overlap))
    if threads < 1:
        raise ConfigError(f"--threads must be at least 1, not {threads}")
    device = _device(args.device)
    options = Options(
        args.steps, args.seed, args.reference, args.face, args.on_no_face, args.generate_every
    )
    show = sys.stderr.isatty() and not args.quiet
    total = None
    with VideoSource(args.video) as video:  # before the models are loaded: bad files fail at once
        sound = AudioSource(args.audio)
        if show:  # the length of the audio takes decoding it once
            total = round(sound.duration_s * video.info.average_rate)
            if args.extend == "trim" and video.info.frame_count is not None:
                total = min(total, video.info.frame_count)
    backend: Backend = getattr(args, "backend", "torch" if args.bundle is None else "onnxruntime")
    if args.bundle is not None and (hasattr(args, "checkpoint") or args.audio_weights):
        raise ConfigError(
            "--bundle holds its own weights: leave --checkpoint and --audio-weights out"
        )
    # PyTorch's threads would wait busily beside ONNX Runtime's.
    torch.set_num_threads(1 if backend == "onnxruntime" else threads)
    graphs = open_graphs(
        backend,
        checkpoint=getattr(args, "checkpoint", "tiny"),
        bundle=args.bundle,
        device=device,
        audio_weights=args.audio_weights,
        threads=threads,
    )
    try:
        return stream_file(
            args.video,
            args.audio,
            args.output,
            graphs,
            options,
            backend=backend,
            interpolate=args.interpolate,
            extend=args.extend,
            in_flight=args.in_flight,
            overlap=overlap,
            progress=_progress(total) if show else None,
        )
    finally:
        if show:
            print("\r" + " " * 60 + "\r", end="", file=sys.stderr)


def _as_text(summary: Summary) -> str:
    stages = ", ".join(f"{name} {1000 / fps:.1f}" for name, fps in summary.stage_fps.items())
    faceless = summary.frames - summary.faces
    lines = [
        f"{summary.output}: {summary.frames_written} frames, {summary.video_s:.2f} s",
        f"faces: {summary.faces} of {summary.frames} frames"
        + (f"; {faceless} without a face handed through untouched" if faceless else ""),
        f"speed: {summary.fps:.1f} fps in all ({summary.backend}, {summary.device}, "
        f"{summary.steps} steps); ms a frame by stage: {stages}",
        *(f"note: {note}" for note in summary.notes),
    ]
    return "\n".join(lines)


def _as_json(summary: Summary) -> str:
    return json.dumps(
        {
            "output": str(summary.output),
            "frames": summary.frames,
            "faces": summary.faces,
            "frames_written": summary.frames_written,
            "video_s": summary.video_s,
            "seconds": summary.seconds,
            "fps": summary.fps,
            "stage_fps": summary.stage_fps,
            "backend": summary.backend,
            "device": summary.device,
            "steps": summary.steps,
            "notes": summary.notes,
        },
        indent=2,
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``dithead-stream``.

    Returns:
        0 done, 1 failed, 2 misused, 130 or 143 interrupted.
    """
    args = _parser().parse_args(argv)

    def run() -> None:
        summary = _run(args)
        if args.json:
            print(_as_json(summary))
        elif not args.quiet:
            print(_as_text(summary))

    return run_command("dithead-stream", run, "nothing was written")
