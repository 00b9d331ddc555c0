"""Code shared by the commands: exit codes, signals, and the arguments that choose a model."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TextIO

from dithead.errors import ConfigError, DitheadError

_AGAIN_S = 0.01  # delay before a dropped interrupt is sent again


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, treated as Ctrl-C so that nothing half-written is left."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def terminate(number: int, frame: object) -> None:
    """The handler of a signal that ends a command."""
    raise Terminated(number)


def run_command(
    program: str, action: Callable[[], None], interrupted: str, report: TextIO | None = None
) -> int:
    """Run a command's action and report its errors on stderr, each in one line.

    Args:
        interrupted: the message after Ctrl-C, SIGTERM or when the terminal closes, such as that
            nothing was written.
        report: where a failure is also reported as a line of JSON; see :func:`failure_line`. On
            stderr that line replaces the other one.

    Returns:
        The exit code: 0 done, 1 failed, 2 misused, 129, 130 or 143 interrupted.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
        hang_up = getattr(signal, "SIGHUP", None)
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # or nohup is used
            signal.signal(hang_up, terminate)
    try:
        with _sent_again():
            action()
    except DitheadError as error:
        _tell(program, error, report)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
        with suppress(OSError):  # the terminal may be gone
            _tell(program, DitheadError(f"interrupted; {interrupted}"), report)
        return 128 + number
    except Exception as error:  # our own fault: Python prints everything
        if report is not None:
            print(failure_line(DitheadError(f"{type(error).__name__}: {error}")), file=report)
        raise
    return 0


@contextmanager
def _sent_again() -> Iterator[None]:
    """Send an interrupt again that Python dropped. Python drops one if the handler happens to run
    at the very beginning of a call from FFmpeg, or in a destructor."""
    before, timers = sys.unraisablehook, []

    def note(dropped: Any) -> None:
        interrupt = dropped.exc_value
        if not isinstance(interrupt, KeyboardInterrupt):
            return before(dropped)
        number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
        timer = threading.Timer(_AGAIN_S, signal.raise_signal, [number])
        timer.daemon = True
        timers.append(timer)
        timer.start()

    sys.unraisablehook = note
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def _tell(program: str, error: DitheadError, report: TextIO | None) -> None:
    if report is not sys.stderr:
        print(f"{program}: {error}", file=sys.stderr)
    if report is not None:
        print(failure_line(error), file=report, flush=True)


def failure_line(error: DitheadError) -> str:
    """A failure as one line of JSON: ``error``, the text; ``stage`` and ``frame`` (from 0), where a
    stream failed; ``hint``, what to do. Each is null if there is none."""
    told = {"error": str(error), "stage": error.stage, "frame": error.frame, "hint": error.hint}
    return json.dumps(told)


class CommandParser(argparse.ArgumentParser):
    """Also reports misuse as a line of JSON if ``--json`` is given: where the result would be, on
    stdout, or on stderr if ``-o -`` sends other things to stdout."""

    _given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See :class:`argparse.ArgumentParser`."""
        self._given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Report what is wrong, and exit with 2."""
        if "--json" in self._given:
            busy = bool({"-o-", "--output=-"} & set(self._given))
            busy |= bool({("-o", "-"), ("--output", "-")} & set(pairwise(self._given)))
            hint = f"{self.prog} --help lists what it takes"
            failure = failure_line(DitheadError(message, hint=hint))
            print(failure, file=sys.stderr if busy else sys.stdout, flush=True)
        super().error(message)


def add_checkpoint_arguments(parser: argparse._ActionsContainer) -> None:
    """``--checkpoint``, missing from the namespace unless it was given, and ``--audio-weights``."""
    parser.add_argument(
        "--checkpoint",
        default=argparse.SUPPRESS,
        help="name of a packaged checkpoint, a .safetensors file, or random:PRESET for weights "
        "that are drawn in a preset's shapes, to measure its speed (default: tiny)",
    )
    add_audio_weights_argument(parser)


def add_audio_weights_argument(parser: argparse._ActionsContainer) -> None:
    """``--audio-weights``."""
    parser.add_argument(
        "--audio-weights",
        metavar="WEIGHTS",
        type=Path,
        help="speech encoder of a checkpoint that does not use the packaged one: a folder or a "
        ".safetensors file, or hub, which fetches wav2vec2",
    )


def add_device_arguments(parser: argparse._ActionsContainer) -> None:
    """``--device``, and ``--attention``, None unless it was given."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--attention",
        choices=("auto", "sdpa", "math", "flash", "xformers", "triton"),
        help="attention of the denoiser, where PyTorch runs it: PyTorch's own, the plain formula, "
        "that of a package, on CUDA, or the Triton kernel (default: auto, which is triton on "
        "NVIDIA's GPUs where it is installed, and otherwise sdpa)",
    )


def add_face_model_arguments(parser: argparse._ActionsContainer) -> None:
    """``--face-models`` and ``--face-weights``."""
    parser.add_argument(
        "--face-models",
        choices=("mediapipe", "fan"),
        help="networks that find faces: MediaPipe's, which come with the package, or S3FD and FAN, "
        "as in the paper, whose weights 'dithead train convert fan' fetches (default: mediapipe, "
        "or the bundle's own)",
    )
    parser.add_argument(
        "--face-weights",
        metavar="FOLDER",
        type=Path,
        help="weights of S3FD and FAN (default: fan in dithead's folder of the user's cache)",
    )


def face_choice(text: str) -> str | int | tuple[float, ...]:
    """The value of ``--face``: see :data:`dithead.face.choice.FaceChoice`."""
    if text == "largest":
        return text
    if text.isdigit():
        return int(text)
    try:
        place = tuple(float(edge) for edge in text.split(","))
    except ValueError:
        place = ()
    if len(place) in (2, 4):
        return place
    raise argparse.ArgumentTypeError(
        "expected 'largest', an index from 0, a point X,Y or a box LEFT,TOP,RIGHT,BOTTOM, "
        f"found {text!r}"
    )
