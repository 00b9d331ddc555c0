"""Streams fed by hand: equal to the specification for every way of feeding them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    FPS,
    collect,
    feed,
    levels_apart,
    rows_denoised,
    threads_of_streams,
    true_within,
    warble,
)

from dithead.errors import ConfigError, StreamError
from dithead.pipeline import FrameGenerator, Models, Options, revoice
from dithead.runtime.batch import Batcher
from dithead.runtime.lanes.recording import Entry, Log, RecordingLanes, races
from dithead.runtime.pushed import OutputFrame
from dithead.runtime.session import AsyncStream, Session, Stream

TIMES = [Fraction(i, FPS) for i in range(9)]
BLANK = 5


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Nine frames of a portrait that moves; the sixth shows no face."""
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    portrait = torch.from_numpy(np.array(data.astronaut())).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(portrait, scale_factor=2 / 3, mode="area")[0]
    image = small.round().byte().permute(1, 2, 0).numpy()
    frames = [image[14 + i : 174 + i, 70 + i : 230 + i].copy() for i in range(len(TIMES))]
    frames[BLANK][:] = 90
    return frames


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return warble(0.4)


@pytest.fixture(scope="module")
def session(random_models: Models) -> Session:
    """The small random model."""
    return Session(random_models)


@pytest.fixture(scope="module")
def specification(
    random_models: Models, pictures: list[np.ndarray], sound: np.ndarray
) -> Callable[[Options], list[np.ndarray]]:
    """What dithead.pipeline makes of the frames and the sound, by options."""
    made: dict[Options, list[np.ndarray]] = {}

    def expected(options: Options) -> list[np.ndarray]:
        if options not in made:
            torch.set_num_threads(1)
            frames = [
                (torch.from_numpy(image), float(at))
                for image, at in zip(pictures, TIMES, strict=True)
            ]
            images = revoice(frames, torch.from_numpy(sound), random_models, options)
            made[options] = [image.numpy() for image in images]
        return made[options]

    return expected


def pieces(sound: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """The sound in pieces whose sizes go round."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(sound):
            return
        yield sound[start : start + size]
        start += size


def same(frames: list[OutputFrame], expected: list[np.ndarray]) -> bool:
    return len(frames) == len(expected) and all(
        np.array_equal(frame.image, image) for frame, image in zip(frames, expected, strict=True)
    )


@given(
    sizes=st.lists(st.sampled_from([1, 7, 320, 1600, 5120, 160_000]), min_size=1, max_size=3),
    in_flight=st.integers(1, 8),
    reference=st.sampled_from(["fixed", "previous"]),
    every=st.sampled_from([1, 2]),
)
@settings(max_examples=20)
def test_any_way_of_feeding_gives_the_specification(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    sizes: list[int],
    in_flight: int,
    reference: Any,
    every: int,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3, reference=reference, generate_every=every)
    in_flight += 2 * (every == 2)
    if sum(sizes) / len(sizes) < 100:
        sizes = [*sizes, 1600]  # single samples alone would take minutes
    with session.open_stream(options, in_flight=in_flight) as stream:
        frames = collect(stream, pictures, list(pieces(sound, sizes)))
    assert [frame.time_s for frame in frames] == TIMES
    assert [frame.face for frame in frames] == [i != BLANK for i in range(len(TIMES))]
    assert same(frames, specification(options))


def test_generating_every_second_face_changes_those_between(
    specification: Callable[[Options], list[np.ndarray]], pictures: list[np.ndarray]
) -> None:
    whole = specification(Options(steps=2, seed=3))
    half = specification(Options(steps=2, seed=3, generate_every=2))
    equal = [np.array_equal(a, b) for a, b in zip(whole, half, strict=True)]
    # 0, 2, 4 are generated, 1 and 3 filled in, 5 has no face, 6 and 8 are generated, 7 filled in.
    assert equal == [True, False, True, False, True, True, True, False, True]


def test_all_at_once_then_pulled(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3)
    with session.open_stream(options, in_flight=12) as stream:
        feed(stream, pictures, [sound])
        assert same(list(stream.frames()), specification(options))
        assert stream.pull() is None


def test_reset_equals_fresh_and_streams_do_not_mix(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    options, other = Options(steps=2, seed=3), Options(steps=2, seed=9, reference="previous")
    with session.open_stream(options) as stream, session.open_stream(other) as second:
        stream.push_audio(sound[::-1].copy())
        stream.finish_audio()
        for image, at in zip(pictures[:3], TIMES, strict=False):
            stream.push_frame(image, at)
        stream.pull()
        stream.reset()
        results: dict[str, list[OutputFrame]] = {}

        def run(name: str, which: Stream) -> None:
            results[name] = collect(which, pictures, [sound])

        threads = [
            threading.Thread(target=run, args=pair) for pair in (("a", stream), ("b", second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert same(results["a"], specification(options))
    assert same(results["b"], specification(other))


def close(frames: list[OutputFrame], expected: list[np.ndarray]) -> bool:
    """Equal but for the rounding of sums in another order."""
    return len(frames) == len(expected) and all(
        levels_apart(frame.image, image) <= 1 for frame, image in zip(frames, expected, strict=True)
    )


@given(
    batch=st.integers(2, 5), spare=st.integers(0, 3), every=st.sampled_from([1, 2]), data=st.data()
)
@settings(max_examples=10)
def test_frames_denoised_together_equal_those_alone(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    batch: int,
    spare: int,
    every: int,
    data: st.DataObject,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3, generate_every=every)
    in_flight = batch * every + (every == 2) + spare
    with pytest.MonkeyPatch.context() as patch:
        rows = rows_denoised(patch)
        with session.open_stream(options, batch=batch, in_flight=in_flight) as stream:
            found = collect(stream, pictures, [sound])
    assert close(found, specification(options))
    assert max(rows) == min(batch, {1: 8, 2: 5}[every])
    assert [frame.face for frame in found].count(False) == 1


def test_streams_denoised_together_equal_those_alone(
    random_models: Models,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    rows = rows_denoised(monkeypatch)
    session, log = Session(random_models, batch=4), Log()
    session._batcher = Batcher(RecordingLanes(log), 4, wait_s=0.5)
    asked = [
        Options(steps=2, seed=3),
        Options(steps=2, seed=9, reference="previous"),
        Options(steps=2, seed=4, generate_every=2),
        Options(steps=1, seed=3),  # another number of steps cannot share a batch
    ]
    results: dict[int, list[OutputFrame]] = {}

    def run(number: int, options: Options) -> None:
        lanes = RecordingLanes(log, f"{number} ")
        with session.open_stream(options, lanes=lanes) as stream:
            results[number] = collect(stream, pictures, [sound])

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    for number, options in enumerate(asked):
        assert close(results[number], specification(options)), options
    assert max(rows) >= 2
    assert max(rows) <= 4
    assert races(log.entries) == []
    shared = [
        number
        for number, entry in enumerate(log.entries)
        if entry.act == "wait" and "together" in entry.lane + entry.what
    ]
    assert len(shared) == 2 * (8 + 8 + 5 + 8)
    entries = log.entries
    idle = [n for n in shared if not races(entries[:n] + entries[n + 1 :])]
    firsts = {entries[n].what for n in idle}  # before it, nothing has read the result's buffer
    assert len(firsts) <= len(asked)


def test_a_closed_stream_leaves_the_batch_to_the_others(
    random_models: Models,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    session, options = Session(random_models, batch=2, batch_wait_s=0.01), Options(steps=2, seed=3)
    first = session.open_stream(options)
    first.push_audio(sound)
    first.finish_audio()
    first.push_frame(pictures[0], 0)
    first.pull(60)
    with session.open_stream(options) as second:
        first.close()
        assert session._batcher is not None
        assert session._batcher._members[2] == 1
        assert close(collect(second, pictures, [sound]), specification(options))
    assert not threads_of_streams()


def test_a_stream_that_cannot_be_is_not_waited_for(random_models: Models) -> None:
    session = Session(random_models, batch=2)
    with pytest.raises(ConfigError, match="frames in flight"):
        session.open_stream(Options(steps=2, generate_every=2), in_flight=1)
    assert session._batcher is not None
    assert session._batcher._members[2] == 0


def test_closing_frees_the_buffers_at_once(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    gc.disable()  # it knows nothing of a GPU's memory
    try:
        with session.open_stream(Options(steps=1)) as stream:
            slot = weakref.ref(stream._run._scheduler._slots[0])
            collect(stream, pictures, [sound])
            assert slot() is not None
        assert slot() is None
    finally:
        gc.enable()


def test_batches_that_cannot_be(session: Session, random_models: Models) -> None:
    with pytest.raises(ConfigError, match="batch must be 1, or reference 'fixed'"):
        session.open_stream(Options(reference="previous"), batch=2)
    with pytest.raises(ConfigError, match="needs at least 4 frames in flight"):
        session.open_stream(batch=4, in_flight=3)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        session.open_stream(batch=0)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        Session(random_models, batch=0)


def test_interpolation_doubles_the_frames(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    with session.open_stream(Options(steps=1), interpolate=2) as stream:
        frames = collect(stream, pictures, [sound])
    assert [frame.time_s for frame in frames] == [Fraction(i, 2 * FPS) for i in range(17)]
    assert [frame.between for frame in frames] == [i % 2 == 1 for i in range(17)]


def test_a_portrait_speaks_for_as_long_as_there_is_sound(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    with session.open_stream(Options(steps=1), portrait=pictures[0], fps=FPS) as stream:
        stream.push_audio(sound)
        stream.finish()
        frames = list(stream.frames())
        assert [frame.time_s for frame in frames] == [Fraction(i, FPS) for i in range(10)]
        assert not np.array_equal(frames[2].image, frames[8].image)
        with pytest.raises(StreamError, match="takes sound alone"):
            stream.push_frame(pictures[0], 0)


def test_a_source_that_runs_ahead_is_told(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    with session.open_stream(Options(steps=1), in_flight=2, waiting=1) as stream:
        taken = 0  # without sound, nothing leaves
        for at in itertools.count():
            if not stream.push_frame(pictures[0], Fraction(at, FPS), timeout_s=2):
                break
            taken += 1
        assert 2 <= taken <= 4
        with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
            stream.pull(0.01)
        stream.push_audio(sound)
        stream.finish()
        assert len(list(stream.frames())) == taken


def test_frames_may_wait_for_live_sound(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    with session.open_stream(Options(steps=1)) as stream:
        for at in range(19):  # 0.74 s at 25 fps, before any sound has come
            assert stream.push_frame(pictures[0], Fraction(at, FPS), timeout_s=0)
            time.sleep(0.01)
        stream.push_audio(np.resize(sound, 16000))
        assert stream.pull(30) is not None
    with pytest.raises(ConfigError, match="waiting must be at least 1"):
        session.open_stream(waiting=0)


def test_other_rates_are_resampled(session: Session, pictures: list[np.ndarray]) -> None:
    time_s = np.arange(round(48000 * 0.6)) / 48000
    sound = (0.3 * np.sin(2 * np.pi * 220 * time_s)).astype(np.float32)
    with session.open_stream(Options(steps=1)) as stream:
        for piece in np.array_split(sound, 7):
            stream.push_audio(piece, 48000)
        with pytest.raises(StreamError, match="44100 Hz after sound at 48000 Hz"):
            stream.push_audio(sound, 44100)
        stream.finish()
        assert abs(stream._run._sound.length_s - Fraction(6, 10)) < Fraction(1, 1000)


def test_asyncio_calls_that_are_cancelled_lose_no_frame(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3)

    async def run() -> list[OutputFrame]:
        stream = session.open_stream(options, in_flight=1, waiting=1)
        async with AsyncStream(stream) as patient:

            async def push() -> None:
                for image, at in zip(pictures, TIMES, strict=True):
                    while True:  # whoever gives up may be just too late
                        try:
                            await asyncio.wait_for(patient.push_frame(image, at), 0.03)
                            break
                        except asyncio.TimeoutError:
                            continue
                await patient.finish()

            await patient.push_audio(sound)
            await patient.finish_audio()
            with pytest.raises(TimeoutError, match="no frame was finished within 0"):
                await patient.pull(timeout_s=0.0)
            pushing, frames = asyncio.create_task(push()), []
            while True:
                try:
                    frame = await asyncio.wait_for(patient.pull(), 0.02)
                except asyncio.TimeoutError:
                    continue
                if frame is None:
                    break
                frames.append(frame)
            await pushing
        return frames

    assert same(asyncio.run(run()), specification(options))


def test_asyncio_streams_do_not_starve_each_other(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    count = 4 + min(32, (os.cpu_count() or 1) + 4)  # more than asyncio's own threads

    async def speak(stream: AsyncStream) -> int:
        pulling = asyncio.create_task(stream.pull())
        await asyncio.sleep(0.05)  # all wait
        await stream.push_audio(sound)
        for image, at in zip(pictures[:2], TIMES, strict=False):
            await stream.push_frame(image, at)
        await stream.finish()
        assert await pulling is not None
        return 1 + len([frame async for frame in stream.frames()])

    async def run() -> list[int]:
        streams = [AsyncStream(session.open_stream(Options(steps=1))) for _ in range(count)]
        found = await asyncio.gather(*map(speak, streams))
        await asyncio.gather(*(stream.close() for stream in streams))
        return found

    assert asyncio.run(run()) == [2] * count
    assert not threads_of_streams()


def test_a_closed_stream_is_not_reset(session: Session) -> None:
    stream = session.open_stream()
    stream.reset()
    stream.close()
    with pytest.raises(StreamError, match="is closed: open another"):
        stream.reset()
    assert not threads_of_streams()


def test_who_waits_in_a_stream_that_is_reset_is_told(session: Session) -> None:
    told: list[str] = []
    with session.open_stream() as stream:

        def wait() -> None:
            try:
                stream.pull()
            except StreamError as error:
                told.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        arrivals = stream._run._outbox._changed
        assert true_within(60, lambda: bool(arrivals._waiters))
        stream.reset()
        thread.join(60)
    assert told == ["the stream was reset"]


def test_asyncio(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3)

    async def run() -> list[OutputFrame]:
        async with AsyncStream(session.open_stream(options, in_flight=2)) as stream:

            async def push() -> None:
                await stream.push_audio(sound)
                await stream.finish_audio()
                for image, at in zip(pictures, TIMES, strict=True):
                    await stream.push_frame(image, at)
                await stream.finish()

            pushing = asyncio.create_task(push())
            frames = [frame async for frame in stream.frames()]
            await pushing
            return frames

    assert same(asyncio.run(run()), specification(options))


@pytest.mark.parametrize("frame", [0, 4, 8])
@pytest.mark.parametrize("stage", ["track", "encode", "sample", "decode", "blend"])
def test_a_failing_stage_ends_the_stream_and_not_the_session(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    frame: int,
) -> None:
    torch.set_num_threads(1)
    options, calls = Options(steps=2, seed=3), itertools.count()
    at = frame - (frame > BLANK and stage != "track")  # the faceless frame is not worked on

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise RuntimeError("out of memory")
        return original(*args, **kwargs)

    original = getattr(FrameGenerator, stage)
    with monkeypatch.context() as patch:
        patch.setattr(FrameGenerator, stage, fail)
        names = {"encode": "encode face", "sample": "denoise", "decode": "decode face"}
        name = names.get(stage, stage)
        stream = session.open_stream(options)
        with pytest.raises(StreamError, match=f"'{name}' failed at frame {frame}: out of memory"):
            feed(stream, pictures, [sound])
            list(stream.frames())
        stream.close()
        assert not threads_of_streams()
    with session.open_stream(options) as stream:
        assert same(collect(stream, pictures, [sound]), specification(options))


def test_a_consumer_that_stops_leaves_no_thread(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    stream = session.open_stream(Options(steps=1), in_flight=2)
    stream.push_audio(sound)
    stream.finish_audio()
    for image, at in zip(pictures[:4], TIMES, strict=False):
        stream.push_frame(image, at, timeout_s=1)
    stream.pull()
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 10  # it waits for work that is under way, 2 s at most
    assert not threads_of_streams()
    for use in (stream.pull, lambda: stream.push_frame(pictures[5], TIMES[5])):
        with pytest.raises(StreamError, match="closed"):
            use()
    dropped = session.open_stream(Options(steps=1))
    del dropped
    assert not threads_of_streams()


def test_misuse(session: Session, pictures: list[np.ndarray], sound: np.ndarray) -> None:
    for arguments in ({"interpolate": 3}, {"in_flight": 0}, {"fps": 0}):
        with pytest.raises(ConfigError):
            session.open_stream(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 3 frames in flight"):
        session.open_stream(Options(generate_every=2), in_flight=2)
    with session.open_stream() as stream:
        for wrong in (pictures[0][..., :2], pictures[0].astype(np.float32), "picture"):
            with pytest.raises(StreamError, match="expected a picture"):
                stream.push_frame(wrong, 0)  # type: ignore[arg-type]
        stream.push_frame(pictures[0], 1)
        with pytest.raises(StreamError, match="times must increase"):
            stream.push_frame(pictures[0], 1)
        with pytest.raises(StreamError, match="expected 1-D float32"):
            stream.push_audio(sound.astype(np.float64))
        stream.finish()
        with pytest.raises(StreamError, match="after finish"):
            stream.push_audio(sound)
        with pytest.raises(StreamError, match="after finish"):
            stream.push_frame(pictures[0], 2)


@given(
    in_flight=st.integers(3, 8),
    every=st.sampled_from([1, 2]),
    interpolate=st.sampled_from([1, 2]),
)
@settings(max_examples=12)
def test_every_buffer_is_guarded_by_an_event(
    session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    in_flight: int,
    every: int,
    interpolate: int,
) -> None:
    lanes = RecordingLanes()
    options = Options(steps=1, generate_every=every)
    with session.open_stream(
        options, in_flight=in_flight, interpolate=interpolate, lanes=lanes
    ) as stream:
        collect(stream, pictures, [sound])
    accesses = sum(entry.act in ("read", "write") for entry in lanes.log.entries)
    assert accesses > 20 * (len(TIMES) - 1)
    assert races(lanes.log.entries) == []


@pytest.mark.parametrize("interpolate", [1, 2])
@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_no_event_can_be_left_out(
    session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    in_flight: int,
    interpolate: int,
) -> None:
    lanes = RecordingLanes()
    faces = [pictures[0] if i == BLANK else image for i, image in enumerate(pictures)]
    with session.open_stream(
        Options(steps=1), in_flight=in_flight, interpolate=interpolate, lanes=lanes
    ) as stream:
        collect(stream, faces, [sound])
    entries = lanes.log.entries
    assert races(entries) == []
    waits = [i for i, entry in enumerate(entries) if entry.act == "wait"]
    stages = 9 + (interpolate == 2)
    assert len(waits) == len(TIMES) * (stages - 1) + len(TIMES) - in_flight
    idle = [entries[i] for i in waits if not races(entries[:i] + entries[i + 1 :])]
    # The last stage reads no buffer here: its event guards the slot's next use, if there is one.
    last = range(len(TIMES) - in_flight + 1, len(TIMES) + 1)
    unused = {f"composite#{n}" for n in last} if interpolate == 1 else set()
    assert {entry.what for entry in idle} == unused


def test_races_are_found() -> None:
    def run(*acts: tuple[str, Any, str]) -> list[str]:
        return races([Entry(lane, act, what) for lane, act, what in acts])

    write, record, read = ("a", "write", "x"), ("a", "record", "a#1"), ("b", "read", "x")
    wait, done = ("b", "wait", "a#1"), ("b", "record", "b#1")
    assert run(write, record, wait, read) == []
    assert "b reads x, which a may still use" in run(write, record, read)[0]
    assert len(run(write, record, wait, read, write)) == 1  # used again too early
    assert run(write, record, wait, read, done, ("a", "wait", "b#1"), write) == []
    assert run(write, ("a", "read", "x"), write) == []
