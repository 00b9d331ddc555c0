"""Finds 68 landmarks of a face with FAN, as the DiT-Head paper does.

The network is described in Bulat and Tzimiropoulos, "How far are we from solving the 2D & 3D Face
Alignment problem?" (2017). Layers, names of weights and the reading of the heatmaps are those of
the package face-alignment 1.5.0, so its weights load by name. Which face and which way up is said
by a *region*, see :mod:`dithead.face.mesh`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SIZE = 256  # pixels, the side of the square picture that the network sees
HEATMAP_SIZE = 64
LANDMARKS = 68
_FEATURES = 256
_LEVELS = 4  # halvings within an hourglass
_QUARTER = 0.25  # heatmap pixels by which a peak is moved towards its higher neighbour


class ConvBlock(nn.Module):
    """Three 3x3 convolutions, each on the result of the one before, side by side, plus a shortcut.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output; a multiple of 4.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half, quarter = channels_out // 2, channels_out // 4
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, quarter, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(quarter)
        self.conv3 = nn.Conv2d(quarter, quarter, 3, padding=1, bias=False)
        self.downsample: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.BatchNorm2d(channels_in),
                nn.ReLU(),
                nn.Conv2d(channels_in, channels_out, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        first = self.conv1(F.relu(self.bn1(x)))  # (B, C_out / 2, H, W)
        second = self.conv2(F.relu(self.bn2(first)))  # (B, C_out / 4, H, W)
        third = self.conv3(F.relu(self.bn3(second)))
        return torch.cat([first, second, third], 1) + self.downsample(x)


class Hourglass(nn.Module):
    """Halves the picture's size four times and doubles it again, adding what it had at each
    size."""

    def __init__(self) -> None:
        super().__init__()
        for level in range(_LEVELS, 0, -1):
            for branch in ("b1", "b2", "b3"):
                self.add_module(f"{branch}_{level}", ConvBlock(_FEATURES, _FEATURES))
        self.b2_plus_1 = ConvBlock(_FEATURES, _FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 256, H, W) -> the same shape; H and W are multiples of 16."""
        return self._at(_LEVELS, x)

    def _at(self, level: int, x: Tensor) -> Tensor:
        low = self.get_submodule(f"b2_{level}")(F.avg_pool2d(x, 2))  # (B, 256, H / 2, W / 2)
        low = self._at(level - 1, low) if level > 1 else self.b2_plus_1(low)
        low = self.get_submodule(f"b3_{level}")(low)
        return self.get_submodule(f"b1_{level}")(x) + F.interpolate(low, scale_factor=2.0)


class Fan(nn.Module):
    """The landmark network: hourglasses in a row, each with the heatmaps of the one before.

    Args:
        hourglasses: how many; the published weights have 4 (2DFAN-4).
    """

    def __init__(self, hourglasses: int = 4) -> None:
        super().__init__()
        self.hourglasses = hourglasses
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = ConvBlock(64, 128)
        self.conv3 = ConvBlock(128, 128)
        self.conv4 = ConvBlock(128, _FEATURES)
        for i in range(hourglasses):
            self.add_module(f"m{i}", Hourglass())
            self.add_module(f"top_m_{i}", ConvBlock(_FEATURES, _FEATURES))
            self.add_module(f"conv_last{i}", nn.Conv2d(_FEATURES, _FEATURES, 1))
            self.add_module(f"bn_end{i}", nn.BatchNorm2d(_FEATURES))
            self.add_module(f"l{i}", nn.Conv2d(_FEATURES, LANDMARKS, 1))
            if i < hourglasses - 1:
                self.add_module(f"bl{i}", nn.Conv2d(_FEATURES, _FEATURES, 1))
                self.add_module(f"al{i}", nn.Conv2d(LANDMARKS, _FEATURES, 1))

    def forward(self, picture: Tensor) -> Tensor:
        """Draw where each landmark is.

        Args:
            picture: (B, 3, 256, 256) RGB in [0, 1].

        Returns:
            Heatmaps (B, 68, 64, 64) of the last hourglass; a sure landmark has a peak of about 1.
        """
        x = F.relu(self.bn1(self.conv1(picture)))  # (B, 64, 128, 128)
        x = F.avg_pool2d(self.conv2(x), 2)  # (B, 128, 64, 64)
        x = self.conv4(self.conv3(x))  # (B, 256, 64, 64)
        for i in range(self.hourglasses):
            part = self.get_submodule
            top = part(f"conv_last{i}")(part(f"top_m_{i}")(part(f"m{i}")(x)))
            top = F.relu(part(f"bn_end{i}")(top))  # (B, 256, 64, 64)
            heatmaps: Tensor = part(f"l{i}")(top)  # (B, 68, 64, 64)
            if i < self.hourglasses - 1:
                x = x + part(f"bl{i}")(top) + part(f"al{i}")(heatmaps)
        return heatmaps


class HeatmapPeaks(nn.Module):
    """Reads landmarks off heatmaps: the highest pixel, moved by a quarter of a pixel towards the
    higher of its neighbours."""

    places: Tensor
    inside: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.arange(HEATMAP_SIZE)
        y, x = torch.meshgrid(line, line, indexing="ij")
        inner = (line > 0) & (line < HEATMAP_SIZE - 1)
        places = torch.stack([x, y], -1).flatten(0, 1).float() + 0.5
        self.register_buffer("places", places, persistent=False)  # (64 * 64, 2)
        inside = (inner[:, None] & inner).float()
        self.register_buffer("inside", inside, persistent=False)  # (64, 64)

    def forward(self, heatmaps: Tensor) -> tuple[Tensor, Tensor]:
        """Find the peaks.

        Args:
            heatmaps: (B, 68, 64, 64).

        Returns:
            Landmarks (B, 68, 2) in pixels of the network's picture, 0..256; heights of the peaks
            (B, 68).
        """
        flat = heatmaps.flatten(2)  # (B, 68, 64 * 64)
        peak = flat.argmax(2, keepdim=True)  # (B, 68, 1)
        around = F.pad(heatmaps, (1, 1, 1, 1))
        across = (around[..., 1:-1, 2:] - around[..., 1:-1, :-2]) * self.inside  # (B, 68, 64, 64)
        down = (around[..., 2:, 1:-1] - around[..., :-2, 1:-1]) * self.inside
        slopes = [slope.flatten(2).gather(2, peak) for slope in (across, down)]
        place = self.places[peak.squeeze(2)]  # (B, 68, 2)
        place = place + _QUARTER * torch.cat(slopes, 2).sign()
        return place * (INPUT_SIZE / HEATMAP_SIZE), flat.gather(2, peak).squeeze(2)
