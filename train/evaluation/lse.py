"""LSE-D and LSE-C: how well lips and sound agree, by the distance of SyncNet's embeddings.

Paper: Prajwal et al., "A Lip Sync Expert Is All You Need for Speech to Lip Generation In the Wild",
2020, section 4.2, with the steps of its evaluation and of SyncNet's published code. What differs is
said in docs/evaluation.md: above all, faces are cut by the box of the mesh, in the place of S3FD's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.train.evaluation.mfcc import mfcc
from dithead.train.evaluation.motion import RATE_HZ, grid
from dithead.train.evaluation.syncnet import FACE_PX, FRAMES, STEPS, SyncNet

MOST_OFFSET = 15
"""Frames by which the sound is shifted either way, 0.6 s."""
BATCH = 8
_SAMPLES = SPEECH_RATE_HZ // RATE_HZ
_COLUMNS = 100 // RATE_HZ  # of sound, a frame
_MARGIN = 0.4  # of half the box's longer side, on each side; below it twice
_SMOOTHED = 13  # frames
_GREY = 110  # beyond the frame's edge


@dataclass(frozen=True, slots=True)
class LipSync:
    """How lips and sound of a clip agree."""

    distance: float
    """LSE-D, at the best offset: low is good."""
    confidence: float
    """LSE-C, by how much the best offset is better than the median one: high is good."""
    lag_frames: int
    """By how many frames at 25 a second the sound is late at the best offset."""


@torch.inference_mode()
def lip_sync(
    frames: Sequence[Tensor],
    times_s: Sequence[float],
    meshes: np.ndarray,
    samples: np.ndarray,
    network: SyncNet,
) -> LipSync | None:
    """Measure a clip; None if it has less than six frames at 25 a second, or no sound for them.

    Only 25 frames a second are defined, so each 40 ms has the nearest frame in time.

    Args:
        frames: (H, W, 3) uint8 RGB each, at times from 0.
        meshes: (T, 468, 2), in the frames' pixels.
        samples: (S,) float32 in [-1, 1], 16 kHz mono.
    """
    chosen = nearest_frames(np.asarray(times_s))
    count = min(len(chosen), len(samples) // _SAMPLES) - FRAMES
    if count < 1:
        return None
    boxes = face_boxes(meshes[chosen])
    faces = torch.cat([cut_face(frames[i], box) for i, box in zip(chosen, boxes, strict=True)])
    levels = np.clip(np.round(samples * 32768.0), -32768, 32767)
    sound = torch.from_numpy(mfcc(levels).T.copy()).float()  # (13, columns)
    seen, heard = [], []
    for first in range(0, count, BATCH):
        starts = range(first, min(first + BATCH, count))
        pictures = [faces[i : i + FRAMES].transpose(0, 1) for i in starts]  # (3, 5, 224, 224)
        seen.append(network.embed_faces(torch.stack(pictures).float()))
        words = [sound[None, :, _COLUMNS * i : _COLUMNS * i + STEPS] for i in starts]
        heard.append(network.embed_sound(torch.stack(words)))
    return of_distances(mean_distances(torch.cat(seen), torch.cat(heard)))


def nearest_frames(times_s: np.ndarray) -> np.ndarray:
    """Which of the frames at these times is nearest to each 40 ms from 0 to the end."""
    return np.abs(times_s - grid(times_s[-1])[:, None]).argmin(1)


def face_boxes(meshes: np.ndarray) -> np.ndarray:
    """Centre and half the longer side (T, 3) of the meshes' boxes: medians over 13 frames, where
    the first and the last go on beyond the ends."""
    low, high = meshes.min(1), meshes.max(1)  # (T, 2)
    raw = np.column_stack([(low + high) / 2, (high - low).max(1) / 2])
    padded = np.pad(raw, ((_SMOOTHED // 2, _SMOOTHED // 2), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, 0), -1)


def cut_face(frame: Tensor, box: np.ndarray) -> Tensor:
    """A face of a frame (H, W, 3) uint8 RGB by its box (3,): (1, 3, 224, 224) uint8 BGR."""
    x, y, half = box.tolist()
    wide = half * (1 + 2 * _MARGIN)
    edge = int(wide)
    padded = F.pad(frame.permute(2, 0, 1).float(), (edge,) * 4, value=_GREY)[None]
    top, bottom = int(y + edge - half), int(y + edge + wide)
    left = int(x + edge - half * (1 + _MARGIN))
    right = int(x + edge + half * (1 + _MARGIN))
    face = padded[:, :, max(0, top) : bottom, max(0, left) : right]
    small = F.interpolate(face, (FACE_PX, FACE_PX), mode="bilinear", align_corners=False)
    return small.round().byte().flip(1)


def mean_distances(seen: Tensor, heard: Tensor) -> Tensor:
    """Mean distances (31,) of embeddings (N, 1024) of faces from those of the sound, which is
    earlier by 15 windows at first and later by 15 at last.

    Beyond its ends the sound's embeddings are zero, as in the published evaluation, whose figures
    depend on it.
    """
    padded = F.pad(heard, (0, 0, MOST_OFFSET, MOST_OFFSET))
    shifts = range(2 * MOST_OFFSET + 1)
    return torch.stack(
        [F.pairwise_distance(seen, padded[k : k + len(seen)]).mean() for k in shifts]
    )


def of_distances(distances: Tensor) -> LipSync:
    """The measures of mean distances (31,)."""
    best = int(distances.argmin())
    least = float(distances[best])
    return LipSync(least, float(distances.median()) - least, best - MOST_OFFSET)
