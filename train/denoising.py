"""The loss of stage 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion
from dithead.face.crop import crop_mask, crop_positions, mask_polygon
from dithead.shape import ShapeHead
from dithead.train.distil import Teacher
from dithead.train.draws import Drawn
from dithead.train.loop import precision
from dithead.train.samples import Batch
from dithead.train.settings import DiTTraining, Precision
from dithead.train.shape import shape_loss

LIP_BOX = (-0.20, 0.07, 0.20, 0.33)
"""Left, top, right and bottom of the lips' box in crop units. Diffused Heads takes each frame's
from its landmarks; as a crop follows the face, one box holds all (*assumed*), an open mouth
included."""
SAMPLES = 8
"""Points along each side of a latent position at which the box is asked for."""


def lip_weights(config: DitHeadConfig) -> Tensor:
    """What turns the mean over all latent positions into that over the lips' box: (1, 1, S, S),
    mean 1; positions on its edge count in part."""
    x, y = crop_positions(SAMPLES * config.latent_size, config.face.view)
    left, top, right, bottom = LIP_BOX
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    share = F.avg_pool2d(inside[None, None].float(), SAMPLES)
    return share / share.mean()


def latent_weights(config: DitHeadConfig, training: DiTTraining) -> Tensor:
    """Loss weight of each latent position: low outside the mask, highest at the mouth. (1, 1, S,
    S), mean 1.

    With ``lip_weight`` there is a second loss, that in the lips' box, which has this weight
    (Diffused Heads, arXiv 2301.03396, section 3.3: 0.2). Both are means of the same squared error,
    so it comes down to weights that are larger in the box, in all by ``lip_weight``.
    """
    size = config.latent_size
    mask = crop_mask(size, 0.03, mask_polygon(1), config.face.view)  # (1, 1, S, S)
    x, y = crop_positions(size, config.face.view)
    mouth = torch.exp(-(((x / 0.20) ** 2 + ((y - 0.18) / 0.20) ** 2) ** 2))
    weights = training.outside_weight + (1 - training.outside_weight) * mask
    weights = weights + training.mouth_weight * mouth * mask
    weights = weights / weights.mean()
    if training.lip_weight > 0:
        weights = weights + training.lip_weight * lip_weights(config)
    return weights


@dataclass(frozen=True, slots=True)
class DenoisingLoss:
    """Squared error of the prediction by position and, with a shape head, of the face's shape.

    Args:
        weights: from :func:`latent_weights`. reader: the shape head, if there is one, and
            shape_weight: its part of the loss.
        teacher: says what to predict in the place of the samples' own latents. The loss of a
            velocity is that of the clean latent with the weight SNR + 1, one of the two that serve
            where there is no signal (arXiv 2202.00512, section 4).
    """

    diffusion: Diffusion
    weights: Tensor
    reader: ShapeHead | None
    shape_weight: float
    precision: Precision
    teacher: Teacher | None = None

    def __call__(self, model: Callable[..., Tensor], drawn: Drawn) -> tuple[Tensor, float, float]:
        """The loss of a batch; the parts of it for the log: of the prediction, of the shape."""
        batch, noise, timestep = drawn.batch, drawn.noise, drawn.timestep
        noisy = self.diffusion.add_noise(batch.clean, noise, timestep)
        with precision(noisy.device, self.precision):
            given = noisy, batch.masked, drawn.reference, timestep, batch.window
            predicted = model(*given, *batch.conditions)
        wanted = batch.clean, noise
        if self.teacher is not None:
            wanted = self.teacher(noisy, drawn)
        target = self.diffusion.target(*wanted, timestep)
        error = (predicted.float() - target).square()
        loss = (self.weights * error).mean()
        predicting = loss.item()
        if self.reader is None:
            return loss, predicting, 0.0
        clean, _ = self.diffusion.split(noisy, predicted, timestep)
        with precision(noisy.device, self.precision):
            found, true = self.reader(clean), self.reader(wanted[0])
        off = shape_loss(found.float(), true.float())
        return loss + self.shape_weight * off, predicting, off.item()


def in_parts(drawn: Drawn, count: int) -> list[Drawn]:
    """A step's samples in so many equal parts."""
    if count == 1:
        return [drawn]
    batches = zip(
        *(getattr(drawn.batch, name).chunk(count) for name in Batch.__slots__), strict=True
    )
    rest = zip(
        *(x.chunk(count) for x in (drawn.reference, drawn.noise, drawn.timestep)), strict=True
    )
    return [
        replace(drawn, batch=Batch(*batch), reference=reference, noise=noise, timestep=timestep)
        for batch, (reference, noise, timestep) in zip(batches, rest, strict=True)
    ]
