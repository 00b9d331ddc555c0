"""A frame as it passes through the stages: a field for every tensor that a stage reads or
writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Protocol, TypeAlias

import numpy as np
from torch import Tensor

from dithead.face.search import Box
from dithead.generator import Face, LeftAlone
from dithead.runtime.schedule.lanes import Event

Pixels: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Mask: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Picture(Protocol):
    """A picture with its place in time, however its pixels are stored."""

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
        """A copy with a rectangle (h, w, 3) written where the mask (h, w) is not 0."""


@dataclass(slots=True, repr=False, eq=False)
class Frame:
    """One frame, from the source to the sink.

    One stage writes a field and later ones read it. A tensor that no stage has written cannot be
    read: the field does not exist yet.
    """

    source: Picture
    written: Event = None
    """Reached when the last stage's output is there."""
    room: int | None = None
    """For the scheduler: which of the frames in progress this is."""
    reached: int = 0
    """For the scheduler: the stage that works, or will work, on it."""
    undo: dict[int, Callable[[], None]] = field(default_factory=dict)
    """For the scheduler: what returns each stage to its state before this frame."""
    kept: bool = False
    """Whether somebody may still need its tensors, and will release them."""

    face: Face | None = None
    """The face to re-voice; None if the frame is left alone."""
    idle: Face | None = None
    """The face, if the frame is passed through because nobody speaks."""
    left_alone: LeftAlone | None = None
    """Why the frame is passed through as it is."""
    left: int = 0
    """Position of the rectangle round the face in the frame, in pixels."""
    top: int = 0
    same: bool = False
    """Whether the picture is that of the frame before, to the bit."""
    filled: bool = False
    """Whether the face is interpolated between two that were generated."""
    result: Picture = field(init=False)
    """The finished picture."""

    # On the device.
    rgb: Tensor = field(init=False)
    """(H, W, 3) uint8, the whole picture."""
    rectangle: Tensor = field(init=False)
    """(S, S, 3) uint8, the rectangle round the face."""
    transform: Tensor = field(init=False)
    """(2, 3) float, crop units to the rectangle's pixels."""
    polygon: Tensor = field(init=False)
    """(P, 2) float, the blend's outline in crop units."""
    mesh: Tensor = field(init=False)
    """(468, 3) float, the face's mesh in the rectangle's pixels."""
    region: Tensor = field(init=False)
    """(1, 5) float, the region where the mesh was fitted, in the rectangle's pixels."""
    light: Tensor = field(init=False)
    """(2, 3) float, brings the crop's colours to the reference's light."""
    crop: Tensor = field(init=False)
    """(1, 3, s, s) float in [-1, 1]."""
    masked: Tensor = field(init=False)
    """(1, C, l, l) float, latent of the masked crop."""
    conditions: tuple[Tensor, ...] = ()
    """What else the model is shown, see :meth:`dithead.generator.FrameGenerator.encode`."""
    window: Tensor = field(init=False)
    """(window_frames, features) float, the sound round the frame."""
    latent: Tensor = field(init=False)
    """(1, C, l, l) float, the generated latent."""
    generated: Tensor = field(init=False)
    """(1, 3, s, s) float in [-1, 1], the generated crop."""
    shape: Tensor = field(init=False)
    """(468, 2) float, its mesh in crop units; (0, 2) without a shape head."""
    blended: Tensor = field(init=False)
    """(S, S, 3) uint8, the generated crop blended into the rectangle."""
    soft_mask: Tensor = field(init=False)
    """(S, S) float in [0, 1], where it may differ from the source."""

    # On the host.
    image: Tensor = field(init=False)
    """(S, S, 3) uint8, the pixels to write over the source."""
    image_mask: Tensor = field(init=False)
    """(S, S) float, ``soft_mask``."""
    covered: Tensor = field(init=False)
    """() float, how far something hides the mouth; with the detail layer only."""
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
        """Return to the state before a stage, so that it can run once more."""
        self.face, self.idle = self.face or self.idle, None
        if self.face is not None:
            self.left_alone = None
        self.filled, self.middle = False, None
        self.reached = min(self.reached, stage)
        self.undo.clear()

    def forget(self) -> None:
        """Release every tensor. Call it when no queued work reads them any more."""
        self.face = self.idle = None
        self.conditions = ()
        self.undo.clear()
        for each in fields(self):
            if isinstance(getattr(self, each.name, None), Tensor):
                delattr(self, each.name)
