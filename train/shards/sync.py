"""Whether lips and sound of a stretch belong together, by a simple measure of ours: no trained
model, and none of SyncNet's figures.

The mouth's opening and the square root of the sound's loudness rise and fall together with the
syllables. Both lose their slow trends, and are compared at lags of up to :data:`MOST_LAG` frames at
25 a second; the lag with the highest correlation is taken. ``docs/data.md`` says how often that is
right; in 3 s it knows little. It cannot tell one word from another of the same rhythm, is weak on
monotonous speech, on laughing and chewing, and takes loud music or a second voice for speech that
does not fit.
"""

from __future__ import annotations

import numpy as np

from dithead.train.evaluation.sound import loudness
from dithead.train.metrics import TREND_FRAMES, best_lag, opening
from dithead.train.shards.rules import Match

RATE_HZ = 25
MOST_LAG = 10
SILENT = 0.006
"""Sound of which less than a twentieth has a loudness above this (full scale is 1) is silent."""


def matched(mesh: np.ndarray, time_s: np.ndarray, sound: np.ndarray, min_s: float) -> Match | None:
    """Compare lips and sound.

    Args:
        mesh: (T, 468, 2) in pixels. time_s: (T,). sound: (S,) float32 at 16 kHz, from time 0.
        min_s: nothing is said of shorter stretches: None.
    """
    length_s = float(time_s[-1] - time_s[0])
    even = time_s[0] + np.arange(int(length_s * RATE_HZ) + 1) / RATE_HZ
    if length_s < min_s or len(even) < 2 * TREND_FRAMES:
        return None
    lips = np.interp(even, time_s, opening(mesh))
    level = loudness(sound, even)
    if np.percentile(level, 95) < SILENT or np.ptp(lips) == 0:
        return Match(0.0, None)
    with np.errstate(invalid="ignore"):  # at a lag at which one of them does not change
        lag, correlation = best_lag([(np.sqrt(level), lips)], MOST_LAG)
    value = None if np.isnan(correlation) else round(correlation, 4)
    return Match(1000 * lag / RATE_HZ, value)
