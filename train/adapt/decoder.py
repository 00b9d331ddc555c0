"""Training of an adaptation's decoder: the person's picture, sharp where the denoiser is not sure.

Where sound does not say what a mouth shows, a denoiser generates the mean of all that it may show,
and a decoder that knows only true latents draws a grey blur. So it also learns from latents that
the adapted denoiser generates, each with the true picture beside it: by a perceptual distance and a
discriminator of patches, which a blur does not please.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from dithead import checkpoint
from dithead.errors import BackendUnavailable
from dithead.model import DitHead
from dithead.train.adapt.person import Person
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import Work
from dithead.train.loop import MovingAverage, Stage, descend, precision, set_learning_rate
from dithead.train.losses import ReconstructionLoss
from dithead.train.metrics import MOUTH_POINTS
from dithead.train.pictures import mouth_weights

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
MOUTH_WEIGHT = 2.0
"""Extra weight of the mouth, as in the training of stage 1."""
LATENT_NOISE = 0.05
"""Largest standard deviation of the noise on latents."""
MARGIN, LEAST_HALF = 0.03, 0.125
"""Of the part of the crop that is compared round the mouth, beyond its points; and half its least
side."""
MADE, MADE_SHARE = 480, 0.2
"""Latents that are generated, and the share of the time for it; at most."""


def fit_decoder(
    person: Person, model: DitHead, work: Work, training: Adaptation, tell: Tell
) -> dict[str, Tensor]:
    """Train the decoder on the person's pictures and on what the adapted denoiser generates of
    them, in place; its weights."""
    vqgan = model.face_vqgan
    kept = work.kept("decoder")
    if kept is not None:
        checkpoint.load_into(vqgan.decoder, kept, work.folder)
        return kept
    losses = _losses(person, model, training)
    decoder = vqgan.decoder.train().requires_grad_(True)
    decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = MovingAverage(decoder, 0.99)
    optimiser = torch.optim.AdamW(decoder.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    stage = Stage(work.folder / "decoder.log", work.left_minutes(0.1), training.steps)
    generated, own = _generated(person, model, training, stage)
    mean, std = vqgan.latent_mean[:, None, None], vqgan.latent_std[:, None, None]
    count = round(training.generated_share * training.decoder_batch)
    while stage.running:
        tell("learning the picture", work.share)
        set_learning_rate(
            optimiser, stage.learning_rate(training.decoder_learning_rate, warmup_steps=30)
        )
        made = torch.randint(len(own), (count,))
        true = torch.randint(len(person.face), (training.decoder_batch - count,))
        latents = torch.cat([generated[made], person.face[true].float()])
        level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1)
        latents = latents + level * torch.randn_like(latents)
        image = person.pictures[torch.cat([own[made], true])].float() / 127.5 - 1.0
        with precision(CPU):
            found = decoder(latents * std + mean).float()
            loss, parts = losses(image, found)
        descend(loss, optimiser, list(decoder.parameters()))
        with precision(CPU):
            losses.train_discriminator(image, found.detach())
        average.update()
        stage.step += 1
        stage.samples += len(image)
        if stage.step % 20 == 0:
            stage.log(loss=loss.item(), **parts)
    checkpoint.load_into(decoder, average.values, work.folder)
    decoder.eval().requires_grad_(False)
    work.keep("decoder", average.values)
    return average.values


def _losses(person: Person, model: DitHead, training: Adaptation) -> ReconstructionLoss:
    face = model.config.face
    weights = mouth_weights(face.crop_px, MOUTH_WEIGHT, face.view)
    others = training.adversarial_weight, CPU, _mouth(person, model)
    try:
        return ReconstructionLoss(weights, training.perceptual_weight, *others)
    except BackendUnavailable as error:
        log.warning("the inside of the mouth will be less sharp: %s", error)
        return ReconstructionLoss(weights, 0.0, *others)


def _mouth(person: Person, model: DitHead) -> tuple[slice, slice]:
    """Rows and columns of the crop in which the person's mouth is, nearly always."""
    face = model.config.face
    points = person.meshes[:, list(MOUTH_POINTS)]  # (N, 4, 2)
    low, high = points.amin(1).quantile(0.02, dim=0), points.amax(1).quantile(0.98, dim=0)
    middle, half = (low + high) / 2, (high - low) / 2
    middle = (middle - torch.tensor([0.0, face.view.down])) / face.view.span + 0.5
    half = (half / face.view.span + MARGIN).clamp(min=LEAST_HALF)
    first = ((middle - half) * face.crop_px).floor().clamp(min=0).int().tolist()
    last = ((middle + half) * face.crop_px).ceil().clamp(max=face.crop_px).int().tolist()
    return slice(first[1], last[1]), slice(first[0], last[0])


@torch.no_grad()
def _generated(
    person: Person, model: DitHead, training: Adaptation, stage: Stage
) -> tuple[Tensor, Tensor]:
    """Latents (M, C, s, s) that the denoiser generates in one step, and the rows (M,) that they
    should equal."""
    random = np.random.default_rng(training.seed)
    needed = MADE if stage.steps is None else min(MADE, stage.steps * training.decoder_batch)
    latents: list[Tensor] = []
    rows: list[Tensor] = []
    with parametrize.cached():  # weights and their changes are added once
        while not rows or (len(rows) * training.batch < needed and stage.progress < MADE_SHARE):
            batch, own = person.sample(training.batch, random)
            noise = torch.randn_like(batch.clean)
            last = torch.full((len(noise),), model.config.diffusion.timesteps - 1)
            with precision(CPU):
                found = model.dit(noise, batch.masked, batch.reference, last, batch.window)
            latents.append(model.diffusion.split(noise, found.float(), last)[0])
            rows.append(own)
    return torch.cat(latents), torch.cat(rows)
