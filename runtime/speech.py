"""Pushed speech: queued, resampled, cut off, and returned with the frames."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import numpy as np
import torch
from torch import Tensor

from dithead.errors import StreamError
from dithead.runtime.checked import checked_rate
from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.runtime.pictures import PushedPicture
from dithead.runtime.schedule.channel import Stopped
from dithead.runtime.schedule.frame import Picture

_PIECE_SAMPLES = SPEECH_RATE_HZ  # sound is taken in and encoded in pieces of at most a second
_SILENCE_S = Fraction(1, 50)  # inserted at a time where no speech comes
_GAP_S = 1  # from the sound to the frame that needs it, beyond which silence fills the whole gap
_NEAR_S = Fraction(1, 4)  # from speech, where the mouth still moves


@dataclass(frozen=True, slots=True)
class SpeechEvent:
    """What happens to a piece of speech that ``mark`` announced."""

    kind: Literal["began", "ended", "interrupted"]
    piece: str
    """Its name."""
    time_s: Fraction
    """Its time on the stream's clock."""


class _Line:
    """A sequence of samples of which only the latest are kept."""

    def __init__(self) -> None:
        self.start = 0
        """Number of the first sample that is kept."""
        self.end = 0
        self._parts: deque[np.ndarray] = deque()

    def add(self, samples: np.ndarray) -> None:
        """Append samples."""
        if samples.size:
            self._parts.append(samples)
            self.end += samples.size

    def cut(self, end: int) -> None:
        """Drop the samples from a number on."""
        while self.end > end:
            last = self._parts.pop()
            self.end -= last.size
            if self.end < end:
                self.add(last[: end - self.end])

    def drop_before(self, start: int) -> None:
        """Drop the samples that end before a number, as far as whole parts allow."""
        while self._parts and self.start + self._parts[0].size <= start:
            self.start += self._parts.popleft().size

    def read(self, start: int, end: int) -> np.ndarray:
        """The samples from one number to another, (end - start,) float32; 0 where there are
        none."""
        found, at = np.zeros(max(0, end - start), np.float32), self.start
        for part in self._parts:
            if at >= end:
                break
            low, high = max(start, at), min(end, at + part.size)
            if low < high:
                found[low - start : high - start] = part[low - at : high - at]
            at += part.size
        return found


class Speech:
    """The sound of one stream; see :class:`dithead.runtime.schedule.stages.CutSound`.

    Two sequences of samples are kept: the pushed ones, until they have gone out with their frames,
    and the same at 16 kHz, as far back as the model may have to hear them again. One thread may
    push sound, another read it, and a third give it out.

    Args:
        rate_hz: rate of pushed sound; None leaves it to the first push.
        patience_s: how long a frame waits for sound before silence replaces it; None waits without
            a limit.
        memory: number of samples at 16 kHz that may be requested once more.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        rate_hz: int | None = None,
        patience_s: float | None = None,
        memory: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate_hz = None if rate_hz is None else checked_rate(rate_hz)
        self._rate_fixed = rate_hz is not None
        self._patience_s = patience_s
        self._memory = memory
        self._clock = clock
        self._changed = threading.Condition()
        self._given = _Line()  # as pushed
        self._heard = _Line()  # at 16 kHz
        self._read = 0  # samples at 16 kHz that the model has read
        self._out = 0  # samples, as pushed, that have gone out with frames
        self._events: list[tuple[int, Literal["began", "ended", "interrupted"], str]] = []
        self._piece: str | None = None  # the latest piece that was announced and has not ended
        self._speaking: str | None = None  # the piece that is going out
        self._spoken: deque[tuple[int, int]] = deque()  # where speech is, in pushed samples
        self._starts_s = Fraction(0)  # where sound of a rate that is not known yet will begin
        self._pushed_s = -math.inf  # when speech came last, on the clock
        self._finished = False
        self._paused = False
        self._stopped = False
        self._resampler: av.AudioResampler | None = None
        if self._rate_hz is not None:
            self._resampler = self._new_resampler()

    # The pushed sound.

    @property
    def rate_hz(self) -> int:
        """Sample rate of what is pushed and given out."""
        return self._rate_hz or SPEECH_RATE_HZ

    @property
    def queued_s(self) -> float:
        """See :attr:`dithead.runtime.stream.Stream.queued_s`."""
        with self._changed:
            ahead = (max(0, end - max(start, self._out)) for start, end in self._spoken)
            return sum(ahead) / self.rate_hz

    def push(self, samples: np.ndarray | Tensor, sample_rate_hz: int) -> None:
        """Take in sound; see :meth:`dithead.runtime.stream.Stream.push_audio`."""
        array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != np.float32:
            found = getattr(array, "shape", type(array)), getattr(array, "dtype", "")
            raise StreamError(
                f"expected 1-D float32 samples in [-1, 1], mono, found {found[0]} {found[1]}"
            )
        with self._changed:
            self._check_open()
            rate_hz = checked_rate(sample_rate_hz)
            if self._rate_hz not in (None, rate_hz):
                raise StreamError(
                    f"sound at {rate_hz} Hz after sound at {self._rate_hz} Hz",
                    hint=(
                        f"resample it, or open the stream with sample_rate_hz={rate_hz}"
                        if self._rate_fixed
                        else "resample it, or call reset()"
                    ),
                )
            if self._rate_hz is None:
                self._rate_hz = rate_hz
                self._begin_anew(round(self._starts_s * rate_hz))
            if array.size:
                self._pushed_s = self._clock()
            self._note_spoken(self._given.end, self._given.end + array.size)
            self._add(array.copy())

    def finish(self) -> None:
        """Declare the sound ended."""
        with self._changed:
            if self._stopped:
                raise Stopped
            if self._finished:
                return
            self._end_piece()
            self._finished = True
            if self._resampler is not None:
                self._resample(None)
            self._changed.notify_all()

    def mark(self, piece: str | None) -> None:
        """Name the sound pushed from now on; None ends the piece."""
        with self._changed:
            self._check_open()
            self._end_piece()
            if piece is not None:
                self._events.append((self._given.end, "began", piece))
                self._piece = piece

    def cut(self, first_s: Fraction | None = None) -> list[str]:
        """Drop the sound that has not gone out with a frame.

        Args:
            first_s: when the first frame is due, where none has gone out and that is known.

        Returns:
            The pieces that lost sound, or that had not ended.
        """
        with self._changed:
            kept, self._pushed_s = self._out, -math.inf
            if first_s is not None and self._rate_hz is None:
                self._starts_s = max(first_s, Fraction(0))
            elif first_s is not None:
                self.begin_at(first_s)
            at = self._out
            lost = [] if self._speaking is None else [self._speaking]
            lost += [piece for _, kind, piece in self._events if kind == "began"]
            told = [event for event in self._events if event[1] == "interrupted"]
            self._events = told + [(at, "interrupted", piece) for piece in lost]
            self._piece = self._speaking = None
            self._given.cut(kept)
            self._spoken = deque((a, min(b, kept)) for a, b in self._spoken if a < kept)
            self._heard.cut(kept * SPEECH_RATE_HZ // self.rate_hz)
            self._read = min(self._read, kept * SPEECH_RATE_HZ // self.rate_hz)
            if not self._finished:
                self._begin_anew(at)
            return lost

    def _check_open(self) -> None:
        if self._stopped:
            raise Stopped
        if self._finished:
            raise StreamError("sound after finish()", hint="call reset() before a new sound")

    def _end_piece(self) -> None:
        if self._piece is not None:
            self._events.append((self._given.end, "ended", self._piece))
            self._piece = None

    def _new_resampler(self) -> av.AudioResampler | None:
        if self.rate_hz == SPEECH_RATE_HZ:
            return None
        return av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)

    def _note_spoken(self, start: int, end: int) -> None:
        if self._spoken and self._spoken[-1][1] == start:
            start, _ = self._spoken.pop()
        if start < end:
            self._spoken.append((start, end))

    def _add(self, samples: np.ndarray) -> None:
        self._given.add(samples)
        if self._resampler is None:
            self._heard.add(samples)
        elif samples.size:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "fltp", "mono")
            frame.sample_rate = self.rate_hz
            self._resample(frame)
        self._changed.notify_all()

    def _begin_anew(self, at: int) -> None:
        """What comes next begins at a sample, with silence before it."""
        start, heard = self._given.end, at * SPEECH_RATE_HZ // self.rate_hz
        self._given.add(np.zeros(max(0, at - start), np.float32))
        self._heard.add(np.zeros(max(0, heard - self._heard.end), np.float32))
        self._resampler = self._new_resampler()
        self._put_off(start)

    def _put_off(self, start: int) -> None:
        """Let a piece that was to begin at a sample, where silence came, begin after that."""
        if self._events and self._events[-1][:2] == (start, "began"):
            self._events[-1] = (self._given.end, *self._events[-1][1:])

    def _resample(self, frame: av.AudioFrame | None) -> None:
        assert self._resampler is not None
        for part in self._resampler.resample(frame):
            self._heard.add(part.to_ndarray()[0].astype(np.float32))

    # The sound that the model hears.

    @property
    def length_s(self) -> Fraction:
        """Length of the sound so far, in seconds."""
        return Fraction(self._heard.end, SPEECH_RATE_HZ)

    @property
    def kept(self) -> int:
        """See :class:`dithead.runtime.schedule.stages.CutSound`."""
        return self._read

    def before(self, end: int, count: int) -> Tensor:
        """See :class:`dithead.runtime.schedule.stages.CutSound`."""
        with self._changed:
            return torch.from_numpy(self._heard.read(end - count, end))

    def speaks_at(self, time_s: Fraction) -> bool:
        """See :class:`dithead.runtime.schedule.stages.CutSound`."""
        with self._changed:
            at, near = round(time_s * self.rate_hz), round(_NEAR_S * self.rate_hz)
            return any(a < at + near and b > at - near for a, b in self._spoken)

    def read(self, picture: Picture) -> Tensor | None:
        """See :class:`dithead.runtime.schedule.stages.Sound`. If nothing has come for longer than a
        frame's patience, since it arrived and since the last push, the next moment is silent."""
        with self._changed:
            while self._heard.end == self._read:
                if self._stopped or self._paused:
                    raise Stopped
                if self._finished:
                    return None
                wait_s = None
                if self._patience_s is not None:
                    arrived_s = picture.arrived_s if isinstance(picture, PushedPicture) else 0.0
                    if arrived_s > 0:  # speech that comes as it is spoken is not torn apart
                        arrived_s = max(arrived_s, self._pushed_s)
                    wait_s = arrived_s + self._patience_s - self._clock()
                    if wait_s <= 0:
                        start = self._given.end
                        gap_s = picture.time_s - Fraction(start, self.rate_hz)
                        silence_s = gap_s if gap_s > _GAP_S else _SILENCE_S
                        self._add(np.zeros(round(silence_s * self.rate_hz), np.float32))
                        self._put_off(start)
                        continue
                self._changed.wait(wait_s)
            end = min(self._heard.end, self._read + _PIECE_SAMPLES)
            samples = self._heard.read(self._read, end)
            self._read = end
            return torch.from_numpy(samples)

    # The sound that goes out with the frames.

    def give(self, end_s: Fraction) -> tuple[np.ndarray, tuple[SpeechEvent, ...]]:
        """The sound of the next frame, and the events of pieces of speech in it.

        Args:
            end_s: when the frame after it is due, as far as this is known.
        """
        with self._changed:
            end = round(end_s * self.rate_hz)
            if not self._finished:
                end = min(end, self._given.end)
            end = max(end, self._out)
            samples = self._given.read(self._out, end)
            happened = []  # in the order in which they were announced
            while self._events and (
                self._events[0][0] < end + (self._events[0][1] == "ended")
                or self._events[0][0] <= self._out
            ):
                happened.append(self._events.pop(0))
            for _, kind, piece in happened:
                self._speaking = piece if kind == "began" else None
            self._out = end
            self._given.drop_before(end)
            while self._spoken and self._spoken[0][1] < end - round(_NEAR_S * self.rate_hz):
                self._spoken.popleft()
            heard = end * SPEECH_RATE_HZ // self.rate_hz
            self._heard.drop_before(min(heard, self._read) - self._memory)
            return samples, tuple(
                SpeechEvent(kind, piece, Fraction(at, self.rate_hz)) for at, kind, piece in happened
            )

    def begin_at(self, time_s: Fraction) -> None:
        """Skip the sound before the first frame."""
        with self._changed:
            self._out = max(0, round(time_s * self.rate_hz))

    # Stopping those who wait.

    def pause(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        with self._changed:
            self._paused = True
            self._changed.notify_all()

    def resume(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        with self._changed:
            self._paused = False

    def stop(self) -> None:
        """See :class:`dithead.runtime.schedule.scheduler.Stoppable`."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
