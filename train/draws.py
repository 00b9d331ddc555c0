"""What each step of stage 2 is trained on: the samples, with references, noise and timesteps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.train.learner import random_states, restore_random_states
from dithead.train.loop import ahead
from dithead.train.samples import Batch, LatentSampler, OwnOutputs, draw_timesteps, to_device
from dithead.train.states import SavedState


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step is trained on. B samples on the device."""

    batch: Batch
    reference: Tensor
    """(B, C, S, S)."""
    noise: Tensor
    """(B, C, S, S)."""
    timestep: Tensor
    """(B,) int64."""


class Draws(Protocol):
    """Draws what each step is trained on, and what becomes of the own outputs."""

    def next(self) -> Drawn:
        """The next step's."""

    def generate(self, model: DiT, drawn: Drawn) -> None:
        """Generate the references of later steps."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`restore` needs, by name, on the CPU."""

    def values(self) -> dict[str, Any]:
        """The JSON-able part of that."""

    def restore(self, saved: SavedState) -> None:
        """Go on with the step after a state."""

    def close(self) -> None:
        """End what draws ahead."""


class SequentialDraws:
    """Draws by generators that each step moves on, for one process.

    Args:
        sampler: draws the batches, on a separate thread.
        own: the model's own outputs.
        grid: the timesteps to draw from, the noisiest first; None, all.
    """

    def __init__(
        self,
        sampler: LatentSampler,
        own: OwnOutputs,
        diffusion: Diffusion,
        device: torch.device,
        grid: Sequence[int] | None = None,
    ) -> None:
        self.sampler, self.own, self.diffusion = sampler, own, diffusion
        self.device, self.grid = device, grid
        self._position: Any = sampler.random.bit_generator.state
        self._batches = ahead(self._make)

    def _make(self) -> tuple[Batch, Any]:
        """A batch, and the sampler's position after it: the thread is ahead of the steps."""
        batch = self.sampler.sample(self.sampler.training.batch)
        return batch, self.sampler.random.bit_generator.state

    def next(self) -> Drawn:
        """The next step's."""
        made, self._position = next(self._batches)
        batch = to_device(made, self.device)
        reference, noise = self.own.references(batch)
        timestep = draw_timesteps(self.sampler.training, self.diffusion, self.device, self.grid)
        return Drawn(batch, reference, noise, timestep)

    def generate(self, model: DiT, drawn: Drawn) -> None:
        """Generate the references of later steps."""
        self.own.generate(model, drawn.batch)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`restore` needs, by name, on the CPU."""
        yield from random_states(self.device)
        for person, latent in self.own.latents.items():
            yield f"own.{person}", latent.cpu()

    def values(self) -> dict[str, Any]:
        """The positions of the two other generators."""
        return {"sampler": self._position, "own": self.own.random.bit_generator.state}

    def restore(self, saved: SavedState) -> None:
        """Go on with the step after a state."""
        self.close()  # its thread would still draw
        restore_random_states(saved, self.device)
        self._position = saved.values["draws"]["sampler"]
        self.sampler.random.bit_generator.state = self._position
        self.own.random.bit_generator.state = saved.values["draws"]["own"]
        own = saved.tensors("own")
        self.own.latents = {int(person): own[person].to(self.device) for person in own}
        self._batches = ahead(self._make)

    def close(self) -> None:
        """End the thread."""
        self._batches.close()
