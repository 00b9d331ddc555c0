"""How well lips and sound of a stretch fit, and by how much one is late: by the sync model of ours.

Distance and confidence are defined as SyncNet's are (Chung and Zisserman, 2016; LSE-D and LSE-C of
Prajwal et al., "A lip sync expert is all you need", 2020). The model is another, so the figures
are, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder, load_audio_encoder
from dithead.errors import MediaError
from dithead.train.evaluation.motion import RATE_HZ
from dithead.train.evaluation.sound import loudness, silent_stretches
from dithead.train.sync.model import (
    WINDOW_FRAMES,
    SyncModel,
    load_sync_model,
    normalised,
)
from dithead.train.sync.series import even_times, lip_series, sound_series

MOST_LAG = 15
"""Lags of up to so many frames at 25 a second are tried in either direction, as SyncNet's are."""
FEWEST_WINDOWS = 20
"""That a stretch of the least length has left at any lag, with speech or without."""
SHORTEST_S = (FEWEST_WINDOWS + WINDOW_FRAMES - 1 + MOST_LAG - 1) / RATE_HZ
"""The shortest stretch that can be judged: 1.84 s."""
FEWEST_SPOKEN = 8
"""Windows with speech that are needed."""
SILENT = 0.006
"""Sound of which less than a twentieth has a loudness above this (full scale is 1) is silent."""


@dataclass(frozen=True, slots=True)
class SyncScore:
    """How lips and sound of a stretch fit."""

    distance: float
    """Mean distance of their embeddings (0 to 2) at the best lag; lower is better."""
    confidence: float
    """The median over all lags, less that; higher is better."""
    lag_ms: float
    """The best lag: by how much the lips are later than the sound."""


@dataclass(frozen=True, slots=True)
class Heard:
    """The sound of a stretch as the model hears it."""

    even_s: np.ndarray
    """(N,) times at 25 a second."""
    features: Tensor
    """(N, features) of the speech encoder, for each of them."""
    spoken: np.ndarray
    """(N,) bool, whether there is speech."""


class SyncScorer:
    """The model and the speech encoder that it hears with."""

    def __init__(self, model: SyncModel, encoder: AudioEncoder) -> None:
        self.model, self.encoder = model, encoder

    @classmethod
    def load(cls, path: Path | None = None) -> SyncScorer:
        """The packaged model, or one from a file."""
        model = load_sync_model(path)
        return cls(model, load_audio_encoder(model.config.audio, None))

    def score(self, mesh: np.ndarray, times_s: np.ndarray, sound: np.ndarray) -> SyncScore:
        """Judge a stretch.

        Args:
            mesh: (T, 468, 2) in pixels. times_s: (T,), increasing. sound: (S,) float32 at 16 kHz,
                from time 0.

        Raises:
            MediaError: it shows no face, is too short, its sound is silent, or its mouth does not
                move.
        """
        if len(mesh) == 0:
            raise MediaError("no face in the stretch: expected a mesh for every frame")
        return self.judge(mesh, times_s, self.hear(times_s, sound))

    @torch.inference_mode()
    def hear(self, times_s: np.ndarray, sound: np.ndarray) -> Heard:
        """The sound of a stretch, for any videos of its length.

        Raises:
            MediaError: it is too short, or silent.
        """
        even_s = even_times(np.asarray(times_s))
        length_s = (len(even_s) - 1) / RATE_HZ
        if length_s < SHORTEST_S - 1e-6:
            raise MediaError(
                f"a stretch of {length_s:.2f} s is too short to judge: expected {SHORTEST_S:.2f} s"
            )
        if np.percentile(loudness(sound, even_s), 95) < SILENT:
            raise MediaError("the sound of the stretch is silent: expected speech")
        spoken = ~silent_stretches(sound, even_s)
        return Heard(even_s, sound_series(self.encoder, sound, even_s), spoken)

    @torch.inference_mode()
    def judge(self, mesh: np.ndarray, times_s: np.ndarray, heard: Heard) -> SyncScore:
        """Judge a video beside a sound, as :meth:`score`.

        Raises:
            MediaError: its mouth does not move, or there is hardly any speech.
        """
        lips = lip_series(mesh, np.asarray(times_s), heard.even_s)
        if not bool((lips - lips.mean(0)).abs().max() > 1e-6):
            raise MediaError("the mouth does not move: expected lips that speak")
        moved, said = self.model(normalised(lips)[None], heard.features[None])
        edge = WINDOW_FRAMES // 2
        return compared(moved[0], said[0], heard.spoken[edge:-edge])


@cache
def packaged_scorer() -> SyncScorer:
    """The packaged model, loaded once per process."""
    return SyncScorer.load()


def named_scores(
    videos: Mapping[str, np.ndarray], times_s: Sequence[float], sound: np.ndarray
) -> dict[str, dict[str, float] | None]:
    """The figures of several videos' meshes with one sound, by name; None for a video that cannot
    be judged."""
    found: dict[str, dict[str, float] | None] = dict.fromkeys(videos)
    scorer, times = packaged_scorer(), np.asarray(times_s)
    with suppress(MediaError):
        heard = scorer.hear(times, sound)
        for name, mesh in videos.items():
            with suppress(MediaError):
                found[name] = asdict(scorer.judge(mesh, times, heard))
    return found


def compared(lips: Tensor, sound: Tensor, spoken: np.ndarray) -> SyncScore:
    """Compare embeddings (N, embedding) of lips and sound at all lags.

    Args:
        spoken: (N,) bool, which windows of the sound have speech. The others, in which a mouth
            rests at any lag, do not count.

    Raises:
        MediaError: fewer than FEWEST_SPOKEN have speech, wherever the lips are.
    """
    distance = torch.cdist(lips, sound).numpy()  # (N, N)
    enough = max(FEWEST_SPOKEN, spoken.sum() / 2)
    lags = np.arange(-MOST_LAG, MOST_LAG + 1)
    means = np.full(len(lags), np.nan)
    for row, lag in enumerate(lags):
        at = np.flatnonzero(spoken)
        at = at[(at + lag >= 0) & (at + lag < len(lips))]
        if len(at) >= enough:
            means[row] = distance[at + lag, at].mean()
    if np.isnan(means).all():
        raise MediaError(
            f"{int(spoken.sum())} frames of the stretch have speech: expected {FEWEST_SPOKEN}"
        )
    best = int(np.nanargmin(means))
    least = float(means[best])
    return SyncScore(least, float(np.nanmedian(means)) - least, 1000.0 * int(lags[best]) / RATE_HZ)
