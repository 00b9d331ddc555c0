"""``dithead-train dit``: stage 2, the denoiser on cached latents."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.kernels.attention import AttentionBackend, check_attention
from dithead.model import build_dit
from dithead.runtime.checked import checked_device
from dithead.train.denoising import DenoisingLoss, in_parts, latent_weights
from dithead.train.distil import Lesson, Teacher, plan_lesson
from dithead.train.distributed import Processes, for_several, open_states, this_process
from dithead.train.draws import Draws, SequentialDraws
from dithead.train.keyed import KeyedDraws
from dithead.train.latents import LatentCache
from dithead.train.learner import Learner
from dithead.train.loop import (
    PART,
    Due,
    MovingAverage,
    Stage,
    hash_weights,
    load_part,
    set_learning_rate,
)
from dithead.train.memory import recompute_blocks
from dithead.train.samples import LatentSampler, OwnOutputs
from dithead.train.settings import PLAIN, Distillation, DiTTraining, Execution
from dithead.train.shape import load_shape_head
from dithead.train.sharding import is_sharded, whole

log = logging.getLogger(__name__)

SOLVED_AT_ONCE = 256
RIDGE = 0.002


def train_dit(
    cache: LatentCache,
    config: DitHeadConfig,
    training: DiTTraining,
    out: Path,
    start: Path | None = None,
    execution: Execution = PLAIN,
    shape: Path | None = None,
    distillation: Distillation | None = None,
) -> Path:
    """Train the denoiser for one stage and write its averaged weights. From time to time during the
    stage they are written, too, with a state from which an interrupted run goes on. If the stage
    ends by steps, it then ends with the same weights, bit for bit, on the same machine.

    Several processes that a launcher has started train one model together.

    Args:
        shape: weights of the shape head, which then adds to the loss.
        distillation: learn from a teacher, and from its weights on unless ``start`` is given. The
            weights' configuration then says how many steps the student takes.

    Returns:
        Path of the weights.

    Raises:
        ConfigError: the folder holds an unfinished run, and that one was begun differently, or is
            not to be resumed; or several processes cannot train like this.
        BackendUnavailable: the attention, the device or accelerate is not there.
        CheckpointError: weights to start or to learn from are not there, or do not fit.
    """
    check_attention(execution.attention, checked_device(execution.device))
    processes = this_process(execution)
    training = for_several(training, processes.count, execution.accumulate)
    path = out / "dit.safetensors"
    lesson = None if distillation is None else plan_lesson(distillation, config)
    if lesson is not None:
        config = lesson.student
    cache.check_fits(config)
    made_from = _made_from(cache, config, training, execution, start, shape, lesson)
    states = open_states(out / "dit.states", made_from, execution.resume, processes)
    if states.finished and path.is_file():
        return path
    torch.manual_seed(training.seed)
    where = processes.device
    model = build_dit(config, _attention(execution))
    sampler = LatentSampler(cache, training, config.dit)
    if lesson is not None and start is None:
        start = lesson.path
    if states.newest is None and start is not None:
        checkpoint.load_into(model, load_part(start, "dit"), start)
    elif states.newest is None and model.skip is not None:
        solve_skip(model, Diffusion(config.diffusion), sampler)
    model.to(where)
    if execution.recompute:
        recompute_blocks(model)
    connected = processes.connect(model, execution.shard)
    diffusion = Diffusion(config.diffusion).to(where)
    losses = DenoisingLoss(
        diffusion,
        latent_weights(config, training).to(where),
        None if shape is None else load_shape_head(shape, config).to(where),
        training.shape_weight,
        execution.precision,
        None if lesson is None else _teacher(lesson, execution, where),
    )
    grid = steps = None
    if lesson is not None:
        grid, steps = lesson.grid, min(len(lesson.grid), training.generated_steps)
    own = OwnOutputs(diffusion, training, tuple(cache.face.shape[1:]), execution, steps)
    draws: Draws = (
        KeyedDraws(sampler, own, processes, grid)
        if training.keyed
        else SequentialDraws(sampler, own, diffusion, where, grid)
    )
    average = MovingAverage(model, training.average_decay)
    optimiser = _optimiser(model, training)
    forward = _compiled(connected, execution)
    stage = Stage(out / "dit.log", training.minutes, training.steps, processes.main)
    if lesson is not None and processes.main:
        log.info("distillation: %s", lesson)
    learner = Learner(model, average, optimiser, stage)
    running = shape_off = 0.0
    with closing(draws):
        if states.newest is not None:
            learner.restore(states.newest)
            draws.restore(states.newest)
            running, shape_off = states.newest.values["running"]
        due = Due(execution, stage)
        while stage.running:
            rate = stage.learning_rate(training.learning_rate, training.warmup_steps)
            set_learning_rate(optimiser, rate)
            drawn = draws.next()
            optimiser.zero_grad(set_to_none=True)
            parts = in_parts(drawn, execution.accumulate)
            for i, part in enumerate(parts, start=1):
                with processes.unsynchronised(connected, i < len(parts)):
                    loss, predicting, off = losses(forward, part)
                    (loss / len(parts)).backward()
                running += predicting / len(parts)
                shape_off += off / len(parts)
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
            optimiser.step()
            average.update()
            draws.generate(model, drawn)
            stage.step += 1
            stage.samples += training.batch
            if stage.step % 100 == 0:
                stage.log(loss=processes.mean(running / 100), shape=processes.mean(shape_off / 100))
                running = shape_off = 0.0
            if processes.agreed(due.now()):
                _save_weights(path, learner, config, processes)
                values = {
                    **learner.values(),
                    "draws": draws.values(),
                    "running": [running, shape_off],
                }
                states.save(stage.step, chain(learner.tensors(), draws.tensors()), values)
    _save_weights(path, learner, config, processes)
    states.finish()
    processes.end()
    return path


def _attention(execution: Execution) -> AttentionBackend:
    """What ``auto`` means in training."""
    if execution.attention != "auto":
        return execution.attention
    return "math" if execution.device == "cpu" else "sdpa"


def _compiled(connected: nn.Module, execution: Execution) -> Callable[..., Tensor]:
    """The model to call in the forward pass, compiled if that is wanted."""
    if not execution.compile:
        return connected
    if is_sharded(connected):  # between its blocks weights are gathered
        for block in cast(nn.ModuleList, connected.blocks):
            block.compile(dynamic=False)
        return connected
    compiled: Callable[..., Tensor] = torch.compile(connected, dynamic=False)
    return compiled


def _teacher(lesson: Lesson, execution: Execution, device: torch.device) -> Teacher:
    """The teacher, whole in every process."""
    model = build_dit(lesson.teacher, _attention(execution))
    checkpoint.load_into(model, load_part(lesson.path, "dit"), lesson.path)
    model.to(device).eval().requires_grad_(False)
    return Teacher(_compiled(model, execution), lesson, device, execution.precision)


def _save_weights(
    path: Path, learner: Learner, config: DitHeadConfig, processes: Processes
) -> None:
    """Write the averaged weights. Every process must take part."""
    values = {}
    for name, value in learner.average.values.items():
        full = whole(value)
        if processes.main:
            values[name] = full
    if processes.main:
        checkpoint.save(path, values, config.to_dict(), {PART: "dit"}, dtype=None)


def _made_from(
    cache: LatentCache,
    config: DitHeadConfig,
    training: DiTTraining,
    execution: Execution,
    start: Path | None,
    shape: Path | None,
    lesson: Lesson | None,
) -> dict[str, Any]:
    """What a run is begun with, as its states note it."""
    runs = json.dumps([asdict(run) for run in cache.runs])
    teacher = None if lesson is None else lesson.path
    files = {"start": start, "shape": shape, "teacher": teacher}
    return {
        **{f"training.{name}": value for name, value in asdict(training).items()},
        "precision": execution.precision,
        "config": config.to_dict(),
        "latents": hashlib.sha256(runs.encode()).hexdigest(),
        **{name: hash_weights(path) for name, path in files.items()},
    }


def _optimiser(model: DiT, training: DiTTraining) -> torch.optim.Optimizer:
    """AdamW, with weight decay for matrices alone."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": training.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
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
        shown = [noisy, batch.masked, batch.reference, batch.past]
        inputs.append(model.patches(torch.cat(shown, dim=1)))
        targets.append(model.patches(diffusion.target(batch.clean, noise, timestep)))
    x, y = torch.cat(inputs).transpose(0, 1), torch.cat(targets).transpose(0, 1)  # (N, samples, .)
    ridge = RIDGE * samples * torch.eye(x.shape[2])
    model.skip.copy_(torch.linalg.solve(x.mT @ x + ridge, x.mT @ y))
