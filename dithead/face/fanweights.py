"""The weights of S3FD and FAN: two files that ``dithead train convert fan`` makes."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from dithead import checkpoint
from dithead.errors import CheckpointError, ConfigError
from dithead.face.fan import Fan
from dithead.face.fanregion import FanLandmarks
from dithead.face.s3fd import S3fdDetector
from dithead.usercache import user_cache

FILES = {"S3FD": "s3fd.safetensors", "FAN": "fan.safetensors"}
"""The network's names and those of their files."""


def fan_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Where the weights are: the given folder, or ``fan`` in dithead's folder of the user's cache.

    Raises:
        ConfigError: there is no home folder.
    """
    if folder is not None:
        return Path(folder)
    try:
        return user_cache() / "fan"
    except RuntimeError as error:
        raise ConfigError(
            "there is no home folder to look for the weights of S3FD and FAN in",
            hint="give their folder, or set XDG_CACHE_HOME to one",
        ) from error


def fetch_hint(folder: Path) -> str:
    """The command that gets the weights."""
    return f"fetch them with dithead train convert fan -o {folder}"


def load_fan(
    folder: str | os.PathLike[str] | None = None, mirrored: bool = False
) -> tuple[S3fdDetector, FanLandmarks]:
    """Make both networks with their weights, ready for inference.

    Args:
        folder: with both files; None takes the one in the user's cache.
        mirrored: see :class:`~dithead.face.fanregion.FanLandmarks`.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit; the message says which, where
            it was looked for, and the command that fetches it.
    """
    where = fan_folder(folder)
    detector, net = S3fdDetector(), Fan()
    _load_into(detector.net, "S3FD", where)
    _load_into(net, "FAN", where)
    parts = detector, FanLandmarks(net, mirrored)
    for part in parts:
        part.eval().requires_grad_(False)
    return parts


def _load_into(net: nn.Module, name: str, folder: Path) -> None:
    path = folder / FILES[name]
    if not path.is_file():
        raise CheckpointError(f"no weights of {name} at {path}", hint=fetch_hint(folder))
    try:
        checkpoint.load_into(net, checkpoint.load(path)[0], path)
    except CheckpointError as error:
        raise CheckpointError(
            f"no usable weights of {name}: {error.message}", hint=fetch_hint(folder)
        ) from error
