"""Motion in the meshes of a clip: jumps of the face, and a mouth that moves or rests.

Series of one number a frame are compared on a common grid of 25 values a second, so that clips of
different frame rates can be crossed, and a window means the same time for all of them.
"""

from __future__ import annotations

import numpy as np

RATE_HZ = 25
MOVING = 0.004
"""A mouth moves where its opening (in heights of the face) changes by more than this in 0.2 s. On
true footage the median change is 0.0004 to 0.0015 in silence and 0.01 to 0.04 in speech."""
MOVING_FRAMES = 5

LIPS: tuple[int, ...] = (
    *(0, 13, 14, 17, 37, 39, 40, 61, 78, 80, 81, 82, 84, 87, 88, 91, 95, 146, 178, 181),
    *(185, 191, 267, 269, 270, 291, 308, 310, 311, 312, 314, 317, 318, 321, 324, 375, 402, 405),
    *(409, 415),
)
"""Mesh points of the lips, inner and outer edge."""


def grid(length_s: float) -> np.ndarray:
    """Times 25 times a second, from 0 to a length."""
    return np.arange(int(length_s * RATE_HZ + 1e-6) + 1) / RATE_HZ


def on_grid(series: np.ndarray, times_s: list[float], until_s: float | None = None) -> np.ndarray:
    """A series (T,) sampled 25 times a second from time 0 to its end, or to an earlier one."""
    end = times_s[-1] if until_s is None else min(until_s, times_s[-1])
    return np.interp(grid(end), times_s, series)


def moving(opening: np.ndarray) -> np.ndarray:
    """Where the mouth moves: opening (T,) at 25 values a second -> (T,) bool."""
    padded = np.pad(opening, MOVING_FRAMES // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, MOVING_FRAMES)
    return windows.max(1) - windows.min(1) > MOVING


def jitter(true: np.ndarray, made: np.ndarray) -> float:
    """How much the face outside the lips shakes: the mean length of the meshes' (T, 468, 2) second
    difference over time, generated over true. 1 is as steady as the footage."""
    outside = np.setdiff1d(np.arange(true.shape[1]), LIPS)

    def shake(meshes: np.ndarray) -> float:
        return float(np.linalg.norm(np.diff(meshes[:, outside], 2, axis=0), axis=2).mean())

    return shake(made) / max(shake(true), 1e-9)
