"""Training of an adaptation: the shape head, then the denoiser's low-rank changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead import checkpoint
from dithead.dit import DiT
from dithead.model import DitHead
from dithead.shape import ShapeHead
from dithead.train.adapt.person import Person
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import Work
from dithead.train.denoising import latent_weights
from dithead.train.loop import MovingAverage, Stage, descend, precision, set_learning_rate
from dithead.train.lowrank import add_low_rank
from dithead.train.motion import lips_apart
from dithead.train.samples import Batch, LatentSampler, draw_timesteps
from dithead.train.settings import DiTTraining
from dithead.train.shape import GAP_WEIGHT, UNIT, shape_loss

CPU = torch.device("cpu")
SHAPE_BATCH = 96
LATENT_NOISE = 0.25
"""Largest standard deviation of the noise on the latents that the shape head learns from."""
SO_FAR = "denoiser_so_far"
KEEP_S = 15.0
"""How often the denoiser's changes are stored, for a run that goes on later."""


def fit_shape_head(
    person: Person, model: DitHead, work: Work, training: Adaptation, tell: Tell
) -> dict[str, Tensor]:
    """Train the shape head on the person's latents, in place; its weights."""
    head = model.shape_head
    assert head is not None
    kept = work.kept("shape_head")
    if kept is not None:
        checkpoint.load_into(head, kept, work.folder)
        return kept
    head.train().requires_grad_(True)
    average = MovingAverage(head, 0.98)
    optimiser = torch.optim.AdamW(head.parameters(), weight_decay=1e-3)
    minutes = training.shape_share * work.left_minutes(0.2)
    stage = Stage(work.folder / "shape_head.log", minutes, training.steps)
    while stage.running:
        tell("learning the shape", work.share)
        set_learning_rate(
            optimiser, stage.learning_rate(training.shape_learning_rate, warmup_steps=30)
        )
        rows = torch.randint(len(person.face), (SHAPE_BATCH,))
        latents = person.face[rows].float()
        level = LATENT_NOISE * torch.rand(len(rows), 1, 1, 1)
        with precision(CPU):
            found = head(latents + level * torch.randn_like(latents))
        loss = shape_loss(found.float(), person.meshes[rows])
        descend(loss, optimiser, list(head.parameters()))
        average.update()
        stage.step += 1
        stage.samples += len(rows)
        if stage.step % 100 == 0:
            stage.log(loss=loss.item())
    checkpoint.load_into(head, average.values, work.folder)
    head.eval().requires_grad_(False)
    work.keep("shape_head", average.values)
    return average.values


def fit_denoiser(
    person: Person,
    model: DitHead,
    practice: Practice,
    general: LatentSampler | None,
    work: Work,
    training: Adaptation,
    tell: Tell,
) -> dict[str, Tensor]:
    """Train low-rank changes of the denoiser, in place; the changes."""
    config, dit, diffusion, head = model.config, model.dit, model.diffusion, model.shape_head
    assert head is not None
    changes = add_low_rank(dit, training.rank)
    done = work.kept("denoiser")
    for name, value in (done or work.kept(SO_FAR) or {}).items():
        changes[name].data.copy_(value)
    if done is not None:
        return done
    random = np.random.default_rng(training.seed)
    settings = DiTTraining(
        batch=training.batch, first_step_share=training.first_step_share, seed=training.seed
    )
    weights = latent_weights(config, settings)
    optimiser = torch.optim.AdamW(list(changes.values()), betas=(0.9, 0.98), weight_decay=0.0)
    minutes = (1.0 - training.decoder_share) * work.left_minutes(0.1)
    stage = Stage(work.folder / "denoiser.log", minutes, training.steps)
    kept_s, running, off = 0.0, 0.0, 0.0
    while stage.running:
        tell("learning the lips", work.share)
        set_learning_rate(optimiser, stage.learning_rate(training.learning_rate, warmup_steps=30))
        own = training.batch
        if general is not None:
            own -= round(training.general_share * training.batch)
        batch, rows = person.sample(own, random)
        if general is not None:
            batch = _joined([batch, general.sample(training.batch - own)])
        noise = torch.randn_like(batch.clean)
        timestep = draw_timesteps(settings, diffusion, CPU)
        noisy = diffusion.add_noise(batch.clean, noise, timestep)
        with precision(CPU):
            found = dit(noisy, batch.masked, batch.reference, timestep, batch.window).float()
        error = (found - diffusion.target(batch.clean, noise, timestep)).square()
        clean, _ = diffusion.split(noisy, found, timestep)
        with precision(CPU):
            shape = shape_loss(head(clean[:own]).float(), person.meshes[rows])
        loss = (weights * error).mean() + training.shape_weight * shape
        if training.practice_weight > 0:
            loss = loss + training.practice_weight * practice(dit, head, batch, noise, random)
        descend(loss, optimiser, list(changes.values()))
        running, off = running + loss.item(), off + shape.item()
        stage.step += 1
        stage.samples += len(noise)
        if stage.step % 50 == 0:
            stage.log(loss=running / 50, shape=off / 50)
            running = off = 0.0
        if stage.elapsed_s - kept_s > KEEP_S:
            kept_s = stage.elapsed_s
            work.keep(SO_FAR, changes)
    work.keep("denoiser", changes)
    return {name: value.detach() for name, value in changes.items()}


class Practice:
    """Other speech, for which the lips must open and close as they did.

    Args:
        model: the checkpoint as it was. windows: of the speech, (N, window_frames, features).
        rows: samples in a step.
    """

    def __init__(self, model: DitHead, windows: np.ndarray, rows: int) -> None:
        self.model, self.windows, self.rows = model, windows, rows
        self.last = torch.full((rows,), model.config.diffusion.timesteps - 1)

    def __call__(
        self,
        dit: DiT,
        head: ShapeHead,
        batch: Batch,
        noise: Tensor,
        random: np.random.Generator,
    ) -> Tensor:
        """How differently the lips open and close, for the faces of a batch's first rows."""
        count = min(self.rows, len(noise))
        chosen = random.integers(len(self.windows), size=count)
        windows = torch.from_numpy(self.windows[chosen])
        start = noise[:count]
        inputs = start, batch.masked[:count], batch.reference[:count], self.last[:count], windows
        before = self.model.shape_head
        assert before is not None
        with torch.no_grad(), precision(CPU):
            wanted = self._opened(self.model.dit(*inputs), before, start)
        with precision(CPU):
            found = self._opened(dit(*inputs), head, start)
        return GAP_WEIGHT * F.smooth_l1_loss(UNIT * found, UNIT * wanted, beta=0.5)

    def _opened(self, predicted: Tensor, head: ShapeHead, start: Tensor) -> Tensor:
        """How much further apart the lips are than on average: (B, pairs)."""
        clean, _ = self.model.diffusion.split(start, predicted, self.last[: len(start)])
        apart = lips_apart(head(clean).float())
        return apart - apart.mean(0)


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(b, n) for b in batches]) for n in Batch.__slots__))
