"""What stage 1 is trained on: random pictures of the footage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dithead.config import DitHeadConfig, View
from dithead.errors import MediaError
from dithead.face.crop import crop_positions
from dithead.train.appearance import plain_appearance, random_appearance, render, vary_pose
from dithead.train.data import Footage
from dithead.train.distributed import Processes
from dithead.train.loop import ahead
from dithead.train.masking import followed, masked_pictures
from dithead.train.motion import crop_meshes
from dithead.train.settings import VQGANTraining
from dithead.train.states import SavedState

_PICTURE, _END = range(2)
"""What a key is for; each has generators of its own."""


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


@dataclass(frozen=True, slots=True)
class Pictures:
    """What one step is trained on, on the CPU."""

    image: Tensor
    """(B, 3, S, S)."""
    noise: Tensor | None = None
    """(B, C, S/f, S/f): noise on the latents, relative to their spread; None if it is not drawn
    with the pictures."""


class PictureDraws(Protocol):
    """Draws the pictures of each step."""

    def next(self) -> Pictures:
        """The next step's."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`restore` needs, by name."""

    def values(self) -> Any:
        """The JSON-able part of that."""

    def restore(self, saved: SavedState) -> None:
        """Go on with the step after a state."""

    def close(self) -> None:
        """End what draws ahead, and put the sampler where the stage ends: how far ahead that was is
        chance."""


class SequentialPictures:
    """Batches of a sampler, each drawn after the one before, for one process; ahead on a separate
    thread."""

    def __init__(self, sampler: PictureSampler) -> None:
        self.sampler = sampler
        self._position = self._now()
        self._pictures = ahead(self._make)

    def _now(self) -> tuple[Any, Tensor]:
        return self.sampler.random.bit_generator.state, self.sampler.generator.get_state()

    def _make(self) -> tuple[Tensor, tuple[Any, Tensor]]:
        """A batch, and the sampler's position after it: the thread is ahead of the steps."""
        return self.sampler.sample(self.sampler.training.batch), self._now()

    def next(self) -> Pictures:
        """The next step's."""
        image, self._position = next(self._pictures)
        return Pictures(image)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`restore` needs, by name."""
        yield "pictures.generator", self._position[1]

    def values(self) -> Any:
        """The JSON-able part of that."""
        return self._position[0]

    def restore(self, saved: SavedState) -> None:
        """Go on with the step after a state."""
        self._position = saved.values["pictures"], saved.tensor("pictures.generator")
        self.close()
        self._pictures = ahead(self._make)

    def close(self) -> None:
        """End the thread, and put the sampler where the last batch left it."""
        self._pictures.close()
        self.sampler.random.bit_generator.state = self._position[0]
        self.sampler.generator.set_state(self._position[1])


class KeyedPictures:
    """One process's part of each batch, by keys, as :class:`dithead.train.keyed.KeyedDraws` draws
    latents; ahead on a separate thread.

    Args:
        noise: largest standard deviation of the noise on latents. size: of one latent, (C, S/f,
            S/f).
    """

    def __init__(
        self, sampler: PictureSampler, noise: float, size: tuple[int, ...], processes: Processes
    ) -> None:
        self.sampler, self.noise, self.size = sampler, noise, size
        self.processes = processes
        self._step = 0  # the next to be handed out
        self._begin()

    def _begin(self) -> None:
        self._ahead = self._step
        self._pictures = ahead(self._make)

    def _seed(self, purpose: int, step: int, place: int = 0) -> torch.Generator:
        """Give the sampler the generators of a key; the second of them."""
        random = np.random.default_rng((self.sampler.training.seed, purpose, step, place))
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        self.sampler.random, self.sampler.generator = random, generator
        return generator

    def _make(self) -> Pictures:
        step, images, noises = self._ahead, [], []
        self._ahead += 1
        processes = self.processes
        for place in range(processes.rank, self.sampler.training.batch, processes.count):
            generator = self._seed(_PICTURE, step, place)
            images.append(self.sampler.sample(1))
            level = self.noise * torch.rand((), generator=generator)
            noises.append(level * torch.randn(1, *self.size, generator=generator))
        return Pictures(torch.cat(images), torch.cat(noises) if self.noise > 0 else None)

    def next(self) -> Pictures:
        """The next step's."""
        made = next(self._pictures)
        self._step += 1
        return made

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """None: the position is a number."""
        yield from ()

    def values(self) -> dict[str, Any]:
        """The position in the data."""
        return {"next": self._step}

    def restore(self, saved: SavedState) -> None:
        """Go on with the step after a state."""
        self.close()
        self._step = saved.values["pictures"]["next"]
        self._begin()

    def close(self) -> None:
        """End the thread, and seed the sampler by the step."""
        self._pictures.close()
        self._seed(_END, self._step)


def mouth_weights(size: int, extra: float, view: View) -> Tensor:
    """Weight of each pixel of a crop: 1, and up to 1 + extra round the mouth. (1, 1, size,
    size)."""
    x, y = crop_positions(size, view)
    bump = torch.exp(-(((x / 0.18) ** 2 + ((y - 0.15) / 0.15) ** 2) ** 2))
    return (1 + extra * bump)[None, None]
