"""What the denoiser is trained on: samples of the cached latents, and references that it generated
itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dithead.config import DiTConfig
from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.errors import ConfigError
from dithead.train.latents import LatentCache, Run
from dithead.train.loop import precision
from dithead.train.references import References
from dithead.train.settings import PLAIN, DiTTraining, Execution

MAX_LATENT_STD = 2.0
"""No face's latent varies more: the average over faces is 1."""
FORGET_SHARE = 0.05
"""A chain of own outputs is 20 rounds deep on average."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, by rows of the cache."""

    row: int
    reference: int
    past: tuple[int, ...]
    """The frames before, the latest first; the reference in the place of those before the clip."""
    window: np.ndarray
    """(window_frames, features) float32."""
    person: int
    """See :class:`Batch`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One training batch: latents (B, C, S, S) and windows (B, window_frames, features)."""

    clean: Tensor
    masked: Tensor
    reference: Tensor
    window: Tensor
    person: Tensor
    """(B,) int64: samples with the same number show the same person with the same look."""
    past: Tensor
    """(B, motion_frames C, S, S): the frames before, the latest first."""
    landmarks: Tensor
    """(B, 26, 2); (B, 0, 2) for a denoiser that is not shown them."""

    @property
    def conditions(self) -> tuple[Tensor, ...]:
        """What the denoiser is given after the window."""
        return (self.landmarks,) if self.landmarks.shape[1] > 0 else ()


def _by_person(runs: Iterable[Run]) -> list[list[Run]]:
    people: dict[str, list[Run]] = {}
    for run in runs:
        people.setdefault(run.person, []).append(run)
    return list(people.values())


class LatentSampler:
    """Draws training samples from the cache.

    Args:
        shown: what the denoiser is shown; None, for one without further conditions.

    Raises:
        ConfigError: that is not in the cache.
    """

    def __init__(
        self, cache: LatentCache, training: DiTTraining, shown: DiTConfig | None = None
    ) -> None:
        self.cache = cache
        self.training = training
        self.motion_frames = 0 if shown is None else shown.motion_frames
        self.landmarks = torch.zeros(len(cache.face), 0, 2)
        if shown is not None and shown.landmarks:
            if cache.landmarks is None:
                raise ConfigError(
                    "the denoiser is shown landmarks, and these latents were cached without",
                    hint="run dithead-train latents again",
                )
            self.landmarks = cache.landmarks
        self.random = np.random.default_rng(training.seed)
        self.plain = [run for run in cache.runs if run.main and run.look == 0]
        self.looks = [run for run in cache.runs if run.main and run.look != 0]
        self.others = _by_person(run for run in cache.runs if not run.main and not run.made)
        self.made = _by_person(run for run in cache.runs if run.made)
        self.references = References(cache.runs, training)
        self.person = {key: number for number, key in enumerate(self.references.alike)}

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

    def _window(self, run: Run, frame: int) -> np.ndarray:
        t = self.training
        if self.cache.silent[run.heard][frame] and self.random.random() < t.silence_share:
            return self.cache.silence_window.numpy()
        variant = int(self.random.random() < t.disturbed_share)
        return self.cache.windows[run.heard][variant, frame]

    def draw(self) -> Sample:
        """A random sample; the reference is a true frame."""
        run = self.draw_run()
        frame = int(self.random.integers(run.frames))
        reference = self.references.draw(run, frame, self.random)
        window = self._window(run, frame).astype(np.float32)
        before = range(frame - 1, frame - 1 - self.motion_frames, -1)
        past = tuple(run.first + at if at >= 0 else reference for at in before)
        person = self.person[run.group, run.look]
        return Sample(run.first + frame, reference, past, window, person)

    def sample(self, batch: int) -> Batch:
        """A random batch."""
        return self.collect([self.draw() for _ in range(batch)])

    def collect(self, samples: Sequence[Sample]) -> Batch:
        """Samples as one batch."""
        rows = [sample.row for sample in samples]
        past = torch.tensor([sample.past for sample in samples], dtype=torch.long)
        return Batch(
            self.cache.face[rows].float(),
            self.cache.masked[rows].float(),
            self.cache.face[[sample.reference for sample in samples]].float(),
            torch.from_numpy(np.stack([sample.window for sample in samples])),
            torch.tensor([sample.person for sample in samples]),
            self.cache.face[past].float().flatten(1, 2),
            self.landmarks[rows],
        )


class OwnOutputs:
    """Latents that the model generated, by person: references as they occur when frames are fed
    back.

    The output is one for another sample's audio, never for a neighbouring frame: the reference must
    show what the person looks like, not what the mouth does next. A new output is generated from an
    older one if there is one, so the outputs grow many rounds deep.

    Args:
        size: (C, S, S) of a latent. steps: with which they are generated; None: 1 to
            ``training.generated_steps``, by chance.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        training: DiTTraining,
        size: tuple[int, ...],
        execution: Execution = PLAIN,
        steps: int | None = None,
    ) -> None:
        self.diffusion = diffusion
        self.steps = steps
        self.training = training
        self.size = size
        self.execution = execution
        self.random = np.random.default_rng(training.seed)
        self.latents: dict[int, Tensor] = {}

    def initial_noise(self, people: Tensor) -> Tensor:
        """Each person's own initial noise, the same in every round, as in a stream."""
        generators = (torch.Generator().manual_seed(person) for person in people.tolist())
        noise = [torch.randn(self.size, generator=generator) for generator in generators]
        return torch.stack(noise).to(people.device)

    def references(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """References, followed by the frames before, (B, (1 + motion_frames) C, S, S), and initial
        noise (B, C, S, S) for a batch: a share of references and noise is what the model would see
        in a stream; all references, and the frames before, carry a little noise."""
        reference, noise = batch.reference.clone(), torch.randn_like(batch.clean)
        for row, person in enumerate(batch.person.tolist()):
            if person in self.latents and self.random.random() < self.training.own_output_share:
                reference[row] = self.latents[person]
                if self.random.random() < 0.5:
                    noise[row] = self.initial_noise(batch.person[row : row + 1])[0]
        share = torch.rand(len(reference), 1, 1, 1).to(reference.device)
        noised = [
            clean + level * share * torch.randn_like(clean)
            for clean, level in (
                (reference, self.training.reference_noise),
                (batch.past, self.training.past_noise),
            )
        ]
        return torch.cat(noised, 1), noise

    def generate(self, model: DiT, batch: Batch) -> None:
        """Generate outputs for the first samples of a batch, from older outputs if there are
        any."""
        count = generated(self.training, len(batch.clean))
        if count == 0:
            return
        heard = batch.window.roll(1, 0)[:count]
        latents = self.sample(model, batch, heard, self.draw_steps(self.random))
        for person, latent in zip(batch.person[:count].tolist(), latents, strict=True):
            self.keep(person, latent, self.random.random())

    def draw_steps(self, random: np.random.Generator) -> int:
        """The number of steps of a round."""
        if self.steps is not None:
            return self.steps
        return int(random.integers(1, self.training.generated_steps + 1))

    @torch.no_grad()
    def sample(self, model: DiT, batch: Batch, heard: Tensor, steps: int) -> Tensor:
        """New outputs for the first samples of a batch, with other windows of sound.

        Args:
            heard: (K, window_frames, features). steps: number of steps.

        Returns:
            (K, C, S, S).
        """
        people = batch.person[: len(heard)]
        older = [self.latents.get(p, batch.reference[i]) for i, p in enumerate(people.tolist())]
        reference, masked = torch.stack(older), batch.masked[: len(heard)]
        # The frames before said something else: each output begins a stream.
        channels = reference.shape[1] + batch.past.shape[1]
        reference = reference.repeat(1, channels // reference.shape[1], 1, 1)
        conditions = [values[: len(heard)] for values in batch.conditions]

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            with precision(noisy.device, self.execution.precision):
                return model(noisy, masked, reference, timestep, heard, *conditions)

        latents = self.diffusion.sample(predict, self.initial_noise(people), steps)
        # If the network predicts noise, a guess from pure noise is far off until it has learnt.
        excess = latents.std((1, 2, 3), keepdim=True) / MAX_LATENT_STD
        return latents / excess.clamp(min=1.0)

    def keep(self, person: int, latent: Tensor, chance: float) -> None:
        """Keep a person's new output, or by chance (0 to 1) none: a fresh start from time to time,
        so that a person's outputs are of all depths."""
        if chance < FORGET_SHARE:
            self.latents.pop(person, None)
        else:
            self.latents[person] = latent


def generated(training: DiTTraining, batch: int) -> int:
    """Number of samples of a batch for which outputs are generated."""
    return round(training.generated_share * batch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""
    return Batch(*(getattr(batch, name).to(device) for name in Batch.__slots__))


def draw_timesteps(
    training: DiTTraining,
    diffusion: Diffusion,
    device: torch.device,
    grid: Sequence[int] | None = None,
) -> Tensor:
    """Timesteps (B,): uniform, with a share at the noisiest.

    Args:
        grid: those to draw from, the noisiest first; None, all.
    """
    known = torch.tensor(timesteps_of(diffusion, grid), device=device)
    place = torch.randint(len(known), (training.batch,), device=device)
    first = torch.rand(training.batch, device=device) < training.first_step_share
    return torch.where(first, known[-1], known[place])


def timesteps_of(diffusion: Diffusion, grid: Sequence[int] | None) -> Sequence[int]:
    """Timesteps to draw from, the noisiest last: all, unless there is a grid (noisiest first)."""
    return range(diffusion.config.timesteps) if grid is None else grid[::-1]
