"""Prepared footage: the index, and the crops, tracks and audio on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dithead.errors import MediaError

STORED_MARGIN = 1.25
"""A stored crop is this much wider than the model's, so that augmentation can turn and shift it."""


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


class Footage:
    """A folder written by ``dithead-train prepare``."""

    def __init__(self, root: Path) -> None:
        index = root / "index.json"
        if not index.is_file():
            raise MediaError(f"{root} holds no prepared footage: run dithead-train prepare first")
        self.root = root
        self.clips = [Clip(**row) for row in json.loads(index.read_text())["clips"]]

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
        return np.load(self.root / "crops" / f"{clip.name}.npy", mmap_mode="r")

    def track(self, clip: Clip) -> dict[str, np.ndarray]:
        """``transform`` (T, 2, 3), ``mesh`` (T, 468, 2) in frame pixels, ``time_s`` (T,), ``audio``
        (S,) 16 kHz, empty for a still."""
        with np.load(self.root / "track" / f"{clip.name}.npz") as file:
            return {key: file[key] for key in file.files}


def write_json(path: Path, value: object) -> None:
    """Write a file whole or, if interrupted, not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.replace(path)
