"""What a stream is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dithead.errors import ConfigError
from dithead.face.choice import FaceChoice, checked_choice
from dithead.face.speakers import Speakers

ReferenceMode = Literal["previous", "fixed"]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a stream."""

    steps: int | None = None
    """DDIM steps per frame; None takes the model's default."""
    seed: int = 0
    reference: ReferenceMode = "fixed"
    """``fixed``: the latent of the first good frame that shows the face. ``previous``: the latent
    generated for the frame before (the paper), with which a small model drifts on strangers."""
    face: FaceChoice = "largest"
    """Which face: ``"largest"``, the index of a face counted from the left, the face at a point (x,
    y) or in a box (left, top, right, bottom), in pixels of the frame in which it first appears."""
    speakers: Speakers | None = None
    """Who speaks when, by places; instead of ``face``."""
    on_no_face: Literal["pass", "error"] = "pass"
    """What to do with a frame in which no face is found: pass it through untouched, or stop."""
    generate_every: int = 1
    """2 generates every second face and lets RIFE interpolate those between: half the denoising,
    for one frame of delay."""
    detail: bool = True
    """Show the frame's own pixels, warped to the shape of the generated face (dithead/detail.py);
    False shows the generated face itself."""

    def __post_init__(self) -> None:
        if self.reference not in ("previous", "fixed"):
            raise ConfigError(f"reference must be 'previous' or 'fixed', not {self.reference!r}")
        if self.on_no_face not in ("pass", "error"):
            raise ConfigError(f"on_no_face must be 'pass' or 'error', not {self.on_no_face!r}")
        if self.generate_every not in (1, 2):
            raise ConfigError(f"generate_every must be 1 or 2, not {self.generate_every}")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps}")
        checked_choice(self.face)
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie in 0..{2**32 - 1}, not {self.seed}")
