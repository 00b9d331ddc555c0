"""One speaker: sound and pictures in, finished pictures with their sound out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NoReturn, get_args

import numpy as np
from torch import Tensor

from dithead.errors import StreamError
from dithead.face.choice import checked_box
from dithead.face.search import Box
from dithead.generator import FrameGenerator
from dithead.runtime.checked import checked_time, checked_wait
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.pictures import (
    Footage,
    Layout,
    OwnPictures,
    PushedPicture,
    PushedPictures,
    begun,
    chosen_footage,
    from_rgb,
    to_rgb,
)
from dithead.runtime.run import Run
from dithead.runtime.schedule.batch import Batcher
from dithead.runtime.schedule.channel import Channel, Closed, Stopped
from dithead.runtime.schedule.frame import Frame
from dithead.runtime.schedule.lanes import Lanes
from dithead.runtime.schedule.trace import Trace
from dithead.runtime.speech import Speech

IdleMode = Literal["wait", "rest", "pass"]
IDLE_MODES: tuple[IdleMode, ...] = get_args(IdleMode)
LONGEST_GAP_S = 600.0
"""From sound and frames to the next pushed frame, in a stream that idles."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a stream is set up; see :meth:`dithead.runtime.session.Session.open_stream`."""

    interpolate: int
    in_flight: int
    waiting: int
    batch: int
    rate: Fraction
    """Frames per second of what the stream shows by itself."""
    layout: Layout
    idle: IdleMode
    patience_s: float | None
    """None lets a frame wait for sound without a limit."""
    realtime: bool
    sample_rate_hz: int | None
    footage: Footage | None
    """What the stream shows by itself; None takes pushed pictures."""
    trace: Trace | None
    lanes: Lanes | None
    batcher: Batcher | None


class Stream:
    """One speaker: sound and frames in, frames out. Made by :meth:`Session.open_stream`.

    Sound and frames may be pushed and pulled from different threads, but each from only one at a
    time. A source that runs ahead waits in :meth:`push_frame`; with ``timeout_s=0`` it learns at
    once that there is no room, and may drop the frame. Sound pushed ahead is kept until frames
    reach it.
    """

    def __init__(self, make: Callable[[], FrameGenerator], settings: StreamSettings) -> None:
        self._make = make
        self._settings = settings
        self._changing = threading.Lock()
        self._closed = False
        self._run = _StreamRun(make(), settings)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_run"):
            self._run.stop()

    def push_audio(self, samples: np.ndarray | Tensor, sample_rate_hz: int = 16_000) -> None:
        """Take in sound.

        Args:
            samples: (S,) float32 in [-1, 1], mono; they are copied, and may be empty.
            sample_rate_hz: the same for every call; other rates than 16 kHz are resampled.

        Raises:
            StreamError: another shape or type, or the sound has ended; also the error of a failed
                stage.
        """
        self._run.push_audio(samples, sample_rate_hz)

    @property
    def queued_s(self) -> float:
        """Seconds of pushed sound that have not gone out with a frame yet; silence that the stream
        filled in does not count. :meth:`flush_audio` brings it back to 0."""
        return self._run.queued_s

    def mark(self, piece: str | None) -> None:
        """Name the piece of speech that is pushed from now on; None ends it.

        Frames then tell when it began, ended or was interrupted (``OutputFrame.events``).

        Raises:
            StreamError: the sound has ended; also the error of a failed stage.
        """
        self._run.mark(piece)

    def flush_audio(self) -> list[str]:
        """Drop at once the speech that has not gone out with a frame yet.

        Frames in progress are made again without it. The next frame is the one that would have come
        anyway; tracking and reference go on. Sound pushed from now on begins with that frame. From
        there on, the result is as if the dropped speech had never been pushed. Earlier frames had
        already heard a little of it, because a mouth opens before its sound.

        Returns:
            The pieces of speech (:meth:`mark`) that were interrupted.

        Raises:
            StreamError: the stream is closed; also the error of a failed stage.
        """
        with self._changing:
            return self._run.flush_audio()

    def push_frame(
        self,
        image: np.ndarray,
        time_s: Fraction | float,
        timeout_s: float | None = None,
        *,
        face_box: Box | None = None,
    ) -> bool:
        """Take in a frame, waiting for room.

        Room appears when frames are pulled, and when there is sound for those in progress: a single
        thread should push sound first, and pull before it waits.

        Args:
            image: uint8, in the stream's layout: (H, W, 3), or (3 H / 2, W) for ``yuv420p``; do not
                change it afterwards.
            time_s: presentation time in seconds, a number of any type, on the clock whose 0 is the
                start of the sound; later than the last frame's.
            timeout_s: how long to wait for room; None waits without a limit, 0 does not wait.
            face_box: where the speaker's face is in this frame, if the caller knows: left, top,
                right, bottom in pixels; (0, 0, 0, 0) if nobody speaks. None goes on with the face
                of the frame before.

        Returns:
            False if there was no room in time; the frame was not taken.

        Raises:
            StreamError: another shape or type, a time that is not later, or a finished stream; also
                the error of a failed stage.
        """
        return self._run.push_frame(image, time_s, timeout_s, face_box)

    def set_source(
        self,
        *,
        portrait: np.ndarray | None = None,
        loop: str | os.PathLike[str] | None = None,
    ) -> None:
        """Show another portrait or clip from the next frame that is started; frames in progress
        still come.

        Args:
            portrait, loop: give one of them; see :meth:`Session.open_stream`.

        Raises:
            StreamError: this stream takes pushed frames, or neither or both were given.
            MediaError: the clip cannot be read; the stream goes on with what it shows.
        """
        footage = chosen_footage(
            portrait, loop, self._settings.rate, self._settings.layout, StreamError
        )
        if footage is None:
            raise StreamError("set_source needs portrait= or loop=")
        self._run.set_source(footage)

    def pull(self, timeout_s: float | None = None) -> OutputFrame | None:
        """The next finished frame, waiting for it; None when all have come.

        Raises:
            TimeoutError: none was finished in time.
            StreamError: the stream was closed; also the error of a failed stage.
        """
        return self._run.pull(timeout_s)

    def frames(self) -> Iterator[OutputFrame]:
        """The finished frames until all have come."""
        while (frame := self.pull()) is not None:
            yield frame

    def finish_audio(self) -> None:
        """Declare the sound ended: what follows is silent. Before this call, a frame waits for the
        sound after it, up to 0.38 s with ``tiny``. A second call does nothing."""
        self._run.finish_audio()

    def finish(self) -> None:
        """Declare sound and frames ended. A second call does nothing."""
        self._run.finish()

    def reset(self) -> None:
        """Forget everything, including frames in progress: the stream is then like a new one, and
        shows the portrait or clip that it was opened with.

        Raises:
            StreamError: the stream is closed.
            MediaError: that clip cannot be read any more; then nothing changes.
        """
        with self._changing:
            if self._closed:
                raise StreamError("the stream is closed", hint="open another")
            if self._settings.footage is not None:
                begun(self._settings.footage).close()
            self._run.stop("the stream was reset")
            self._run = _StreamRun(self._make(), self._settings)

    def close(self) -> None:
        """Stop, wherever the frames are. Does nothing if already closed."""
        self._run.give_up()
        with self._changing:
            self._closed = True
            self._run.stop()


class _StreamRun:
    """One life of a stream, from start to end."""

    def __init__(self, generator: FrameGenerator, settings: StreamSettings) -> None:
        self._settings = settings
        self._own: OwnPictures | None = None
        self._pushes: PushedPictures | None = None
        source: OwnPictures | PushedPictures
        if settings.footage is None:
            source = self._pushes = PushedPictures(settings.waiting)
        else:
            clock = time.monotonic if settings.realtime else None
            source = self._own = OwnPictures(settings.footage, clock)
        config = generator.graphs.config.audio
        self._speech = Speech(
            settings.sample_rate_hz,
            settings.patience_s,
            memory=config.chunk_samples + config.hop_samples,
        )
        self._outbox: Channel[tuple[int, Frame]] = Channel(max(1, settings.in_flight), "writer")
        self._popped: tuple[int, Frame] | None = None  # taken from there, but not given yet
        self._giving = threading.Lock()
        self._edition = 0  # increases each time that frames are made again
        self._taken: dict[int, Frame] = {}  # finished, but not pulled yet
        self._half: Frame | None = None  # the picture before it has been pulled
        self._between = -1  # number of the frame before which a picture was pulled
        self._shown_s: Fraction | None = None  # time of the frame that was pulled last
        self._step_s: Fraction | None = None  # from the frame before it
        self._pushed = 0
        self._first_s: Fraction | None = None
        self._last_s: Fraction | None = None
        self._stopped = ""
        self._run = Run(
            generator,
            source,
            self._speech,
            self._take,
            source_name="take in",
            take_name="deliver",
            trim=self._own is not None,
            interpolate=settings.interpolate,
            in_flight=settings.in_flight,
            batch=settings.batch,
            batcher=settings.batcher,
            pauses=[source, self._outbox, self._speech],
            ended=self._outbox.close,
            pass_idle=settings.idle == "pass",
            lanes=settings.lanes,
            trace=settings.trace,
        )
        self._run.start()

    def push_audio(self, samples: np.ndarray | Tensor, sample_rate_hz: int) -> None:
        try:
            self._speech.push(samples, sample_rate_hz)
        except Stopped:
            self._raise_stopped()

    @property
    def queued_s(self) -> float:
        return self._speech.queued_s

    def mark(self, piece: str | None) -> None:
        try:
            self._speech.mark(piece)
        except Stopped:
            self._raise_stopped()

    def flush_audio(self) -> list[str]:
        if self._stopped:
            self._raise_stopped()
        lost: list[str] = []

        def cut() -> list[Frame]:
            taken = list(self._taken.values())
            self._forget_taken()
            self._outbox.empty()
            lost.extend(self._speech.cut(self._first_s if self._shown_s is None else None))
            return taken

        with self._giving:
            self._run.rewind(cut)
        return lost

    def push_frame(
        self,
        image: np.ndarray,
        time_s: Fraction | float,
        timeout_s: float | None,
        face_box: Box | None,
    ) -> bool:
        if self._pushes is None:
            raise StreamError("this stream shows its own pictures: it takes only sound")
        at = checked_time(time_s)
        if self._last_s is not None and at <= self._last_s:
            raise StreamError(
                f"a frame at {float(at):.6f} s after one at {float(self._last_s):.6f} s: times "
                "must increase",
                hint="call reset() to start again",
            )
        box = None if face_box is None else checked_box(face_box)
        rgb = to_rgb(image, self._settings.layout)
        self._check_gap(at)
        picture = PushedPicture(self._pushed, at, rgb, box, time.monotonic())
        if self._pushed == 0:
            self._first_s = at
        try:
            taken = self._pushes.inbox.put(picture, checked_wait(timeout_s))
        except Stopped:
            self._raise_stopped()
        if taken:
            self._pushed, self._last_s = self._pushed + 1, at
        return taken

    def _check_gap(self, at: Fraction) -> None:
        # Where no sound comes, and where it is dropped, all of a gap is filled with silence.
        gap_s = float(at - max(self._last_s or 0, self._speech.length_s))
        if gap_s > LONGEST_GAP_S:
            raise StreamError(
                f"a frame at {float(at):g} s, {gap_s:g} s after all that came before: at most "
                f"{LONGEST_GAP_S:g} s are allowed",
                hint="count times from the start of the sound, and call reset() after a long pause",
            )

    def set_source(self, footage: Footage) -> None:
        if self._own is None:
            raise StreamError(
                "this stream takes pushed frames", hint="open one with portrait= or loop="
            )
        self._run.raise_error()
        if self._stopped:
            self._raise_stopped()
        self._own.change(footage)

    def pull(self, timeout_s: float | None) -> OutputFrame | None:
        left_s = checked_wait(timeout_s)
        end_s = None if left_s is None else time.monotonic() + left_s
        while True:
            try:
                with self._turn(end_s):
                    if self._half is not None:
                        return self._give(self._half)
                if self._popped is None:
                    self._popped = self._outbox.get(_left(end_s))
                with self._turn(end_s):
                    (edition, frame), self._popped = self._popped, None
                    if edition == self._edition:  # else it is made anew
                        return self._give_between(frame) or self._give(frame)
            except Closed:
                return None
            except TimeoutError:
                raise TimeoutError(f"no frame was finished within {timeout_s} s") from None
            except Stopped:
                self._raise_stopped()

    @contextmanager
    def _turn(self, end_s: float | None) -> Iterator[None]:
        """Hold the lock of whoever gives frames or drops speech. Raises TimeoutError: not by
        then."""
        left_s = _left(end_s)
        if not self._giving.acquire(timeout=-1 if left_s is None else left_s):
            raise TimeoutError
        try:
            yield
        finally:
            self._giving.release()

    def _give_between(self, frame: Frame) -> OutputFrame | None:
        """The picture between the last frame and this one; None where there is none to give."""
        made, why = frame.result, frame.left_alone
        if frame.middle is None or self._shown_s is None or self._between == made.index:
            return None
        self._half, self._between = frame, made.index
        image = from_rgb(frame.middle.numpy().copy(), self._settings.layout)
        at_s = (self._shown_s + made.time_s) / 2
        return OutputFrame(made.index, at_s, image, why is None, why, between=True)

    def _give(self, frame: Frame) -> OutputFrame:
        """A finished frame with its sound."""
        del self._taken[frame.index]
        self._half = None
        made, why, layout = frame.result, frame.left_alone, self._settings.layout
        assert isinstance(made, PushedPicture)
        last_s, self._shown_s = self._shown_s, made.time_s
        end_s = made.end_s
        if last_s is None:
            self._speech.begin_at(made.time_s)
            end_s = end_s or made.time_s + 1 / self._settings.rate
        else:
            # After a pause of the camera, the next frame is due as soon as one was before it.
            step_s, before_s = made.time_s - last_s, self._step_s
            end_s = end_s or made.time_s + min(step_s, before_s or step_s)
            self._step_s = step_s
        samples, events = self._speech.give(end_s)
        image = from_rgb(made.image, layout)
        if self._own is not None and image is frame.source.rgb():
            image = image.copy()  # it is shown again
        frame.forget()
        return OutputFrame(
            made.index,
            made.time_s,
            image,
            why is None,
            why,
            samples=samples,
            sample_rate_hz=self._speech.rate_hz,
            events=events,
        )

    def _forget_taken(self) -> None:
        self._taken.clear()
        self._half = None
        self._edition += 1

    def finish_audio(self) -> None:
        try:
            self._speech.finish()
        except Stopped:
            self._raise_stopped()

    def finish(self) -> None:
        self.finish_audio()
        if self._pushes is not None:
            self._pushes.inbox.close()

    def give_up(self) -> None:
        self._run.give_up()

    def stop(self, why: str = "the stream is closed") -> None:
        self._stopped = self._stopped or why
        self._run.stop()
        with self._giving:
            self._forget_taken()
            self._popped = None
        if self._own is not None:
            self._own.shut()

    def _raise_stopped(self) -> NoReturn:
        """Raise the reason why nothing more goes in or out."""
        self._run.raise_error()
        if self._stopped:
            raise StreamError(self._stopped) from None
        raise StreamError(
            "a frame after finish()", hint="call reset() before a new video"
        ) from None

    def _take(self, frame: Frame) -> None:
        """Take a finished frame from the last stage."""
        frame.kept = True
        self._taken[frame.index] = frame
        self._outbox.put((self._edition, frame))


def _left(end_s: float | None) -> float | None:
    """Seconds from now to a time; None is no limit."""
    return None if end_s is None else max(0.0, end_s - time.monotonic())
