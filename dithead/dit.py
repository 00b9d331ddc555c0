"""The denoiser: a diffusion transformer over latent patches that receives the audio by
cross-attention.

Method: DiT-Head (arXiv 2312.06400); blocks as in DiT (arXiv 2212.09748). Two conditionings:

* ``paper``: the window of audio features is flattened, projected, joined with the timestep
  embedding (by concatenation: *assumed*) and is the single key of the cross-attention. Norms have
  plain affine parameters.
* ``tokens``: each frame of the window is a separate key; the timestep modulates every block through
  adaLN-zero.

A model may be shown more than that: see :mod:`dithead.conditions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.conditions import AudioFilter, LandmarkToken
from dithead.config import DiTConfig
from dithead.errors import ConfigError
from dithead.kernels.attention import (
    AttentionBackend,
    audio_attention,
    self_attention,
    split_heads,
)
from dithead.kernels.modulated_layer_norm import modulated_layer_norm
from dithead.linear import Linear


def timestep_features(timestep: Tensor, width: int) -> Tensor:
    """Sinusoidal features of the timestep: (B,) -> (B, width), in float32 (DiT, appendix A)."""
    half = width // 2
    exponents = torch.arange(half, device=timestep.device, dtype=torch.float32) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(10000.0) * exponents)  # (B, width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def position_table(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions of a side x side grid: (side * side, width)."""
    quarter = width // 4
    frequencies = 1.0 / 10000.0 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, width/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width/2)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, width).float()


class Residual(NamedTuple):
    """The residual stream, with what is to be added to it: the next norm does so, as both need all
    of it."""

    x: Tensor
    """(B, N, D)."""
    branch: Tensor | None = None
    """(B, N, D)."""
    gate: Tensor | None = None
    """Factor of the branch, (B, 1, D); None is 1."""


class ModulatedLayerNorm(nn.LayerNorm):
    """Adds what is to be added to the residual stream, and norms it; with the scale and shift of
    adaLN, if there are any."""

    def forward(  # type: ignore[override]
        self, stream: Residual, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stream, scale and shift (B, 1, D) -> the sum and its norm, both (B, N, D)."""
        return modulated_layer_norm(
            stream.x,
            branch=stream.branch,
            gate=stream.gate,
            weight=self.weight,
            bias=self.bias,
            scale=scale,
            shift=shift,
            eps=self.eps,
        )


class Block(nn.Module):
    """Self-attention, cross-attention to the audio, MLP; each after a layer norm and with a
    residual."""

    def __init__(self, config: DiTConfig, attention_backend: AttentionBackend) -> None:
        super().__init__()
        d, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.attention_backend = attention_backend
        adaptive = config.conditioning == "tokens"
        self.norm1 = ModulatedLayerNorm(d, eps=1e-6, elementwise_affine=not adaptive)
        self.norm2 = ModulatedLayerNorm(d, eps=1e-6)
        self.norm3 = ModulatedLayerNorm(d, eps=1e-6, elementwise_affine=not adaptive)
        self.qkv = Linear(d, 3 * d)
        self.attention_out = Linear(d, d)
        self.cross_q = Linear(d, d)
        self.cross_kv = Linear(d if adaptive else 2 * d, 2 * d)
        self.cross_out = Linear(d, d)
        self.mlp_in = Linear(d, hidden, gelu="tanh")
        self.mlp_out = Linear(hidden, d)
        self.modulation = Linear(d, 7 * d) if adaptive else None

    def context(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Audio tokens (B, M, context width) -> keys and values, each (B, heads, M, D/heads)."""
        k, v = self.cross_kv(tokens).chunk(2, dim=-1)
        return split_heads(k, self.heads), split_heads(v, self.heads)

    def forward(
        self, stream: Residual, keys: Tensor, values: Tensor, modulation: Tensor | None
    ) -> Residual:
        """keys, values: (B, heads, M, D/heads); modulation: (B, 7, D), of adaLN-zero only."""
        rows: Sequence[Tensor | None] = [None] * 7
        if modulation is not None:
            rows = modulation.chunk(7, dim=1)  # (B, 1, D)
        shift1, scale1, gate1, gate2, shift3, scale3, gate3 = rows
        x, normed = self.norm1(stream, scale1, shift1)
        heard = self_attention(self.qkv(normed), self.heads, self.attention_backend)
        x, normed = self.norm2(Residual(x, self.attention_out(heard), gate1))
        q = self.cross_q(normed)
        x = audio_attention(x, q, keys, values, self.cross_out, gate2, self.attention_backend)
        x, normed = self.norm3(Residual(x), scale3, shift3)
        return Residual(x, self.mlp_out(self.mlp_in(normed)), gate3)


class DiT(nn.Module):
    """Predicts the noise (or velocity) in a face latent.

    Args:
        config: sizes and conditioning.
        latent_channels, latent_size: shape of one latent, C x S x S.
        window_frames, audio_dim: shape of one audio window.
        attention_backend: see :func:`dithead.kernels.attention.attention`.
    """

    positions: Tensor

    def __init__(
        self,
        config: DiTConfig,
        latent_channels: int,
        latent_size: int,
        window_frames: int,
        audio_dim: int,
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = latent_channels
        self.grid = latent_size // config.patch
        d = config.width
        self.inputs = 3 + config.motion_frames  # latents
        channels = self.inputs * latent_channels
        self.patch_in = nn.Conv2d(channels, d, config.patch, stride=config.patch)
        self.register_buffer("positions", position_table(self.grid, d), persistent=False)
        self.timestep_in = Linear(256, d)
        self.timestep_out = Linear(d, d)
        self.audio_filter = AudioFilter(window_frames, audio_dim) if config.audio_filter else None
        if config.conditioning == "tokens":
            self.audio_in = Linear(audio_dim, d)
            self.audio_norm = nn.LayerNorm(d, eps=1e-6)
            self.audio_positions = nn.Parameter(torch.zeros(window_frames, d))
        else:
            self.audio_in = Linear(window_frames * audio_dim, d)
        self.landmark_in = LandmarkToken(d) if config.landmarks else None
        self.blocks = nn.ModuleList(Block(config, attention_backend) for _ in range(config.depth))
        adaptive = config.conditioning == "tokens"
        self.final_norm = ModulatedLayerNorm(d, eps=1e-6, elementwise_affine=not adaptive)
        self.final_modulation = Linear(d, 2 * d) if adaptive else None
        patch = config.patch**2 * latent_channels
        self.patch_out = Linear(d, patch)
        self.skip = self.skip_modulation = None
        if config.skip:
            self.skip = nn.Parameter(torch.zeros(self.grid**2, self.inputs * patch, patch))
            self.skip_rows = math.ceil(self.inputs * patch / d)
            self.skip_modulation = Linear(d, self.skip_rows * d)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_in.weight.flatten(1))
        nn.init.zeros_(self.patch_in.bias)  # type: ignore[arg-type]
        for timestep in (self.timestep_in, self.timestep_out):
            nn.init.normal_(timestep.weight, std=0.02)
        if self.config.conditioning == "tokens":
            nn.init.normal_(self.audio_positions, std=0.02)
        zero: list[nn.Linear] = [self.patch_out]
        zero += [block.modulation for block in self.blocks if block.modulation is not None]  # type: ignore[misc]
        zero += [
            layer for layer in (self.final_modulation, self.skip_modulation) if layer is not None
        ]
        for layer in zero:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def modulation(self, timestep: Tensor) -> Tensor:
        """The network's timestep input.

        Args:
            timestep: (B,) integer.

        Returns:
            (B, R, D). ``tokens``: shifts, scales and gates of adaLN-zero, 7 rows for each block,
            then 2 for the last norm; scales of the path round the blocks. ``paper``: the embedding
            in one row.
        """
        features = timestep_features(timestep, 256).to(self.timestep_in.weight.dtype)
        embedding = self.timestep_out(F.silu(self.timestep_in(features)))  # (B, D)
        if self.final_modulation is None:
            return embedding[:, None, :]
        layers = [*(block.modulation for block in self.blocks), self.final_modulation]
        layers += [] if self.skip_modulation is None else [self.skip_modulation]
        rows = torch.cat([layer(F.silu(embedding)) for layer in layers], dim=1)  # type: ignore[operator]
        return rows.reshape(timestep.shape[0], -1, self.config.width)  # (B, R, D)

    def audio_tokens(self, window: Tensor) -> Tensor:
        """Audio window (B, window_frames, audio_dim) -> tokens (B, M, D); M is 1 with ``paper``,
        window_frames otherwise."""
        if self.audio_filter is not None:
            window = self.audio_filter(window)
        if self.config.conditioning == "paper":
            return self.audio_in(window.flatten(1))[:, None, :]  # (B, 1, D)
        return self.audio_norm(self.audio_in(window)) + self.audio_positions

    def tokens(self, window: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """All tokens of the cross-attention: those of the audio window, and one of the landmarks
        (B, 26, 2) if the model is shown them.

        Raises:
            ConfigError: it is shown them, and they are not given.
        """
        tokens = self.audio_tokens(window)
        if self.landmark_in is None:
            return tokens
        if landmarks is None:
            raise ConfigError("this denoiser needs landmarks, and none were given")
        return torch.cat([tokens, self.landmark_in(landmarks)], dim=1)  # (B, M + 1, D)

    def context(self, tokens: Tensor, modulation: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every block.

        With ``tokens`` they do not depend on the timestep, so one call serves every step of a
        frame.

        Args:
            tokens: from :meth:`tokens`.
            modulation: from :meth:`modulation`, read by ``paper`` only.
        """
        if self.config.conditioning == "paper":
            timestep = modulation.expand(-1, tokens.shape[1], -1)
            tokens = torch.cat([tokens, timestep], dim=-1)  # (B, M, 2D)
        return [block.context(tokens) for block in self.blocks]  # type: ignore[operator]

    def forward(
        self,
        noisy: Tensor,
        masked: Tensor,
        reference: Tensor,
        timestep: Tensor,
        window: Tensor,
        landmarks: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise or velocity.

        Args:
            noisy, masked, reference: latents (B, C, S, S): the noised face, the masked face, the
                reference face; with ``motion_frames`` the last is (B, (1 + motion_frames) C, S, S),
                with the faces of the frames before after it, the latest first.
            timestep: (B,) integer timesteps.
            window: audio (B, window_frames, audio_dim).
            landmarks: (B, 26, 2), see :data:`dithead.conditions.UPPER_LANDMARKS`, for a model that
                is shown them.

        Returns:
            (B, C, S, S).
        """
        modulation = self.modulation(timestep)
        context = self.context(self.tokens(window, landmarks), modulation)
        return self.predict(noisy, masked, reference, modulation, context)

    def predict(
        self,
        noisy: Tensor,
        masked: Tensor,
        reference: Tensor,
        modulation: Tensor,
        context: list[tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Like :meth:`forward`, from the results of :meth:`modulation` and :meth:`context`."""
        inputs = torch.cat([noisy, masked, reference], dim=1)  # (B, K, S, S)
        x = self.patch_in(inputs).flatten(2).transpose(1, 2)  # (B, N, D)
        x = x.contiguous() + self.positions  # a token's numbers side by side
        adaptive = self.final_modulation is not None
        stream = Residual(x)
        for i, (block, (keys, values)) in enumerate(zip(self.blocks, context, strict=True)):
            rows = modulation[:, 7 * i : 7 * i + 7] if adaptive else None
            stream = block(stream, keys, values, rows)
        shift = scale = None
        if adaptive:
            last = 7 * len(self.blocks)
            shift, scale = modulation[:, last : last + 2].chunk(2, dim=1)  # (B, 1, D)
        x = self.final_norm(stream, scale, shift)[1]
        x = self.patch_out(x)
        if self.skip is not None:
            scale = modulation[:, -self.skip_rows :].flatten(1)[:, None, : self.skip.shape[1]]
            tokens = (self.patches(inputs) * (1 + scale))[:, :, None]  # (B, N, 1, Q)
            x = x + torch.matmul(tokens, self.skip)[:, :, 0]
        return self.unpatch(x)

    def patches(self, latents: Tensor) -> Tensor:
        """Latents (B, K, S, S) -> the numbers of each patch (B, N, K * patch^2)."""
        p, side = self.config.patch, self.grid
        x = latents.reshape(latents.shape[0], latents.shape[1], side, p, side, p)
        x = x.permute(0, 2, 4, 3, 5, 1)  # (B, grid, grid, p, p, K), as unpatch has it
        return x.reshape(latents.shape[0], side * side, -1)

    def unpatch(self, x: Tensor) -> Tensor:
        """The numbers of each patch (B, N, K * patch^2) -> (B, K, S, S)."""
        p, c = self.config.patch, self.latent_channels
        x = x.reshape(x.shape[0], self.grid, self.grid, p, p, c)
        x = x.permute(0, 5, 1, 3, 2, 4)  # (B, C, grid, p, grid, p)
        return x.reshape(x.shape[0], c, self.grid * p, self.grid * p)
