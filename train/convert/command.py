"""The command line that the converters share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dithead.errors import DitheadError


def convert_command(
    convert: Callable[[Path, Path], object],
    arguments: list[str] | None,
    *,
    what: str,
    source: tuple[str, str],
    out: str = "the .safetensors file to write",
) -> int:
    """Convert a file and report what is wrong with it in one line.

    Args:
        convert: takes the source and what to write. source: its name on the command line, and what
            it is. out: what is written.

    Returns:
        The exit code: 0 done, 1 failed.
    """
    parser = argparse.ArgumentParser(description=f"Convert {what}.")
    parser.add_argument(source[0], type=Path, help=source[1])
    parser.add_argument("out", type=Path, help=out)
    options = parser.parse_args(arguments)
    try:
        convert(getattr(options, source[0]), options.out)
    except DitheadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
