"""A small autoencoder and random pictures to train it on. Importable by processes that tests
start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import denoisers
import numpy as np
import torch

from dithead import checkpoint
from dithead.config import DitHeadConfig, VQGANConfig
from dithead.train.data import Clip, Footage, write_index
from dithead.train.distributed import this_process
from dithead.train.losses import ReconstructionLoss
from dithead.train.settings import PLAIN, Execution, VQGANTraining
from dithead.train.vqgan import train_vqgan
from dithead.vqgan import VQGAN


def small_config(softness: float | None = 0.0) -> DitHeadConfig:
    """An autoencoder of 64 px crops; with None, latents are decoded as they are."""
    small = VQGANConfig(
        (8, 8, 16), (8, 8, 16), blocks=1, attention=False, codebook_size=64, softness=softness
    )
    return replace(denoisers.small_config("base"), vqgan=small)


def random_footage(root: Path) -> Footage:
    """Noise, as prepared pictures of two people."""
    random = np.random.default_rng(0)
    (root / "crops").mkdir(parents=True)
    clips = [Clip(f"c{i}", person, "train", 10) for i, person in enumerate("aab")]
    for clip in clips:
        crops = random.integers(0, 255, (clip.frames, 80, 80, 3), dtype=np.uint8)
        np.save(root / "crops" / f"{clip.name}.npy", crops)
    write_index(root, clips)
    return Footage(root)


def random_start(path: Path) -> Path:
    """Weights to start from, always the same."""
    torch.manual_seed(0)
    config = small_config()
    checkpoint.save(path, VQGAN(config.vqgan).state_dict(), config.to_dict(), dtype=None)
    return path


def train_small(
    out: Path,
    data: Path,
    training: VQGANTraining,
    execution: Execution,
    start: Path | None = None,
    softness: float | None = 0.0,
) -> Path:
    """Train the small autoencoder, in one thread."""
    torch.set_num_threads(1)
    return train_vqgan(Footage(data), small_config(softness), training, out, start, execution)


def train_discriminator(out: Path) -> None:
    """Train the discriminator alone, each process with its part of batches of noise; write its
    weights and what they begin with."""
    processes = this_process(PLAIN)
    torch.manual_seed(0)
    one = torch.ones(1, 1, 64, 64)
    losses = ReconstructionLoss(one, 0.0, 1.0, processes.device, processes=processes)
    # By AdamW, a gradient that is nearly zero would move a weight as far as any other.
    losses.optimiser = torch.optim.SGD(losses.discriminator.parameters(), 0.1)
    own = slice(processes.rank, None, processes.count)
    weights = losses.discriminator.state_dict()
    before = {f"before.{name}": value.clone() for name, value in weights.items()}
    for _ in range(4):
        image, made = torch.rand(2, 4, 3, 64, 64) * 2 - 1
        losses.train_discriminator(image[own], made[own])
    if processes.main:
        checkpoint.save(out, {**weights, **before}, {}, dtype=None)
    processes.end()
