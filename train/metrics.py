"""Measures of finished frames: the mouth's box in a picture, and its opening over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import MediaError
from dithead.train.perceptual import MIN_SIDE_PX

MOUTH_POINTS = (78, 308, 0, 17)
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels."""
TREND_FRAMES = 11
MOST_LAG = 4
"""Sound and picture of a recording may be out of step by up to this many frames at 25 a second."""
PERCEPTUAL_MAX_PX = 160
"""A longer mouth box is shrunk before ST-LPIPS, whose cost grows with the area."""


def opening(meshes: np.ndarray) -> np.ndarray:
    """Mouth opening (T,) of meshes (T, 468, 2)."""

    def distance(a: int, b: int) -> np.ndarray:
        return np.linalg.norm(meshes[:, a] - meshes[:, b], axis=1)

    lips = (distance(13, 14) + distance(82, 87) + distance(312, 317)) / 3
    return lips / distance(10, 152)


def without_trend(series: np.ndarray, width: int = TREND_FRAMES) -> np.ndarray:
    """A series (T,), at least as long as the average, minus its moving average; at the ends the
    average covers what there is."""
    kernel = np.ones(width)
    total = np.convolve(series, kernel, "same")
    return series - total / np.convolve(np.ones(len(series)), kernel, "same")


def fine_correlation(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Correlation of the series without their trends, over all pairs together."""
    a = np.concatenate([without_trend(x[: min(len(x), len(y))]) for x, y in pairs])
    b = np.concatenate([without_trend(y[: min(len(x), len(y))]) for x, y in pairs])
    return float(np.corrcoef(a, b)[0, 1])


def best_lag(pairs: list[tuple[np.ndarray, np.ndarray]], most: int = MOST_LAG) -> tuple[int, float]:
    """By how many values, up to ``most`` in either direction, the second series of all pairs is
    later than the first where their correlation without trends is highest; and that correlation."""
    most = max(0, min([most, *(min(len(a), len(b)) - TREND_FRAMES for a, b in pairs)]))
    scores = {
        lag: fine_correlation([lagged(*pair, lag) for pair in pairs])
        for lag in range(-most, most + 1)
    }
    lag = max(scores, key=lambda at: (np.nan_to_num(scores[at], nan=-1.0), -abs(at)))
    return lag, scores[lag]


def lagged(a: np.ndarray, b: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The overlapping parts of two series when the second is later by so many values."""
    length = min(len(a), len(b)) - abs(lag)
    first, second = max(0, -lag), max(0, lag)
    return a[first : first + length], b[second : second + length]


def mouth_box(mesh: np.ndarray, width: int, height: int) -> Box:
    """The mouth's box of a mesh (468, 2) in a frame of the given size."""
    return _box(mesh[list(MOUTH_POINTS)], 12 * width / 360, width, height)


def face_box(mesh: np.ndarray, width: int, height: int) -> Box:
    """The box of all of a mesh (468, 2), and a tenth of it on each side."""
    return _box(mesh, 0.1 * (mesh.max(0) - mesh.min(0)), width, height)


def _box(points: np.ndarray, margin: Any, width: int, height: int) -> Box:
    low, high = np.floor(points.min(0) - margin), np.ceil(points.max(0) + margin)
    return (
        max(0, int(low[0])),
        max(0, int(low[1])),
        min(width, int(high[0])),
        min(height, int(high[1])),
    )


def box_picture(
    frame: Tensor, mesh: np.ndarray, box: Callable[[np.ndarray, int, int], Box] = mouth_box
) -> Tensor:
    """The mouth's box of a frame (H, W, 3) uint8, or another: (1, 3, h, w) in [0, 1].

    Raises:
        MediaError: it is less than 11 pixels wide or high, too few for SSIM.
    """
    left, top, right, bottom = box(mesh, frame.shape[1], frame.shape[0])
    if min(right - left, bottom - top) < 11:
        raise MediaError("the mouth box is less than 11 pixels wide or high: SSIM needs more")
    return frame[top:bottom, left:right].permute(2, 0, 1)[None].float() / 255


def box_scores(
    true: Tensor,
    made: Tensor,
    mesh: np.ndarray,
    metric: Any = None,
    box: Callable[[np.ndarray, int, int], Box] = mouth_box,
) -> dict[str, float]:
    """PSNR (dB), SSIM and, with a metric, ST-LPIPS of a finished frame in the true frame's mouth
    box, or another."""
    a, b = box_picture(true, mesh, box), box_picture(made, mesh, box)
    scores = {
        "psnr_db": float(-10 * torch.log10((a - b).square().mean().clamp(min=1e-10))),
        "ssim": ssim(a, b),
    }
    if metric is not None:
        size = _perceptual_size(a.shape[2], a.shape[3])
        a, b = (F.interpolate(x, size, mode="bilinear", antialias=True) for x in (a, b))
        scores["st_lpips"] = float(metric(a * 2 - 1, b * 2 - 1).mean())
    return scores


def mean_box_scores(
    true: Sequence[Tensor],
    made: Sequence[Tensor],
    meshes: np.ndarray,
    metric: Any = None,
    box: Callable[[np.ndarray, int, int], Box] = mouth_box,
) -> dict[str, float]:
    """Means over a clip's frames of :func:`box_scores`, with the true frames' meshes
    (T, 468, 2)."""
    rows = [
        box_scores(frame, finished, mesh, metric, box)
        for frame, finished, mesh in zip(true, made, meshes, strict=True)
    ]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _perceptual_size(height: int, width: int) -> tuple[int, int]:
    """The size in which ST-LPIPS sees a picture: its own, if within the limits."""
    scale = min(1.0, PERCEPTUAL_MAX_PX / max(height, width))
    scale = max(scale, MIN_SIDE_PX / min(height, width))
    return max(MIN_SIDE_PX, round(height * scale)), max(MIN_SIDE_PX, round(width * scale))


def laplacian_variance(frame: Tensor, mesh: np.ndarray) -> float:
    """Sharpness of a frame in a mesh's mouth box: variance of the Laplacian of its luma, in levels
    of 255 (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000)."""
    luma = 255 * _luma(box_picture(frame, mesh))
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return float(F.conv2d(luma, kernel[None, None]).var(unbiased=False))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity (Wang et al., 2004; 11 x 11 Gaussian of sigma 1.5) of (1, 3, H, W) in
    [0, 1], on luma."""
    x, y = _luma(a), _luma(b)
    line = torch.arange(-5, 6, dtype=torch.float32)
    bell = torch.exp(-line.square() / (2 * 1.5**2))
    kernel = (bell[:, None] * bell / bell.sum() ** 2)[None, None]

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z, kernel)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value.mean())


def _luma(picture: Tensor) -> Tensor:
    """(B, 3, H, W) RGB -> (B, 1, H, W), by ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (picture * weights).sum(1, keepdim=True)


def box_difference(a: Tensor, b: Tensor, mesh: np.ndarray) -> tuple[float, float]:
    """Mean and largest difference in levels of 255 of two frames (H, W, 3) in a mesh's mouth
    box."""
    left, top, right, bottom = mouth_box(mesh, a.shape[1], a.shape[0])
    rows, columns = slice(top, bottom), slice(left, right)
    difference = (a[rows, columns].int() - b[rows, columns].int()).abs().float()
    return float(difference.mean()), float(difference.max())
