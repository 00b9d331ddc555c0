"""Frame interpolation: the frame between two frames, by RIFE.

RIFE (Huang et al., "Real-Time Intermediate Flow Estimation for Video Frame Interpolation", ECCV
2022, arXiv 2011.06294), in the variant with four flow stages that takes any time between the two
frames. A coarse-to-fine flow network finds, for every pixel of the wanted frame, where it comes
from in both given frames; these are warped accordingly and blended by a mask, and a U-Net adds a
residual.

The convolutions run in the module's dtype. Flow, mask, warping and blending are always float32:
from 512 on, a coordinate in float16 is off by up to a quarter of a pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import ConfigError

_REFINER_LEVELS = 4


@dataclass(frozen=True, slots=True)
class InterpolatorConfig:
    """Shape of the network; the defaults fit the packaged weights."""

    widths: tuple[int, ...] = (192, 128, 96, 64)
    """Channels of each flow stage, coarse to fine; even."""
    scales: tuple[int, ...] = (8, 4, 2, 1)
    """Down-scaling of each stage's input, powers of two. Larger ones reach larger motion."""
    context_width: int = 16
    """Channels of the refiner's finest level; each coarser level has twice as many."""

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.scales) or not self.widths:
            raise ConfigError(
                "widths and scales need one number for each flow stage, "
                f"found {self.widths} and {self.scales}"
            )
        if any(width < 2 or width % 2 for width in self.widths) or self.context_width < 1:
            raise ConfigError(
                "widths must be even and context_width positive, "
                f"found {self.widths} and {self.context_width}"
            )
        if any(scale < 1 or scale & (scale - 1) for scale in self.scales):
            raise ConfigError(f"scales must be powers of two, found {self.scales}")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> InterpolatorConfig:
        """Build a configuration from decoded JSON, whose lists become tuples.

        Raises:
            ConfigError: a key is unknown or a value invalid.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(values.keys() - set(known)):
            raise ConfigError(f"unknown interpolator keys {unknown}; the valid ones are {known}")
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**arguments)

    @property
    def multiple(self) -> int:
        """Frames are padded to multiples of this many pixels, so that every level has a whole
        size."""
        return max(4 * max(self.scales), 2**_REFINER_LEVELS)


class Interpolator(nn.Module):
    """RIFE: the frame at a time between two frames."""

    def __init__(self, config: InterpolatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or InterpolatorConfig()
        # The first stage sees two frames and the time; the others two warped frames, the time, the
        # mask and both flows.
        inputs = [7] + [12] * (len(self.config.widths) - 1)
        self.stages = nn.ModuleList(
            FlowStage(channels, width)
            for channels, width in zip(inputs, self.config.widths, strict=True)
        )
        self.context = ContextPyramid(self.config.context_width)
        self.refiner = Refiner(self.config.context_width)

    def forward(self, first: Tensor, second: Tensor, t: Tensor) -> Tensor:
        """Interpolate.

        Args:
            first: (B, 3, H, W) floating RGB in [0, 1], any size.
            second: as ``first``, the later frame.
            t: (B,) or scalar, in (0, 1): time of the wanted frame, with ``first`` at 0 and
                ``second`` at 1.

        Returns:
            (B, 3, H, W) in [0, 1], of ``first``'s dtype.
        """
        batch, _, height, width = first.shape
        a, b = self._pad(first.float()), self._pad(second.float())  # (B, 3, H', W')
        time = t.float().reshape(-1, 1, 1, 1).expand(batch, 1, *a.shape[-2:])  # (B, 1, H', W')

        seen = torch.cat((a, b, time), 1)  # (B, 7, H', W')
        flow, mask = self.stages[0](seen, self.config.scales[0])  # (B, 4, H', W'), (B, 1, H', W')
        warped_a, warped_b = warp(a, flow[:, :2]), warp(b, flow[:, 2:])
        for stage, scale in zip(self.stages[1:], self.config.scales[1:], strict=True):
            # Flow is passed on in pixels of the stage's own resolution.
            seen = torch.cat((warped_a, warped_b, time, mask, flow / scale), 1)  # (B, 12, H', W')
            flow_step, mask_step = stage(seen, scale)
            flow, mask = flow + flow_step, mask + mask_step
            warped_a, warped_b = warp(a, flow[:, :2]), warp(b, flow[:, 2:])

        share = torch.sigmoid(mask)
        # Paper, eq. 1. TensorRT-RTX 1.7 fails to compile the same written as a sum of two products.
        blend = warped_b + share * (warped_a - warped_b)  # (B, 3, H', W')
        context_a, context_b = self.context(a, flow[:, :2]), self.context(b, flow[:, 2:])
        seen = torch.cat((a, b, warped_a, warped_b, mask, flow), 1)  # (B, 17, H', W')
        result = (blend + self.refiner(seen, context_a, context_b)).clamp(0, 1)
        return result[..., :height, :width].to(first.dtype)

    def _pad(self, frame: Tensor) -> Tensor:
        """Repeat the last column and row until both sides are multiples of ``config.multiple``."""
        # By index, not with F.pad, whose dynamic amounts torch.export cannot bound.
        height, width = frame.shape[-2:]
        multiple, device = self.config.multiple, frame.device
        rows = torch.arange((height + multiple - 1) // multiple * multiple, device=device)
        columns = torch.arange((width + multiple - 1) // multiple * multiple, device=device)
        return frame[..., rows.clamp(max=height - 1), :][..., columns.clamp(max=width - 1)]


class FlowStage(nn.Module):
    """One step of the flow network ("IFBlock" in the paper): what to add to flow and mask."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(in_channels, width // 2, stride=2), _conv(width // 2, width, stride=2)
        )
        self.trunk = nn.Sequential(*(_conv(width, width) for _ in range(8)))
        self.head = nn.ConvTranspose2d(width, 5, kernel_size=4, stride=2, padding=1)

    def forward(self, seen: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Estimate the correction from a scaled-down view.

        Args:
            seen: (B, C, H, W) float32, H and W multiples of ``4 * scale``.
            scale: how many times smaller the view is.

        Returns:
            Flow to the first and to the second frame, (B, 4, H, W) float32 in pixels of ``seen``,
            and the mask's logit, (B, 1, H, W) float32.
        """
        x = _resize(seen, 1 / scale).to(self.head.weight.dtype)  # (B, C, H / s, W / s)
        x = self.stem(x)  # (B, width, H / 4s, W / 4s)
        x = self.head(x + self.trunk(x))  # (B, 5, H / 2s, W / 2s)
        x = _resize(x.float(), 2 * scale)  # (B, 5, H, W)
        return x[:, :4] * (2 * scale), x[:, 4:]


class ContextPyramid(nn.ModuleList):
    """Features of one frame at 1/2 to 1/16 of its size, each warped to the wanted time."""

    def __init__(self, width: int) -> None:
        channels = [3] + [width << level for level in range(_REFINER_LEVELS)]
        super().__init__(_down(channels[k], channels[k + 1]) for k in range(_REFINER_LEVELS))

    def forward(self, frame: Tensor, flow: Tensor) -> list[Tensor]:
        """Return (B, width * 2**k, H / 2**(k+1), W / 2**(k+1)) float32 for each level ``k``.

        Args:
            frame: (B, 3, H, W) float32.
            flow: (B, 2, H, W) float32, pixels.
        """
        levels = []
        x = frame.to(next(self.parameters()).dtype)
        for level in self:
            x = level(x)
            flow = _resize(flow, 0.5) / 2
            levels.append(warp(x, flow))
        return levels


class Refiner(nn.Module):
    """U-Net that corrects the blended frame from everything known ("RefineNet" in the paper)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.down = nn.ModuleList(
            (_down(17, 2 * w), _down(4 * w, 4 * w), _down(8 * w, 8 * w), _down(16 * w, 16 * w))
        )
        self.up = nn.ModuleList(
            (_up(32 * w, 8 * w), _up(16 * w, 4 * w), _up(8 * w, 2 * w), _up(4 * w, w))
        )
        self.head = nn.Conv2d(w, 3, kernel_size=3, padding=1)

    def forward(self, seen: Tensor, context_a: list[Tensor], context_b: list[Tensor]) -> Tensor:
        """Return the residual to add to the blended frame.

        Args:
            seen: (B, 17, H, W) float32: the frames, the warped frames, the mask's logit, the flows.
            context_a: the first frame's :class:`ContextPyramid`.
            context_b: the second frame's.

        Returns:
            (B, 3, H, W) float32 in (-1, 1).
        """
        dtype = self.head.weight.dtype
        x = seen.to(dtype)
        skips = []
        for down, a, b in zip(self.down, context_a, context_b, strict=True):
            x = down(x)  # (B, 2w * 2**k, H / 2**(k+1), W / 2**(k+1))
            skips.append(x)
            x = torch.cat((x, a.to(dtype), b.to(dtype)), 1)  # twice the channels
        x = self.up[0](x)  # (B, 8w, H / 8, W / 8)
        for up, skip in zip(self.up[1:], reversed(skips[:-1]), strict=True):
            x = up(torch.cat((x, skip), 1))  # at last (B, w, H, W)
        return torch.sigmoid(self.head(x).float()) * 2 - 1


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Fetch each pixel from where the flow points, bilinearly; outside the image its edge repeats.

    Args:
        image: (B, C, H, W), H and W at least 2.
        flow: (B, 2, H, W) float32, horizontal and vertical displacement in pixels.

    Returns:
        (B, C, H, W) float32.
    """
    height, width = image.shape[-2:]
    columns = torch.arange(width, dtype=torch.float32, device=image.device)
    rows = torch.arange(height, dtype=torch.float32, device=image.device)[:, None]
    # (B, H, W) each; -1 and 1 are the centres of the outermost pixels.
    x = (columns + flow[:, 0]) * (2 / (width - 1)) - 1
    y = (rows + flow[:, 1]) * (2 / (height - 1)) - 1
    return F.grid_sample(
        image.float(),
        torch.stack((x, y), -1),  # (B, H, W, 2)
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )


def load_interpolator(
    path: str | Path | None = None, device: torch.device | str = "cpu"
) -> Interpolator:
    """Load an interpolator for inference, in float32.

    Args:
        path: a checkpoint; ``None`` takes the weights that ship with the package.
        device: where to put it.

    Raises:
        CheckpointError: the file is missing, damaged or does not fit.
        ConfigError: the file's configuration is invalid.
    """
    source = checkpoint.asset_path("rife") if path is None else Path(path)
    tensors, config = checkpoint.load(source)
    module = Interpolator(InterpolatorConfig.from_json(config))
    checkpoint.load_into(module, tensors, source)
    return module.to(device).eval().requires_grad_(False)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.PReLU(out_channels)
    )


def _down(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve the size."""
    return nn.Sequential(
        _conv(in_channels, out_channels, stride=2), _conv(out_channels, out_channels)
    )


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Double the size."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 4, 2, padding=1), nn.PReLU(out_channels)
    )


def _resize(x: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return x
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
