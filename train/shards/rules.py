"""Which frames and stretches are usable, and the limits of samples and shards."""

from __future__ import annotations

from dataclasses import dataclass

from dithead.errors import ConfigError

SHARD_BYTES = 1_000_000_000
"""A shard is full with the sample that brings it to so many."""
SAMPLE_S = 10.0
"""A longer stretch becomes several samples of equal length."""
HELD_OUT = 0.05
"""Share of the people whose samples are for validation."""
MOST_S = 30.0
"""A longer stretch is divided here, as all of it is in memory."""


@dataclass(frozen=True, slots=True)
class ShotRule:
    """Which frames are usable."""

    min_s: float = 1.0
    """Shorter stretches are left out."""
    min_side_px: float = 96.0
    """A crop unit, about twice the width of the face, has at least this many of the frame's
    pixels."""
    other_share: float = 0.25
    """Another face with at least this share of the person's area makes a frame unusable: either may
    be the one who speaks."""
    look_every: int = 5
    """The whole frame is searched for other faces once in so many frames."""

    def __post_init__(self) -> None:
        if not 0 < self.min_s <= MOST_S:
            raise ConfigError(f"the shortest stretch is above 0 and up to {MOST_S:g} s")
        if self.min_side_px < 0 or self.other_share < 0 or self.look_every < 1:
            raise ConfigError(
                "the smallest side and the share of another face are 0 or more, and other faces "
                "are looked for once in at least 1 frame"
            )


@dataclass(frozen=True, slots=True)
class Match:
    """How the sound of a stretch fits its lips."""

    lag_ms: float
    """By how much the lips are later than the sound, where they fit best."""
    confidence: float | None
    """How much better they fit there than at other lags
    (:class:`dithead.train.sync.score.SyncScore`); None for silence, or a mouth that does not
    move."""
    distance: float | None = None
    """There, likewise."""


@dataclass(frozen=True, slots=True)
class SyncRule:
    """What counts as in step."""

    min_confidence: float = 0.2
    """At the best lag."""
    max_lag_ms: float = 120.0
    """In either direction."""
    min_s: float = 2.0
    """Shorter stretches are kept unjudged."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 2:
            raise ConfigError(f"a confidence is from 0 to 2, not {self.min_confidence:g}")
        if self.max_lag_ms < 0 or self.min_s < 0:
            raise ConfigError("the largest lag and the shortest stretch to judge are 0 or more")

    def refusal(self, match: Match | None) -> str | None:
        """Why a stretch with this match is left out; None if it is kept."""
        if match is None:
            return None
        if match.confidence is None:
            return "silent"
        if match.confidence < self.min_confidence:
            return "sound does not fit"
        return "out of sync" if abs(match.lag_ms) > self.max_lag_ms else None
