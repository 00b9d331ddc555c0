"""Random numbers by key: what a sample is depends on the seed, the step and its place in the batch
alone, so any number of processes is trained on the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.dit import DiT
from dithead.train.distributed import Processes
from dithead.train.draws import Drawn
from dithead.train.loop import ahead
from dithead.train.samples import (
    Batch,
    LatentSampler,
    OwnOutputs,
    generated,
    timesteps_of,
    to_device,
)
from dithead.train.states import SavedState

_SAMPLE, _NUMBERS, _ROUND, _KEPT = range(4)
"""What a key is for; each has generators of its own."""


@dataclass(frozen=True, slots=True)
class _Made:
    """One process's part of one step, drawn ahead, on the CPU."""

    step: int
    batch: Batch
    noise: Tensor
    """(B, C, S, S)."""
    reference_noise: Tensor
    """(B, (1 + motion_frames) C, S, S)."""
    timestep: Tensor
    """(B,)."""
    chances: np.ndarray
    """(B, 2): whether a sample takes the own output, and the person's own noise, if below."""
    heard: Tensor
    """(K, window_frames, features): what the outputs to be generated hear."""


class KeyedDraws:
    """Draws of one process. The sample at place p of a batch is process p modulo their number's.

    Own outputs are generated in parts, and every process keeps all of them.

    Args:
        grid: the timesteps to draw from, the noisiest first; None, all.
    """

    def __init__(
        self,
        sampler: LatentSampler,
        own: OwnOutputs,
        processes: Processes,
        grid: Sequence[int] | None = None,
    ) -> None:
        self.sampler, self.own, self.processes = sampler, own, processes
        self.training = sampler.training
        self.known = timesteps_of(own.diffusion, grid)
        self._step = 0  # the next to be handed out
        self._begin()

    def _begin(self) -> None:
        self._ahead = self._step
        self._steps = ahead(self._make)

    def _random(self, purpose: int, step: int, place: int = 0) -> np.random.Generator:
        return np.random.default_rng((self.training.seed, purpose, step, place))

    def _make(self) -> _Made:
        step, size = self._ahead, self.training.batch
        self._ahead += 1
        places = range(self.processes.rank, size, self.processes.count)
        samples, noises, chances, timesteps = [], [], [], []
        for place in places:
            self.sampler.random = self._random(_SAMPLE, step, place)
            samples.append(self.sampler.draw())
            random = self._random(_NUMBERS, step, place)
            chances.append(random.random(2))
            first = random.random() < self.training.first_step_share
            timesteps.append(self.known[-1 if first else int(random.integers(len(self.known)))])
            share, motion = random.random(), self.sampler.motion_frames
            generator = torch.Generator().manual_seed(int(random.integers(2**63)))
            several = torch.randn((2 + motion, *self.own.size), generator=generator)
            t = self.training
            levels = [1.0, share * t.reference_noise, *[share * t.past_noise] * motion]
            noises.append(several * torch.tensor(levels).view(-1, 1, 1, 1))
        heard = []
        for place in places[: self._generated()]:
            self.sampler.random = self._random(_SAMPLE, step, (place - 1) % size)
            heard.append(self.sampler.draw().window)
        shape = (0, *samples[0].window.shape)
        noise = torch.stack(noises)  # (B, 2 + motion_frames, C, S, S)
        return _Made(
            step,
            self.sampler.collect(samples),
            noise[:, 0],
            noise[:, 1:].flatten(1, 2),
            torch.tensor(timesteps),
            np.stack(chances),
            torch.from_numpy(np.stack(heard) if heard else np.empty(shape, np.float32)),
        )

    def _generated(self) -> int:
        """Outputs that each process generates: as many as any other, as all must take part."""
        return -(-generated(self.training, self.training.batch) // self.processes.count)

    def next(self) -> Drawn:
        """The next step's."""
        self._made = made = next(self._steps)
        self._step = made.step + 1
        device = self.processes.device
        batch = to_device(made.batch, device)
        noise, reference = made.noise.to(device), batch.reference.clone()
        for row, person in enumerate(made.batch.person.tolist()):
            own, own_noise = made.chances[row]
            if person in self.own.latents and own < self.training.own_output_share:
                reference[row] = self.own.latents[person]
                if own_noise < 0.5:
                    noise[row] = self.own.initial_noise(batch.person[row : row + 1])[0]
        reference = torch.cat([reference, batch.past], 1) + made.reference_noise.to(device)
        return Drawn(batch, reference, noise, made.timestep.to(device))

    def generate(self, model: DiT, drawn: Drawn) -> None:
        """Generate the references of later steps, with all processes."""
        count = generated(self.training, self.training.batch)
        if count == 0:
            return
        step = self._made.step
        steps = self.own.draw_steps(self._random(_ROUND, step))
        heard = self._made.heard.to(self.processes.device)
        mine = self.own.sample(model, drawn.batch, heard, steps)
        latents = self.processes.by_place(mine)
        people = self.processes.by_place(drawn.batch.person[: len(heard)])
        for place in range(count):
            chance = self._random(_KEPT, step, place).random()
            self.own.keep(int(people[place]), latents[place].clone(), chance)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`restore` needs, by name, on the CPU."""
        for person, latent in self.own.latents.items():
            yield f"own.{person}", latent.cpu()

    def values(self) -> dict[str, Any]:
        """The position in the data."""
        return {"next": self._step}

    def restore(self, saved: SavedState) -> None:
        """Go on with the step after a state."""
        self.close()  # its thread would still draw
        self._step = saved.values["draws"]["next"]
        own = saved.tensors("own")
        device = self.processes.device
        self.own.latents = {int(person): own[person].to(device) for person in own}
        self._begin()

    def close(self) -> None:
        """End the thread."""
        self._steps.close()
