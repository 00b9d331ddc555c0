"""One stream from start to end, from files or from pushed pictures: a source, the stages, and the
consumer of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dithead.errors import StreamError
from dithead.generator import FrameGenerator
from dithead.runtime.schedule.batch import Batcher
from dithead.runtime.schedule.devicelanes import make_lanes
from dithead.runtime.schedule.frame import Frame, Picture
from dithead.runtime.schedule.lanes import Lanes
from dithead.runtime.schedule.scheduler import Pausable, Scheduler, Stage, Stoppable, make_lanes_for
from dithead.runtime.schedule.stages import AlignAudio, Deliver, PictureLoader, Sound, face_stages
from dithead.runtime.schedule.trace import Trace


class Run:
    """The stages between a source and a sink, connected and scheduled.

    Args:
        generator: makes the faces.
        source: gives the pictures, in a thread of its own. source_name: its name in errors and
            traces.
        sound: the speech.
        take: called with each finished frame, in order. take_name: its name in errors and traces.
        trim: whether frames after the end of the sound are dropped; otherwise they are silent.
        interpolate: 2 interpolates a picture between every two frames (RIFE).
        in_flight: maximum number of frames in progress.
        batch: number of frames denoised together.
        batcher: denoises with other streams; None denoises alone.
        overlap: whether stages run in parallel; otherwise :meth:`wait` runs them one after the
            other.
        waits: what threads may be waiting for, besides the run's own.
        pauses: the same, for a run that may be asked to :meth:`rewind`; None for other runs.
        ended: called when all frames have passed through.
        pass_idle: whether frames in which nobody speaks are passed through.
        lanes: what orders the stages' work; None takes the device's own.
        trace: where every stage's work is recorded.

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
        self._load = PictureLoader()
        self._busy_s: dict[str, float] = {}  # before the latest rewind
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
                self._member.leave()  # otherwise the others would wait for it
            raise

    def _schedule(self, carried: Sequence[Frame] = (), taken_in: int = 0) -> Scheduler:
        return Scheduler(
            self._source,
            self._load,
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
        """Seconds that each stage has worked, by name."""
        now = self._scheduler.busy_s
        return {stage: seconds + self._busy_s.get(stage, 0.0) for stage, seconds in now.items()}

    def start(self) -> None:
        """Start the threads."""
        self._scheduler.start()

    def wait(self) -> None:
        """Wait until all frames have passed through. Raises the error of a failed stage."""
        self._scheduler.wait()

    def raise_error(self) -> None:
        """Raise the error of the stage that failed, if one did."""
        self._scheduler.raise_error()

    def stop(self) -> None:
        """Stop wherever the frames are, and free what they hold."""
        if self._scheduler.stop():
            self._stages.clear()
            self._lanes.clear()
        if self._member is not None:
            self._member.leave()

    def give_up(self) -> None:
        """Let a :meth:`rewind` that waits for a stage end at once, with a StreamError."""
        self._scheduler.give_up()

    def rewind(self, cut: Callable[[], Sequence[Frame]]) -> None:
        """Undo the work on the latest frames that depends on the sound, and go on from there.

        The tracked face is kept, so nothing jumps. The frames come out again.

        Args:
            cut: changes the sound while nobody reads it; returns the frames that were taken and
                must be made once more.

        Raises:
            StreamError: the error of a failed stage.
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
        self._busy_s = self.busy_s
        self._scheduler = self._schedule(again, self._scheduler.taken_in)
        self._scheduler.start()
