"""``dithead-train vqgan``: stage 1, one of the two autoencoders."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.errors import ConfigError
from dithead.train.appearance import plain_appearance, render
from dithead.train.data import Footage
from dithead.train.distributed import Processes, for_several, open_states, this_process
from dithead.train.learner import Learner, random_states, restore_random_states
from dithead.train.loop import (
    PART,
    Due,
    MovingAverage,
    Stage,
    hash_weights,
    load_part,
    precision,
    set_learning_rate,
)
from dithead.train.losses import ReconstructionLoss
from dithead.train.masking import masked_pictures
from dithead.train.motion import crop_meshes
from dithead.train.picture import save_grid
from dithead.train.pictures import (
    KeyedPictures,
    PictureDraws,
    PictureSampler,
    SequentialPictures,
    mouth_weights,
)
from dithead.train.settings import PLAIN, Execution, Kind, VQGANTraining
from dithead.vqgan import VQGAN

log = logging.getLogger(__name__)


def train_vqgan(
    footage: Footage,
    config: DitHeadConfig,
    training: VQGANTraining,
    out: Path,
    start: Path | None = None,
    execution: Execution = PLAIN,
) -> Path:
    """Train one VQGAN for one stage and write its averaged weights. An interrupted run goes on from
    its newest state, and several processes train one model, as in
    :func:`dithead.train.dit.train_dit`.

    Args:
        out: folder for weights, log, states and sample pictures. start: weights to start with.

    Returns:
        Path of the weights.

    Raises:
        ConfigError: the folder holds an unfinished run, and that one was begun differently, or is
            not to be resumed; or several processes cannot train like this.
        BackendUnavailable: the device, accelerate or the perceptual distance is not there.
    """
    if execution.shard:
        raise ConfigError(
            "the weights of an autoencoder are not divided between processes: they are few",
            hint="leave --shard out",
        )
    if start is None and training.decoder_only:
        raise ConfigError("training the decoder only takes weights to start from, for the encoder")
    processes = this_process(execution)
    training = for_several(training, processes.count)
    name = f"vqgan_{training.kind}"
    path = out / f"{name}.safetensors"
    made_from = _made_from(footage, config, training, execution, start)
    states = open_states(out / f"{name}.states", made_from, execution.resume, processes)
    if states.finished and path.is_file():
        return path
    torch.manual_seed(training.seed)
    where = processes.device
    model = VQGAN(config.vqgan)
    if start is not None and states.newest is None:
        _begin_from(model, start, training)
    model.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sampler = PictureSampler(footage, config, training)
    average = MovingAverage(model, training.average_decay)
    losses = ReconstructionLoss(
        mouth_weights(config.face.crop_px, training.mouth_weight, config.face.view).to(where),
        training.perceptual_weight,
        training.adversarial_weight,
        where,
        processes=processes,
        whole=training.perceptual_whole,
    )
    part: nn.Module = model.decoder if training.decoder_only else model
    if training.decoder_only:
        model.encoder.requires_grad_(False)
    # It has no gradient before it is switched on, for which a connected model would wait.
    model.codebook.requires_grad_(False)
    connected = processes.connect(model, sharded=False)
    model.codebook.requires_grad_(not training.decoder_only)
    trained = list(part.parameters())
    optimiser = torch.optim.AdamW(
        trained,
        lr=training.learning_rate,
        betas=(training.beta1, training.beta2),
        weight_decay=training.weight_decay,
    )
    stage = Stage(out / f"{name}.log", training.minutes, training.steps, processes.main)
    learner = Learner(model, average, optimiser, stage)
    quantise = start is not None
    plain = config.vqgan.softness is None  # latents are decoded as they are
    quantised_share = training.quantised_share
    if quantised_share is None:
        quantised_share = 0.25 if plain else 1.0
    recent: deque[Tensor] = deque(maxlen=32)  # features that fill the codebook
    latent_noise = training.latent_noise if plain else 0.0
    size = config.vqgan.latent_channels, config.latent_size, config.latent_size
    pictures: PictureDraws = (
        KeyedPictures(sampler, latent_noise, size, processes)
        if training.keyed
        else SequentialPictures(sampler)
    )
    with closing(pictures):
        if (saved := states.newest) is not None:
            learner.restore(saved)
            losses.restore(saved)
            pictures.restore(saved)
            restore_random_states(saved, where)
            quantise = saved.values["quantise"]
            kept = saved.tensors("recent")
            recent.extend(kept[str(i)].to(where) for i in range(len(kept)))
        due = Due(execution, stage)
        while stage.running:
            rate = stage.learning_rate(training.learning_rate, training.warmup_steps)
            set_learning_rate(optimiser, rate)
            drawn = pictures.next()
            image = drawn.image.to(where, memory_format=torch.channels_last)
            if not quantise and stage.progress > training.warm_share:
                generator = torch.Generator().manual_seed(training.seed)
                fill_codebook(model, torch.cat(list(recent)), generator)
                quantise = True
            with precision(where, execution.precision):
                share = _own_share(quantised_share, training.batch, processes) if quantise else 0.0
                noise: float | Callable[[Tensor], Tensor] = latent_noise
                if drawn.noise is not None:
                    noise = _relative(drawn.noise.to(where), processes)
                result = connected(image, share, noise)
            if not quantise:
                recent.append(processes.by_place(result.features.detach()))
            reconstruction = result.image.float()
            loss, parts = losses(image, reconstruction)
            if quantise and part is model:
                commitment = training.commitment_weight * result.commitment_loss
                loss = loss + result.codebook_loss + commitment
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            processes.average(model.codebook.parameters())
            nn.utils.clip_grad_norm_(trained, training.gradient_clip)
            optimiser.step()
            losses.train_discriminator(image, reconstruction.detach())
            average.update()
            stage.step += 1
            stage.samples += training.batch
            if stage.step % 50 == 0:
                used = processes.by_place(result.indices).unique().numel()
                parts = {part: processes.mean(value) for part, value in parts.items()}
                stage.log(loss=processes.mean(loss.item()), used=used, quantised=quantise, **parts)
            if stage.step % 500 == 0 and processes.main:
                both = torch.cat([image[:6].float(), reconstruction[:6].detach()])
                save_grid(both, out / f"{name}.png", columns=6)
            if processes.agreed(due.now()):
                tensors = chain(
                    learner.tensors(),
                    losses.tensors(),
                    pictures.tensors(),
                    random_states(where),
                    ((f"recent.{i}", x.cpu()) for i, x in enumerate([] if quantise else recent)),
                )
                values = {**learner.values(), "pictures": pictures.values(), "quantise": quantise}
                states.save(stage.step, tensors, values)
    if processes.main:
        _finish(model, average, sampler, config, training, path)
    states.finish()
    processes.end()
    return path


def _own_share(share: float, batch: int, processes: Processes) -> float:
    """Which share of a process's pictures passes through the codebook, if the first ones of the
    whole batch do."""
    places = range(processes.rank, batch, processes.count)
    return sum(place < round(share * batch) for place in places) / len(places)


def _relative(noise: Tensor, processes: Processes) -> Callable[[Tensor], Tensor]:
    """Makes noise (B, C, S/f, S/f) as large as the spread of the whole batch's features says."""

    def spread(features: Tensor) -> Tensor:
        return noise * processes.by_place(features).std((0, 2, 3), keepdim=True)

    return spread


def _made_from(
    footage: Footage,
    config: DitHeadConfig,
    training: VQGANTraining,
    execution: Execution,
    start: Path | None,
) -> dict[str, Any]:
    """What a run is begun with, as its states note it."""
    clips = json.dumps([asdict(clip) for clip in footage.clips])
    return {
        **{f"training.{name}": value for name, value in asdict(training).items()},
        "precision": execution.precision,
        "config": config.to_dict(),
        "footage": hashlib.sha256(clips.encode()).hexdigest(),
        "start": hash_weights(start),
    }


def _begin_from(model: VQGAN, start: Path, training: VQGANTraining) -> None:
    tensors = load_part(start, f"{training.kind}_vqgan", of_any_part=True)
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
    path: Path,
) -> None:
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
    part = {PART: f"{training.kind}_vqgan"}
    checkpoint.save(path, model.state_dict(), config.to_dict(), part, dtype=None)


@torch.inference_mode()
def reconstruction_psnr(
    model: VQGAN, footage: Footage, config: DitHeadConfig, kind: Kind, clips: int = 15
) -> dict[str, float]:
    """Mean PSNR (dB) of the whole crop and of its mouth region over validation frames; empty, if
    none are held out."""
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
    if not whole:
        return {}
    return {
        "whole_db": float(-10 * torch.log10(torch.cat(whole)).mean()),
        "mouth_db": float(-10 * torch.log10(torch.cat(near)).mean()),
    }
