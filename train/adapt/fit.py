"""Training of an adaptation: the decoder, then the denoiser's low-rank changes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.model import DitHead
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import Work
from dithead.train.data import Footage
from dithead.train.dit import Batch, DiTTraining, LatentSampler, draw_timesteps, latent_weights
from dithead.train.latents import LatentCache, load_cache
from dithead.train.loop import MovingAverage, Stage, ahead, precision, set_learning_rate
from dithead.train.losses import ReconstructionLoss
from dithead.train.lowrank import add_low_rank
from dithead.train.shape import shape_loss
from dithead.train.vqgan import PictureSampler, VQGANTraining, mouth_weights

KEEP_S = 15.0
"""How often the denoiser's changes are stored, for a run that goes on later."""


def fit_decoder(
    footage: Footage, model: DitHead, work: Work, training: Adaptation, tell: Tell
) -> dict[str, Tensor]:
    """Train the decoder on the person's pictures, in place; its weights."""
    vqgan, config = model.face_vqgan, model.config
    kept = work.kept("decoder")
    if kept is not None:
        checkpoint.load_into(vqgan.decoder, kept, work.folder)
        return kept
    minutes = training.decoder_share * work.left_minutes(0.2)
    pictures = VQGANTraining(batch=training.batch, main_share=1.0, seed=training.seed)
    sampler = PictureSampler(footage, config, pictures)
    losses = ReconstructionLoss(
        mouth_weights(config.face.crop_px, pictures.mouth_weight, config.face.view),
        *(0.0, 0.0, torch.device("cpu")),
    )
    decoder = vqgan.decoder.train().requires_grad_(True)
    vqgan.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = MovingAverage(decoder, 0.99)
    optimiser = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    stage = Stage(work.folder / "decoder.log", minutes, training.steps)
    with closing(ahead(partial(sampler.sample, training.batch))) as samples:
        while stage.running:
            tell("learning the picture", work.share)
            set_learning_rate(
                optimiser, stage.learning_rate(training.decoder_learning_rate, warmup_steps=30)
            )
            image = next(samples).contiguous(memory_format=torch.channels_last)
            with precision(torch.device("cpu")):
                found = vqgan(image, 0.0, pictures.latent_noise).image
            loss, parts = losses(image, found.float())
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimiser.step()
            average.update()
            stage.step += 1
            stage.samples += training.batch
            if stage.step % 50 == 0:
                stage.log(loss=loss.item(), **parts)
    checkpoint.load_into(decoder, average.values, work.folder)
    decoder.eval().requires_grad_(False)
    work.keep("decoder", average.values)
    return average.values


def fit_denoiser(
    model: DitHead,
    before: DitHead,
    cache: LatentCache,
    practice: np.ndarray,
    general: Path | None,
    work: Work,
    training: Adaptation,
    tell: Tell,
) -> dict[str, Tensor]:
    """Train low-rank changes of the denoiser; the changes."""
    config, dit, diffusion = model.config, model.dit, model.diffusion
    head = model.shape_head
    assert head is not None
    cpu = torch.device("cpu")
    changes = add_low_rank(dit, training.rank)
    kept = work.kept("denoiser")
    if kept is not None:
        with torch.no_grad():
            for name, value in kept.items():
                changes[name].copy_(value)
    settings = DiTTraining(
        batch=training.batch,
        seed=training.seed,
        main_plain_share=0.5,
        first_step_share=training.first_step_share,
    )
    samplers = [(1.0, LatentSampler(cache, settings))]
    if general is not None:
        share = training.general_share
        samplers = [
            (1.0 - share, LatentSampler(cache, settings)),
            (share, LatentSampler(load_cache(general), settings)),
        ]
    random = np.random.default_rng(training.seed)
    weights = latent_weights(config, settings)
    optimiser = torch.optim.AdamW(list(changes.values()), betas=(0.9, 0.98), weight_decay=0.0)
    stage = Stage(work.folder / "denoiser.log", work.left_minutes(0.05), training.steps)
    kept_s, running, off = 0.0, 0.0, 0.0
    first = torch.full((training.batch,), config.diffusion.timesteps - 1)
    while stage.running:
        tell("learning the lips", work.share)
        set_learning_rate(optimiser, stage.learning_rate(training.learning_rate, warmup_steps=30))
        batch = _joined([s.sample(round(share * training.batch)) for share, s in samplers])
        noise = torch.randn_like(batch.clean)
        timestep = draw_timesteps(settings, diffusion, cpu)[: len(noise)]
        noisy = diffusion.add_noise(batch.clean, noise, timestep)
        with precision(cpu):
            found = dit(noisy, batch.masked, batch.reference, timestep, batch.window).float()
        error = (found - diffusion.target(batch.clean, noise, timestep)).square()
        clean, _ = diffusion.split(noisy, found, timestep)
        with precision(cpu):
            shapes, true = head(clean), head(batch.clean)
        shape = shape_loss(shapes.float(), true.float())
        loss = (weights * error).mean() + training.shape_weight * shape
        count = round(training.practice_share * len(noise))
        if count > 0:
            windows = torch.from_numpy(practice[random.integers(len(practice), size=count)])
            inputs = batch.masked[:count], batch.reference[:count], first[:count], windows
            start = noise[:count]
            with torch.no_grad(), precision(cpu):
                wanted = head(diffusion.split(start, before.dit(start, *inputs), first[:count])[0])
            with precision(cpu):
                other = head(diffusion.split(start, dit(start, *inputs), first[:count])[0])
            loss = loss + training.practice_weight * shape_loss(other.float(), wanted.float())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(changes.values()), 1.0)
        optimiser.step()
        running, off = running + loss.item(), off + shape.item()
        stage.step += 1
        stage.samples += len(noise)
        if stage.step % 50 == 0:
            stage.log(loss=running / 50, shape=off / 50)
            running = off = 0.0
        if stage.elapsed_s - kept_s > KEEP_S:
            kept_s = stage.elapsed_s
            work.keep("denoiser", changes)
    work.keep("denoiser", changes)
    return {name: value.detach() for name, value in changes.items()}


def _joined(batches: Sequence[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(b, n) for b in batches]) for n in Batch.__slots__))
