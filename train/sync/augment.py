"""Changes that leave lips and sound in step: other faces, poses, voices, rooms and speeds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.train.sync.model import LIP_POINTS

_PAIRS: tuple[tuple[int, int], ...] = (
    *((61, 291), (185, 409), (40, 270), (39, 269), (37, 267), (146, 375), (91, 321), (181, 405)),
    *((84, 314), (78, 308), (191, 415), (80, 310), (81, 311), (82, 312), (95, 324), (88, 318)),
    *((178, 402), (87, 317)),
)
"""Mesh points of the lips that lie opposite each other; the others are in the middle."""
_OTHER_SIDE = {**dict(_PAIRS), **{b: a for a, b in _PAIRS}}

FASTEST = 0.22
"""Logarithm of the largest change of speed: speech is up to a quarter faster or slower."""
GAIN_DB = 8.0
NOISE_DB = (8.0, 35.0)
"""How far noise lies below the speech."""


def _mirrored_order() -> list[int]:
    places = {point: place for place, point in enumerate(LIP_POINTS)}
    # 175 and 199 lie in the middle of the chin, as 152 does.
    return [places[_OTHER_SIDE.get(point, point)] for point in LIP_POINTS]


MIRRORED = _mirrored_order()
"""The places of the points of a mirrored face."""


def changed_lips(lips: Tensor, random: np.random.Generator) -> Tensor:
    """Lips (T, points, 2) of another face that may be mirrored and turns a little, as a noisier
    mesh network would see them."""

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape)).float()

    def slow(size: float, every: int, values: int) -> Tensor:
        """(T, values) that change within so many frames."""
        knots = size * normal(1, values, max(2, len(lips) // every))
        return F.interpolate(knots, len(lips), mode="linear", align_corners=True)[0].T

    if random.random() < 0.5:
        lips = lips[:, MIRRORED] * torch.tensor([-1.0, 1.0])
    centred = lips - lips.mean((0, 1))
    turn = torch.eye(2) + 0.12 * normal(2, 2) + slow(0.03, 20, 4).unflatten(1, (2, 2))
    shake = slow(0.006, 15, 2) + 0.0015 * normal(len(lips), 2)
    return centred @ turn + shake[:, None] + 0.0012 * normal(*lips.shape)


def changed_sound(sound: np.ndarray, random: np.random.Generator) -> tuple[float, np.ndarray]:
    """Speech (S,) at another speed and pitch, with another level and timbre, in noise.

    Returns:
        How much faster it is, and the sound.
    """
    speed = float(np.exp(random.uniform(-FASTEST, FASTEST)))
    places = np.arange(0, len(sound) - 1, speed)
    heard = np.interp(places, np.arange(len(sound)), sound)
    level = np.sqrt(np.mean(heard**2)) * 10 ** (-random.uniform(*NOISE_DB) / 20)
    noise = random.standard_normal(len(heard))
    if random.random() < 0.5:
        noise = np.convolve(noise, np.ones(16) / 4, mode="same")  # as loud, and duller
    tilted = heard.copy()
    tilted[1:] -= random.uniform(-0.6, 0.6) * heard[:-1]
    gain = 10 ** (random.uniform(-GAIN_DB, GAIN_DB) / 20)
    return speed, (gain * (tilted + level * noise)).clip(-1, 1).astype(np.float32)
