"""The whole face of a clip, as the paper's table needs it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dithead.train.evaluation.clips import Clip
from dithead.train.evaluation.frechet import Moments, frechet_distance
from dithead.train.evaluation.inception import FEATURES, Inception
from dithead.train.evaluation.lse import lip_sync
from dithead.train.evaluation.syncnet import SyncNet, load_syncnet
from dithead.train.metrics import box_picture, face_box, mean_box_scores


@cache
def _syncnet(weights: Path) -> SyncNet:
    return load_syncnet(weights)


def whole_face(
    clip: Clip, made: list[Tensor], metric: Any = None, syncnet: Path | None = None
) -> dict[str, float | None]:
    """PSNR, SSIM and, with a metric, ST-LPIPS of a clip's finished frames in the face's box; with
    SyncNet's weights, LSE-C and LSE-D of them and the clip's own sound, None if the clip is too
    short."""
    scores: dict[str, float | None] = {}
    scores |= mean_box_scores(clip.frames, made, clip.meshes, metric, face_box)
    if syncnet is not None:
        network = _syncnet(syncnet)
        sync = lip_sync(made, clip.times_s, clip.meshes, clip.samples, network)
        scores["lse_c"] = None if sync is None else sync.confidence
        scores["lse_d"] = None if sync is None else sync.distance
    return scores


def keep_features(clip: Clip, made: list[Tensor], network: Inception, file: Path) -> None:
    """Write what FID compares, of a clip's true and of its finished frames, in the true face's
    box: (T, 2048) float32 each, smaller than a covariance for as long as T is below 4096."""
    true, finished = (
        network.features(
            box_picture(frame, mesh, face_box)
            for frame, mesh in zip(frames, clip.meshes, strict=True)
        )
        for frames in (clip.frames, made)
    )
    np.savez(file, true=true, made=finished)


def pooled_fid(files: Iterable[Path]) -> dict[str, float]:
    """FID between all true and all finished frames of the clips in these files, and the number of
    frames on either side. One file is in memory at a time."""
    true, made = Moments(FEATURES), Moments(FEATURES)
    for file in files:
        with np.load(file) as kept:
            true.add(kept["true"])
            made.add(kept["made"])
    return {"fid": frechet_distance(true, made), "fid_frames": true.count}
