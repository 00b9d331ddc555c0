"""``dithead COMMAND``: one command for all of them. ``python -m dithead`` is the same."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import Any, NoReturn

from dithead import __version__

COMMANDS = {
    "stream": ("dithead.runtime.cli", "re-voice a video"),
    "export": ("dithead.export.cli", "make ONNX files and TensorRT engines of a checkpoint"),
    "train": ("dithead.train.cli", "prepare footage and train a model"),
    "eval": ("dithead.train.evaluate", "measure how well lips and pictures fit"),
    "bench": ("dithead.bench.cli", "measure speed and memory"),
    "doctor": ("dithead.runtime.doctor", "say what this machine can run, and what is missing"),
}


class _Parser(argparse.ArgumentParser):
    """Reports misuse in one line."""

    def error(self, message: str) -> NoReturn:
        """Report what is wrong, and exit with 2."""
        self.exit(2, f"{self.prog}: {message}: {self.prog} --help lists the commands\n")


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = (f"  {name:{width}}  {help}" for name, (_, help) in COMMANDS.items())
    parser = _Parser(
        prog="dithead",
        usage="dithead COMMAND ...",
        description="Make the face in a video speak an audio track.",
        epilog="commands:\n" + "\n".join(lines) + "\n\ndithead COMMAND --help explains each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dithead {__version__}")
    return parser


def stream(argv: list[str] | None = None, prog: str = "dithead-stream") -> int:
    """Entry point of ``dithead-stream``. Returns the exit code, see :func:`main`."""
    from dithead.runtime.cli import main as command

    return command(argv, prog, _adapted_to, _cached_bundle)


def _cached_bundle(*arguments: Any, **options: Any) -> Any:
    # Exporting is beside the runtime.
    from dithead.export.cached import cached_bundle

    return cached_bundle(*arguments, **options)


def _adapted_to(*arguments: Any, **options: Any) -> Any:
    # Training is above the runtime, and takes a second to import.
    from dithead.train.adapt import adapted_to

    return adapted_to(*arguments, **options)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``dithead``.

    Returns:
        What the command returns: 0 done, 1 failed, 2 misused, 130 or 143 interrupted.
    """
    given = sys.argv[1:] if argv is None else argv
    if given and given[0] == "stream":
        return stream(given[1:], prog="dithead stream")
    if given and given[0] in COMMANDS:
        command = import_module(COMMANDS[given[0]][0]).main
        code: int = command(given[1:], prog=f"dithead {given[0]}")
        return code
    parser = _parser()
    if not given:
        parser.error("expected a command")
    if given[0].startswith("-"):
        parser.parse_args(given)
    parser.error(f"unknown command {given[0]!r}, expected one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    sys.exit(main())
