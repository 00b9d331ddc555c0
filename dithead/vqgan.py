"""VQGAN: a convolutional autoencoder with a learnable codebook (Esser et al., arXiv 2012.09841;
sizes as in LDM's VQ-f8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import Norm, VQGANConfig
from dithead.kernels.attention import attention
from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.upsampled_convolution import FoldedWeight, upsampled_convolution


class GroupNormSiLU(nn.GroupNorm):
    """Group norm and the SiLU after it.

    Args:
        silu: whether it follows.
    """

    def __init__(self, channels: int, silu: bool = True) -> None:
        super().__init__(min(32, channels // 4), channels, eps=1e-6)
        self.silu = silu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu)


class UpsampledConv2d(nn.Conv2d):
    """Nearest upsampling by 2 and a 3x3 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self._folded = FoldedWeight()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, 2 H, 2 W)."""
        assert self.bias is not None
        return upsampled_convolution(x, self.weight, self.bias, kept=self._folded)


def _activation(channels: int, norm: Norm) -> nn.Module:
    """What precedes a convolution."""
    return GroupNormSiLU(channels) if norm == "group" else nn.ReLU()


def _closing(channels: int, norm: Norm) -> list[nn.Module]:
    """The layers before the last convolution. The second of a norm does nothing: checkpoints number
    the layers, here and where the picture is upsampled."""
    activation = _activation(channels, norm)
    return [activation, nn.Identity()] if norm == "group" else [activation]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after a group norm and SiLU, with a residual; without norms after
    a ReLU, and initially the identity (or a 1x1 convolution)."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm = "group") -> None:
        super().__init__()
        grouped = norm == "group"
        self.norm1 = _activation(channels_in, norm)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _activation(channels_out, norm)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if not grouped:
            nn.init.zeros_(self.conv2.weight)
            nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        self.skip: nn.Module = (
            nn.Identity()
            if channels_in == channels_out
            else nn.Conv2d(channels_in, channels_out, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return self.skip(x) + h


class SpatialAttention(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNormSiLU(channels, silu=False)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        y = attention(q, k, v)  # (B, 1, H*W, C)
        return x + self.out(y.squeeze(1).transpose(1, 2).reshape(b, c, h, w))


class Encoder(nn.Module):
    """Picture (B, 3, S, S) in [-1, 1] -> features (B, latent_channels, S/f, S/f)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        channels, fold, norm = config.encoder_channels, config.fold, config.norm
        layers: list[nn.Module] = [nn.PixelUnshuffle(fold)] if fold > 1 else []
        layers.append(nn.Conv2d(3 * fold**2, channels[0], 3, padding=1))
        width = channels[0]
        for level, c in enumerate(channels):
            for _ in range(config.blocks):
                layers.append(ResidualBlock(width, c, norm))
                width = c
            if level + 1 < len(channels):
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        layers.append(ResidualBlock(width, width, norm))
        if config.attention:
            layers += [SpatialAttention(width), ResidualBlock(width, width, norm)]
        layers += _closing(width, norm)
        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Decoder(nn.Module):
    """Features (B, latent_channels, S/f, S/f) -> picture (B, 3, S, S), nominally in [-1, 1], not
    clamped."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        channels = config.decoder_channels[::-1]
        width = channels[0]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1)]
        fold, norm = config.fold, config.norm
        blocks = config.decoder_blocks[::-1] or (config.blocks,) * len(channels)
        layers.append(ResidualBlock(width, width, norm))
        if config.attention:
            layers += [SpatialAttention(width), ResidualBlock(width, width, norm)]
        for level, c in enumerate(channels):
            for _ in range(blocks[level]):
                layers.append(ResidualBlock(width, c, norm))
                width = c
            if level + 1 < len(channels):
                following = channels[level + 1]
                if config.upsampling == "shuffle":
                    layers += [nn.Conv2d(width, 4 * following, 1), nn.PixelShuffle(2)]
                else:
                    layers += [nn.Identity(), UpsampledConv2d(width, following)]
                width = following
        layers += [*_closing(width, norm), nn.Conv2d(width, 3 * fold**2, 3, padding=1)]
        if fold > 1:
            layers.append(nn.PixelShuffle(fold))
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: Tensor) -> Tensor:
        return self.layers(latent)


class Codebook(nn.Module):
    """Nearest-neighbour quantisation against a learnable table; gradients pass straight through.

    Args:
        size: entries. width: channels of the latent. groups: G groups of its channels are quantised
            separately, each against its own table.
    """

    def __init__(self, size: int, width: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.entries = nn.Parameter(torch.empty(groups * size, width // groups))
        nn.init.uniform_(self.entries, -1.0, 1.0)

    def _tables(self) -> Tensor:
        """Entries by group: (G, size, C / G) float32."""
        return self.entries.float().unflatten(0, (self.groups, -1))

    def positions(self, latent: Tensor) -> Tensor:
        """Latent (B, C, H, W) -> (G, B * H * W, C / G) float32."""
        flat = latent.float().unflatten(1, (self.groups, -1)).permute(1, 0, 3, 4, 2)
        return flat.flatten(1, 3)

    def distances(self, latent: Tensor) -> Tensor:
        """Latent (B, C, H, W) -> squared distances to the entries, minus the latent's own square:
        (G, B * H * W, size) float32."""
        tables = self._tables()
        products = self.positions(latent) @ tables.transpose(1, 2)
        return tables.square().sum(2)[:, None] - 2.0 * products

    def indices(self, latent: Tensor) -> Tensor:
        """Latent (B, C, H, W) -> index of the nearest entry of each group (B, G, H, W)."""
        b, _, h, w = latent.shape
        return self.distances(latent).argmin(-1).reshape(self.groups, b, h, w).transpose(0, 1)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (B, G, H, W) -> entries (B, C, H, W)."""
        size = self.entries.shape[0] // self.groups
        first = size * torch.arange(self.groups, device=indices.device)  # of each group
        entries = F.embedding(indices + first[:, None, None], self.entries)  # (B, G, H, W, C / G)
        return entries.movedim(-1, 2).flatten(1, 2)

    def forward(self, latent: Tensor) -> Tensor:
        return self.lookup(self.indices(latent))

    def mix(self, latent: Tensor, softness: float) -> Tensor:
        """The nearest entry, or a mixture with those almost as near.

        Args:
            latent: (B, C, H, W). softness: an entry whose squared distance is this much larger than
                another's has 1/e of its weight; 0 takes only the nearest.

        Returns:
            (B, C, H, W).
        """
        if softness == 0:
            return self(latent)
        b, _, h, w = latent.shape
        weights = (self.distances(latent) / -softness).softmax(-1)  # (G, B * H * W, size)
        mixed = (weights @ self._tables()).reshape(self.groups, b, h, w, -1)
        return mixed.permute(1, 0, 4, 2, 3).flatten(1, 2)


class VQGANOutput(NamedTuple):
    """The results of one pass that training needs."""

    image: Tensor
    """Reconstruction (B, 3, S, S)."""
    codebook_loss: Tensor
    """Scalar: squared distance of the entries to the (fixed) features."""
    commitment_loss: Tensor
    """Scalar: squared distance of the features to the (fixed) entries."""
    indices: Tensor
    """Chosen entries (B, G, S/f, S/f)."""
    features: Tensor
    """The encoder's output (B, C, S/f, S/f) before quantisation, not scaled."""


class VQGAN(nn.Module):
    """Autoencoder with a codebook.

    The diffusion model's latent is the encoder's output before quantisation, scaled to unit
    variance; ``latent_mean`` and ``latent_std`` hold that scale. Decoding undoes the scale and
    quantises, more or less softly or not at all.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.codebook = Codebook(
            config.codebook_size, config.latent_channels, config.codebook_groups
        )
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    def encode(self, image: Tensor) -> Tensor:
        """Picture (B, 3, S, S) in [-1, 1] -> latent (B, C, S/f, S/f), about unit variance."""
        mean, std = self.latent_mean[:, None, None], self.latent_std[:, None, None]
        return (self.encoder(image) - mean) / std

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (B, C, S/f, S/f) -> picture (B, 3, S, S) in [-1, 1]."""
        mean, std = self.latent_mean[:, None, None], self.latent_std[:, None, None]
        features = latent * std + mean
        if self.config.softness is not None:
            features = self.codebook.mix(features, self.config.softness)
        return self.decoder(features).clamp(-1.0, 1.0)

    def forward(
        self,
        image: Tensor,
        quantised_share: float = 1.0,
        noise: float | Callable[[Tensor], Tensor] = 0.0,
    ) -> VQGANOutput:
        """One training pass.

        Args:
            image: (B, 3, S, S) in [-1, 1]. quantised_share: share of the pictures that pass through
                the codebook. noise: the others get noise of a standard deviation from 0 to this,
                relative to the features' own; or what makes it of all features, (B, C, S/f, S/f)
                -> (B, C, S/f, S/f).
        """
        features = self.encoder(image).float()
        indices = self.codebook.indices(features.detach())
        entries = self.codebook.lookup(indices).float()
        codebook_loss = F.mse_loss(entries, features.detach())
        commitment_loss = F.mse_loss(features, entries.detach())
        count = round(quantised_share * len(image))
        passed = features + (entries - features).detach() if count else features
        rest = features[count:]
        if callable(noise):
            rest = rest + noise(features.detach())[count:]
        elif noise > 0:
            level = noise * torch.rand(len(rest), 1, 1, 1, device=rest.device)
            spread = features.detach().std((0, 2, 3), keepdim=True)
            rest = rest + level * spread * torch.randn_like(rest)
        passed = torch.cat([passed[:count], rest])
        return VQGANOutput(self.decoder(passed), codebook_loss, commitment_loss, indices, features)
