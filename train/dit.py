"""``dithead-train dit``: stage 2, the denoiser on cached latents."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.face.crop import crop_mask, crop_positions, mask_polygon
from dithead.filehash import hash_file
from dithead.model import build_dit
from dithead.train.draws import SequentialDraws
from dithead.train.latents import LatentCache
from dithead.train.learner import Learner
from dithead.train.loop import (
    Due,
    MovingAverage,
    Stage,
    descend,
    load_part,
    precision,
    set_learning_rate,
)
from dithead.train.samples import LatentSampler, OwnOutputs
from dithead.train.settings import PLAIN, DiTTraining, Execution
from dithead.train.shape import load_shape_head, shape_loss
from dithead.train.states import States

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
    execution: Execution = PLAIN,
    shape: Path | None = None,
) -> Path:
    """Train the denoiser for one stage and write its averaged weights. From time to time during the
    stage they are written, too, with a state from which an interrupted run goes on. If the stage
    ends by steps, it then ends with the same weights, bit for bit, on the same machine.

    Args:
        shape: weights of the shape head, which then adds to the loss.

    Returns:
        Path of the weights.

    Raises:
        ConfigError: the folder holds an unfinished run, and that one was begun differently, or is
            not to be resumed.
    """
    path = out / "dit.safetensors"
    made_from = _made_from(cache, config, training, start, shape)
    states = States(out / "dit.states", made_from, execution.resume)
    if states.finished and path.is_file():
        return path
    torch.manual_seed(training.seed)
    where = torch.device(execution.device)
    model = build_dit(config, "math" if where.type == "cpu" else "sdpa")
    sampler = LatentSampler(cache, training)
    if states.newest is None and start is not None:
        checkpoint.load_into(model, load_part(start, "dit"), start)
    elif states.newest is None and model.skip is not None:
        solve_skip(model, Diffusion(config.diffusion), sampler)
    model.to(where)
    reader = None if shape is None else load_shape_head(shape, config).to(where)
    diffusion = Diffusion(config.diffusion).to(where)
    average = MovingAverage(model, training.average_decay)
    optimiser = _optimiser(model, training)
    own = OwnOutputs(diffusion, training, tuple(cache.face.shape[1:]))
    weights = latent_weights(config, training).to(where)
    forward = torch.compile(model, dynamic=False) if execution.compile else model
    stage = Stage(out / "dit.log", training.minutes, training.steps)
    learner = Learner(model, average, optimiser, stage)
    draws = SequentialDraws(sampler, own, diffusion, where)
    running = shape_off = 0.0
    if states.newest is not None:
        learner.restore(states.newest)
        draws.restore(states.newest)
        running, shape_off = states.newest.values["running"]
    due = Due(execution, stage)
    while stage.running:
        set_learning_rate(
            optimiser, stage.learning_rate(training.learning_rate, training.warmup_steps)
        )
        drawn = draws.next()
        batch, noise, timestep = drawn.batch, drawn.noise, drawn.timestep
        noisy = diffusion.add_noise(batch.clean, noise, timestep)
        with precision(where):
            predicted = forward(noisy, batch.masked, drawn.reference, timestep, batch.window)
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
        draws.generate(model, drawn)
        stage.step += 1
        stage.samples += training.batch
        if stage.step % 100 == 0:
            stage.log(loss=running / 100, shape=shape_off / 100)
            running = shape_off = 0.0
        if due.now():
            checkpoint.save(path, average.values, config.to_dict(), dtype=None)
            values = {**learner.values(), "draws": draws.values(), "running": [running, shape_off]}
            states.save(stage.step, [*learner.tensors(), *draws.tensors()], values)
    draws.close()
    checkpoint.save(path, average.values, config.to_dict(), dtype=None)
    states.finish()
    return path


def _made_from(
    cache: LatentCache,
    config: DitHeadConfig,
    training: DiTTraining,
    start: Path | None,
    shape: Path | None,
) -> dict[str, Any]:
    """What a run is begun with, as its states note it."""
    runs = json.dumps([asdict(run) for run in cache.runs])
    files = {"start": start, "shape": shape}
    return {
        **{f"training.{name}": value for name, value in asdict(training).items()},
        "config": config.to_dict(),
        "latents": hashlib.sha256(runs.encode()).hexdigest(),
        **{name: None if path is None else hash_file(path) for name, path in files.items()},
    }


def _optimiser(model: DiT, training: DiTTraining) -> torch.optim.Optimizer:
    """AdamW, with weight decay for matrices alone."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


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
