"""One stream from its start to its end, of files or of what is pushed: a source of pictures, the
stages, and who takes what they make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dithead.errors import StreamError
from dithead.pipeline import FrameGenerator
from dithead.runtime.schedule.batch import Batcher
from dithead.runtime.schedule.devicelanes import make_lanes
from dithead.runtime.schedule.frame import Frame, Picture
from dithead.runtime.schedule.lanes import Lanes
from dithead.runtime.schedule.scheduler import Pausable, Scheduler, Stage, Stoppable, make_lanes_for
from dithead.runtime.schedule.stages import AlignAudio, Deliver, Sound, face_stages, load_picture
from dithead.runtime.schedule.trace import Trace


class Run:
    """The stages between a source and a sink, wired and scheduled.

    Args:
        generator: makes the faces.
        source: gives the pictures, in a thread of its own. source_name: in errors and traces.
        sound: the speech.
        take: is given each finished frame, in order. take_name: in errors and traces.
        trim: whether frames from the end of the sound on are dropped; else they are silent.
        interpolate: 2 makes a picture between every two frames (RIFE).
        in_flight: frames that may be on their way at a time.
        batch: frames that are denoised at a time.
        batcher: denoises with other streams; None by itself.
        overlap: whether stages run side by side; else :meth:`wait` runs them one after the other.
        waits: what threads may be waiting for, beside the run's own.
        pauses: likewise, of a run that may be asked to :meth:`rewind`; None for another.
        ended: called when all frames are through.
        pass_idle: whether frames in which nobody speaks are handed through.
        lanes: what orders the stages' work; None takes the device's own.
        trace: where every stage's work is noted.

    Raises:
        ConfigError: an option is invalid, or two contradict each other.
    """

    def __init__(
        self,
        generator: FrameGenerator,
        source: Iterator[Picture],
        sound: Sound,
        take: Callable[[Frame], None],
        *,
        source_name: str,
        take_name: str,
        trim: bool,
        interpolate: int,
        in_flight: int,
        batch: int,
        batcher: Batcher | None = None,
        overlap: bool = True,
        waits: Sequence[Stoppable] = (),
        pauses: Sequence[Pausable] | None = None,
        ended: Callable[[], None] | None = None,
        pass_idle: bool = False,
        lanes: Lanes | None = None,
        trace: Trace | None = None,
    ) -> None:
        self._member = None if batcher is None else batcher.join(generator.steps)
        self._source = source
        self._source_name = source_name
        self._in_flight = in_flight
        self._overlap = overlap
        self._ended = ended
        self._trace = trace
        self._pauses = pauses or ()
        self._waits: list[Stoppable] = [*waits, *self._pauses]
        if self._member is not None:
            self._waits.append(self._member)
        try:
            self._stages: list[Stage] = [
                *face_stages(
                    generator,
                    sound,
                    trim=trim,
                    interpolate=interpolate,
                    batch=batch,
                    together=self._member,
                    pass_idle=pass_idle,
                ),
                Deliver(take_name, take),
            ]
            self._undone_from: int | None = None
            if pauses is not None:
                self._undone_from = next(
                    n for n, stage in enumerate(self._stages) if isinstance(stage, AlignAudio)
                )
            device, replays = generator.graphs.device, getattr(generator.graphs, "replayable", True)
            made = lanes or make_lanes(device, replays)
            self._lanes = make_lanes_for(source_name, self._stages, made)
            self._scheduler = self._schedule()
        except BaseException:
            if self._member is not None:
                self._member.leave()  # or the others would wait for it
            raise

    def _schedule(self, carried: Sequence[Frame] = (), taken_in: int = 0) -> Scheduler:
        return Scheduler(
            self._source,
            load_picture,
            self._stages,
            self._lanes,
            in_flight=self._in_flight,
            overlap=self._overlap,
            source_name=self._source_name,
            waits=self._waits,
            ended=self._end,
            trace=self._trace,
            undone_from=self._undone_from,
            carried=carried,
            taken_in=taken_in,
        )

    def _end(self) -> None:
        if self._ended is not None:
            self._ended()
        if self._member is not None:
            self._member.leave()

    @property
    def busy_s(self) -> dict[str, float]:
        """Seconds that each stage has worked, by its name."""
        return self._scheduler.busy_s

    def start(self) -> None:
        """Start the threads."""
        self._scheduler.start()

    def wait(self) -> None:
        """Wait until all frames are through. Raises what a stage failed with."""
        self._scheduler.wait()

    def raise_error(self) -> None:
        """Raise what a stage failed with, if one did."""
        self._scheduler.raise_error()

    def stop(self) -> None:
        """Stop wherever the frames are, and free what they hold."""
        if self._scheduler.stop():
            self._stages.clear()
            self._lanes.clear()
        if self._member is not None:
            self._member.leave()

    def rewind(self, cut: Callable[[], Sequence[Frame]]) -> None:
        """Undo what was made of the latest frames with the sound, and go on from there.

        Faces that were found stay found, so nothing jumps. The frames come out anew.

        Args:
            cut: changes the sound while nobody reads it; gives the frames that were taken and are
                to be made once more.

        Raises:
            StreamError: what a stage failed with.
        """
        try:
            self._rewind(cut)
        except BaseException as error:  # or threads would wait for ever
            ours = isinstance(error, Exception)
            self._scheduler.fail(error if ours else StreamError("going back was interrupted"))
            raise

    def _rewind(self, cut: Callable[[], Sequence[Frame]]) -> None:
        first = self._undone_from
        assert first is not None, "the run was not made to be undone"
        for paused in self._pauses:
            paused.pause()
        on_their_way = self._scheduler.halt()
        taken = {id(frame): frame for frame in (*cut(), *on_their_way)}
        again = sorted(taken.values(), key=lambda frame: frame.index)
        for number in range(first, len(self._stages)):
            saved = (frame.undo[number] for frame in again if number in frame.undo)
            restore = next(saved, None) or self._stages[number].save()
            restore()
        for frame in again:
            frame.begin_again(first)
        for paused in self._pauses:
            paused.resume()
        if self._member is not None:
            self._member.come_back()
        self._scheduler = self._schedule(again, self._scheduler.taken_in)
        self._scheduler.start()
