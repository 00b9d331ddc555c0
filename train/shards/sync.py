"""Whether lips and sound of a stretch belong together, by the sync model of ours
(``dithead.train.sync``); none of SyncNet's figures. ``docs/data.md`` says how often it is right.

It was trained on few people, reads short commands in English, and takes loud music or a second
voice for speech that does not fit.
"""

from __future__ import annotations

import numpy as np

from dithead.errors import MediaError
from dithead.train.shards.rules import Match
from dithead.train.sync.score import SHORTEST_S, packaged_scorer


def matched(mesh: np.ndarray, time_s: np.ndarray, sound: np.ndarray, min_s: float) -> Match | None:
    """Compare lips and sound.

    Args:
        mesh: (T, 468, 2) in pixels. time_s: (T,). sound: (S,) float32 at 16 kHz, from time 0.
        min_s: nothing is said of shorter stretches, nor of those that are too short for the model:
            None.
    """
    if float(time_s[-1] - time_s[0]) < max(min_s, SHORTEST_S + 1e-6):
        return None
    try:
        found = packaged_scorer().score(mesh, time_s, sound)
    except MediaError:  # silence, hardly any speech, or a mouth that does not move
        return Match(0.0, None)
    return Match(found.lag_ms, round(found.confidence, 4), round(found.distance, 4))
