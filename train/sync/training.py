"""``dithead-train sync``: the sync model, from prepared footage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.audio import AudioEncoder, load_audio_encoder
from dithead.errors import ConfigError, MediaError
from dithead.train.data import Clip, Footage
from dithead.train.distributed import refuse_several
from dithead.train.evaluation.motion import RATE_HZ
from dithead.train.loop import Stage, descend, set_learning_rate
from dithead.train.sync.augment import changed_lips, changed_sound
from dithead.train.sync.model import (
    WINDOW_FRAMES,
    SyncConfig,
    SyncModel,
    normalised,
    save_sync_model,
)
from dithead.train.sync.series import even_times, lip_series, sound_series


@dataclass(frozen=True, slots=True)
class SyncTraining:
    """Settings of the stage."""

    minutes: float = 10.0
    """Of the training itself; encoding the sound comes before it."""
    steps: int | None = 900
    """End after this many steps, if that comes first."""
    batch: int = 16
    """Pieces of clips in a step."""
    piece_frames: int = 56
    """Length of a piece at 25 frames a second."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    versions: int = 6
    """Of each clip's sound, with another speed, level, timbre and noise, besides the recorded
    one."""
    main_share: float = 0.5
    """Share of the pieces that show the person with the most clips."""
    most_lag: int = 12
    """Largest lag of the second loss."""
    averaged: int = 20
    """Windows over which the second loss averages."""

    def __post_init__(self) -> None:
        if self.batch < 2 or self.versions < 0 or (self.steps is not None and self.steps < 1):
            raise ConfigError("sync: expected 2 pieces, 1 step and 0 versions of a sound at least")
        if not 0 <= self.main_share <= 1 or not 0 < self.minutes < math.inf:
            raise ConfigError("sync: a share is from 0 to 1, and the minutes are above 0")
        windows = self.piece_frames - WINDOW_FRAMES + 1
        if windows < self.averaged + 2 * self.most_lag or min(self.averaged, self.most_lag) < 1:
            raise ConfigError(
                f"sync: a piece of {self.piece_frames} frames has {windows} windows, too few to "
                f"average {self.averaged} at lags of up to {self.most_lag}"
            )


@dataclass(frozen=True, slots=True)
class Spoken:
    """A clip at one speed."""

    lips: Tensor
    """(N, points, 2) in crop units."""
    sound: Tensor
    """(N, features) float16."""


class SyncSampler:
    """Pieces of clips, with changed lips and sound.

    Args:
        clips: those to draw from.

    Raises:
        MediaError: there are none, or all are shorter than a piece.
    """

    def __init__(
        self,
        footage: Footage,
        clips: Sequence[Clip],
        training: SyncTraining,
        encoder: AudioEncoder,
    ) -> None:
        self.training = training
        self.random = np.random.default_rng(training.seed)
        people: dict[str, list[list[Spoken]]] = {}
        for clip in clips:
            versions = self._versions(footage.track(clip), encoder)
            if versions:
                people.setdefault(clip.person, []).append(versions)
        if not people:
            seconds = training.piece_frames / RATE_HZ
            raise MediaError(f"the footage has no clip of {seconds:.1f} s or more with sound")
        self.main = max(people, key=lambda person: len(people[person]))
        self.clips = [
            [clip for person, clips in people.items() if (person == self.main) == main
             for clip in clips]
            for main in (True, False)
        ]  # fmt: skip
        self.people, self.count = len(people), sum(map(len, self.clips))

    def _versions(self, track: dict[str, np.ndarray], encoder: AudioEncoder) -> list[Spoken]:
        """A clip as recorded, and changed."""
        times, sound = track["time_s"], track["audio"].astype(np.float32)
        if len(sound) == 0:
            return []
        made = []
        for version in range(1 + self.training.versions):
            speed, heard = 1.0, sound
            if version:
                speed, heard = changed_sound(sound, self.random)
            even = even_times(times / speed)
            if len(even) >= self.training.piece_frames:
                lips = lip_series(track["mesh"], times / speed, even)
                made.append(Spoken(lips, sound_series(encoder, heard, even).half()))
        return made

    def sample(self) -> tuple[Tensor, Tensor]:
        """Lips (B, T, points, 2), normalised, and sound (B, T, features)."""
        frames, lips, sound = self.training.piece_frames, [], []
        for _ in range(self.training.batch):
            main = self.random.random() < self.training.main_share or not self.clips[1]
            pool = self.clips[0 if main else 1]
            versions = pool[self.random.integers(len(pool))]
            spoken = versions[self.random.integers(len(versions))]
            start = self.random.integers(len(spoken.lips) - frames + 1)
            moved = changed_lips(spoken.lips, self.random)
            lips.append(normalised(moved[start : start + frames]))
            sound.append(spoken.sound[start : start + frames].float())
        return torch.stack(lips), torch.stack(sound)


def window_loss(lips: Tensor, sound: Tensor, sharpness: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) in both directions: of the sounds of all
    windows in the batch, which belongs to these lips, and the reverse.

    Args:
        lips, sound: (B, N, embedding), of length 1. sharpness: scalar, by which cosines are
            multiplied.
    """
    # Neighbours see nearly the same: every second one is enough.
    a, b = lips[:, ::2].flatten(0, 1), sound[:, ::2].flatten(0, 1)
    logits = sharpness * (a @ b.T)  # (B * N / 2, B * N / 2)
    true = torch.arange(len(logits))
    return (F.cross_entropy(logits, true) + F.cross_entropy(logits.T, true)) / 2


def lag_loss(
    lips: Tensor, sound: Tensor, sharpness: Tensor, start: int, averaged: int, most_lag: int
) -> Tensor:
    """What the model is used for: of all lags in all clips, which one do these lips belong to? The
    cosines of several windows are averaged first.

    Args:
        lips, sound: (B, N, embedding), of length 1. sharpness: scalar. start: first of the windows
            of the lips. averaged: how many there are. most_lag: in either direction.
    """
    part = lips[:, start : start + averaged]
    cosines = torch.einsum("bne,cme->bcnm", part, sound)  # (B, B, averaged, N)
    at = torch.arange(averaged)
    lags = [cosines[:, :, at, start + lag + at].mean(-1) for lag in range(-most_lag, most_lag + 1)]
    logits = _AVERAGE_SHARPNESS * sharpness * torch.stack(lags, dim=-1)  # (B, B, lags)
    true = torch.arange(len(lips)) * len(lags) + most_lag
    return F.cross_entropy(logits.flatten(1), true)


_AVERAGE_SHARPNESS = 4.0
"""Means of cosines lie closer together than cosines do."""


class _Sharpness(nn.Module):
    """Learnt with the model, and not part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(2.5))

    def forward(self) -> Tensor:
        return self.log.exp()


def train_sync(
    footage: Footage,
    training: SyncTraining,
    out: Path,
    provenance: Mapping[str, str],
    config: SyncConfig | None = None,
    without: Sequence[str] = (),
) -> dict[str, float]:
    """Train the model on the clips of the split ``train``, and write its weights and a log beside
    them.

    Args:
        out: the .safetensors file to write. provenance: origin and licence, for its header.
        without: people who are left out.

    Returns:
        ``clips``, ``people``, ``steps``, ``minutes``, and the ``loss`` of the last steps.

    Raises:
        MediaError: nothing to train on. ConfigError: nobody is called as those to be left out, or
            several processes were started.
    """
    refuse_several("the sync model")
    people = footage.people("train")
    if unknown := sorted(set(without) - people.keys()):
        raise ConfigError(f"nobody in the footage is called {', '.join(unknown)}")
    torch.manual_seed(training.seed)
    model = SyncModel(config)
    encoder = load_audio_encoder(model.config.audio, None)
    clips = [clip for person in people if person not in without for clip in people[person]]
    sampler = SyncSampler(footage, clips, training, encoder)
    sharpness = _Sharpness()
    trained = [*model.parameters(), *sharpness.parameters()]
    optimiser = torch.optim.AdamW(
        trained, training.learning_rate, weight_decay=training.weight_decay
    )
    stage = Stage(out.with_suffix(".log"), training.minutes, training.steps)
    losses: list[float] = []
    model.train()
    while stage.running:
        lips, sound = model(*sampler.sample())
        last = lips.shape[1] - training.averaged - training.most_lag
        start = int(sampler.random.integers(training.most_lag, last + 1))
        loss = window_loss(lips, sound, sharpness()) + lag_loss(
            lips, sound, sharpness(), start, training.averaged, training.most_lag
        )
        rate = stage.learning_rate(training.learning_rate, warmup_steps=100)
        set_learning_rate(optimiser, rate)
        descend(loss, optimiser, trained)
        losses.append(loss.item())
        stage.step += 1
        stage.samples += training.batch
        if stage.step % 20 == 0 or not stage.running:
            stage.log(loss=float(np.mean(losses[-20:])))
    save_sync_model(out, model, provenance)
    return {
        "clips": sampler.count,
        "people": sampler.people,
        "steps": stage.step,
        "minutes": round(stage.elapsed_s / 60, 2),
        "loss": round(float(np.mean(losses[-50:])), 4),
    }
