"""The four measures of THEval that need only the mesh network.

Paper: Quignon, Chopin, Wang and Dantcheva, "THEval. Evaluation Framework for Talking Head Video
Generation", arXiv 2511.04520; the details are those of the authors' repository, Newbyl/THEval.
Theirs finds speech with a trained detector; here silence is found by loudness
(:mod:`dithead.train.evaluation.sound`), so values can be compared within this project, not with the
paper's table. Neither higher nor lower is better: the aim is true footage's own value.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from dithead.train.evaluation.motion import LIPS

_UPPER_LIP = (191, 80, 81, 82, 13, 312, 311, 310)
_LOWER_LIP = (95, 88, 178, 87, 14, 317, 402, 318)
_EYES = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)
_BROWS = (
    (46, 53, 52, 65, 55, 70, 63, 105, 66, 107),
    (276, 283, 282, 295, 285, 300, 293, 334, 296, 336),
)
_EYE_CORNERS = (33, 263)
MIN_SPEECH_SHARE = 0.1


def lip_dynamics(meshes: np.ndarray) -> float:
    """How much the lips' shape varies: a thousand times the variance over time of the distance
    between two lip points, in distances of the outer eye corners, mean over all pairs of points.

    meshes: (T, 468, 2).
    """
    first, second = np.array(list(combinations(LIPS, 2))).T
    distances = np.linalg.norm(meshes[:, first] - meshes[:, second], axis=2)  # (T, pairs)
    return 1000 * float((distances / _eye_distance(meshes)[:, None]).var(0).mean())


def eyebrow_dynamics(meshes: np.ndarray) -> float:
    """How much the brows move: mean change from frame to frame of the distance between the middle
    of a brow and of its eye, in distances of the eyes' middles; meshes (T, 468, 2)."""
    eyes = [meshes[:, list(eye)].mean(1) for eye in _EYES]  # (T, 2) each
    brows = [meshes[:, list(brow)].mean(1) for brow in _BROWS]
    scale = np.linalg.norm(eyes[0] - eyes[1], axis=1)  # (T,)
    heights = [
        np.linalg.norm(brow - eye, axis=1) / scale for brow, eye in zip(brows, eyes, strict=True)
    ]
    return float(np.abs(np.diff(heights, axis=1)).mean())


def silent_lip_stability(meshes: np.ndarray, silent: np.ndarray) -> float | None:
    """How much the lips move in silence: median distance of the opening from its mean.

    Args:
        meshes: (T, 468, 2). silent: (T,) bool, from :func:`silent_stretches`.

    Returns:
        In distances of the outer eye corners; None where fewer than two frames are silent.
    """
    if silent.sum() < 2:
        return None
    gaps = meshes[:, list(_UPPER_LIP), 1] - meshes[:, list(_LOWER_LIP), 1]  # (T, 8)
    opening = (np.abs(gaps).mean(1) / _eye_distance(meshes))[silent]
    return float(np.median(np.abs(opening - opening.mean())))


def lip_sync(meshes: np.ndarray, loudness: np.ndarray, silent: np.ndarray) -> float | None:
    """How far the opening is from the loudness in speech, both scaled to [0, 1]: mean difference.

    Args:
        meshes: (T, 468, 2). loudness, silent: (T,), of the sound that is spoken.

    Returns:
        None where less than a tenth of the frames is speech.
    """
    spoken = ~silent
    if spoken.sum() < max(2, MIN_SPEECH_SHARE * len(spoken)):
        return None
    upper = meshes[:, list(_UPPER_LIP), 1].mean(1)
    lower = meshes[:, list(_LOWER_LIP), 1].mean(1)
    across = np.abs(
        meshes[:, [362, 263], 0].mean(1) - meshes[:, [33, 133], 0].mean(1)
    )  # (T,) between the eyes
    opening = np.abs(upper - lower) / np.maximum(across, 1e-9)
    return float(np.abs(_scaled(opening[spoken]) - _scaled(loudness[spoken])).mean())


def _scaled(series: np.ndarray) -> np.ndarray:
    return (series - series.min()) / (np.ptp(series) + 1e-8)


def _eye_distance(meshes: np.ndarray) -> np.ndarray:
    left, right = _EYE_CORNERS
    return np.maximum(np.linalg.norm(meshes[:, left] - meshes[:, right], axis=1), 1e-9)
