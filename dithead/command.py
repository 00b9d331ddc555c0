"""What the commands share: exit codes, signals, and the arguments that choose a model."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from dithead.errors import ConfigError, DitheadError


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C so that nothing half-written is left."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def run_command(program: str, action: Callable[[], None], interrupted: str) -> int:
    """Run a command's action and tell its errors on stderr, each in one line.

    Args:
        interrupted: what to say after Ctrl-C or SIGTERM, such as that nothing was written.

    Returns:
        The exit code: 0 done, 1 failed, 2 misused, 130 or 143 interrupted.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        action()
    except DitheadError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt as interrupt:
        print(f"{program}: interrupted; {interrupted}", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
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
