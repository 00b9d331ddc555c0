"""Runs that need a longer clip than there is: one clip looped, for feedback and for precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.options import Options
from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation.clips import Clip
from dithead.train.evaluation.models import revoiced
from dithead.train.metrics import box_difference, box_scores

FEEDBACK_S = 60.0
PRECISION_S = 10.0


def looped(clip: Clip, seconds: float) -> tuple[Clip, float]:
    """A clip repeated to at least a given length, with times from 0 and its audio; its length in
    seconds."""
    count, start = len(clip.frames), clip.times_s[0]
    length = (clip.times_s[-1] - start) * count / (count - 1)
    rounds = int(np.ceil(seconds / length))
    audio = np.zeros(round(length * SPEECH_RATE_HZ), np.float32)
    sound = clip.samples[round(start * SPEECH_RATE_HZ) :][: len(audio)]
    audio[: len(sound)] = sound
    times = [turn * length + t - start for turn in range(rounds) for t in clip.times_s]
    meshes = np.tile(clip.meshes, (rounds, 1, 1))
    frames = list(clip.frames) * rounds
    return Clip(clip.name, frames, times, np.tile(audio, rounds), meshes), rounds * length


def feedback(clip: Clip, make: Callable[..., list[Tensor]]) -> dict[str, Any]:
    """60 s of a clip looped: PSNR in the mouth box in the first and the last five seconds."""
    clip, length = looped(clip, FEEDBACK_S)
    made = make(clip.samples, zip(clip.frames, clip.times_s, strict=True))
    psnr = np.array(
        [
            box_scores(true, frame, mesh)["psnr_db"]
            for true, frame, mesh in zip(clip.frames, made, clip.meshes, strict=True)
        ]
    )
    since = np.array(clip.times_s)
    first, last = psnr[since < 5.0], psnr[since >= length - 5.0]
    return {"first_5s_db": float(first.mean()), "last_5s_db": float(last.mean())}


def compare_precision(
    clip: Clip,
    models: TorchGraphs,
    reduced: TorchGraphs,
    options: Options,
    seconds: float = PRECISION_S,
) -> dict[str, Any]:
    """A length of a clip, looped, in float32 and in a reduced precision: the difference in the
    mouth box, and how much further the latter is from the true frames."""
    clip, _ = looped(clip, seconds)
    full, made = (
        revoiced(
            zip(clip.frames, clip.times_s, strict=True),
            torch.from_numpy(clip.samples),
            graphs,
            options,
        )
        for graphs in (models, reduced)
    )
    differences, psnr = [], []
    for true, a, b, mesh in zip(clip.frames, full, made, clip.meshes, strict=True):
        differences.append(box_difference(a, b, mesh))
        psnr.append([box_scores(true, frame, mesh)["psnr_db"] for frame in (a, b)])
    mean, largest = np.array(differences).T
    full_db, reduced_db = np.array(psnr).mean(0)
    return {
        "frames": len(clip.frames),
        "worst_frame_mean_levels": float(mean.max()),
        "largest_levels": float(largest.max()),
        "fp32_db": float(full_db),
        "reduced_db": float(reduced_db),
        "largest_loss_db": float(np.subtract(*np.array(psnr).T).max()),
    }
