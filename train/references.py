"""Which frame a sample of the denoiser is shown as its reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from dithead.train.distributed import is_main
from dithead.train.latents import Run
from dithead.train.settings import DiTTraining
from dithead.train.shards.store import part_and_number

log = logging.getLogger(__name__)


class References:
    """Draws references: frames of the same person with the same look.

    Args:
        runs: those of the cache.
        training: says how often references come from another clip, and how far away they are. Where
            they never do (``other_clip_share`` 0, the paper's rule), a warning says how many clips
            are too short for that distance.
    """

    def __init__(self, runs: Sequence[Run], training: DiTTraining) -> None:
        self.training = training
        self.alike: dict[tuple[int, int], list[Run]] = {}
        for run in runs:
            self.alike.setdefault((run.group, run.look), []).append(run)
        frames = {run.clip: run.frames for run in runs}
        self.starts = _starts(frames)
        enough = 2 * training.min_distance
        short = sum(count < enough for count in frames.values())
        if short and training.other_clip_share == 0 and is_main():
            log.warning(
                "%d of %d clips have fewer than %d frames: there, frames near the middle have no "
                "reference %d frames away, and take the most distant one",
                short,
                len(frames),
                enough,
                training.min_distance,
            )

    def draw(self, run: Run, frame: int, random: np.random.Generator) -> int:
        """The row of a frame of another clip, otherwise of a distant one of the same clip."""
        part, _ = self.starts[run.clip]
        alike = [
            other
            for other in self.alike[run.group, run.look]
            if other.clip != run.clip
            # Only of the same video's it has to be asked: there may be a thousand others.
            and (
                part is None
                or self.starts[other.clip][0] != part
                or self._distant(run, frame, other)
            )
        ]
        if alike and random.random() < self.training.other_clip_share:
            other = alike[random.integers(len(alike))]
            distant = self._distant(run, frame, other)
            return other.first + distant[int(random.integers(len(distant)))]
        distance = min(self.training.min_distance, max(frame, run.frames - 1 - frame))
        far = [f for f in range(run.frames) if abs(f - frame) >= distance]
        return run.first + far[random.integers(len(far))]

    def _distant(self, run: Run, frame: int, other: Run) -> range:
        """The frames of another clip that may be references: all, unless both were cut from one
        video."""
        frames, least = range(other.frames), self.training.min_distance
        (part, start), (other_part, other_start) = self.starts[run.clip], self.starts[other.clip]
        if part is None or part != other_part:
            return frames
        here = start + frame - other_start  # counted from the other's first frame
        if other_start > start:
            return frames[max(0, here + least) :]
        return frames[: max(0, here - least + 1)]


def _starts(frames: dict[str, int]) -> dict[str, tuple[str | None, int]]:
    """Where clips were cut from one video: clip -> part of the video (None for a clip that is no
    sample of a shard), and the clip's first frame in it.

    What was left out between two samples counts as no frames, so they are at least as far apart.

    Args:
        frames: their number, by clip.
    """
    starts: dict[str, tuple[str | None, int]] = dict.fromkeys(frames, (None, 0))
    samples: dict[str, list[tuple[int, str]]] = {}
    for clip in frames:
        if (place := part_and_number(clip)) is not None:
            samples.setdefault(place[0], []).append((place[1], clip))
    for part, numbered in samples.items():
        first = 0
        for _, clip in sorted(numbered):
            starts[clip] = part, first
            first += frames[clip]
    return starts
