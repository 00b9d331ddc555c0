"""Runs stages in parallel: each has a thread and a lane, and frames pass from one to the next.

This module does not know what a stage does. It ensures that frames keep their order, that every
hand-over is an event, that no more frames are in progress than allowed, and that one failure stops
everything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Protocol

import torch

from dithead.errors import ConfigError, DitheadError, StreamError
from dithead.runtime.schedule.channel import Channel, Closed, Stopped
from dithead.runtime.schedule.frame import Frame, Picture
from dithead.runtime.schedule.lanes import Lane, Lanes
from dithead.runtime.schedule.trace import Trace

STOP_S = 2.0
"""Time within which all threads are gone after a failure or :meth:`Scheduler.stop`."""

HALT_S = 60.0
"""Time within which :meth:`Scheduler.halt` expects a stage to finish its current step."""

LOOK_S = 0.02
"""How often :meth:`Scheduler.halt` looks whether it should give up."""


def make_lanes_for(source_name: str, stages: Sequence[Stage], lanes: Lanes) -> list[Lane]:
    """The lane of a source, then one for each stage."""
    made = [lanes.lane(source_name)]
    return made + [lanes.lane(stage.name, host=stage.host) for stage in stages]


class Stage(Protocol):
    """A step that every frame passes through, in order."""

    name: str
    host: bool
    """Whether it reads or writes on the host."""
    holds: int
    """How many frames it may hold back."""
    ended: bool
    """Whether no later frame is wanted, including the one just given if it was not passed on."""

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        """Work on a frame, and return the frames to pass on, in order. A frame that is not passed
        on yet is held, and must be passed on later."""

    def finish(self, lane: Lane) -> Iterable[Frame]:
        """The frames that are still held, once no more will come."""

    def save(self) -> Callable[[], None]:
        """What returns the stage to its present state, with no frame held."""


class Stoppable(Protocol):
    """Something that threads may be waiting for."""

    def stop(self) -> None:
        """Wake all who wait, and stop them for good; may be called from any thread."""


class Pausable(Stoppable, Protocol):
    """Something that threads may be waiting for, where waiting can be interrupted."""

    def pause(self) -> None:
        """Wake the stages' threads and stop them, until :meth:`resume`."""

    def resume(self) -> None:
        """End a pause."""


class Scheduler:
    """One run of stages over the frames of a source.

    Args:
        source: gives the pictures; iterated, and closed, in one thread.
        load: creates a frame from a picture, on the source's lane.
        source_name: what the source is called in errors and traces.
        stages: in order; the last one's frames are dropped.
        lanes: the lane of the source, then one for each stage; see :func:`make_lanes_for`.
        in_flight: maximum number of frames in progress.
        overlap: whether each stage has its own thread; otherwise :meth:`wait` runs them one after
            the other.
        waits: other things that threads may be waiting for, stopped with the rest.
        ended: called when all frames have passed through.
        undone_from: the first of the stages whose work can be undone (:meth:`halt`).
        carried: frames that an earlier scheduler of the same stages had in progress.
        taken_in: how many frames that one took from the source.
        trace: where every stage's work is noted.

    Attributes:
        busy_s: seconds that each stage has worked, by name.
        taken_in: frames that were taken from the source.

    Raises:
        ConfigError: fewer frames in progress than the stages may hold back.
    """

    def __init__(
        self,
        source: Iterator[Picture],
        load: Callable[[Picture, Lane], Frame],
        stages: Sequence[Stage],
        lanes: Sequence[Lane],
        *,
        in_flight: int,
        overlap: bool = True,
        source_name: str,
        waits: Sequence[Stoppable] = (),
        ended: Callable[[], None] | None = None,
        trace: Trace | None = None,
        undone_from: int | None = None,
        carried: Sequence[Frame] = (),
        taken_in: int = 0,
    ) -> None:
        least = 1 + sum(stage.holds for stage in stages)
        if in_flight < least:
            raise ConfigError(
                f"this stream needs at least {least} frames in flight, not {in_flight}"
            )
        self._source = source
        self._load = load
        self._source_name = source_name
        self._stages = list(stages)
        self._trace = trace
        self._waits = waits
        self._ended = ended
        self.taken_in = taken_in
        self._undone_from = undone_from
        # Kept until the threads are gone: queued work may still use their tensors.
        self._flying: list[Frame] = []
        self._inboxes: list[Channel[Frame]] = [Channel() for _ in stages]
        for frame in carried:
            self._flying.append(frame)
            self._inboxes[frame.reached].put(frame)
        self._room: Channel[int] = Channel()  # one item for each frame that may be added
        for number in set(range(in_flight)) - {frame.room for frame in carried}:
            self._room.put(number)
        self.busy_s: dict[str, float] = {
            name: 0.0 for name in (source_name, *(s.name for s in stages))
        }
        self._error: BaseException | None = None
        self._given_up = False
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._lanes = list(lanes)
        workers: list[tuple[str, Callable[[], None], Lane]] = []
        if overlap:
            workers = [(source_name, self._feed, self._lanes[0])]
            workers += [
                (s.name, partial(self._work, n), self._lanes[n + 1]) for n, s in enumerate(stages)
            ]
        self._threads = [
            threading.Thread(
                target=self._guard, args=(work, [lane]), name=f"dithead {name}", daemon=True
            )
            for name, work, lane in workers
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Wait until all frames have passed through; without overlap, run them through.

        Raises:
            DitheadError: a stage failed; the message names it and the frame.
        """
        if not self._threads:
            self._guard(self._in_turn, self._lanes)
        # In slices: on some platforms, Ctrl-C cannot interrupt a wait without an end.
        while not self._done.wait(0.1):
            pass
        self.raise_error()

    def raise_error(self) -> None:
        """Raise the error of the stage that failed, if one did."""
        if self._error is not None:
            raise self._error

    def stop(self) -> bool:
        """Stop wherever the frames are, and wait until the threads are gone. Frees the buffers.

        Returns:
            Whether the threads are gone: one may still be at work.
        """
        self._stop_channels()
        end = time.monotonic() + STOP_S
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join(max(0.0, end - time.monotonic()))
        gone = not any(thread.is_alive() for thread in self._threads)
        if gone:
            # Freed here, not by the cycle collector, which knows nothing about a GPU's memory.
            for held in (self._flying, self._stages, self._lanes):
                held.clear()
            self._ended = None
        return gone

    def halt(self) -> list[Frame]:
        """Stop each thread after its current step, and leave stages and lanes to another scheduler.
        The caller pauses what threads may be waiting for.

        Returns:
            The frames in progress, in order.

        Raises:
            StreamError: a stage takes too long, or :meth:`give_up` was called. Also raises the
                error of a failed stage.
        """
        self._stop_inboxes()
        end = time.monotonic() + HALT_S
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < end and not self._given_up:
                thread.join(LOOK_S)
        self.raise_error()
        if self._given_up:
            raise StreamError("the stream was closed")
        if any(thread.is_alive() for thread in self._threads):
            raise StreamError(f"a stage was still at work after {HALT_S:.0f} s")
        return sorted(self._flying, key=lambda frame: frame.index)

    def give_up(self) -> None:
        """Let a :meth:`halt` that waits for a stage end at once, with a StreamError."""
        self._given_up = True

    def _stop_inboxes(self) -> None:
        self._room.stop()
        for inbox in self._inboxes:
            inbox.stop()

    def _stop_channels(self) -> None:
        self._stop_inboxes()
        for waited in self._waits:
            waited.stop()

    def _guard(self, work: Callable[[], None], lanes: Sequence[Lane]) -> None:
        """Run a thread's work; an exception stops the other threads. Ends when the work of its
        lanes is done: only then may the buffers be freed."""
        torch.get_num_threads()  # or PyTorch's number applies here from its first large loop on
        try:
            with torch.inference_mode():
                work()
        except Stopped:
            pass
        except BaseException as error:
            self.fail(error)
        finally:
            try:
                for lane in lanes:
                    lane.drain()
            except Exception as error:
                self.fail(error)
            if not self._threads or threading.current_thread() is self._threads[-1]:
                self._done.set()

    def fail(self, error: BaseException) -> None:
        """Stop everything, as if a stage had raised an error."""
        with self._lock:
            if self._error is None:
                self._error = error
        self._stop_channels()

    def _feed(self) -> None:
        """The source's thread."""
        for frame in self._loaded():
            self._inboxes[0].put(frame)
        self._inboxes[0].close()

    def _work(self, number: int) -> None:
        """A stage's thread."""
        stage, inbox, last = self._stages[number], self._inboxes[number], len(self._stages) - 1
        hand_over = self._release if number == last else self._inboxes[number + 1].put
        while not stage.ended:
            try:
                frame = inbox.get()
            except Closed:
                break
            for passed in self._step(number, frame):
                hand_over(passed)
            del frame
        if stage.ended:  # stop what comes before it
            self._room.stop()
            for earlier in self._inboxes[: number + 1]:
                earlier.stop()
        for held in self._finish(number):
            hand_over(held)
        if number < last:
            self._inboxes[number + 1].close()
        elif self._ended is not None:
            self._ended()

    def _in_turn(self) -> None:
        """All stages in one thread, one frame after the other."""
        for frame in self._loaded():
            self._through(frame, 0)
            if any(stage.ended for stage in self._stages):
                break
        for number in range(len(self._stages)):
            for held in self._finish(number):
                self._through(held, number + 1)
        if self._ended is not None:
            self._ended()

    def _through(self, frame: Frame, number: int) -> None:
        """Pass a frame through a stage and those after it."""
        if number == len(self._stages):
            self._release(frame)
            return
        for passed in self._step(number, frame):
            self._through(passed, number + 1)

    def _loaded(self) -> Iterator[Frame]:
        """The source's frames."""
        lane, name = self._lanes[0], self._source_name
        try:
            for index in count(self.taken_in):
                room = self._room.get()
                try:
                    with lane.active(), self._at(name, index):
                        picture = next(self._source, None)
                        if picture is None:
                            raise Closed
                        frame = self._load(picture, lane)
                except Closed:
                    return
                frame.written = lane.record()
                frame.room = room
                self.taken_in = index + 1
                with self._lock:
                    self._flying.append(frame)
                yield frame
        finally:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()

    def _step(self, number: int, frame: Frame) -> list[Frame]:
        """A stage's work on a frame: the frames to hand over."""
        stage, lane = self._stages[number], self._lanes[number + 1]
        if self._undone_from is not None and number >= self._undone_from:
            frame.undo[number] = stage.save()
        with lane.active():
            lane.wait(frame.written)
            with self._at(stage.name, frame.index):
                passed = list(stage.run(frame, lane))
            for done in passed:
                done.written, done.reached = lane.record(), number + 1
        return passed

    def _finish(self, number: int) -> list[Frame]:
        """What a stage still holds."""
        stage, lane = self._stages[number], self._lanes[number + 1]
        with lane.active():
            with self._at(stage.name, None):
                held = list(stage.finish(lane))
            for done in held:
                done.written, done.reached = lane.record(), number + 1
        return held

    def _release(self, frame: Frame) -> None:
        """Make room for another frame. The last stage is on the host: all work queued for this
        frame is done."""
        with self._lock:
            self._flying.remove(frame)
        room, frame.room = frame.room, None
        if not frame.kept:
            frame.forget()
        if room is not None:
            with suppress(Stopped):  # the source may have ended
                self._room.put(room)

    @contextmanager
    def _at(self, stage: str, index: int | None) -> Iterator[None]:
        """Time the work of a stage on a frame, or at the end, and name both in its errors."""
        start = time.perf_counter()
        try:
            yield
        except (Stopped, Closed):
            raise
        except Exception as error:
            ours = error if isinstance(error, DitheadError) else StreamError(str(error))
            where = "at the end" if index is None else f"at frame {index}"
            raise type(ours)(
                f"stage '{stage}' failed {where}: {ours.message}",
                hint=ours.hint,
                stage=stage,
                frame=index,
            ) from error
        end = time.perf_counter()
        self.busy_s[stage] += end - start
        if self._trace is not None and index is not None:
            self._trace.add(stage, index, start, end)
