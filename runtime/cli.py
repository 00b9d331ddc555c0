"""``dithead-stream``: re-voice a video."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dithead.command import (
    CommandParser,
    add_checkpoint_arguments,
    add_device_arguments,
    add_face_model_arguments,
    face_choice,
    run_command,
)
from dithead.errors import ConfigError
from dithead.runtime.defaults import IN_FLIGHT
from dithead.runtime.progress import WANTED, Progress
from dithead.runtime.whichmodel import (
    Adapt,
    BundleOf,
    adapted,
    cached,
    check_adapt,
    takes_cached_bundle,
)

if TYPE_CHECKING:
    from dithead.runtime.media.inputs import Input
    from dithead.runtime.pipeline import Summary


def _rate(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"expected a rate such as 25 or 30000/1001, found {text!r}"
        ) from None


def _bits_per_s(text: str) -> int:
    factor = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    try:
        return round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"expected bits per second such as 2500k or 4M, found {text!r}"
        ) from None


def _setting(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not key or not found:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {text!r}")
    return key, value


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default in (None, False, [])
        return action.help if unset else super()._get_help_string(action)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=prog,
        description="Re-voice a video: generate a lower face that speaks the audio.",
        formatter_class=_Formatter,
    )
    parser.add_argument(
        "video",
        metavar="IN",
        help="any video FFmpeg opens: a file, a URL (rtmp, rtsp, srt, udp), numbered pictures "
        "(frames/%%04d.png), a still picture, a device (with --input-format), or - for standard "
        "input",
    )
    parser.add_argument(
        "audio", metavar="AUDIO", help="anything with an audio track, IN itself included"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        default="out.mp4",
        help="file to write (.mp4 .m4v .mov .mkv .webm .ts .flv), a URL, or - for standard output",
    )
    add_checkpoint_arguments(parser)
    _add_media_arguments(parser)
    parser.add_argument(
        "--bundle",
        metavar="FOLDER",
        type=Path,
        help="run from a bundle of dithead-export instead of a checkpoint",
    )
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "tensorrt", "tensorrt-rtx"),
        help="what runs the model; never replaced by another (default: onnxruntime with --bundle, "
        "and on a CPU where it is installed, from a bundle that is made once and kept in the "
        "user's cache; otherwise torch)",
    )
    parser.add_argument(
        "--adapt",
        metavar="MINUTES",
        type=float,
        help="first adapt the checkpoint to the face in IN, whose own sound is what it learns "
        "from, for so long; the result is kept beside IN for the next time",
    )
    add_device_arguments(parser)
    add_face_model_arguments(parser)
    parser.add_argument("--steps", type=int, help="denoising steps (the checkpoint's own)")
    parser.add_argument(
        "--interpolate",
        type=int,
        choices=(1, 2),
        default=1,
        help="2 doubles the frame rate with RIFE: N frames become 2N - 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial noise")
    parser.add_argument(
        "--reference",
        choices=("previous", "fixed"),
        default="fixed",
        help="what the model sees of the face: its first frame, or the frame generated before",
    )
    parser.add_argument(
        "--extend",
        choices=("trim", "loop", "pingpong", "freeze"),
        help="what to do when the audio is longer than the video (default: freeze for a still "
        "picture, otherwise trim)",
    )
    parser.add_argument(
        "--face",
        type=face_choice,
        default="largest",
        help="which face: 'largest', an index from the left, a point X,Y or a box "
        "LEFT,TOP,RIGHT,BOTTOM in pixels of the first frame that shows the face; that person is "
        "followed from then on",
    )
    parser.add_argument(
        "--faces",
        metavar="FILE",
        type=Path,
        help="who speaks when: a line for each turn, with start and end in seconds and the box "
        "LEFT TOP RIGHT BOTTOM of the face; between turns nobody speaks",
    )
    parser.add_argument(
        "--on-no-face",
        choices=("pass", "error"),
        default="pass",
        help="pass frames without a face through untouched, or stop at the first one",
    )
    parser.add_argument(
        "--generate-every",
        type=int,
        choices=(1, 2),
        default=1,
        help="2 generates every second face and lets RIFE interpolate those between",
    )
    parser.add_argument(
        "--detail",
        choices=("on", "off"),
        default="on",
        help="show the frame's own skin and lips, warped to the generated mouth; off shows the "
        "generated face itself",
    )
    parser.add_argument(
        "--in-flight",
        type=int,
        default=IN_FLIGHT,
        help="maximum number of frames in progress",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="frames denoised together (with --reference fixed): higher throughput, but higher "
        "latency",
    )
    parser.add_argument(
        "--no-overlap", action="store_true", help="run the stages one after the other"
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="CPU threads of each stage (default: a quarter of the cores; all without overlap)",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="the summary, or the error, as JSON on stdout, or on stderr if the video goes to "
        "stdout",
    )
    parser.add_argument(
        "--progress",
        choices=WANTED,
        default="auto",
        help="on stderr: 'auto' shows it on a terminal, 'json' writes lines of JSON anywhere",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no summary, and no progress except --progress json"
    )
    return parser


def _add_media_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--input-format",
        metavar="NAME",
        help="FFmpeg's format or device of IN, if it cannot be detected: v4l2, mpegts, rawvideo",
    )
    group.add_argument(
        "--input-option",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="option of FFmpeg's reader of IN, such as video_size=1280x720; may be repeated",
    )
    group.add_argument(
        "--fps",
        type=_rate,
        help="frames per second of pictures or a device (25, or the device's own)",
    )
    group.add_argument(
        "--audio-format",
        metavar="NAME",
        help="FFmpeg's format or device of AUDIO; required for raw sound, such as s16le, with its "
        "rate and channels",
    )
    group.add_argument(
        "--audio-option",
        metavar="KEY=VALUE",
        type=_setting,
        action="append",
        default=[],
        help="option of FFmpeg's reader of AUDIO, such as rate=24000 and channels=1 for raw sound; "
        "may be repeated",
    )
    group.add_argument(
        "--audio-track", metavar="N", type=int, default=0, help="audio track to use, from 0"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "--format",
        metavar="NAME",
        help="FFmpeg's container (mp4, mov, matroska, webm, mpegts, flv, rtsp) instead of the "
        "extension's; matroska for -",
    )
    group.add_argument(
        "--keep-tracks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="copy other audio tracks, subtitles, attachments, cover, chapters and tags of IN, as "
        "far as OUT has room for them",
    )
    group.add_argument(
        "--video-codec",
        metavar="NAME",
        help="FFmpeg's encoder, such as libx265, h264_nvenc or ffv1 (libx264; libvpx-vp9 for "
        "WebM); never replaced by another",
    )
    group.add_argument(
        "--crf", type=int, help="constant quality within the encoder's range, lower is better (18)"
    )
    group.add_argument(
        "--bitrate", metavar="BITS", type=_bits_per_s, help="bits per second instead, such as 4M"
    )
    group.add_argument("--preset", help="the encoder's trade of speed for size (veryfast)")
    group.add_argument(
        "--pix-fmt",
        metavar="NAME",
        help="pixel format, such as yuv420p, which every player accepts (the input's own)",
    )


def _inputs(args: argparse.Namespace) -> tuple[Input, Input]:
    from dithead.runtime.media.inputs import Input

    video = Input(args.video, args.input_format, args.fps, tuple(args.input_option))
    settings = tuple(args.audio_option)
    if args.audio == args.video and args.audio_format is None:
        audio = Input(args.video, args.input_format, None, (*args.input_option, *settings))
    else:
        audio = Input(args.audio, args.audio_format, None, settings)
    return video, replace(audio, audio_track=args.audio_track)


def _run(args: argparse.Namespace, adapt: Adapt | None, bundle_of: BundleOf | None) -> Summary:
    from dithead.runtime.media.outputs import Encoding
    from dithead.runtime.revoice import revoice

    video, audio = _inputs(args)
    if args.output == "-" and sys.stdout.isatty():
        raise ConfigError("standard output is a terminal", hint="send it to a program or a file")
    as_json = args.progress == "json"
    notes: list[str] = []
    checkpoint = getattr(args, "checkpoint", None)
    if args.adapt is not None:
        if adapt is None:
            raise ConfigError("--adapt is an option of the command dithead stream")
        check_adapt(args)
        checkpoint = partial(adapted, args, adapt, notes)
    bundle = args.bundle
    if bundle_of is not None and takes_cached_bundle(args):
        bundle = partial(cached, args, bundle_of, notes)
    show = as_json or (args.progress == "auto" and sys.stderr.isatty() and not args.quiet)
    progress = Progress(sys.stderr, as_json) if show else None
    try:
        summary = revoice(
            video,
            audio,
            args.output,
            checkpoint=checkpoint,
            bundle=bundle,
            backend=args.backend,
            device=args.device,
            audio_weights=args.audio_weights,
            attention=args.attention,
            face_models=args.face_models,
            face_weights=args.face_weights,
            steps=args.steps,
            seed=args.seed,
            reference=args.reference,
            face=args.face,
            faces=args.faces,
            on_no_face=args.on_no_face,
            generate_every=args.generate_every,
            detail=args.detail == "on",
            interpolate=args.interpolate,
            extend=args.extend,
            encoding=Encoding(
                args.format, args.video_codec, args.crf, args.bitrate, args.preset, args.pix_fmt
            ),
            keep_tracks=args.keep_tracks,
            in_flight=args.in_flight,
            batch=args.batch,
            overlap=not args.no_overlap,
            threads=args.threads,
            progress=None if progress is None else progress.show,
        )
    finally:
        if progress is not None:
            progress.end()
    summary.notes[:0] = notes
    return summary


def _as_text(summary: Summary) -> str:
    stages = ", ".join(f"{name} {1000 / fps:.1f}" for name, fps in summary.stage_fps.items())
    lines = [
        f"{summary.output}: {summary.frames_written} frames, {summary.video_s:.2f} s",
        f"faces: {summary.faces} of {summary.frames} frames re-voiced",
        f"speed: {summary.fps:.1f} fps in all ({summary.backend}, {summary.device}, "
        f"{summary.steps} step{'' if summary.steps == 1 else 's'}); ms a frame by stage: {stages}",
        *(f"note: {note}" for note in summary.notes),
    ]
    return "\n".join(lines)


def _as_json(summary: Summary) -> str:
    return json.dumps(
        {
            "output": str(summary.output),
            "frames": summary.frames,
            "faces": summary.faces,
            "left_alone": summary.left_alone,
            "frames_written": summary.frames_written,
            "dropped": summary.dropped,
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


def main(
    argv: list[str] | None = None,
    prog: str = "dithead-stream",
    adapt: Adapt | None = None,
    bundle_of: BundleOf | None = None,
) -> int:
    """``dithead-stream``.

    Args:
        adapt: what ``--adapt`` calls. bundle_of: gives the bundle that is run if none is named.

    Returns:
        0 done, 1 failed, 2 misused, 130 or 143 interrupted.
    """
    args = _parser(prog).parse_args(argv)
    report = sys.stderr if args.output == "-" else sys.stdout

    def run() -> None:
        summary = _run(args, adapt, bundle_of)
        if args.json:
            print(_as_json(summary), file=report)
        elif not args.quiet:
            print(_as_text(summary), file=report)

    left = "the output ends early" if "://" in args.output or args.output == "-" else None
    nothing = "nothing was written"
    return run_command(prog, run, left or nothing, report if args.json else None)
