"""``dithead-train vqgan``: stage 1, one of the two autoencoders."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.config import DitHeadConfig, View
from dithead.errors import ConfigError, MediaError
from dithead.face.crop import crop_positions
from dithead.train.appearance import (
    plain_appearance,
    random_appearance,
    render,
    vary_pose,
)
from dithead.train.data import Footage
from dithead.train.loop import (
    MovingAverage,
    Stage,
    ahead,
    descend,
    load_part,
    precision,
    set_learning_rate,
)
from dithead.train.losses import ReconstructionLoss
from dithead.train.masking import followed, masked_pictures
from dithead.train.motion import crop_meshes
from dithead.train.picture import save_grid
from dithead.vqgan import VQGAN

log = logging.getLogger(__name__)

Kind = Literal["face", "masked"]


@dataclass(frozen=True, slots=True)
class VQGANTraining:
    """Settings of one stage."""

    kind: Kind = "face"
    """``face`` for whole faces, ``masked`` for masked faces."""
    minutes: float = 15.0
    steps: int | None = None
    """End after this many steps, if that comes first."""
    batch: int = 16
    learning_rate: float = 1e-3
    seed: int = 0
    still_share: float = 0.7
    """Share of the pictures that are stills, if there are any."""
    main_share: float = 0.6
    """Share of the frames of clips that come from the person with the most; the rest is divided
    over all others."""
    plain_share: float = 0.5
    """Share of pictures whose look is not augmented."""
    mouth_weight: float = 2.0
    """Extra weight of the mouth region in the reconstruction loss."""
    warm_share: float = 0.45
    """Part of the stage before the codebook is switched on (skipped when starting from weights)."""
    quantised_share: float | None = None
    """Share of each batch that passes through the codebook then; None: all, or a quarter where
    latents are decoded as they are."""
    latent_noise: float = 0.05
    """Largest standard deviation of the noise, relative to the features' own, that the decoder
    learns to tolerate where latents are not quantised."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance (ST-LPIPS, AlexNet); needs the extra ``train``."""
    adversarial_weight: float = 0.0
    """Weight of the patch discriminator; only with ``decoder_only``."""
    decoder_only: bool = False
    """Train only the decoder, so that latents stay as they are: the denoiser is trained on them. If
    the start's decoder has another shape, a new one begins."""

    def __post_init__(self) -> None:
        if self.adversarial_weight > 0 and not self.decoder_only:
            raise ConfigError("a discriminator would move the latents: train the decoder only")


class PictureSampler:
    """Random pictures of random frames of the training split."""

    def __init__(self, footage: Footage, config: DitHeadConfig, training: VQGANTraining) -> None:
        self.size = config.face.crop_px
        self.face = config.face
        self.generator = torch.Generator().manual_seed(training.seed)
        self.random = np.random.default_rng(training.seed)
        self.training = training
        self.view = config.face.view
        people = footage.people("train")
        self.stills = footage.stills("train")
        self.main = max(people.values(), key=len, default=[])
        self.others = [clips for clips in people.values() if clips is not self.main]
        if not self.main and not self.stills:
            raise MediaError("the footage holds nothing to train on")
        self.footage = footage

    def sample(self, batch: int) -> Tensor:
        """Pictures (B, 3, S, S) in [-1, 1], masked for the masked VQGAN."""
        training, rows, meshes = self.training, [], []
        for _ in range(batch):
            clips = self.main
            if self.stills and (not clips or self.random.random() < training.still_share):
                clips = self.stills
            elif self.others and self.random.random() > training.main_share:
                clips = self.others[self.random.integers(len(self.others))]
            clip = clips[self.random.integers(len(clips))]
            frame = int(self.random.integers(clip.frames))
            rows.append(self.footage.crops(clip)[frame])
            if self.face.mask == "paper":
                meshes.append(crop_meshes(self.footage.track(clip))[frame])
        keep = torch.rand(batch, generator=self.generator) < training.plain_share
        # Not turned, which costs more than everything else: there are enough true poses.
        posed = vary_pose(plain_appearance(batch), self.generator)
        posed = replace(posed, turn=torch.zeros(batch, 2))
        look = random_appearance(batch, self.generator).where(keep, posed)
        if training.kind == "masked":
            look = followed(look, self.face)
        image = render(torch.from_numpy(np.stack(rows)), look, self.size, self.view)
        if training.kind == "face":
            return image
        found = torch.stack(meshes) if meshes else None
        return masked_pictures(image, look, found, self.face, self.generator)


def mouth_weights(size: int, extra: float, view: View) -> Tensor:
    """Weight of each pixel of a crop: 1, and up to 1 + extra round the mouth. (1, 1, size,
    size)."""
    x, y = crop_positions(size, view)
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
        out: folder for weights, log and sample pictures. start: weights to start with.

    Returns:
        Path of the weights.
    """
    torch.manual_seed(training.seed)
    where = torch.device(device)
    model = VQGAN(config.vqgan)
    if start is not None:
        _begin_from(model, start, training)
    elif training.decoder_only:
        raise ConfigError("training the decoder only takes weights to start from, for the encoder")
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler = PictureSampler(footage, config, training)
    average = MovingAverage(model, 0.998)
    losses = ReconstructionLoss(
        mouth_weights(config.face.crop_px, training.mouth_weight, config.face.view).to(where),
        training.perceptual_weight,
        training.adversarial_weight,
        where,
    )
    part: nn.Module = model.decoder if training.decoder_only else model
    if training.decoder_only:
        model.encoder.requires_grad_(False)
        model.codebook.requires_grad_(False)
    trained = list(part.parameters())
    optimiser = torch.optim.AdamW(
        trained, lr=training.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
    )
    stage = Stage(out / f"vqgan_{training.kind}.log", training.minutes, training.steps)
    quantise = start is not None
    plain = config.vqgan.softness is None  # latents are decoded as they are
    quantised_share = training.quantised_share
    if quantised_share is None:
        quantised_share = 0.25 if plain else 1.0
    recent: deque[Tensor] = deque(maxlen=32)  # features that fill the codebook
    pictures = ahead(partial(sampler.sample, training.batch))
    while stage.running:
        set_learning_rate(optimiser, stage.learning_rate(training.learning_rate))
        image = next(pictures).to(where, memory_format=torch.channels_last)
        if not quantise and stage.progress > training.warm_share:
            fill_codebook(model, torch.cat(list(recent)), sampler.generator)
            quantise = True
        with precision(where):
            result = model(
                image, quantised_share if quantise else 0.0, training.latent_noise if plain else 0.0
            )
        recent.append(result.features.detach())
        reconstruction = result.image.float()
        loss, parts = losses(image, reconstruction)
        if quantise and part is model:
            loss = loss + result.codebook_loss + 0.25 * result.commitment_loss
        descend(loss, optimiser, trained)
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
    pictures.close()
    return _finish(model, average, sampler, config, training, out)


def _begin_from(model: VQGAN, start: Path, training: VQGANTraining) -> None:
    tensors = load_part(start, f"{training.kind}_vqgan")
    own = {f"decoder.{name}": value for name, value in model.decoder.state_dict().items()}
    found = {name: value for name, value in tensors.items() if name.startswith("decoder.")}
    alike = {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in found.items()}
    if training.decoder_only and not alike:
        log.info("the decoder of %s has another shape: a new one begins", start)
        tensors = {name: value for name, value in tensors.items() if name not in found} | own
    checkpoint.load_into(model, tensors, start)


@torch.no_grad()
def fill_codebook(model: VQGAN, features: Tensor, generator: torch.Generator) -> None:
    """Initialise the codebook with real features (B, C, H, W), drawn at random."""
    tables = model.codebook.positions(features)  # (G, B * H * W, C / G)
    rows = torch.randint(tables.shape[1], (model.config.codebook_size,), generator=generator)
    model.codebook.entries.copy_(tables[:, rows.to(tables.device)].flatten(0, 1))


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
    if not training.decoder_only:
        features = []
        for _ in range(32):
            features.append(model.encoder(sampler.sample(16).to(device)).float())
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
    view = config.face.view
    mouth = mouth_weights(size, 1.0, view) - 1.0
    whole, near = [], []
    for clip in [*footage.split("validation")[:clips], *footage.stills("validation")]:
        crops = torch.from_numpy(np.array(footage.crops(clip)[::15]))
        look = plain_appearance(len(crops))
        image = render(crops, look, size, view)
        if kind == "masked":
            generator = torch.Generator().manual_seed(0)
            mesh = crop_meshes(footage.track(clip))[::15]
            image = masked_pictures(image, look, mesh, config.face, generator, 0.0)
        error = (model.decode(model.encode(image)) - image).square().mean(1, keepdim=True) / 4
        whole.append(error.mean((1, 2, 3)))
        near.append((error * mouth).sum((1, 2, 3)) / mouth.sum())
    return {
        "whole_db": float(-10 * torch.log10(torch.cat(whole)).mean()),
        "mouth_db": float(-10 * torch.log10(torch.cat(near)).mean()),
    }
