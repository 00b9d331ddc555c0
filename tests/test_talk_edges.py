"""What streams that are talked to do at the edges: times that do not begin at 0 or jump, sizes that
a layout does not have, sources that are broken or late, stages that hang, and what is left after
the end."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from streams import FPS, RATE, moving, true_within, warble

from dithead.errors import ConfigError, MediaError, StreamError
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.pictures import OwnPictures, still
from dithead.runtime.schedule import scheduler
from dithead.runtime.schedule.channel import Stopped
from dithead.runtime.schedule.frame import Frame, Picture
from dithead.runtime.schedule.lanes import Lane
from dithead.runtime.schedule.stages import PictureLoader
from dithead.runtime.schedule.trace import Trace
from dithead.runtime.session import Session
from dithead.runtime.stream import Stream


def ones(seconds: float) -> np.ndarray:
    return np.ones(round(RATE * seconds), np.float32)


def next_frame(stream: Stream) -> OutputFrame:
    frame = stream.pull(60)
    assert frame is not None
    return frame


def still_pictures(now: list[float]) -> OwnPictures:
    return OwnPictures(still(np.zeros((2, 2, 3), np.uint8), Fraction(25)), lambda: now[0])


def push(stream: Stream, pictures: list[np.ndarray], from_s: int = 0) -> None:
    for number, image in enumerate(pictures):
        assert stream.push_frame(image, from_s + Fraction(number, FPS), 0)


@pytest.fixture
def drive(astronaut: np.ndarray) -> list[np.ndarray]:
    return moving(astronaut, 8)


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_new_speech_begins_with_the_first_frame(
    session: Session, drive: list[np.ndarray], rate: int
) -> None:
    torch.set_num_threads(1)
    found: list[list[OutputFrame]] = []
    for dropped in (warble(6.0), np.zeros(0, np.float32)):
        with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
            if dropped.size:
                stream.push_audio(dropped, rate)
            push(stream, drive, from_s=3)
            stream.flush_audio()
            stream.mark("hello")
            stream.push_audio(np.ones(rate // 5, np.float32), rate)
            stream.finish()
            found.append(list(stream.frames()))
    frames = found[0]
    for frame, other in zip(*found, strict=True):  # nothing of what was dropped was heard
        assert np.array_equal(frame.image, other.image)
    assert [frame.time_s for frame in frames][:2] == [3, Fraction(76, 25)]
    assert [e.kind for frame in frames for e in frame.events] == ["began", "ended"]
    assert [float(e.time_s) for frame in frames for e in frame.events] == [3.0, 3.2]
    sound = np.concatenate([frame.samples for frame in frames if frame.samples is not None])
    wanted = np.zeros(len(drive) * rate // FPS, np.float32)
    wanted[: rate // 5] = 1
    assert np.array_equal(sound, wanted)


def test_a_frame_whose_picture_between_has_come_is_made_anew(
    session: Session, drive: list[np.ndarray]
) -> None:
    with session.open_stream(Options(steps=1), waiting=len(drive), interpolate=2) as stream:
        stream.push_audio(ones(2))
        push(stream, drive)
        frames = [next_frame(stream) for _ in range(4)]
        assert frames[-1].between
        stream.flush_audio()
        stream.finish()
        frames += stream.frames()
    numbers = [(frame.index, frame.between) for frame in frames]
    wanted = [(n, between) for n in range(len(drive)) for between in (True, False)]
    assert numbers == wanted[1:]
    sound = np.concatenate([frame.samples for frame in frames if frame.samples is not None])
    assert sound.size == len(drive) * RATE // FPS
    assert np.array_equal(np.flatnonzero(sound), np.arange(2 * RATE // FPS))


def test_sizes_that_a_layout_does_not_have(
    session: Session, drive: list[np.ndarray], lossless_clip: Path
) -> None:
    odd = drive[0][:159]
    with pytest.raises(ConfigError, match="160x159 pixels cannot be given as yuv420p"):
        session.open_stream(portrait=odd, layout="yuv420p")
    with session.open_stream(portrait=drive[0], layout="yuv420p") as stream:
        with pytest.raises(StreamError, match="160x159 pixels cannot be given as yuv420p"):
            stream.set_source(portrait=odd)
        with pytest.raises(MediaError, match="161x159 pixels cannot be given as yuv420p"):
            stream.set_source(loop=lossless_clip)


@pytest.fixture
def lossless_clip(tmp_path: Path, astronaut: np.ndarray) -> Path:
    """Two frames of odd width and height."""
    av = pytest.importorskip("av")
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 161, 159, "yuv444p"
        for number in range(2):
            image = np.ascontiguousarray(astronaut[14:173, 120:281])
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv444p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_what_is_done_to_a_frame_stays_in_it(session: Session, drive: list[np.ndarray]) -> None:
    given = drive[0].copy()
    with session.open_stream(portrait=given, idle="pass", patience_s=0, realtime=False) as stream:
        for _ in range(12):
            frame = next_frame(stream)
            assert frame.left_alone == "idle"
            assert np.array_equal(frame.image, drive[0])
            frame.image[:] = 0
        assert np.array_equal(given, drive[0])


def test_a_source_of_another_size_with_pictures_between(
    session: Session, drive: list[np.ndarray], astronaut: np.ndarray
) -> None:
    with session.open_stream(
        Options(steps=1), portrait=drive[0], interpolate=2, in_flight=2
    ) as stream:
        stream.push_audio(warble(1))
        stream.finish()
        frames = [next_frame(stream) for _ in range(3)]
        stream.set_source(portrait=astronaut[:240, 60:320])
        frames += stream.frames()
    assert sum(not frame.between for frame in frames) == FPS
    assert sum(frame.between for frame in frames) == FPS - 2  # nothing lies between two sizes
    assert frames[-1].image.shape == (240, 260, 3)


def test_nothing_is_held_after_the_end(
    session: Session, drive: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    decode = FrameGenerator.decode

    def noted(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = decode(*arguments)
        made.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(FrameGenerator, "decode", noted)
    trace = Trace()
    stream = session.open_stream(Options(steps=1), waiting=len(drive), in_flight=4, trace=trace)
    stream.push_audio(warble(2))
    push(stream, drive)
    for _ in range(4):
        next_frame(stream)
    stream.flush_audio()
    delivered = lambda: [span.stage for span in trace.spans].count("deliver")  # noqa: E731
    before = delivered()
    stream.push_audio(warble(2))
    assert true_within(60, lambda: delivered() >= before + 3)
    stream.close()
    gc.collect()
    assert len(made) > 3
    assert not [each for each in made if each() is not None]
    with pytest.raises(StreamError, match="closed"):
        stream.pull(0)


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Holds the denoiser up: set once it is at work; to be set for it to go on."""
    at_work, go_on = threading.Event(), threading.Event()
    sample = FrameGenerator.sample

    def slow(*arguments: torch.Tensor) -> torch.Tensor:
        at_work.set()
        assert go_on.wait(60)
        return sample(*arguments)

    monkeypatch.setattr(FrameGenerator, "sample", slow)
    return at_work, go_on


def test_a_drop_that_fails_leaves_nobody_waiting(
    session: Session,
    drive: list[np.ndarray],
    held_up: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "HALT_S", 0.1)
    at_work, go_on = held_up
    with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
        stream.push_audio(warble(2))
        push(stream, drive)
        assert at_work.wait(60)
        with pytest.raises(StreamError, match="a stage was still at work"):
            stream.flush_audio()
        with pytest.raises(StreamError, match="a stage was still at work"):
            stream.pull(10)
        with pytest.raises(StreamError, match="a stage was still at work"):
            stream.push_audio(warble(1))
        go_on.set()


def test_a_frame_whose_turn_has_not_come_waits_through_a_pause() -> None:
    now = [5.0]
    pictures = still_pictures(now)
    assert next(pictures).index == 0
    pictures.pause()
    with pytest.raises(Stopped):
        next(pictures)
    with pytest.raises(Stopped):
        next(pictures)
    pictures.resume()
    now[0] = 5.04
    picture = next(pictures)
    assert (picture.index, picture.time_s, picture.arrived_s) == (1, Fraction(1, 25), 5.04)


def test_pictures_whose_turn_passed_are_left_out() -> None:
    now = [5.0]
    pictures = still_pictures(now)
    assert next(pictures).time_s == 0
    now[0] = 5.2  # a little late: nothing is left out
    assert next(pictures).time_s == Fraction(1, 25)
    now[0] = 5.5
    picture = next(pictures)
    assert (picture.index, picture.time_s) == (2, Fraction(7, 25))


def test_a_clip_that_is_read_too_slowly_runs_slowly() -> None:
    now = [5.0]

    def slow() -> Iterator[tuple[Fraction, Fraction, np.ndarray]]:
        for shown in still(np.zeros((2, 2, 3), np.uint8), Fraction(25))():
            now[0] += 0.05
            yield shown

    pictures = OwnPictures(slow, lambda: now[0])
    times = [float(next(pictures).time_s) for _ in range(100)]
    assert times[-1] < 100 * 0.04 * 2  # less than half of them were left out


def test_a_stream_stands_still_while_nobody_pulls() -> None:
    now = [5.0]
    pictures = still_pictures(now)
    assert next(pictures).time_s == 0
    now[0] = 65.0
    picture = next(pictures)
    assert (picture.time_s, picture.arrived_s) == (Fraction(1, 25), 65.0)
    now[0] = 65.04
    picture = next(pictures)
    assert (picture.time_s, picture.arrived_s) == (Fraction(2, 25), 65.04)


def test_frames_are_counted_on_after_a_drop(
    session: Session, drive: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = PictureLoader.__call__

    def breaks(loader: PictureLoader, picture: Picture, lane: Lane) -> Frame:
        if picture.index >= 8:
            raise MediaError("broken")
        return load(loader, picture, lane)

    with session.open_stream(Options(steps=1), portrait=drive[0], in_flight=1) as stream:
        stream.push_audio(warble(1))
        for _ in range(3):
            next_frame(stream)
        monkeypatch.setattr(PictureLoader, "__call__", breaks)
        stream.flush_audio()
        stream.push_audio(warble(1))
        with pytest.raises(MediaError, match=r"'take in' failed at frame 8: broken"):
            for _ in range(20):
                next_frame(stream)
        with pytest.raises(MediaError, match="'take in' failed at frame"):
            stream.set_source(portrait=drive[0])


def test_a_source_that_cannot_be_read_changes_nothing(
    session: Session, drive: list[np.ndarray], tmp_path: Path
) -> None:
    with pytest.raises(MediaError, match="no such file"):
        session.open_stream(loop=tmp_path / "none.mp4")
    with pytest.raises(ConfigError, match="expected a picture"):
        session.open_stream(portrait=drive[0][..., 0])
    with session.open_stream(Options(steps=1), portrait=drive[0]) as stream:
        stream.push_audio(warble(1))
        next_frame(stream)
        with pytest.raises(MediaError, match="no such file"):
            stream.set_source(loop=tmp_path / "none.mp4")
        with pytest.raises(StreamError, match="expected a picture"):
            stream.set_source(portrait=drive[0][..., 0])
        assert next_frame(stream).image.shape == drive[0].shape


def test_a_gap_between_pushed_frames_is_silent(session: Session, drive: list[np.ndarray]) -> None:
    with session.open_stream(Options(steps=1), idle="rest", patience_s=0) as stream:
        with pytest.raises(StreamError, match=r"1.7e\+09 s after all that came before"):
            stream.push_frame(drive[0], 1_700_000_000)
        stream.push_frame(drive[0], 60)
        stream.push_frame(drive[1], Fraction(601, 10))
        assert next_frame(stream).time_s == 60
        with pytest.raises(StreamError, match="after all that came before: at most 600 s"):
            stream.push_frame(drive[2], 3600)
        stream.push_frame(drive[2], 600)
        frames = [next_frame(stream), next_frame(stream)]
        assert [frame.time_s for frame in frames] == [Fraction(601, 10), 600]
        sizes = [frame.samples.size for frame in frames if frame.samples is not None]
        assert sum(sizes) == pytest.approx((600 - 60) * RATE, abs=2 * RATE)
        assert stream.queued_s == 0  # silence does not count
        stream.push_audio(warble(3))
        assert stream.queued_s == pytest.approx(3)
        stream.flush_audio()
        assert stream.queued_s == 0


def test_a_pause_of_the_camera_does_not_take_the_sound_ahead(
    session: Session, drive: list[np.ndarray]
) -> None:
    with session.open_stream(Options(steps=1)) as stream:
        stream.push_audio(warble(12))
        with pytest.raises(StreamError, match="at most 600 s are allowed"):
            stream.push_frame(drive[0], 30_000)  # a clock that began with the machine
        for time_s in (0, Fraction(1, 25), 10, Fraction(251, 25)):
            stream.push_frame(drive[0], time_s)
        sizes = [next_frame(stream).samples.size for _ in range(3)]
        assert sizes == [RATE // 25, RATE // 25, round(9.96 * RATE)]
        stream.flush_audio()
        stream.mark("answer")
        stream.push_audio(warble(1))
        stream.finish()
        last = next_frame(stream)
        assert [(event.kind, event.time_s) for event in last.events] == [("began", last.time_s)]
        assert last.samples.size == RATE // 25


def test_a_source_that_has_gone_leaves_the_stream_as_it_is(
    session: Session, drive: list[np.ndarray], tmp_path: Path
) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "loop.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=FPS)
        video.height, video.width = drive[0].shape[:2]
        for image in drive * 4:  # more than the stream reads ahead, or it would read them again
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(video.encode())
    with session.open_stream(Options(steps=1), loop=path) as stream:
        stream.push_audio(warble(1))
        path.unlink()
        with pytest.raises(MediaError, match="no such file"):
            stream.reset()
        assert next_frame(stream).index == 0


def test_a_stage_that_hangs_in_a_drop_holds_nobody(
    session: Session, drive: list[np.ndarray], held_up: tuple[threading.Event, threading.Event]
) -> None:
    at_work, go_on = held_up
    stream = session.open_stream(Options(steps=1), waiting=len(drive))
    stream.push_audio(warble(2))
    push(stream, drive)
    assert at_work.wait(60)
    errors: list[StreamError] = []

    def drop() -> None:
        with pytest.raises(StreamError) as caught:
            stream.flush_audio()
        errors.append(caught.value)

    dropping = threading.Thread(target=drop)
    dropping.start()
    with pytest.raises(TimeoutError):
        stream.pull(0.1)
    stream.close()  # would wait for the drop otherwise
    dropping.join(30)
    assert not dropping.is_alive()
    assert not go_on.is_set()
    assert "closed" in str(errors[0])
    go_on.set()


@pytest.mark.parametrize("idle", ["wait", "rest"])
def test_rates_of_sound(session: Session, drive: list[np.ndarray], idle: str) -> None:
    with pytest.raises(ConfigError, match="expected a sample rate in Hz"):
        session.open_stream(portrait=drive[0], idle=idle, sample_rate_hz=0)
    with (
        session.open_stream(portrait=drive[0], idle=idle, sample_rate_hz=16_000) as stream,
        pytest.raises(StreamError, match="open the stream with sample_rate_hz=24000"),
    ):
        stream.push_audio(ones(1), 24_000)
    with pytest.raises(StreamError, match="the stream is closed"):
        stream.set_source(portrait=drive[0])
