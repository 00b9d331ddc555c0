"""The trained model as one object: two VQGANs, the denoiser, the sampler and the noise, with one
checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion, InitialNoise
from dithead.dit import DiT
from dithead.errors import CheckpointError, ConfigError
from dithead.kernels.attention import AttentionBackend
from dithead.shape import ShapeHead
from dithead.vqgan import VQGAN


def build_dit(config: DitHeadConfig, attention_backend: AttentionBackend = "auto") -> DiT:
    """The denoiser of a configuration, freshly initialised."""
    frames, features = config.audio.window_shape
    channels, size = config.vqgan.latent_channels, config.latent_size
    return DiT(config.dit, channels, size, frames, features, attention_backend)


def draw_what_is_zero(module: nn.Module) -> None:
    """Give random numbers to parameters that are zero before training and would hide the rest."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def build_shape_head(config: DitHeadConfig) -> ShapeHead:
    """The shape head, freshly initialised, for a configuration that has one."""
    return ShapeHead(config.vqgan.latent_channels, config.latent_size)


class DitHead(nn.Module):
    """Everything with trained weights, and the sampler.

    Args:
        config: see :mod:`dithead.config`.
        attention_backend: see :func:`dithead.kernels.attention.attention`.
    """

    def __init__(self, config: DitHeadConfig, attention_backend: AttentionBackend = "auto") -> None:
        super().__init__()
        self.config = config
        self.face_vqgan = VQGAN(config.vqgan)
        self.masked_vqgan = VQGAN(config.vqgan)
        self.dit = build_dit(config, attention_backend)
        self.shape_head = build_shape_head(config) if config.shape_head else None
        self.diffusion = Diffusion(config.diffusion)
        self.noise = InitialNoise(config.vqgan.latent_channels, config.latent_size)

    @classmethod
    def load(cls, source: str | Path, attention_backend: AttentionBackend = "auto") -> DitHead:
        """Load a checkpoint: the name of a packaged one (``"tiny"``) or a path.

        Returns:
            The model in evaluation mode, without gradients, on the CPU in float32.

        Raises:
            CheckpointError: no such checkpoint, or it does not fit its own configuration.
            ConfigError: its configuration is not one of this version's models.
        """
        path = checkpoint.resolve(source)
        tensors, values = checkpoint.load(path)
        try:
            config = DitHeadConfig.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path} is no checkpoint of this model: {error}") from error
        model = cls(config, attention_backend)
        checkpoint.load_into(model, tensors, path)
        bad = [name for name, t in tensors.items() if not bool(torch.isfinite(t).all())]
        if bad:
            raise CheckpointError(f"{path} holds NaN or infinite weights: {', '.join(bad[:3])}")
        return model.eval().requires_grad_(False)
