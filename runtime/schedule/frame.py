"""A frame on its way through the stages: a field for every tensor that a stage reads or writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Protocol, TypeAlias

import numpy as np
from torch import Tensor

from dithead.face.choice import Box
from dithead.pipeline import Face, LeftAlone
from dithead.runtime.schedule.lanes import Event

Pixels: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Mask: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Picture(Protocol):
    """A picture with its place in time, whatever holds its pixels."""

    @property
    def index(self) -> int:
        """Number of the frame, from 0."""

    @property
    def time_s(self) -> Fraction:
        """Presentation time in seconds."""

    @property
    def face_box(self) -> Box | None:
        """Where the face to re-voice is, if the caller knows."""

    @property
    def width(self) -> int:
        """Width in pixels."""

    @property
    def height(self) -> int:
        """Height in pixels."""

    def rgb(self) -> Pixels:
        """(H, W, 3) uint8."""

    def with_rectangle(self, x: int, y: int, rgb: Pixels, mask: Mask) -> Picture:
        """A copy with a rectangle (h, w, 3) laid in where the mask (h, w) is not 0."""


@dataclass(slots=True, repr=False, eq=False)
class Frame:
    """One frame, from the source to the sink.

    Fields are written by one stage and read by later ones. A tensor that no stage has written
    cannot be read: the field is not there yet.
    """

    source: Picture
    written: Event = None
    """Reached when what the last stage has written is there."""
    room: int | None = None
    """The scheduler's: which of the frames that may be on their way this is."""
    reached: int = 0
    """The scheduler's: the stage that is to work on it, or does."""
    undo: dict[int, Callable[[], None]] = field(default_factory=dict)
    """The scheduler's: what brings each stage back to where it was before this frame."""
    kept: bool = False
    """Whether somebody may still ask for its tensors, and lets go of them himself."""

    face: Face | None = None
    """The face to re-voice; None where the frame is left alone."""
    idle: Face | None = None
    """The face, where the frame is handed through because nobody speaks."""
    left_alone: LeftAlone | None = None
    """Why the frame is handed through as it is."""
    left: int = 0
    """Where the rectangle round the face lies in the frame, in pixels."""
    top: int = 0
    filled: bool = False
    """Whether the face is filled in between two that were generated."""
    result: Picture = field(init=False)
    """The finished picture."""

    # On the device.
    rgb: Tensor = field(init=False)
    """(H, W, 3) uint8, the whole picture."""
    rectangle: Tensor = field(init=False)
    """(S, S, 3) uint8, round the face."""
    transform: Tensor = field(init=False)
    """(2, 3) float, crop units to the rectangle's pixels."""
    polygon: Tensor = field(init=False)
    """(P, 2) float, the blend's outline in crop units."""
    mesh: Tensor = field(init=False)
    """(468, 3) float, the face's mesh in the rectangle's pixels."""
    region: Tensor = field(init=False)
    """(1, 5) float, where it was fitted, likewise."""
    light: Tensor = field(init=False)
    """(2, 3) float, brings the crop's colours to the reference's light."""
    crop: Tensor = field(init=False)
    """(1, 3, s, s) float in [-1, 1]."""
    masked: Tensor = field(init=False)
    """(1, C, l, l) float, latent of the masked crop."""
    window: Tensor = field(init=False)
    """(window_frames, features) float, the sound round the frame."""
    latent: Tensor = field(init=False)
    """(1, C, l, l) float, generated."""
    generated: Tensor = field(init=False)
    """(1, 3, s, s) float in [-1, 1], the generated crop."""
    shape: Tensor = field(init=False)
    """(468, 2) float, its mesh in crop units; (0, 2) where no head reads it."""
    blended: Tensor = field(init=False)
    """(S, S, 3) uint8, the generated crop laid into the rectangle."""
    soft_mask: Tensor = field(init=False)
    """(S, S) float in [0, 1], where it may differ from the source."""

    # On the host.
    image: Tensor = field(init=False)
    """(S, S, 3) uint8, what is laid over the source."""
    image_mask: Tensor = field(init=False)
    """(S, S) float, ``soft_mask``."""
    covered: Tensor = field(init=False)
    """() float, by how much something hides the mouth; with the detail layer only."""
    middle: Tensor | None = None
    """(H, W, 3) uint8, the picture between the last frame and this one."""

    @property
    def index(self) -> int:
        """Number of the frame, from 0."""
        return self.source.index

    @property
    def time_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.source.time_s)

    def begin_again(self, stage: int) -> None:
        """Be as before a stage, for it to be run once more."""
        self.face, self.idle = self.face or self.idle, None
        if self.face is not None:
            self.left_alone = None
        self.filled, self.middle = False, None
        self.reached = min(self.reached, stage)
        self.undo.clear()

    def forget(self) -> None:
        """Let go of every tensor. To be called when no queued work reads them any more."""
        self.face = self.idle = None
        self.undo.clear()
        for each in fields(self):
            if isinstance(getattr(self, each.name, None), Tensor):
                delattr(self, each.name)
