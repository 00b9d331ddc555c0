"""Settings of an adaptation, and how it tells what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dithead.errors import ConfigError

Tell = Callable[[str, float], None]
"""Told what is being done, and how far the whole is: 0 to 1."""


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Settings of one adaptation."""

    minutes: float = 5.0
    """All of it, preparation included."""
    steps: int | None = None
    """End each of the three parts after this many steps, if that comes first."""
    prepare_share: float = 0.25
    """Of the time, at most: the rest of a long video is not used."""
    shape_share: float = 0.07
    """Of the time that is left after preparation."""
    decoder_share: float = 0.4
    """Of the time that is left after the shape head; the denoiser has the rest."""
    rank: int = 16
    """Of the changes of the denoiser's weights."""
    batch: int = 24
    learning_rate: float = 1e-3
    """Of the denoiser's changes."""
    decoder_learning_rate: float = 8e-4
    decoder_batch: int = 8
    generated_share: float = 0.75
    """Share of the decoder's latents that the denoiser generates; the others are true ones."""
    perceptual_weight: float = 1.0
    """Of the decoder's perceptual distance, where ST-LPIPS is installed."""
    adversarial_weight: float = 0.05
    """Of the discriminator that the decoder is trained against."""
    shape_learning_rate: float = 1e-3
    practice_rows: int = 4
    """Samples of other speech in a step, for which the lips must open and close as they did."""
    practice_weight: float = 0.02
    general_share: float = 0.3
    """Share of rows from general footage, if there is any."""
    shape_weight: float = 0.3
    """Weight of the face's shape, as the shape head reads it."""
    first_step_share: float = 0.7
    """Share of samples at the noisiest timestep."""
    held_out_share: float = 0.15
    """End of each video that is not learnt from, to measure what was gained."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes < float("inf"):
            raise ConfigError(f"minutes must be above 0, not {self.minutes:g}")
