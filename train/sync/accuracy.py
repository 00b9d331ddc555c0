"""How often the sync model is right, beside a measure that needs no training: on the same pieces of
recordings, ``python -m dithead.train.sync.accuracy --data FOLDER``.

The other measure correlates the opening of the mouth with the square root of the sound's loudness,
both without slow trends, at the best lag. Each may reject a piece for its lag, or for a score below
a limit. The model's limit is set where it keeps as many true pieces as the correlation does, and
then the rejected pieces are counted whose sound is shifted, or another clip's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dithead.errors import ConfigError, DitheadError, MediaError
from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.train.data import Footage
from dithead.train.evaluation.motion import RATE_HZ
from dithead.train.evaluation.sound import loudness, silent_stretches
from dithead.train.metrics import best_lag, opening
from dithead.train.shards.rules import SyncRule
from dithead.train.sync.score import SHORTEST_S, SyncScorer
from dithead.train.sync.series import even_times

MAX_LAG_MS = SyncRule().max_lag_ms
LEAST_CORRELATION = 0.2
SHIFTS_MS = (-400, -200, 200, 400)
FOREIGN = 4
"""Other clips whose sound each piece is tried with."""
SPEECH_S = 1.5
"""A piece with less speech is no test."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a recording."""

    person: str
    clip: str
    mesh: np.ndarray
    """(T, 468, 2) in pixels."""
    times_s: np.ndarray
    """(T,), in the sound."""
    sound: np.ndarray
    """(S,) of the whole clip, 16 kHz."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a measure says of a piece."""

    lag_ms: float
    score: float

    def kept(self, limit: float) -> bool:
        """Whether it counts as in step."""
        return abs(self.lag_ms) <= MAX_LAG_MS and self.score >= limit


Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], Verdict | None]
"""Takes meshes, their times and the sound; None if nothing can be said, which keeps nothing."""


def correlation(mesh: np.ndarray, times_s: np.ndarray, sound: np.ndarray) -> Verdict | None:
    """The measure without training; see above."""
    even = even_times(times_s)
    lips = np.interp(even, times_s, opening(mesh))
    with np.errstate(invalid="ignore"):  # at a lag at which one of them does not change
        lag, value = best_lag([(np.sqrt(loudness(sound, even)), lips)], 10)
    return None if np.isnan(value) else Verdict(1000 * lag / RATE_HZ, value)


def by_model(scorer: SyncScorer) -> Measure:
    """The sync model's confidence."""

    def measure(mesh: np.ndarray, times_s: np.ndarray, sound: np.ndarray) -> Verdict | None:
        try:
            found = scorer.score(mesh, times_s, sound)
        except MediaError:
            return None
        return Verdict(found.lag_ms, found.confidence)

    return measure


def pieces_of(footage: Footage, people: Sequence[str], seconds: float) -> list[Piece]:
    """Pieces of equal length, one after the other and the last up to the clip's end, with enough
    speech."""
    found = []
    for clip in footage.clips:
        if clip.still or (people and clip.person not in people):
            continue
        track = footage.track(clip)
        times, sound = track["time_s"], track["audio"].astype(np.float32)
        frames = round(seconds / np.median(np.diff(times)))
        spoken = ~silent_stretches(sound, times)
        starts = [*range(0, len(times) - frames + 1, frames)]
        if starts and len(times) - frames - starts[-1] >= frames / 2:
            starts.append(len(times) - frames)
        for start in starts:
            at = slice(start, start + frames)
            if spoken[at].mean() * seconds >= SPEECH_S:
                found.append(Piece(clip.person, clip.name, track["mesh"][at], times[at], sound))
    return found


def moved_by(sound: np.ndarray, by_ms: float) -> np.ndarray:
    """Sound that is so much later; what leaves at one end comes in again at the other."""
    return np.roll(sound, round(by_ms * SPEECH_RATE_HZ / 1000))


@dataclass(frozen=True, slots=True)
class Tried:
    """A measure's verdicts on pieces."""

    people: list[str]
    true: list[Verdict | None]
    shifted: list[list[Verdict | None]]
    foreign: list[list[Verdict | None]]

    def share(self, given: Sequence[Sequence[Verdict | None]], limit: float) -> float:
        """Mean over people of the share that is kept."""
        kept: dict[str, list[bool]] = {}
        for person, verdicts in zip(self.people, given, strict=True):
            kept.setdefault(person, []).extend(v is not None and v.kept(limit) for v in verdicts)
        return float(np.mean([np.mean(rows) for rows in kept.values()]))

    def kept(self, limit: float) -> float:
        """Of the true pieces."""
        return self.share([[verdict] for verdict in self.true], limit)

    def limit_that_keeps(self, share: float) -> float:
        """The highest limit at which at least so many true pieces are kept; minus infinity if there
        is none."""
        scores = sorted((v.score for v in self.true if v is not None), reverse=True)
        return next((s for s in scores if self.kept(s) >= share - 1e-9), -np.inf)

    def lags_found(self) -> dict[str, float]:
        """By person, of the true pieces: the share whose lag is found within one frame of 0."""
        found: dict[str, list[bool]] = {}
        for person, verdict in zip(self.people, self.true, strict=True):
            right = verdict is not None and abs(verdict.lag_ms) <= 1000 / RATE_HZ + 1e-6
            found.setdefault(person, []).append(right)
        return {person: round(float(np.mean(rows)), 3) for person, rows in sorted(found.items())}

    def row(self, limit: float) -> dict[str, float]:
        """Its figures, each the mean over people."""
        values = {
            "limit": limit,
            "lag_found": float(np.mean(list(self.lags_found().values()))),
            "true_kept": self.kept(limit),
            "shifted_rejected": 1 - self.share(self.shifted, limit),
            "foreign_rejected": 1 - self.share(self.foreign, limit),
        }
        return {name: round(value, 3) for name, value in values.items()}


def try_measure(measure: Measure, pieces: Sequence[Piece], seed: int = 0) -> Tried:
    """Have a measure judge pieces with their own sound, with it shifted, and with that of others;
    the same ones for the same seed."""
    random = np.random.default_rng(seed)
    tried = Tried([piece.person for piece in pieces], [], [], [])
    for piece in pieces:
        tried.true.append(measure(piece.mesh, piece.times_s, piece.sound))
        moved = [moved_by(piece.sound, by) for by in SHIFTS_MS]
        tried.shifted.append([measure(piece.mesh, piece.times_s, sound) for sound in moved])
        others = [other for other in pieces if other.clip != piece.clip]
        chosen = random.choice(len(others), min(FOREIGN, len(others)), replace=False)
        tried.foreign.append([])
        for index in chosen:
            other = others[index]
            times = piece.times_s - piece.times_s[0] + other.times_s[0]
            tried.foreign[-1].append(measure(piece.mesh, times, other.sound))
    return tried


def compare(
    footage: Footage, scorer: SyncScorer, people: Sequence[str], seconds: float
) -> dict[str, object]:
    """Both measures on the same pieces.

    Raises:
        ConfigError: the model cannot judge pieces that short, or nobody has one of the names.
        MediaError: there are fewer than two clips with such pieces.
    """
    if seconds < SHORTEST_S:
        raise ConfigError(f"the model judges pieces of {SHORTEST_S:g} s or more, not {seconds:g} s")
    known = {clip.person for clip in footage.clips}
    if unknown := sorted({*people} - known):
        raise ConfigError(f"nobody is called {unknown[0]!r}: there are {', '.join(sorted(known))}")
    pieces = pieces_of(footage, people, seconds)
    if len({piece.clip for piece in pieces}) < 2:
        raise MediaError(f"fewer than two clips have a piece of {seconds:g} s with speech")
    plain = try_measure(correlation, pieces)
    ours = try_measure(by_model(scorer), pieces)
    fixed = plain.row(LEAST_CORRELATION)
    return {
        "seconds": seconds,
        "pieces": len(pieces),
        "people": len(set(plain.people)),
        "correlation": fixed,
        "model": ours.row(ours.limit_that_keeps(fixed["true_kept"])),
        "model_by_limit": {f"{limit:.2f}": ours.row(limit) for limit in (0.05, 0.1, 0.15, 0.2)},
        "lag_found_by_person": {"correlation": plain.lags_found(), "model": ours.lags_found()},
        "median_lag_ms_by_person": _median_lags(ours),
    }


def _median_lags(tried: Tried) -> dict[str, float]:
    lags: dict[str, list[float]] = {}
    for person, verdict in zip(tried.people, tried.true, strict=True):
        if verdict is not None:
            lags.setdefault(person, []).append(verdict.lag_ms)
    return {person: float(np.median(values)) for person, values in sorted(lags.items())}


def main(arguments: list[str] | None = None) -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepare")
    parser.add_argument("--people", nargs="+", default=[], help="only these, by name")
    parser.add_argument("--weights", type=Path, help="a sync model (default: the packaged one)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[3.0, 6.0, 8.0])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        footage, scorer = Footage(*options.data), SyncScorer.load(options.weights)
        for seconds in options.seconds:
            print(json.dumps(compare(footage, scorer, options.people, seconds), indent=1))
    except DitheadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
