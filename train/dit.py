"""``dithead-train dit``: stage 2, the denoiser on cached latents."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.face.crop import crop_mask, crop_positions, mask_polygon
from dithead.model import build_dit
from dithead.train.latents import LatentCache
from dithead.train.loop import (
    MovingAverage,
    Stage,
    ahead,
    descend,
    load_part,
    precision,
    set_learning_rate,
)
from dithead.train.samples import LatentSampler, OwnOutputs, draw_timesteps, to_device
from dithead.train.settings import DiTTraining
from dithead.train.shape import load_shape_head, shape_loss

SOLVED_AT_ONCE = 256
RIDGE = 0.002


def latent_weights(config: DitHeadConfig, training: DiTTraining) -> Tensor:
    """Loss weight of each latent position: low outside the mask, highest at the mouth. (1, 1, S,
    S), mean 1."""
    size = config.latent_size
    mask = crop_mask(size, 0.03, mask_polygon(1), config.face.view)  # (1, 1, S, S)
    x, y = crop_positions(size, config.face.view)
    mouth = torch.exp(-(((x / 0.20) ** 2 + ((y - 0.18) / 0.20) ** 2) ** 2))
    weights = training.outside_weight + (1 - training.outside_weight) * mask
    weights = weights + training.mouth_weight * mouth * mask
    return weights / weights.mean()


def train_dit(
    cache: LatentCache,
    config: DitHeadConfig,
    training: DiTTraining,
    out: Path,
    start: Path | None = None,
    device: str = "cpu",
    compile_model: bool = False,
    shape: Path | None = None,
) -> Path:
    """Train the denoiser for one stage and write its averaged weights, also every ten minutes
    during the stage.

    Args:
        shape: weights of the shape head, which then adds to the loss.

    Returns:
        Path of the weights.
    """
    torch.manual_seed(training.seed)
    where = torch.device(device)
    model = build_dit(config, "math" if where.type == "cpu" else "sdpa")
    sampler = LatentSampler(cache, training)
    if start is not None:
        checkpoint.load_into(model, load_part(start, "dit"), start)
    elif model.skip is not None:
        solve_skip(model, Diffusion(config.diffusion), sampler)
    model.to(where)
    reader = None if shape is None else load_shape_head(shape, config).to(where)
    diffusion = Diffusion(config.diffusion).to(where)
    average = MovingAverage(model, training.average_decay)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    own = OwnOutputs(diffusion, training, tuple(cache.face.shape[1:]))
    weights = latent_weights(config, training).to(where)
    forward = torch.compile(model, dynamic=False) if compile_model else model
    stage = Stage(out / "dit.log", training.minutes, training.steps)
    path = out / "dit.safetensors"
    saved_s = 0.0
    running = shape_off = 0.0
    batches = ahead(partial(sampler.sample, training.batch))
    while stage.running:
        set_learning_rate(
            optimiser, stage.learning_rate(training.learning_rate, training.warmup_steps)
        )
        batch = to_device(next(batches), where)
        reference, noise = own.references(batch)
        timestep = draw_timesteps(training, diffusion, where)
        noisy = diffusion.add_noise(batch.clean, noise, timestep)
        with precision(where):
            predicted = forward(noisy, batch.masked, reference, timestep, batch.window)
        error = (predicted.float() - diffusion.target(batch.clean, noise, timestep)).square()
        loss = (weights * error).mean()
        running += loss.item()
        if reader is not None:
            clean, _ = diffusion.split(noisy, predicted, timestep)
            with precision(where):
                found, true = reader(clean), reader(batch.clean)
            off = shape_loss(found.float(), true.float())
            loss = loss + training.shape_weight * off
            shape_off += off.item()
        descend(loss, optimiser, list(model.parameters()))
        average.update()
        own.generate(model, batch)
        stage.step += 1
        stage.samples += training.batch
        if stage.step % 100 == 0:
            stage.log(loss=running / 100, shape=shape_off / 100)
            running = shape_off = 0.0
        if stage.elapsed_s - saved_s > 600:
            saved_s = stage.elapsed_s
            checkpoint.save(path, average.values, config.to_dict(), dtype=None)
    batches.close()
    checkpoint.save(path, average.values, config.to_dict(), dtype=None)
    return path


@torch.no_grad()
def solve_skip(
    model: DiT, diffusion: Diffusion, sampler: LatentSampler, samples: int = 8192
) -> None:
    """Start with the best linear guess from pure noise as the path round the blocks, position by
    position (ridge regression); the blocks then learn the rest."""
    assert model.skip is not None
    inputs, targets = [], []
    timestep = torch.full((SOLVED_AT_ONCE,), diffusion.config.timesteps - 1)
    for _ in range(samples // SOLVED_AT_ONCE):
        batch = sampler.sample(SOLVED_AT_ONCE)
        noise = torch.randn_like(batch.clean)
        noisy = diffusion.add_noise(batch.clean, noise, timestep)
        inputs.append(model.patches(torch.cat([noisy, batch.masked, batch.reference], dim=1)))
        targets.append(model.patches(diffusion.target(batch.clean, noise, timestep)))
    x, y = torch.cat(inputs).transpose(0, 1), torch.cat(targets).transpose(0, 1)  # (N, samples, .)
    ridge = RIDGE * samples * torch.eye(x.shape[2])
    model.skip.copy_(torch.linalg.solve(x.mT @ x + ridge, x.mT @ y))
