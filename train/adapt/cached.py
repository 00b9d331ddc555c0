"""Adaptations that are kept beside the video, for ``dithead stream --adapt``."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dithead import checkpoint
from dithead.errors import MediaError
from dithead.face.choice import FaceChoice
from dithead.filehash import hash_file
from dithead.jsontext import parse_json
from dithead.train.adapt.gain import Gain
from dithead.train.adapt.run import adapt, check_files
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import VERSION
from dithead.usercache import short_stem, user_cache

FOLDER = "dithead-adapted"
"""Beside the video, or in the user's cache where its folder cannot be written."""


def adapted_to(
    video: Path,
    minutes: float,
    *,
    base: str,
    audio_weights: Path | None,
    face: FaceChoice,
    tell: Tell | None,
) -> tuple[Path, str]:
    """The checkpoint that is adapted to a video: made now, or before.

    Returns:
        The file; what was gained, in words.

    Raises:
        MediaError: there is no such file, nothing can be learnt from it, or what was not learnt
            from came out worse.
    """
    check_files([video])
    training = Adaptation(minutes=minutes)
    hashes = hash_file(video), hash_file(checkpoint.resolve(base))
    made_from = repr((VERSION, *hashes, face, audio_weights, training))
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    out = _folder(video) / f"{short_stem(video)}.{minutes:g}min.{digest}.safetensors"
    if out.is_file():
        return out, _judged(_read(out), ", made before")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out.parent} cannot be made: {error}") from error
    gain = adapt(
        [video], out, training, base=base, audio_weights=audio_weights, face=face, tell=tell
    )
    with suppress(OSError):  # then the next run does not know what was gained
        _beside(out).write_text(json.dumps(asdict(gain)))
    return out, _judged(gain, "")


def _judged(gain: Gain | None, when: str) -> str:
    """What was gained, in words, and when. Raises MediaError if it was lost."""
    if gain is not None and gain.is_loss:
        raise MediaError(
            f"what was not learnt from came out worse ({gain}{when}): it takes more footage"
        )
    return f"{gain or 'what it gained is not known'}{when}"


def _beside(out: Path) -> Path:
    return out.with_suffix(".json")


def _read(out: Path) -> Gain | None:
    """What an adaptation made before has gained, if that can be read."""
    try:
        return Gain(**{name: float(value) for name, value in _values(out).items()})
    except (OSError, ValueError, TypeError):
        return None


def _values(out: Path) -> dict[str, Any]:
    values = parse_json(_beside(out).read_text())
    if not isinstance(values, dict):
        raise ValueError("expected an object")
    return values


def _folder(video: Path) -> Path:
    beside = video.resolve().parent / FOLDER
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    return user_cache() / "adapted"
