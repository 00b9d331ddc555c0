"""A stream fed by hand: pictures and sound as they are pushed, finished pictures as they are
pulled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NoReturn

import av
import numpy as np
import torch
from torch import Tensor

from dithead.errors import StreamError
from dithead.face.choice import Box, checked_box
from dithead.pipeline import FrameGenerator, LeftAlone
from dithead.runtime.checked import checked_picture, checked_rate, checked_time, checked_wait
from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.runtime.schedule.batch import Batcher
from dithead.runtime.schedule.channel import Channel, Closed, Stopped
from dithead.runtime.schedule.frame import Frame
from dithead.runtime.schedule.lanes import Lanes
from dithead.runtime.schedule.scheduler import Scheduler
from dithead.runtime.schedule.stages import Deliver, face_stages, load_picture
from dithead.runtime.schedule.trace import Trace

_PIECE_SAMPLES = SPEECH_RATE_HZ  # sound is taken in and encoded in pieces of at most a second


@dataclass(frozen=True, slots=True)
class RgbFrame:
    """A pushed picture; see :class:`dithead.runtime.schedule.frame.Picture`."""

    index: int
    time_s: Fraction
    image: np.ndarray
    """(H, W, 3) uint8."""
    face_box: Box | None = None
    """Where the face to re-voice is, in pixels; see :meth:`dithead.runtime.Stream.push_frame`."""

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.image.shape[1]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.image.shape[0]

    def rgb(self) -> np.ndarray:
        """The picture itself."""
        return self.image

    def with_rectangle(self, x: int, y: int, rgb: np.ndarray, mask: np.ndarray) -> RgbFrame:
        """A copy with a rectangle laid in where the mask is not 0."""
        image = self.image.copy()
        part = image[y : y + rgb.shape[0], x : x + rgb.shape[1]]
        np.copyto(part, rgb, where=mask.astype(bool)[..., None])
        return replace(self, image=image)


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """A finished picture."""

    index: int
    """Number of the pushed frame; of one made between two, that of the later."""
    time_s: Fraction
    """Presentation time, as it was pushed."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    face: bool
    """Whether a face was found and re-voiced; else the picture is as it was pushed."""
    left_alone: LeftAlone | None = None
    """Why it was not."""
    between: bool = False
    """Whether it was made between two pushed frames (``interpolate=2``)."""


class PushedSound:
    """Sound as it is pushed; see :class:`dithead.runtime.schedule.stages.Sound`."""

    def __init__(self) -> None:
        self.channel: Channel[Tensor] = Channel()
        self._samples = 0
        self._rate_hz: int | None = None
        self._resampler: av.AudioResampler | None = None
        self._finished = False

    @property
    def length_s(self) -> Fraction:
        return Fraction(self._samples, SPEECH_RATE_HZ)

    def read(self) -> Tensor | None:
        try:
            return self.channel.get()
        except Closed:
            return None

    def push(self, samples: np.ndarray | Tensor, sample_rate_hz: int) -> None:
        array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.float32:
            found = getattr(array, "shape", type(array)), getattr(array, "dtype", "")
            raise StreamError(
                f"expected 1-D float32 samples in [-1, 1], mono, found {found[0]} {found[1]}"
            )
        if self._finished:
            raise StreamError(
                "sound after finish()",
                hint="call reset() before a new sound",
            )
        sample_rate_hz = checked_rate(sample_rate_hz)
        if self._rate_hz not in (None, sample_rate_hz):
            raise StreamError(
                f"sound at {sample_rate_hz} Hz after sound at {self._rate_hz} Hz",
                hint="resample it, or call reset()",
            )
        if self._rate_hz is None and sample_rate_hz != SPEECH_RATE_HZ:
            self._resampler = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)
        self._rate_hz = sample_rate_hz
        if self._resampler is None:
            self._take(array)
        elif array.size:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(array)[None], "fltp", "mono")
            frame.sample_rate = sample_rate_hz
            self._resample(frame)

    def finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._resampler is not None:
            self._resample(None)
        self.channel.close()

    def _resample(self, frame: av.AudioFrame | None) -> None:
        assert self._resampler is not None
        for part in self._resampler.resample(frame):
            self._take(part.to_ndarray()[0])

    def _take(self, samples: np.ndarray) -> None:
        self._samples += samples.size
        for start in range(0, samples.size, _PIECE_SAMPLES):
            self.channel.put(torch.from_numpy(samples[start : start + _PIECE_SAMPLES].copy()))


class PushedRun:
    """A stream from its start to its end."""

    def __init__(
        self,
        generator: FrameGenerator,
        interpolate: int,
        in_flight: int,
        waiting: int,
        portrait: tuple[np.ndarray, Fraction] | None,
        trace: Trace | None,
        lanes: Lanes,
        batch: int,
        batcher: Batcher | None,
    ) -> None:
        self._inbox: Channel[RgbFrame] = Channel(waiting)
        self._outbox: Channel[OutputFrame] = Channel(max(1, in_flight))
        self._sound = PushedSound()
        self._pushed = 0
        self._last_s: Fraction | None = None
        self._last_out: RgbFrame | None = None
        self._portrait = portrait
        self._stopped = ""
        member = None if batcher is None else batcher.join(generator.steps)
        self._member = member
        try:
            stages = face_stages(
                generator,
                self._sound,
                trim=portrait is not None,
                interpolate=interpolate,
                batch=batch,
                together=member,
            )
            self._scheduler = Scheduler(
                self._pushed_frames() if portrait is None else _held(*portrait),
                load_picture,
                [*stages, Deliver("deliver", self._deliver)],
                lanes,
                in_flight=in_flight,
                source_name="take in",
                waits=[
                    self._inbox,
                    self._outbox,
                    self._sound.channel,
                    *([member] if member else []),
                ],
                ended=self._end,
                trace=trace,
            )
        except BaseException:
            if member is not None:
                member.leave()  # or the others would wait for it
            raise
        self._scheduler.start()

    def push_audio(self, samples: np.ndarray | Tensor, sample_rate_hz: int) -> None:
        try:
            self._sound.push(samples, sample_rate_hz)
        except Stopped:
            self._raise_stopped()

    def push_frame(
        self,
        image: np.ndarray,
        time_s: Fraction | float,
        timeout_s: float | None,
        face_box: Box | None,
    ) -> bool:
        if self._portrait is not None:
            raise StreamError("this stream shows a still portrait: it takes sound alone")
        at = checked_time(time_s)
        if self._last_s is not None and at <= self._last_s:
            raise StreamError(
                f"a frame at {float(at):.6f} s after one at {float(self._last_s):.6f} s: times "
                "must increase",
                hint="call reset() to start again",
            )
        box = None if face_box is None else checked_box(face_box)
        frame = RgbFrame(self._pushed, at, checked_picture(image), box)
        try:
            taken = self._inbox.put(frame, checked_wait(timeout_s))
        except Stopped:
            self._raise_stopped()
        if taken:
            self._pushed, self._last_s = self._pushed + 1, at
        return taken

    def pull(self, timeout_s: float | None) -> OutputFrame | None:
        try:
            return self._outbox.get(checked_wait(timeout_s))
        except Closed:
            return None
        except TimeoutError:
            raise TimeoutError(f"no frame was finished within {timeout_s} s") from None
        except Stopped:
            self._raise_stopped()

    def finish_audio(self) -> None:
        try:
            self._sound.finish()
        except Stopped:
            self._raise_stopped()

    def finish(self) -> None:
        self.finish_audio()
        self._inbox.close()

    def stop(self, why: str = "the stream is closed") -> None:
        self._stopped = self._stopped or why
        self._scheduler.stop()

    def _end(self) -> None:
        """All frames are through."""
        self._outbox.close()
        if self._member is not None:
            self._member.leave()

    def _raise_stopped(self) -> NoReturn:
        """Say why nothing more goes in or out."""
        self._scheduler.raise_error()
        if self._stopped:
            raise StreamError(self._stopped) from None
        raise StreamError(
            "a frame after finish()", hint="call reset() before a new video"
        ) from None

    def _pushed_frames(self) -> Iterator[RgbFrame]:
        while True:
            try:
                yield self._inbox.get()
            except Closed:
                return

    def _deliver(self, f: Frame) -> None:
        made, why = f.result, f.left_alone
        assert isinstance(made, RgbFrame)
        if f.middle is not None and self._last_out is not None:
            at, image = (self._last_out.time_s + made.time_s) / 2, f.middle.numpy().copy()
            self._outbox.put(OutputFrame(f.index, at, image, why is None, why, between=True))
        self._outbox.put(OutputFrame(f.index, made.time_s, made.image, why is None, why))
        self._last_out = made


def _held(portrait: np.ndarray, rate: Fraction) -> Iterator[RgbFrame]:
    """A still picture, again and again."""
    index = 0
    while True:
        yield RgbFrame(index, index / rate, portrait)
        index += 1
