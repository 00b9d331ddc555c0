"""Losses of stage 1: weighted reconstruction, perceptual distance, patch discriminator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.train.distributed import Processes
from dithead.train.learner import optimiser_tensors, restore_optimiser, restore_tensor
from dithead.train.perceptual import load_stlpips
from dithead.train.states import SavedState

SQUARED_WEIGHT = 4.0
"""Weight of the squared error beside the absolute one. *Assumed*: LDM has the absolute one alone;
with both, a few large errors count more than many small ones."""
DISCRIMINATOR_WIDTH = 32
"""Channels of its first layer. *Assumed*: LDM's has 64, for pictures of all kinds."""
DISCRIMINATOR_RATE = 4e-4
"""Its learning rate, the same from the first step to the last. *Assumed*: LDM's is that of the
autoencoder; here the decoder has learnt already when the discriminator begins."""
DISCRIMINATOR_BETAS = 0.5, 0.9
"""Of its AdamW, which decays no weights (*assumed*: LDM's)."""
ENLARGED = 1.5
"""Crops are smaller than the mouths that are shown."""


class PatchDiscriminator(nn.Module):
    """Classifies overlapping patches of a picture (PatchGAN, arXiv 1611.07004): (B, 3, S, S) -> (B,
    1, S/8 - 2, S/8 - 2)."""

    def __init__(self, width: int = DISCRIMINATOR_WIDTH) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for factor in (1, 2):
            layers += [
                nn.Conv2d(width * factor, 2 * width * factor, 4, 2, 1),
                nn.GroupNorm(8, 2 * width * factor),
                nn.LeakyReLU(0.2),
            ]
        layers += [nn.Conv2d(4 * width, 1, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def perceptual_metric(device: torch.device) -> nn.Module:
    """ST-LPIPS, frozen, on a device: its forward(a, b) takes two (B, 3, H, W) and returns (B,).

    Raises:
        BackendUnavailable: the package is not installed.
    """
    return load_stlpips().to(device)


def mouth_window(image: Tensor) -> Tensor:
    """The quarter of crops (B, C, S, S) that contains the mouth: (B, C, S/2, S/2). The perceptual
    distance is expensive, and matters most there; a masked face has nothing there."""
    size = image.shape[2]
    return image[:, :, 3 * size // 8 : 7 * size // 8, size // 4 : 3 * size // 4]


class ReconstructionLoss:
    """Weighted L1 and L2, plus the perceptual distance round the mouth, or of whole pictures, and
    the generator's adversarial loss if requested.

    Args:
        weights: (1, 1, S, S) weight of each pixel.
        perceptual, adversarial: weights of the two additional terms; at 0 they cost nothing.
        mouth: rows and columns of the pictures round a mouth. If given, the perceptual distance
            sees them, enlarged, instead of :func:`mouth_window`; and the discriminator only them.
        processes: those that train together, each with its part of a batch.
        whole: whether the perceptual distance sees whole pictures, in the place of
            :func:`mouth_window`.
    """

    def __init__(
        self,
        weights: Tensor,
        perceptual: float,
        adversarial: float,
        device: torch.device,
        mouth: tuple[slice, slice] | None = None,
        processes: Processes | None = None,
        whole: bool = False,
    ) -> None:
        self.weights = weights / weights.mean()
        self.perceptual = perceptual
        self.adversarial = adversarial
        self.mouth = mouth
        self.whole = whole
        self.processes = processes or Processes(device)
        self.metric: Any = (
            perceptual_metric(device).requires_grad_(False) if perceptual > 0 else None
        )
        if adversarial > 0:
            self.discriminator = PatchDiscriminator().to(device)
            self.optimiser = torch.optim.AdamW(
                self.discriminator.parameters(),
                lr=DISCRIMINATOR_RATE,
                betas=DISCRIMINATOR_BETAS,
                weight_decay=0.0,
            )

    def __call__(self, image: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, both (B, 3, S, S) in [-1, 1], and its parts for the log."""
        error = reconstruction - image
        squared = error.square()
        loss = (self.weights * (error.abs() + SQUARED_WEIGHT * squared)).mean()
        # Differences of neighbours: otherwise edges and skin would blur first.
        loss = loss + (self.weights[..., 1:] * error.diff(dim=3).abs()).mean()
        loss = loss + (self.weights[..., 1:, :] * error.diff(dim=2).abs()).mean()
        parts = {"psnr_db": float(-10 * torch.log10(squared.detach().mean((1, 2, 3)) / 4).mean())}
        if self.metric is not None:
            distance = self.metric(self._seen(image), self._seen(reconstruction)).mean()
            loss = loss + self.perceptual * distance
            parts["perceptual"] = float(distance.detach())
        if self.adversarial > 0:
            fooled = -self.discriminator(self._judged(reconstruction)).float().mean()
            loss = loss + self.adversarial * fooled
            parts["fooled"] = float(fooled.detach())
        return loss, parts

    def train_discriminator(self, image: Tensor, reconstruction: Tensor) -> None:
        """One hinge-loss step of the discriminator, if there is one."""
        if self.adversarial == 0:
            return
        true, made = (self.discriminator(self._judged(i)).float() for i in (image, reconstruction))
        real, fake = F.relu(1.0 - true).mean(), F.relu(1.0 + made).mean()
        self.optimiser.zero_grad(set_to_none=True)
        (real + fake).backward()
        self.processes.average(self.discriminator.parameters())
        self.optimiser.step()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What the discriminator has learnt, by name, on the CPU; nothing if there is none."""
        if self.adversarial > 0:
            for name, value in self.discriminator.state_dict().items():
                yield f"discriminator.{name}", value.cpu()
            yield from optimiser_tensors(
                "discriminator_optimiser", self.discriminator, self.optimiser
            )

    def restore(self, saved: SavedState) -> None:
        """Inverse of :meth:`tensors`."""
        if self.adversarial > 0:
            for name, value in self.discriminator.state_dict().items():
                restore_tensor(value, saved, f"discriminator.{name}")
            restore_optimiser("discriminator_optimiser", self.discriminator, self.optimiser, saved)

    def _seen(self, image: Tensor) -> Tensor:
        """What the perceptual distance compares."""
        if self.mouth is None:
            return image if self.whole else mouth_window(image)
        part = self._judged(image)
        return F.interpolate(part, scale_factor=ENLARGED, mode="bilinear", align_corners=False)

    def _judged(self, image: Tensor) -> Tensor:
        """What the discriminator sees."""
        if self.mouth is None:
            return image
        rows, columns = self.mouth
        return image[:, :, rows, columns]
