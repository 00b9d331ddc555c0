"""``dithead-train shape``: the head that reads a face's shape from its latent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.errors import MediaError
from dithead.face.mesh import INNER_LOWER, INNER_UPPER
from dithead.model import build_shape_head
from dithead.shape import ShapeHead
from dithead.train.appearance import (
    Appearance,
    plain_appearance,
    random_appearance,
    render,
    vary_pose,
)
from dithead.train.data import Clip, Footage
from dithead.train.distributed import refuse_several
from dithead.train.latents import encode_pictures, load_vqgan
from dithead.train.loop import PART, Stage, ahead, descend, load_part, precision, set_learning_rate
from dithead.train.masking import posed_meshes
from dithead.train.motion import crop_meshes, lips_apart

UNIT = 100.0
"""Lengths in the loss are in hundredths of the crop."""
LIPS_WEIGHT, GAP_WEIGHT = 3.0, 2.0
"""Weights of points on the lips, relative to 1, and of the distance of the lips."""


@dataclass(frozen=True, slots=True)
class ShapeTraining:
    """Settings of one stage."""

    minutes: float = 15.0
    steps: int | None = None
    """End after this many steps, if that comes first."""
    batch: int = 32
    """New pictures in a step."""
    learning_rate: float = 2e-3
    seed: int = 0
    still_share: float = 0.4
    """Share of the pictures that are stills, if there are any."""
    made_share: float = 0.4
    """Share of people made from stills, if there are any."""
    strength: float = 0.6
    """How far looks change the pictures' colours and light: see random_appearance."""
    latent_noise: float = 0.25
    """Largest standard deviation of the noise on the latents."""
    kept: int = 60_000
    """Number of latents kept for reuse."""
    seen_again: int = 3
    """Batches, four times as large, drawn from those in a step."""


class ShapeSampler:
    """Latents of training pictures, and the meshes found in them."""

    def __init__(
        self, footage: Footage, config: DitHeadConfig, training: ShapeTraining, face: Path
    ) -> None:
        self.footage, self.config, self.training = footage, config, training
        self.vqgan = load_vqgan(face, "face_vqgan", config)
        self.random = np.random.default_rng(training.seed)
        self.generator = torch.Generator().manual_seed(training.seed)
        clips = footage.split("train")
        pools = [
            (training.still_share, footage.stills("train")),
            (training.made_share, [clip for clip in clips if clip.made]),
        ]
        rest = 1.0 - sum(share for share, pool in pools if pool)
        pools.append((rest, [clip for clip in clips if not clip.made]))
        self.pools = [(share, pool) for share, pool in pools if pool]
        if not self.pools:
            raise MediaError("the footage holds nothing to train on")
        self._meshes: dict[str, Tensor] = {}

    def mesh(self, clip: Clip) -> Tensor:
        """A clip's meshes in crop units: (T, 468, 2)."""
        if clip.name not in self._meshes:
            self._meshes[clip.name] = crop_meshes(self.footage.track(clip))
        return self._meshes[clip.name]

    def sample(self) -> tuple[Tensor, Tensor]:
        """Latents (B, C, s, s) float16; meshes (B, 468, 2) in crop units."""
        training, crops, meshes = self.training, [], []
        shares = np.array([share for share, _ in self.pools])
        for pool in self.random.choice(len(shares), training.batch, p=shares / shares.sum()):
            clips = self.pools[pool][1]
            clip = clips[self.random.integers(len(clips))]
            frame = int(self.random.integers(clip.frames))
            crops.append(np.array(self.footage.crops(clip)[frame]))
            meshes.append(self.mesh(clip)[frame])
        # Shapes change only by the pose in the crop: only those changes can be followed.
        posed = vary_pose(plain_appearance(training.batch), self.generator)
        look = random_appearance(training.batch, self.generator, training.strength)
        still = torch.zeros_like(look.turn)
        look = replace(look, affine=posed.affine, warp=torch.zeros_like(look.warp), turn=still)
        latents = self.encode(torch.from_numpy(np.stack(crops)), look)
        return latents, posed_meshes(torch.stack(meshes), look, self.config.face.view)

    def encode(self, crops: Tensor, look: Appearance) -> Tensor:
        """Stored crops (B, S, S, 3) uint8 -> latents (B, C, s, s) float16."""
        face = self.config.face
        return encode_pictures(self.vqgan, render(crops, look, face.crop_px, face.view))


def load_shape_head(path: Path, config: DitHeadConfig) -> ShapeHead:
    """The trained head, frozen: from the stage's weights or a packed checkpoint."""
    model = build_shape_head(config)
    checkpoint.load_into(model, load_part(path, "shape_head"), path)
    return model.eval().requires_grad_(False)


def shape_loss(found: Tensor, true: Tensor) -> Tensor:
    """Meshes (B, 468, 2) in crop units -> scalar."""
    weights = torch.ones(found.shape[1], 1, device=found.device)
    weights[[*INNER_UPPER, *INNER_LOWER]] = LIPS_WEIGHT
    off = F.smooth_l1_loss(UNIT * found, UNIT * true, beta=0.5, reduction="none")
    apart = F.smooth_l1_loss(UNIT * lips_apart(found), UNIT * lips_apart(true), beta=0.5)
    return (weights * off).mean() + GAP_WEIGHT * apart


class _Kept:
    """The latest latents and their meshes."""

    def __init__(self, count: int) -> None:
        self.count, self.at = count, 0
        self.latents: Tensor | None = None
        self.meshes: Tensor | None = None

    def add(self, latents: Tensor, meshes: Tensor) -> None:
        if self.latents is None or self.meshes is None:
            self.latents = latents.new_empty(self.count, *latents.shape[1:])
            self.meshes = meshes.new_empty(self.count, *meshes.shape[1:])
        rows = (self.at + torch.arange(len(latents))) % self.count
        self.latents[rows], self.meshes[rows] = latents, meshes
        self.at += len(latents)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        assert self.latents is not None and self.meshes is not None
        rows = torch.randint(min(self.at, self.count), (count,))
        return self.latents[rows].float(), self.meshes[rows]


def train_shape(
    footage: Footage,
    config: DitHeadConfig,
    training: ShapeTraining,
    face: Path,
    out: Path,
    start: Path | None = None,
) -> Path:
    """Train the head for one stage on latents of true pictures and write its weights.

    Args:
        face: weights of the face VQGAN, or a packed checkpoint with them.

    Returns:
        Path of the weights.

    Raises:
        ConfigError: several processes were started.
    """
    refuse_several("the shape head")
    torch.manual_seed(training.seed)
    sampler, kept = ShapeSampler(footage, config, training, face), _Kept(training.kept)
    model = build_shape_head(config)
    if start is not None:
        checkpoint.load_into(model, load_part(start, "shape_head"), start)
    else:
        first = sampler.sample()
        kept.add(*first)
        with torch.no_grad():
            model.mesh.bias.copy_(first[1].mean(0).flatten())
    optimiser = torch.optim.AdamW(model.parameters(), training.learning_rate, weight_decay=1e-3)
    stage = Stage(out / "shape_head.log", training.minutes, training.steps)
    running, count = 0.0, 4 * training.batch
    with closing(ahead(sampler.sample)) as samples:
        while stage.running:
            kept.add(*next(samples))
            for _ in range(training.seen_again):
                latents, meshes = kept.draw(count)
                level = training.latent_noise * torch.rand(count, 1, 1, 1)
                with precision(torch.device("cpu")):
                    found = model(latents + level * torch.randn_like(latents))
                loss = shape_loss(found.float(), meshes)
                set_learning_rate(optimiser, stage.learning_rate(training.learning_rate))
                descend(loss, optimiser, list(model.parameters()))
                running += loss.item() / training.seen_again
            stage.step += 1
            stage.samples += training.batch
            if stage.step % 100 == 0:
                stage.log(loss=running / 100)
                running = 0.0
    path = out / "shape_head.safetensors"
    checkpoint.save(path, model.state_dict(), config.to_dict(), {PART: "shape_head"}, dtype=None)
    return path


@torch.inference_mode()
def shape_scores(
    model: ShapeHead, footage: Footage, config: DitHeadConfig, face: Path
) -> dict[str, float]:
    """How well shapes are read from pictures of the validation split.

    Returns:
        ``lips``: mean distance of points on the lips, in crop units, the mean one of each picture
        taken off. ``gap``: correlation of how far apart the lips are, over all pictures.
    """
    sampler = ShapeSampler(footage, config, ShapeTraining(), face)
    found, true = [], []
    for clip, rows in _held_out(footage):
        crops = torch.from_numpy(np.array(footage.crops(clip)[rows]))
        latents = sampler.encode(crops, plain_appearance(len(crops)))
        found.append(model(latents.float()))
        true.append(sampler.mesh(clip)[rows])
    if not found:
        return {}
    lips = [*INNER_UPPER, *INNER_LOWER]
    off = torch.cat(found)[:, lips] - torch.cat(true)[:, lips]
    off = (off - off.mean(1, keepdim=True)).norm(dim=2)
    apart = torch.stack([lips_apart(torch.cat(meshes)).mean(1) for meshes in (found, true)])
    return {
        "lips": round(float(off.mean()), 5),
        "gap": round(float(torch.corrcoef(apart)[0, 1]), 4),
    }


def _held_out(footage: Footage) -> Iterator[tuple[Clip, slice]]:
    for clip in [*footage.stills("validation"), *footage.split("validation")]:
        yield clip, slice(None, None, 15)
