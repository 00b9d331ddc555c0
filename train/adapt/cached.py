"""Adaptations that are kept beside the video, for ``dithead stream --adapt``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from dithead import checkpoint
from dithead.errors import MediaError
from dithead.face.choice import FaceChoice
from dithead.filehash import hash_file
from dithead.train.adapt.run import adapt, check_files
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import VERSION

FOLDER = "dithead-adapted"
"""Beside the video, or in the user's cache where its folder cannot be written."""
STEM_BYTES = 100
"""Of the video's name, in the file's."""


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
        MediaError: there is no such file, or nothing can be learnt from it.
    """
    check_files([video])
    training = Adaptation(minutes=minutes)
    hashes = hash_file(video), hash_file(checkpoint.resolve(base))
    made_from = repr((VERSION, *hashes, face, audio_weights, training))
    digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    stem = video.stem.encode()[:STEM_BYTES].decode(errors="ignore")
    out = _folder(video) / f"{stem}.{minutes:g}min.{digest}.safetensors"
    if out.is_file():
        return out, "made before"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"{out.parent} cannot be made: {error}") from error
    gain = adapt(
        [video], out, training, base=base, audio_weights=audio_weights, face=face, tell=tell
    )
    return out, (
        f"mouth {gain.mouth_db_before:.1f} -> {gain.mouth_db:.1f} dB in its last "
        f"{gain.held_out_s:.1f} s, which were not learnt from"
    )


def _folder(video: Path) -> Path:
    beside = video.resolve().parent / FOLDER
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dithead" / "adapted"
