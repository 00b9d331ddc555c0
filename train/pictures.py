"""What stage 1 is trained on: random pictures of the footage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.config import DitHeadConfig, View
from dithead.errors import MediaError
from dithead.face.crop import crop_positions
from dithead.train.appearance import plain_appearance, random_appearance, render, vary_pose
from dithead.train.data import Footage
from dithead.train.loop import ahead
from dithead.train.masking import followed, masked_pictures
from dithead.train.motion import crop_meshes
from dithead.train.settings import VQGANTraining
from dithead.train.states import SavedState


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


class PictureDraws:
    """Batches of a sampler, drawn ahead on a separate thread, and their position."""

    def __init__(self, sampler: PictureSampler) -> None:
        self.sampler = sampler
        self._position = self._now()
        self._pictures = ahead(self._make)

    def _now(self) -> tuple[Any, Tensor]:
        return self.sampler.random.bit_generator.state, self.sampler.generator.get_state()

    def _make(self) -> tuple[Tensor, tuple[Any, Tensor]]:
        """A batch, and the sampler's position after it: the thread is ahead of the steps."""
        return self.sampler.sample(self.sampler.training.batch), self._now()

    def next(self) -> Tensor:
        """The next step's pictures."""
        pictures, self._position = next(self._pictures)
        return pictures

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
        """End the thread, and put the sampler where the last batch left it: how far ahead the
        thread was is chance."""
        self._pictures.close()
        self.sampler.random.bit_generator.state = self._position[0]
        self.sampler.generator.set_state(self._position[1])


def mouth_weights(size: int, extra: float, view: View) -> Tensor:
    """Weight of each pixel of a crop: 1, and up to 1 + extra round the mouth. (1, 1, size,
    size)."""
    x, y = crop_positions(size, view)
    bump = torch.exp(-(((x / 0.18) ** 2 + ((y - 0.15) / 0.15) ** 2) ** 2))
    return (1 + extra * bump)[None, None]
