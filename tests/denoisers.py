"""A small denoiser and random latents to train it on. Importable by processes that tests start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dithead.config import DiTConfig, DitHeadConfig, preset
from dithead.errors import ConfigError
from dithead.train.dit import train_dit
from dithead.train.latents import LatentCache, Run
from dithead.train.settings import Distillation, DiTTraining, Execution

FRAMES = 20


def small_config(name: str = "tiny") -> DitHeadConfig:
    """The latents of 64 px crops, and a denoiser of two blocks; the rest as in a preset."""
    base = preset(name)
    dit = DiTConfig(width=32, depth=2, heads=2, conditioning=base.dit.conditioning)
    return replace(base, face=replace(base.face, crop_px=64), dit=dit)


def random_cache(config: DitHeadConfig) -> LatentCache:
    """Three clips of one person and two of another, of random numbers."""
    random = np.random.default_rng(0)
    runs = [
        Run(f"c{i}", "a" if i < 3 else "b", int(i >= 3), 0, FRAMES * i, FRAMES, i < 3)
        for i in range(5)
    ]
    size = (FRAMES * len(runs), config.vqgan.latent_channels, config.latent_size)
    face, masked = (
        torch.from_numpy(random.standard_normal((*size, size[-1])).astype(np.float16))
        for _ in range(2)
    )
    shape = (2, FRAMES, *config.audio.window_shape)
    windows = {run.clip: random.standard_normal(shape).astype(np.float16) for run in runs}
    silent = {run.clip: np.arange(FRAMES) < 5 for run in runs}
    return LatentCache(runs, face, masked, windows, silent, torch.zeros(shape[2:]))


def train_small(
    out: Path,
    training: DiTTraining,
    execution: Execution,
    name: str = "tiny",
    depth: int | None = None,
    distillation: Distillation | None = None,
) -> Path:
    """Train a denoiser in one thread: the small one or, with a depth, a preset's with so many
    blocks; from a teacher, if there is one."""
    torch.set_num_threads(1)
    config = small_config(name)
    if depth is not None:
        config = preset(name)
        config = replace(config, dit=replace(config.dit, depth=depth))
    cache = random_cache(config)
    return train_dit(cache, config, training, out, execution=execution, distillation=distillation)


def refused_apart(
    out: Path, training: DiTTraining, execution: Execution, messages: Sequence[str]
) -> None:
    """Be one of several processes with a folder each, and be refused with one's own message."""
    rank = int(os.environ["RANK"])
    with pytest.raises(ConfigError, match=messages[rank]):
        train_small(out / str(rank), training, execution)
