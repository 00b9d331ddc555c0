"""What the commands share: exit codes, signals, and the arguments that choose a model."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dithead.errors import ConfigError, DitheadError


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, treated as Ctrl-C so that nothing half-written is left."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def terminate(number: int, frame: object) -> None:
    """The handler of a signal that is to end a command."""
    raise Terminated(number)


def run_command(program: str, action: Callable[[], None], interrupted: str) -> int:
    """Run a command's action and tell its errors on stderr, each in one line.

    Args:
        interrupted: what to say after Ctrl-C, SIGTERM or the terminal's closing, such as that
            nothing was written.

    Returns:
        The exit code: 0 done, 1 failed, 2 misused, 129, 130 or 143 interrupted.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
        hang_up = getattr(signal, "SIGHUP", None)
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # else nohup
            signal.signal(hang_up, terminate)
    try:
        action()
    except DitheadError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as interrupt:
        number = interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT
        with suppress(OSError):  # the terminal may be gone
            print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return 128 + number
    return 0


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """``--checkpoint``, absent from the namespace where it was not given, and
    ``--audio-weights``."""
    parser.add_argument(
        "--checkpoint",
        default=argparse.SUPPRESS,
        help="name of a packaged checkpoint, or a .safetensors file (default: tiny)",
    )
    parser.add_argument(
        "--audio-weights",
        metavar="FOLDER",
        type=Path,
        help="speech encoder of a checkpoint that does not use the packaged one (wav2vec2)",
    )
