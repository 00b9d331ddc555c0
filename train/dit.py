"""``dithead-train dit``: stage 2, the denoiser on cached latents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.face.crop import crop_mask, crop_positions, mask_polygon
from dithead.model import build_dit
from dithead.train.latents import LatentCache, Run
from dithead.train.loop import (
    MovingAverage,
    Stage,
    ahead,
    descend,
    load_part,
    precision,
    set_learning_rate,
)
from dithead.train.shape import load_shape_head, shape_loss

MAX_LATENT_STD = 2.0
"""No face's latent varies more: the average over faces is 1."""
SOLVED_AT_ONCE = 256
RIDGE = 0.002
FORGET_SHARE = 0.05
"""A chain of own outputs is 20 rounds deep on average."""


@dataclass(frozen=True, slots=True)
class DiTTraining:
    """Settings of one stage."""

    minutes: float = 60.0
    steps: int | None = None
    """End after this many steps, if that comes first."""
    batch: int = 32
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    seed: int = 0
    average_decay: float = 0.999
    made_share: float = 0.5
    """Share of samples from people made from stills, if there are any; all of them equally
    often."""
    main_share: float = 0.7
    """Share of the other samples from the person with the most clips."""
    main_plain_share: float = 0.45
    """Share of that person's samples that show the person's true look."""
    other_clip_share: float = 0.9
    """Share of samples whose reference comes from another clip of the same person and look, if
    there is one. 0 is the paper's rule: a distant frame of the same clip."""
    min_distance: int = 60
    """A reference from the same clip is at least this many frames away (the paper's number), or as
    far as a short clip allows."""
    own_output_share: float = 0.5
    """Share of samples whose reference is the model's own output for another frame and audio, if
    there is one; most of those were made from own outputs in turn."""
    generated_share: float = 0.25
    """Share of each batch for which such outputs are generated, with 1 to ``generated_steps``
    steps."""
    generated_steps: int = 4
    reference_noise: float = 0.1
    """Largest standard deviation of the noise on reference latents."""
    silence_share: float = 0.35
    """Share of silent frames that hear digital silence instead of the recorded one."""
    disturbed_share: float = 0.5
    """Share of samples that hear the audio with a changed level and added noise."""
    mouth_weight: float = 2.5
    """Extra weight of the mouth region; outside the mask the loss has the weight
    ``outside_weight``."""
    outside_weight: float = 0.15
    shape_weight: float = 0.1
    """Weight of the face's shape, as the shape head reads it from the latent that the prediction
    implies; only with a shape head."""
    first_step_share: float = 0.3
    """Share of samples at the noisiest timestep, from which few-step sampling starts."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch: latents (B, C, S, S) and windows (B, window_frames, features)."""

    clean: Tensor
    masked: Tensor
    reference: Tensor
    window: Tensor
    person: Tensor
    """(B,) int64: samples with the same number show the same person with the same look."""


def _by_person(runs: Iterable[Run]) -> list[list[Run]]:
    people: dict[str, list[Run]] = {}
    for run in runs:
        people.setdefault(run.person, []).append(run)
    return list(people.values())


class LatentSampler:
    """Draws training samples from the cache."""

    def __init__(self, cache: LatentCache, training: DiTTraining) -> None:
        self.cache = cache
        self.training = training
        self.random = np.random.default_rng(training.seed)
        self.plain = [run for run in cache.runs if run.main and run.look == 0]
        self.looks = [run for run in cache.runs if run.main and run.look != 0]
        self.others = _by_person(run for run in cache.runs if not run.main and not run.made)
        self.made = _by_person(run for run in cache.runs if run.made)
        self.alike: dict[tuple[int, int], list[Run]] = {}
        for run in cache.runs:
            self.alike.setdefault((run.group, run.look), []).append(run)
        self.person = {key: number for number, key in enumerate(self.alike)}

    def draw_run(self) -> Run:
        """Any clip, in the shares that the settings ask for."""
        real = self.plain or self.looks
        if self.made and not (real and self.random.random() >= self.training.made_share):
            runs = self.made[self.random.integers(len(self.made))]
        elif self.others and self.random.random() > self.training.main_share:
            runs = self.others[self.random.integers(len(self.others))]
        elif self.plain and self.random.random() < self.training.main_plain_share:
            runs = self.plain
        else:
            runs = self.looks or self.plain
        return runs[self.random.integers(len(runs))]

    def reference_row(self, run: Run, frame: int) -> int:
        """A frame of another clip of the same person and look, otherwise a distant one of the same
        clip."""
        alike = [other for other in self.alike[run.group, run.look] if other.clip != run.clip]
        if alike and self.random.random() < self.training.other_clip_share:
            other = alike[self.random.integers(len(alike))]
            return other.first + int(self.random.integers(other.frames))
        distance = min(self.training.min_distance, max(frame, run.frames - 1 - frame))
        far = [f for f in range(run.frames) if abs(f - frame) >= distance]
        return run.first + far[self.random.integers(len(far))]

    def _window(self, run: Run, frame: int) -> np.ndarray:
        t = self.training
        if self.cache.silent[run.heard][frame] and self.random.random() < t.silence_share:
            return self.cache.silence_window.numpy()
        variant = int(self.random.random() < t.disturbed_share)
        return self.cache.windows[run.heard][variant, frame]

    def sample(self, batch: int) -> Batch:
        """A random batch; references are true frames."""
        rows, references, windows, people = [], [], [], []
        for _ in range(batch):
            run = self.draw_run()
            frame = int(self.random.integers(run.frames))
            rows.append(run.first + frame)
            references.append(self.reference_row(run, frame))
            windows.append(self._window(run, frame).astype(np.float32))
            people.append(self.person[run.group, run.look])
        return Batch(
            self.cache.face[rows].float(),
            self.cache.masked[rows].float(),
            self.cache.face[references].float(),
            torch.from_numpy(np.stack(windows)),
            torch.tensor(people),
        )


class OwnOutputs:
    """Latents that the model generated, by person: references as they occur when frames are fed
    back.

    The output is one for another sample's audio, never for a neighbouring frame: the reference must
    show what the person looks like, not what the mouth does next. A new output is generated from an
    older one if there is one, so the outputs grow many rounds deep.
    """

    def __init__(self, diffusion: Diffusion, training: DiTTraining, size: tuple[int, ...]) -> None:
        self.diffusion = diffusion
        self.training = training
        self.size = size
        self.random = np.random.default_rng(training.seed)
        self.latents: dict[int, Tensor] = {}

    def _noise(self, people: Tensor) -> Tensor:
        """Each person's own initial noise, the same in every round, as in a stream."""
        generators = (torch.Generator().manual_seed(person) for person in people.tolist())
        noise = [torch.randn(self.size, generator=generator) for generator in generators]
        return torch.stack(noise).to(people.device)

    def references(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """References (B, C, S, S) and initial noise (B, C, S, S) for a batch: a share of both is
        what the model would see in a stream; all references carry a little noise."""
        reference, noise = batch.reference.clone(), torch.randn_like(batch.clean)
        for row, person in enumerate(batch.person.tolist()):
            if person in self.latents and self.random.random() < self.training.own_output_share:
                reference[row] = self.latents[person]
                if self.random.random() < 0.5:
                    noise[row] = self._noise(batch.person[row : row + 1])[0]
        level = self.training.reference_noise * torch.rand(len(reference), 1, 1, 1)
        level = level.to(reference.device)
        return reference + level * torch.randn_like(reference), noise

    @torch.no_grad()
    def generate(self, model: DiT, batch: Batch) -> None:
        """Generate outputs for the first samples of a batch, from older outputs if there are
        any."""
        count = round(self.training.generated_share * len(batch.clean))
        if count == 0:
            return
        people = batch.person[:count]
        older = [self.latents.get(p, batch.reference[i]) for i, p in enumerate(people.tolist())]
        reference, masked = torch.stack(older), batch.masked[:count]
        heard = batch.window.roll(1, 0)[:count]

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            with precision(noisy.device):
                return model(noisy, masked, reference, timestep, heard)

        steps = int(self.random.integers(1, self.training.generated_steps + 1))
        latents = self.diffusion.sample(predict, self._noise(people), steps)
        # If the network predicts noise, a guess from pure noise is far off until it has learnt.
        excess = latents.std((1, 2, 3), keepdim=True) / MAX_LATENT_STD
        latents = latents / excess.clamp(min=1.0)
        for person, latent in zip(people.tolist(), latents, strict=True):
            # A fresh start from time to time, so that a person's outputs are of all depths.
            if self.random.random() < FORGET_SHARE:
                self.latents.pop(person, None)
            else:
                self.latents[person] = latent


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
        batch = _to(next(batches), where)
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


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(getattr(batch, name).to(device) for name in Batch.__slots__))


def draw_timesteps(training: DiTTraining, diffusion: Diffusion, device: torch.device) -> Tensor:
    """Timesteps (B,): uniform, with a share at the noisiest."""
    last = diffusion.config.timesteps
    timestep = torch.randint(last, (training.batch,), device=device)
    first = torch.rand(training.batch, device=device) < training.first_step_share
    return torch.where(first, torch.full_like(timestep, last - 1), timestep)
