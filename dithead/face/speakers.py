"""Who speaks when in a video of several people, given by times and places."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from dithead.errors import ConfigError
from dithead.face.search import Box

NOBODY: Box = (0.0, 0.0, 0.0, 0.0)
"""The box that stands for nobody speaking."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A time during which one person speaks."""

    start_s: float
    end_s: float
    box: Box
    """Where this person's face is."""


@dataclass(frozen=True, slots=True)
class Speakers:
    """Turns in order of time; none begins before the previous one has ended."""

    turns: tuple[Turn, ...]

    def __post_init__(self) -> None:
        end_s = -math.inf
        for turn in self.turns:
            left, top, right, bottom = turn.box
            if not (turn.start_s < turn.end_s and left < right and top < bottom):
                raise ConfigError(
                    f"a turn must end after it starts and its box must have an area: {turn}"
                )
            if turn.start_s < end_s:
                raise ConfigError(
                    f"the turn from {turn.start_s} s begins before the one before it ends, at "
                    f"{end_s} s: one person speaks at a time"
                )
            end_s = turn.end_s

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Speakers:
        """Read a text file with one line per turn: start and end in seconds, then left, top,
        right, bottom in pixels, separated by commas or blanks. ``#`` begins a comment.

        Raises:
            ConfigError: the file cannot be read, or a line has a different form.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        turns = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].replace(",", " ").split()
            if not words:
                continue
            try:
                start_s, end_s, *edges = map(float, words)
                left, top, right, bottom = edges
            except ValueError:
                raise ConfigError(
                    f"{path}, line {number}: expected start, end (seconds), left, top, right, "
                    f"bottom (pixels), found {line.strip()!r}"
                ) from None
            turns.append(Turn(start_s, end_s, (left, top, right, bottom)))
        if not turns:
            raise ConfigError(f"{path} names nobody who speaks")
        return cls(tuple(sorted(turns, key=lambda turn: turn.start_s)))

    def box_at(self, time_s: float) -> Box:
        """Box of the person who speaks at a time; NOBODY between turns."""
        at = bisect_right(self.turns, time_s, key=lambda turn: turn.start_s) - 1
        return self.turns[at].box if at >= 0 and time_s < self.turns[at].end_s else NOBODY
