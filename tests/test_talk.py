"""Streams that are talked to: speech dropped, silence, speech again, other sources, sound with the
frames. What is delivered equals what a stream would give that never had what was dropped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from streams import FPS, RATE, alike, collect, moving, same, true_within, voice, warble

from dithead import pipeline
from dithead.audio import AudioFeatures, encode_audio
from dithead.errors import ConfigError, StreamError
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.runtime.asyncstream import AsyncStream
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.pictures import from_rgb, to_rgb
from dithead.runtime.schedule.trace import Trace
from dithead.runtime.session import Session
from dithead.runtime.stream import Stream
from dithead.torchgraphs import SpeechGraph, TorchGraphs


@pytest.fixture
def drive(astronaut: np.ndarray) -> list[np.ndarray]:
    return moving(astronaut, 24)


class Switching:
    """Features of several sounds, each heard by the frames from a time on."""

    def __init__(self, encoded: list[tuple[float, AudioFeatures]]) -> None:
        self._encoded = encoded

    def window(self, time_s: float) -> torch.Tensor:
        heard = [features for from_s, features in self._encoded if from_s <= time_s]
        return heard[-1].window(time_s)


@pytest.fixture
def expected(
    random_models: TorchGraphs, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[np.ndarray]]:
    """What the specification makes of pictures and sound: one sound, or pairs of the first frame
    that hears it and a sound."""

    def made(
        pictures: Sequence[np.ndarray],
        sound: np.ndarray | list[tuple[int, np.ndarray]],
        options: Options,
    ) -> list[np.ndarray]:
        torch.set_num_threads(1)
        sounds = sound if isinstance(sound, list) else [(0, sound)]
        with torch.inference_mode():
            encoded = [
                (first / FPS, encode_audio(SpeechGraph(random_models), torch.from_numpy(samples)))
                for first, samples in sounds
            ]
        monkeypatch.setattr(pipeline, "encode_audio", lambda *_: Switching(encoded))
        frames = [(torch.from_numpy(p), n / FPS) for n, p in enumerate(pictures)]
        found = pipeline.revoice(frames, torch.zeros(0), random_models, options)
        return [image.numpy() for image in found]

    return made


def push_all(stream: Stream, pictures: Sequence[np.ndarray]) -> threading.Thread:
    def work() -> None:
        for number, image in enumerate(pictures):
            stream.push_frame(image, Fraction(number, FPS))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def heard(frames: Sequence[OutputFrame]) -> np.ndarray:
    """The sound that came with frames."""
    return np.concatenate([frame.samples for frame in frames if frame.samples is not None])


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (Options(steps=1), {}),
        (Options(steps=1, reference="previous"), {}),
        (Options(steps=1, generate_every=2), {}),
        (Options(steps=1), {"interpolate": 2}),
        (Options(steps=1), {"batch": 3}),
    ],
)
@pytest.mark.parametrize("cut_after", [0, 7])
def test_dropped_speech_leaves_no_trace(
    session: Session,
    expected: Callable[..., list[np.ndarray]],
    drive: list[np.ndarray],
    options: Options,
    arguments: dict[str, int],
    cut_after: int,
) -> None:
    torch.set_num_threads(1)
    first, second = warble(2.0), voice(2.0)
    with session.open_stream(options, waiting=len(drive), **arguments) as stream:
        stream.push_audio(first)
        pusher = push_all(stream, drive)
        frames: list[OutputFrame] = []
        while sum(not frame.between for frame in frames) < cut_after:
            frame = stream.pull(60)
            assert frame is not None
            frames.append(frame)
        assert stream.flush_audio() == []
        stream.push_audio(second)
        pusher.join()
        stream.finish()
        frames += stream.frames()
    shown = [frame for frame in frames if not frame.between]
    assert [frame.index for frame in shown] == list(range(len(drive)))
    cut = cut_after * RATE // FPS
    sound = np.concatenate([first[:cut], second])
    same_as = alike if arguments.get("batch") else np.array_equal
    wanted = expected(drive, [(0, first), (cut_after, sound)], options)
    for frame, image in zip(shown, wanted, strict=True):
        assert same_as(frame.image, image), frame.index
    assert np.array_equal(heard(frames), sound[: len(drive) * RATE // FPS])
    untouched = expected(drive, first, options)
    assert not np.array_equal(shown[-1].image, untouched[-1])  # or nothing was tested


def test_speech_can_be_dropped_again_and_again(
    session: Session, expected: Callable[..., list[np.ndarray]], drive: list[np.ndarray]
) -> None:
    torch.set_num_threads(1)
    kept, sounds = np.zeros(0, np.float32), []
    with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
        pusher = push_all(stream, drive)
        frames: list[OutputFrame] = []
        for turn in range(4):
            piece = voice(1.5, 200 + 100 * turn)
            stream.push_audio(piece)
            sounds.append((5 * turn, np.concatenate([kept, piece])))
            for _ in range(5):
                frame = stream.pull(60)
                assert frame is not None
                frames.append(frame)
            kept = np.concatenate([kept, piece[: 5 * RATE // FPS]])
            stream.flush_audio()
            stream.flush_audio()  # nothing is left to drop
        pusher.join()
        stream.finish()
        frames += stream.frames()
    assert same(frames, expected(drive, [*sounds, (20, kept)], Options(steps=1)))


def test_pieces_of_speech_are_told(session: Session, drive: list[np.ndarray]) -> None:
    with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
        pusher = push_all(stream, drive)
        stream.mark("hello")
        stream.push_audio(voice(0.2))
        stream.mark("how are you")
        stream.push_audio(voice(1.0))
        stream.mark("not begun")
        stream.push_audio(voice(1.0))
        frames = [stream.pull(60) for _ in range(8)]
        assert stream.flush_audio() == ["how are you", "not begun"]
        stream.mark("bye")
        stream.push_audio(voice(0.2))
        pusher.join()
        stream.finish()
        frames += list(stream.frames())
    events = [(f.index, e.kind, e.piece, float(e.time_s)) for f in frames if f for e in f.events]
    assert events == [
        (0, "began", "hello", 0.0),
        (4, "ended", "hello", 0.2),
        (5, "began", "how are you", 0.2),
        (8, "interrupted", "how are you", 0.32),
        (8, "interrupted", "not begun", 0.32),
        (8, "began", "bye", 0.32),
        (12, "ended", "bye", 0.52),
    ]


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_every_frame_brings_its_sound(session: Session, drive: list[np.ndarray], rate: int) -> None:
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, rate).astype(np.float32)
    frames: list[OutputFrame] = []
    with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
        pusher = push_all(stream, drive)
        for piece in np.array_split(sound, 11):
            stream.push_audio(piece, rate)
        stream.finish_audio()
        pusher.join()
        stream.finish()
        frames += stream.frames()
    ends = [round(Fraction(n + 1, FPS) * rate) for n in range(len(drive))]
    assert [f.samples.size for f in frames if f.samples is not None] == list(np.diff([0, *ends]))
    assert {frame.sample_rate_hz for frame in frames} == {rate}
    assert np.array_equal(heard(frames), sound[: ends[-1]])


def test_a_stream_idles_and_speaks_again(
    session: Session, expected: Callable[..., list[np.ndarray]], astronaut: np.ndarray
) -> None:
    torch.set_num_threads(1)
    portrait = moving(astronaut, 1)[0]
    frames: list[OutputFrame] = []
    with session.open_stream(
        Options(steps=1), portrait=portrait, idle="rest", patience_s=0, realtime=False
    ) as stream:
        for turn in range(3):
            stream.push_audio(voice(0.4, 250 + 50 * turn))
            for _ in range(25):
                frame = stream.pull(60)
                assert frame is not None
                frames.append(frame)
        stream.finish()
        frames += stream.frames()
    sound = heard(frames)
    assert all(frame.face for frame in frames)
    assert [frame.time_s for frame in frames] == [Fraction(n, FPS) for n in range(len(frames))]
    for turn in range(3):
        piece = voice(0.4, 250 + 50 * turn)
        assert sound.tobytes().find(piece.tobytes()) % 4 == 0
    assert same(frames, expected([portrait] * len(frames), sound, Options(steps=1)))


def test_idle_frames_are_handed_through(session: Session, astronaut: np.ndarray) -> None:
    portrait = moving(astronaut, 1)[0]
    frames: list[OutputFrame] = []
    with session.open_stream(
        Options(steps=1), portrait=portrait, idle="pass", patience_s=0, realtime=False
    ) as stream:
        for speaks in (False, True, False):
            if speaks:
                stream.flush_audio()  # speech begins with the next frame
                stream.push_audio(voice(0.4))
            for _ in range(25):
                frame = stream.pull(60)
                assert frame is not None
                frames.append(frame)
        stream.finish()
    why = [frame.left_alone for frame in frames]
    start = int(np.flatnonzero(heard(frames))[0]) * FPS // RATE  # a frame or two may be made first
    assert start >= 25
    # The mouth moves from a quarter of a second before the speech to as long after it.
    assert why[: start - 7] == ["idle"] * (start - 7)
    assert why[start : start + 10] == [None] * 10
    assert set(why[start + 17 :]) == {"idle"}
    for frame in frames:
        assert np.array_equal(frame.image, portrait) == (frame.left_alone == "idle")


def test_another_source_is_shown_from_a_frame_on(
    session: Session, expected: Callable[..., list[np.ndarray]], astronaut: np.ndarray
) -> None:
    torch.set_num_threads(1)
    before, after = moving(astronaut, 4)[0], moving(astronaut, 4)[3]
    sound = warble(1.0)
    with session.open_stream(Options(steps=1), portrait=before, in_flight=1) as stream:
        stream.push_audio(sound)
        stream.finish()
        frames = [stream.pull(60) for _ in range(3)]
        stream.set_source(portrait=after)
        frames += list(stream.frames())
        with pytest.raises(StreamError, match="portrait or a loop, not both"):
            stream.set_source(portrait=after, loop="clip.mp4")
        with pytest.raises(StreamError, match="needs portrait= or loop="):
            stream.set_source()
    found = [frame for frame in frames if frame is not None]
    assert [frame.time_s for frame in found] == [Fraction(n, FPS) for n in range(25)]
    first = next(n for n, f in enumerate(found) if not np.array_equal(f.image[:8], before[:8]))
    assert 3 <= first <= 6  # those on their way still come
    shown = [before] * first + [after] * (25 - first)
    assert same(found, expected(shown, sound, Options(steps=1)))


def test_a_loop_plays_forwards_and_backwards(
    session: Session, portrait_clip: Callable[..., Path]
) -> None:
    path = portrait_clip("in.mp4", [Fraction(n, 10) for n in range(4)])
    with session.open_stream(Options(steps=1), loop=path) as stream:
        stream.push_audio(warble(1.0))
        stream.finish()
        frames = list(stream.frames())
    assert [frame.time_s for frame in frames[:4]] == [Fraction(n, 10) for n in range(4)]
    corners = [frame.image[:8, :8] for frame in frames]
    turns = [0, 1, 2, 3, 2, 1, 0, 1, 2, 3]
    for n, same_as in enumerate(turns):
        assert [np.array_equal(corners[n], corners[k]) for k in range(4)].index(True) == same_as
    ends = np.cumsum([frame.samples.size for frame in frames if frame.samples is not None])
    assert list(ends[:-1]) == [round(frame.time_s * RATE) for frame in frames[1:]]


@pytest.mark.parametrize("layout", ["bgr", "yuv420p"])
def test_layouts(session: Session, drive: list[np.ndarray], layout: str, sound: np.ndarray) -> None:
    given = [from_rgb(image, layout) for image in drive[:6]]
    with session.open_stream(Options(steps=1), layout=layout) as stream:
        found = collect(stream, given, [sound])
    plain = [to_rgb(image, layout) for image in given]
    with session.open_stream(Options(steps=1)) as stream:
        wanted = collect(stream, plain, [sound])
    for frame, other in zip(found, wanted, strict=True):
        assert frame.image.shape == given[0].shape
        assert np.array_equal(frame.image, from_rgb(other.image, layout))


def test_pictures_survive_their_layout(astronaut: np.ndarray) -> None:
    image = moving(astronaut, 1)[0]
    assert np.array_equal(to_rgb(from_rgb(image, "bgr"), "bgr"), image)
    back = to_rgb(from_rgb(image, "yuv420p"), "yuv420p").astype(int)
    assert abs(back.mean((0, 1)) - image.mean((0, 1))).max() < 1.5
    grey = np.full((16, 16, 3), 128, np.uint8)
    assert from_rgb(grey, "yuv420p")[0, 0] in (125, 126)  # limited range
    with pytest.raises(StreamError, match="yuv420p, found"):
        to_rgb(image, "yuv420p")


def test_what_cannot_be_asked_for(session: Session, drive: list[np.ndarray]) -> None:
    for arguments, message in [
        ({"idle": "sleep"}, "unknown idle mode 'sleep'; expected wait, rest, pass"),
        ({"layout": "rgba"}, "unknown layout 'rgba'; expected rgb, bgr, yuv420p"),
        ({"patience_s": 1}, "patience_s is for"),
        ({"idle": "rest", "patience_s": -1}, "patience_s must be at least 0"),
        ({"portrait": drive[0], "loop": "x.mp4"}, "not both"),
    ]:
        with pytest.raises(ConfigError, match=message):
            session.open_stream(**arguments)
    stream = session.open_stream()
    with pytest.raises(StreamError, match="takes pushed frames: open one with"):
        stream.set_source(portrait=drive[0])
    stream.close()
    with pytest.raises(StreamError, match="the stream is closed"):
        stream.flush_audio()
    with pytest.raises(StreamError, match="the stream is closed"):
        stream.mark("x")


def test_a_flush_while_a_frame_is_waited_for(session: Session, drive: list[np.ndarray]) -> None:
    """Whoever pulls meanwhile gets each frame once."""
    torch.set_num_threads(1)
    with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
        frames: list[OutputFrame] = []
        puller = threading.Thread(target=lambda: frames.extend(stream.frames()))
        puller.start()
        pusher = push_all(stream, drive)
        for turn in range(6):
            stream.push_audio(voice(0.5, 200 + 40 * turn))
            stream.flush_audio()
        stream.push_audio(warble(1.0))
        pusher.join()
        stream.finish()
        puller.join()
    assert [frame.index for frame in frames] == list(range(len(drive)))
    assert heard(frames).size == len(drive) * RATE // FPS


def test_a_stage_that_fails_is_told_by_a_flush(
    session: Session, drive: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(FrameGenerator, "sample", fail)
    with session.open_stream(Options(steps=1), waiting=len(drive)) as stream:
        stream.push_audio(warble(1.0))
        stream.push_frame(drive[0], 0)
        with pytest.raises(StreamError, match="'denoise' failed at frame 0"):
            stream.pull(60)
        with pytest.raises(StreamError, match="'denoise' failed at frame 0"):
            stream.flush_audio()


def test_asyncio(session: Session, drive: list[np.ndarray]) -> None:
    async def talk() -> list[OutputFrame]:
        opened = session.open_stream(Options(steps=1), portrait=drive[0], idle="rest", patience_s=0)
        async with AsyncStream(opened) as stream:
            await stream.mark("hello")
            await stream.push_audio(voice(2.0))
            frames = [await stream.pull(60) for _ in range(3)]
            assert await stream.flush_audio() == ["hello"]
            await stream.set_source(portrait=drive[5])
            await stream.finish()
            return [f for f in frames if f] + [f async for f in stream.frames()]

    frames = asyncio.run(talk())
    assert frames[3].events[0].kind == "interrupted"


def test_speech_is_dropped_after_all_frames_were_made(
    session: Session, expected: Callable[..., list[np.ndarray]], drive: list[np.ndarray]
) -> None:
    torch.set_num_threads(1)
    trace = Trace()
    with session.open_stream(Options(steps=1), trace=trace) as stream:
        stream.push_audio(warble(1.0))
        for number, image in enumerate(drive[:4]):
            stream.push_frame(image, Fraction(number, FPS))
        stream.finish()
        delivered = lambda: [s for s in trace.spans if s.stage == "deliver"]  # noqa: E731
        assert true_within(60, lambda: len(delivered()) == 4)
        stream.flush_audio()
        frames = list(stream.frames())
    assert same(frames, expected(drive[:4], np.zeros(0, np.float32), Options(steps=1)))
    assert not heard(frames).any()


def test_streams_that_share_a_batch_are_interrupted(
    random_models: TorchGraphs, expected: Callable[..., list[np.ndarray]], drive: list[np.ndarray]
) -> None:
    torch.set_num_threads(1)
    session, first, second = Session(random_models, batch=2), warble(2.0), voice(2.0)
    opened = [session.open_stream(Options(steps=1), waiting=len(drive)) for _ in range(2)]
    pushers = [push_all(stream, drive) for stream in opened]
    found: list[list[OutputFrame]] = [[], []]
    for stream in opened:
        stream.push_audio(first)

    def talk(number: int) -> None:
        stream, frames = opened[number], found[number]
        for _ in range(5 + number):
            frame = stream.pull(60)
            assert frame is not None
            frames.append(frame)
        stream.flush_audio()
        stream.push_audio(second)
        pushers[number].join()
        stream.finish()
        frames.extend(stream.frames())

    talkers = [threading.Thread(target=talk, args=(number,)) for number in range(2)]
    for thread in talkers:
        thread.start()
    for thread in talkers:
        thread.join()
    for number, stream in enumerate(opened):
        stream.close()
        cut = 5 + number
        sound = np.concatenate([first[: cut * RATE // FPS], second])
        wanted = expected(drive, [(0, first), (cut, sound)], Options(steps=1))
        for frame, image in zip(found[number], wanted, strict=True):
            assert alike(frame.image, image), frame.index
