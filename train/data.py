"""Prepared footage: the index, and the crops, tracks and audio on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dithead.errors import MediaError
from dithead.train.shards.store import CROPS, has_shards, read_array, read_shards, read_track_of

STORED_MARGIN = 1.25
"""A stored crop is this much wider than the model's, so that augmentation can turn and shift it."""
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Clip:
    """One prepared clip."""

    name: str
    person: str
    split: str
    """``train`` or ``validation``."""
    frames: int
    still: bool = False
    """A single picture, without sound."""
    driver: str = ""
    """For a clip made from a still: the clip that provided motion and sound."""

    @property
    def made(self) -> bool:
        """Made from a still by ``dithead-train identities``."""
        return self.driver != ""


class Footage:
    """Folders written by ``dithead-train prepare``, with shards or without, or by ``dithead-train
    identities``, combined. Of shards, each sample is a clip.

    Raises:
        MediaError: a folder has no prepared footage, or two have clips with the same name.
    """

    def __init__(self, *roots: Path) -> None:
        self.roots = roots
        self._root_of: dict[str, Path] = {}
        self.clips: list[Clip] = []
        for root in roots:
            if not (root / "index.json").is_file() and not has_shards(root):
                raise MediaError(
                    f"{root} holds no prepared footage: run dithead-train prepare first"
                )
            for clip in read_index(root):
                other = self._root_of.setdefault(clip.name, root)
                if other != root:
                    raise MediaError(f"{other} and {root} both hold a clip {clip.name}")
                self.clips.append(clip)

    def split(self, name: str) -> list[Clip]:
        """Moving clips of one split, sorted by name."""
        return self._sorted(name, still=False)

    def stills(self, name: str) -> list[Clip]:
        """Stills of one split, sorted by name."""
        return self._sorted(name, still=True)

    def _sorted(self, split: str, still: bool) -> list[Clip]:
        chosen = (c for c in self.clips if c.split == split and c.still == still)
        return sorted(chosen, key=lambda c: c.name)

    def people(self, split: str) -> dict[str, list[Clip]]:
        """The moving clips of one split by person; within a person sorted by name."""
        people: dict[str, list[Clip]] = {}
        for clip in self.split(split):
            people.setdefault(clip.person, []).append(clip)
        return people

    def crops(self, clip: Clip) -> np.ndarray:
        """(T, S, S, 3) uint8 RGB, read lazily from disk; S is STORED_MARGIN times the model's
        crop."""
        root = self._root_of[clip.name]
        if has_shards(root):
            return read_array(root, clip.name, CROPS)
        return np.load(root / "crops" / f"{clip.name}.npy", mmap_mode="r")

    def track(self, clip: Clip) -> dict[str, np.ndarray]:
        """``transform`` (T, 2, 3), ``mesh`` (T, 468, 2) in frame pixels, ``time_s`` (T,), ``audio``
        (S,) 16 kHz, empty for a still."""
        return read_track(self._root_of[clip.name], clip.name)


@cache
def open_footage(roots: tuple[Path, ...]) -> Footage:
    """For a worker, whose jobs all read the same footage: the index is read once."""
    return Footage(*roots)


def read_track(root: Path, name: str) -> dict[str, np.ndarray]:
    """The track of one clip of a folder; see :meth:`Footage.track`."""
    if has_shards(root):
        return read_track_of(root, name)
    with np.load(root / "track" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def read_index(root: Path) -> list[Clip]:
    """The clips of one folder; none if it has no index yet."""
    if has_shards(root):
        entries = (placed.entry for placed in read_shards(root).values())
        return [Clip(e.name, e.person, e.split, e.frames) for e in entries]
    index = root / "index.json"
    if not index.is_file():
        return []
    return [Clip(**row) for row in json.loads(index.read_text())["clips"]]


def write_index(root: Path, clips: Iterable[Clip]) -> None:
    """List a folder's clips, sorted by name."""
    rows = sorted((asdict(clip) for clip in clips), key=lambda row: row["name"])
    write_json(root / "index.json", {"clips": rows})


def make_folders(root: Path) -> None:
    """Make the folders in which clips are saved, and remove what an interrupted run has left."""
    for name in ("crops", "track"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for partial in (root / name).glob(f"*{_PARTIAL}"):
            partial.unlink()


def save_clip(root: Path, name: str, crops: np.ndarray, track: Mapping[str, Any]) -> None:
    """Write a clip's crops and track, as :class:`Footage` returns them; no half-written file has a
    final name."""
    for path in (root / "crops" / f"{name}.npy", root / "track" / f"{name}.npz"):
        partial = path.with_name(path.name + _PARTIAL)
        with partial.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, crops)
            else:
                np.savez(file, **track)
        partial.replace(path)


def write_json(path: Path, value: object) -> None:
    """Write a whole file or, if interrupted, none."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
