"""``dithead-train vqgan``: stage 1, one of the two autoencoders."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.face.crop import mask_out
from dithead.train.appearance import plain_appearance, random_appearance, render, training_mask
from dithead.train.data import Footage
from dithead.train.loop import MovingAverage, Stage, load_part, precision, set_learning_rate
from dithead.train.losses import ReconstructionLoss
from dithead.train.picture import save_grid
from dithead.vqgan import VQGAN

Kind = Literal["face", "masked"]


@dataclass(frozen=True, slots=True)
class VQGANTraining:
    """Settings of one stage."""

    kind: Kind = "face"
    """``face`` for whole faces, ``masked`` for masked faces."""
    minutes: float = 15.0
    steps: int | None = None
    """End after so many steps, if that comes first."""
    batch: int = 16
    learning_rate: float = 1e-3
    seed: int = 0
    main_share: float = 0.6
    """Share of the pictures that come from the person with the most clips; the rest is split over
    all others."""
    plain_share: float = 0.3
    """Share of pictures without augmentation of their look."""
    mouth_weight: float = 2.0
    """Extra weight of the mouth region in the reconstruction loss."""
    warm_share: float = 0.45
    """Share of the stage before the codebook is switched on (skipped when starting from
    weights)."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance (ST-LPIPS, AlexNet); needs the extra ``train``."""
    adversarial_weight: float = 0.0
    """Weight of the patch discriminator; with it, only the decoder is trained, so latents stay as
    they are."""


class PictureSampler:
    """Random pictures of random frames of the training split."""

    def __init__(self, footage: Footage, config: DitHeadConfig, seed: int) -> None:
        self.size = config.face.crop_px
        self.softness = config.face.mask_softness
        self.generator = torch.Generator().manual_seed(seed)
        self.random = np.random.default_rng(seed)
        people = footage.people("train")
        self.main = max(people.values(), key=len)
        self.others = [clips for clips in people.values() if clips is not self.main]
        self.footage = footage

    def sample(self, batch: int, main_share: float, plain_share: float) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, S, S) in [-1, 1] and their soft masks (B, 1, S, S)."""
        rows = []
        for _ in range(batch):
            clips = self.main
            if self.others and self.random.random() > main_share:
                clips = self.others[self.random.integers(len(self.others))]
            clip = clips[self.random.integers(len(clips))]
            rows.append(self.footage.crops(clip)[self.random.integers(clip.frames)])
        keep = torch.rand(batch, generator=self.generator) < plain_share
        look = random_appearance(batch, self.generator).plain_where(keep)
        image = render(torch.from_numpy(np.stack(rows)), look, self.size)
        return image, training_mask(look, self.size, self.softness, self.generator)


def mouth_weights(size: int, extra: float) -> Tensor:
    """Weight of each pixel: 1, and up to 1 + extra round the mouth. (1, 1, size, size)."""
    line = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    bump = torch.exp(-(((x / 0.18) ** 2 + ((y - 0.15) / 0.15) ** 2) ** 2))
    return (1 + extra * bump)[None, None]


def train_vqgan(
    footage: Footage,
    config: DitHeadConfig,
    training: VQGANTraining,
    out: Path,
    start: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Train one VQGAN for one stage and write its averaged weights.

    Args:
        out: folder for weights, log and sample pictures. start: weights to begin with.

    Returns:
        Path of the weights.
    """
    torch.manual_seed(training.seed)
    where = torch.device(device)
    model = VQGAN(config.vqgan)
    if start is not None:
        checkpoint.load_into(model, load_part(start, f"{training.kind}_vqgan"), start)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler = PictureSampler(footage, config, training.seed)
    average = MovingAverage(model, 0.998)
    losses = ReconstructionLoss(
        mouth_weights(config.face.crop_px, training.mouth_weight).to(where),
        training.perceptual_weight,
        training.adversarial_weight,
        where,
    )
    # With a discriminator the latents must stay as they are: the denoiser is trained on them.
    part: nn.Module = model.decoder if training.adversarial_weight > 0 else model
    trained = list(part.parameters())
    optimiser = torch.optim.AdamW(
        trained, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    stage = Stage(out / f"vqgan_{training.kind}.log", training.minutes, training.steps)
    quantise = start is not None
    recent: deque[Tensor] = deque(maxlen=32)  # features from which the codebook is filled
    while stage.running:
        set_learning_rate(optimiser, stage.learning_rate(training.learning_rate))
        image, mask = sampler.sample(training.batch, training.main_share, training.plain_share)
        if training.kind == "masked":
            image = mask_out(image, mask)
        image = image.to(where, memory_format=torch.channels_last)
        if not quantise and stage.progress > training.warm_share:
            fill_codebook(model, torch.cat(list(recent)), sampler.generator)
            quantise = True
        with precision(where):
            result = model(image, quantise=quantise)
        recent.append(result.features.detach())
        reconstruction = result.image.float()
        loss, parts = losses(image, reconstruction)
        if quantise and part is model:
            loss = loss + result.codebook_loss + 0.25 * result.commitment_loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.train_discriminator(image, reconstruction.detach())
        average.update()
        stage.step += 1
        stage.samples += training.batch
        if stage.step % 50 == 0:
            used = result.indices.unique().numel()
            stage.log(loss=loss.item(), used=used, quantised=quantise, **parts)
        if stage.step % 500 == 0:
            both = torch.cat([image[:6].float(), reconstruction[:6].detach()])
            save_grid(both, out / f"vqgan_{training.kind}.png", columns=6)
    return _finish(model, average, sampler, config, training, out)


@torch.no_grad()
def fill_codebook(model: VQGAN, features: Tensor, generator: torch.Generator) -> None:
    """Start the codebook from features (B, C, H, W) that occurred, drawn at random."""
    flat = features.movedim(1, -1).flatten(0, 2)
    rows = torch.randint(len(flat), (model.config.codebook_size,), generator=generator)
    model.codebook.entries.copy_(flat[rows.to(flat.device)])


@torch.no_grad()
def _finish(
    model: VQGAN,
    average: MovingAverage,
    sampler: PictureSampler,
    config: DitHeadConfig,
    training: VQGANTraining,
    out: Path,
) -> Path:
    model.load_state_dict(average.values)
    model.eval()
    device = model.latent_mean.device
    if training.adversarial_weight == 0:
        features = []
        for _ in range(32):
            image, mask = sampler.sample(16, 0.5, 0.5)
            if training.kind == "masked":
                image = mask_out(image, mask)
            features.append(model.encoder(image.to(device)).float())
        flat = torch.cat(features).movedim(1, -1).flatten(0, 2)
        model.latent_mean.copy_(flat.mean(0))
        model.latent_std.copy_(flat.std(0))
    path = out / f"vqgan_{training.kind}.safetensors"
    checkpoint.save(path, model.state_dict(), config.to_dict(), dtype=None)
    return path


@torch.inference_mode()
def reconstruction_psnr(
    model: VQGAN, footage: Footage, config: DitHeadConfig, kind: Kind, clips: int = 15
) -> dict[str, float]:
    """Mean PSNR (dB) of the whole crop and of its mouth region over validation frames."""
    size = config.face.crop_px
    mouth = mouth_weights(size, 1.0) - 1.0
    whole, near = [], []
    for clip in footage.split("validation")[:clips]:
        crops = torch.from_numpy(np.asarray(footage.crops(clip)[::15]))
        look = plain_appearance(len(crops))
        image = render(crops, look, size)
        if kind == "masked":
            generator = torch.Generator().manual_seed(0)
            image = mask_out(
                image, training_mask(look, size, config.face.mask_softness, generator, 0.0)
            )
        error = (model.decode(model.encode(image)) - image).square().mean(1, keepdim=True) / 4
        whole.append(error.mean((1, 2, 3)))
        near.append((error * mouth).sum((1, 2, 3)) / mouth.sum())
    return {
        "whole_db": float(-10 * torch.log10(torch.cat(whole)).mean()),
        "mouth_db": float(-10 * torch.log10(torch.cat(near)).mean()),
    }
