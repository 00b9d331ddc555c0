"""Pictures that are pushed, pulled, held still or played in a loop, in their possible layouts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import count
from typing import Literal, get_args

import av
import numpy as np

from dithead.errors import ConfigError, DitheadError, MediaError, StreamError
from dithead.face.search import Box
from dithead.runtime.checked import checked_picture
from dithead.runtime.media.extend import extend_frames
from dithead.runtime.media.inputs import as_input
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.schedule.channel import Channel, Closed, Stopped

Layout = Literal["rgb", "bgr", "yuv420p"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
"""``rgb``, ``bgr``: (H, W, 3) uint8. ``yuv420p``: (3 H / 2, W) uint8, the planes Y, U and V below
each other as FFmpeg packs them, BT.709 in limited range; H and W are even."""


@dataclass(frozen=True, slots=True)
class PushedPicture:
    """A picture in RGB; see :class:`dithead.runtime.schedule.frame.Picture`."""

    index: int
    time_s: Fraction
    image: np.ndarray
    """(H, W, 3) uint8."""
    face_box: Box | None = None
    """Where the face to re-voice is, in pixels; see :meth:`Stream.push_frame`."""
    arrived_s: float = 0.0
    """When it arrived, on the stream's clock."""
    end_s: Fraction | None = None
    """When the next one is due, if known."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.image.shape[0])

    def rgb(self) -> np.ndarray:
        """The picture itself."""
        return self.image

    def with_rectangle(self, x: int, y: int, rgb: np.ndarray, mask: np.ndarray) -> PushedPicture:
        """A copy with a rectangle written where the mask is not 0."""
        image = self.image.copy()
        part = image[y : y + rgb.shape[0], x : x + rgb.shape[1]]
        np.copyto(part, rgb, where=mask.astype(bool)[..., None])
        return replace(self, image=image)


def checked_layout(layout: Layout) -> Layout:
    """Raise ConfigError if a layout is unknown."""
    if layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; expected {', '.join(LAYOUTS)}")
    return layout


def to_rgb(image: np.ndarray, layout: Layout) -> np.ndarray:
    """Convert a picture from a layout to (H, W, 3) uint8 RGB. Raises StreamError: another shape."""
    if layout == "rgb":
        return checked_picture(image)
    if layout == "bgr":
        return np.ascontiguousarray(checked_picture(image)[..., ::-1])
    fits = (
        isinstance(image, np.ndarray)
        and image.ndim == 2
        and image.dtype == np.uint8
        and image.shape[0] % 3 == 0
        and image.shape[1] % 2 == 0
        and min(image.shape) >= 3
    )
    if not fits:
        found = getattr(image, "shape", type(image)), getattr(image, "dtype", "")
        raise StreamError(
            f"expected a picture (3 H / 2, W) uint8 in yuv420p, found {found[0]} {found[1]}"
        )
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "yuv420p")
    return frame.to_ndarray(format="rgb24", src_colorspace="ITU709", dst_colorspace="ITU709")


def from_rgb(image: np.ndarray, layout: Layout) -> np.ndarray:
    """Convert a picture (H, W, 3) uint8 RGB to a layout."""
    if layout == "rgb":
        return image
    if layout == "bgr":
        return np.ascontiguousarray(image[..., ::-1])
    frame = av.VideoFrame.from_ndarray(image, "rgb24")
    return frame.to_ndarray(format="yuv420p", src_colorspace="ITU709", dst_colorspace="ITU709")


class PushedPictures:
    """Pushed pictures, as a source for the scheduler."""

    def __init__(self, waiting: int) -> None:
        self.inbox: Channel[PushedPicture] = Channel(waiting)

    def __iter__(self) -> Iterator[PushedPicture]:
        return self

    def __next__(self) -> PushedPicture:
        try:
            return self.inbox.get()
        except Closed:
            raise StopIteration from None

    def stop(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        self.inbox.stop()

    def pause(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        self.inbox.pause()

    def resume(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        self.inbox.resume()


Shown = tuple[Fraction, Fraction, np.ndarray]
"""Start and end of a picture's display, and the picture (H, W, 3) uint8 RGB."""

Footage = Callable[[], Iterator[Shown]]
"""Starts what a stream shows by itself, at time 0, without end."""

LATE_S = 0.25
"""A picture of a stream's own whose turn passed longer ago than this is left out."""

STOOD_STILL_S = 1.0
"""If it passed longer ago than this, nobody pulled: the stream goes on where it stood."""

LEFT_OUT = 8
"""Pictures that are left out in a row, at most. Where even reading them takes too long, the stream
runs more slowly than the clock."""


class OwnPictures:
    """Pictures that a stream shows by itself: a portrait or a clip, until another is set.

    Args:
        footage: what to show first.
        clock: returns the time in seconds; None if frames need not wait for their time.

    Raises:
        MediaError: the first picture cannot be read.
    """

    def __init__(self, footage: Footage, clock: Callable[[], float] | None = None) -> None:
        self._frames = begun(footage)
        self._clock = clock
        self._began_s: float | None = None
        self._index = 0
        self._offset_s = self._end_s = Fraction(0)
        self._next: Generator[Shown, None, None] | None = None
        self._early: PushedPicture | None = None  # whose turn has not come yet
        self._changed = threading.Condition()
        self._turned_away = False

    def change(self, footage: Footage) -> None:
        """Show something else from the next frame on. Raises MediaError: its first picture cannot
        be read; then nothing changes."""
        frames = begun(footage)
        with self._changed:
            unseen, self._next = self._next, frames
        if unseen is not None:
            unseen.close()

    def __iter__(self) -> Iterator[PushedPicture]:
        return self

    def __next__(self) -> PushedPicture:
        picture = self._early or self._begin_next()
        if self._clock is not None:
            picture = self._in_time(picture, self._clock)
            self._early = picture
            self._wait_until(picture.arrived_s, self._clock)
            self._early = None
        self._index += 1
        return replace(picture, index=self._index - 1)

    def _in_time(self, picture: PushedPicture, clock: Callable[[], float]) -> PushedPicture:
        """The picture, or a later one if its turn has passed: a machine that is too slow must not
        fall behind for ever."""
        for _ in range(LEFT_OUT):
            late_s = clock() - picture.arrived_s
            if self._turned_away or not LATE_S < late_s <= STOOD_STILL_S:
                break
            picture = self._begin_next()
        late_s = clock() - picture.arrived_s
        if late_s > LATE_S and self._began_s is not None:
            self._began_s += late_s
            picture = replace(picture, arrived_s=picture.arrived_s + late_s)
        return picture

    def _begin_next(self) -> PushedPicture:
        with self._changed:
            following, self._next = self._next, None
        if following is not None:
            self._frames.close()
            self._frames, self._offset_s = following, self._end_s
        since_s, until_s, image = next(self._frames)
        time_s, self._end_s = self._offset_s + since_s, self._offset_s + until_s
        due_s = 0.0
        if self._clock is not None:
            if self._began_s is None:
                self._began_s = self._clock() - float(time_s)
            due_s = self._began_s + float(time_s)
        return PushedPicture(self._index, time_s, image, arrived_s=due_s, end_s=self._end_s)

    def _wait_until(self, due_s: float, clock: Callable[[], float]) -> None:
        """Wait for a frame's turn. Raises Stopped: the thread is turned away before it."""
        with self._changed:
            while clock() < due_s:
                if self._turned_away:
                    raise Stopped
                self._changed.wait(due_s - clock())

    def shut(self) -> None:
        """Close what is shown. Call it when nobody takes pictures any more."""
        for frames in (self._frames, self._next):
            if frames is not None:
                with suppress(ValueError):  # a thread hangs in it
                    frames.close()

    def stop(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        self.pause()

    def pause(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        with self._changed:
            self._turned_away = True
            self._changed.notify_all()

    def resume(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        with self._changed:
            self._turned_away = False


def begun(footage: Footage) -> Generator[Shown, None, None]:
    """Footage whose first picture has been read, so that what is broken is told at once."""
    frames = footage()
    first = next(frames, None)
    if first is None:
        raise MediaError("the clip to loop shows nothing")

    def shown() -> Generator[Shown, None, None]:
        try:
            yield first
            yield from frames
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()

    return shown()


def still(image: np.ndarray, rate: Fraction) -> Footage:
    """One picture (H, W, 3) uint8, repeated."""

    def frames() -> Iterator[Shown]:
        for index in count():
            yield index / rate, (index + 1) / rate, image

    return frames


def clip(path: str | os.PathLike[str], layout: Layout) -> Footage:
    """A video file, forwards and backwards in turn, at its own rate.

    Raises:
        MediaError: it cannot be read, or the layout does not allow its size; raised when its first
            picture is read.
    """

    def frames() -> Iterator[Shown]:
        with VideoSource(as_input(path)) as source:
            for frame in extend_frames(source, "pingpong"):
                if not _fits(frame.width, frame.height, layout):
                    raise MediaError(f"{path}: {_misfit(frame.width, frame.height)}")
                yield frame.time_s, frame.end_s, frame.rgb()

    return frames


def chosen_footage(
    portrait: np.ndarray | None,
    loop: str | os.PathLike[str] | None,
    rate: Fraction,
    layout: Layout,
    raises: type[DitheadError],
) -> Footage | None:
    """A portrait or a clip; at most one may be given, None for neither. Raises the given error type
    if both are, or if the layout does not allow the portrait's size."""
    if portrait is not None and loop is not None:
        raise raises("a stream shows a portrait or a loop, not both")
    if portrait is not None:
        image = checked_picture(portrait, raises).copy()
        if not _fits(image.shape[1], image.shape[0], layout):
            raise raises(f"a portrait: {_misfit(image.shape[1], image.shape[0])}")
        return still(image, rate)
    return None if loop is None else clip(loop, layout)


def _fits(width: int, height: int, layout: Layout) -> bool:
    return layout != "yuv420p" or not (width % 2 or height % 2)


def _misfit(width: int, height: int) -> str:
    return f"{width}x{height} pixels cannot be given as yuv420p, whose width and height are even"
