"""Streams fed by hand: equal to the specification for every way of feeding them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import BLANK, FPS, TIMES, collect, feed, same, threads_of_streams, true_within
from torch import Tensor

from dithead.controls import in_crop
from dithead.errors import ConfigError, StreamError
from dithead.face.mesh import INNER_LOWER
from dithead.generator import FrameGenerator
from dithead.model import DitHead
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.asyncstream import AsyncStream
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.session import Session
from dithead.runtime.speech import Speech
from dithead.runtime.stream import Stream
from dithead.torchgraphs import TorchGraphs


def pieces(sound: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    """The sound in pieces whose sizes go round."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(sound):
            return
        yield sound[start : start + size]
        start += size


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
    # The detail layer remembers the faces before, those that are filled in, too.
    whole = specification(Options(steps=2, seed=3, detail=False))
    half = specification(Options(steps=2, seed=3, generate_every=2, detail=False))
    equal = [np.array_equal(a, b) for a, b in zip(whole, half, strict=True)]
    detailed = specification(Options(steps=2, seed=3))
    for i, (image, source) in enumerate(zip(detailed, pictures, strict=True)):
        assert np.array_equal(image, source) == (i == BLANK)  # nothing is taken for in front of it
    # 0, 2, 4 are generated, 1 and 3 filled in, 5 has no face, 6 and 8 are generated, 7 filled in.
    assert equal == [True, False, True, False, True, True, True, False, True]


@pytest.fixture
def models_with_a_head(random_models: TorchGraphs, pictures: list[np.ndarray]) -> TorchGraphs:
    """The small random model, and a head that sees an open mouth in every latent."""
    config = replace(random_models.config, shape_head=True)
    model = DitHead(config)
    model.load_state_dict(random_models.dithead.state_dict(), strict=False)
    face = FrameGenerator(random_models, Options()).track(torch.from_numpy(pictures[0]), 0.0)
    assert face is not None and model.shape_head is not None
    mesh = in_crop(face.mesh, face.transform)
    mesh[list(INNER_LOWER), 1] += 0.05
    with torch.no_grad():
        model.shape_head.mesh.weight.mul_(0.01)
        model.shape_head.mesh.bias.copy_(mesh.flatten())
    model.eval().requires_grad_(False)
    return TorchGraphs(model, random_models.audio, random_models.faces)


@pytest.mark.parametrize("every", [1, 2])
def test_shapes_come_from_a_head_where_there_is_one(
    models_with_a_head: TorchGraphs,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    every: int,
) -> None:
    options = Options(steps=2, seed=3, generate_every=every)
    asked: list[str] = []
    run = models_with_a_head.run

    def counted(name: str, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(name)
        return run(name, *inputs)

    models_with_a_head.run = counted  # type: ignore[method-assign]
    frames = zip(map(torch.from_numpy, pictures), map(float, TIMES), strict=True)
    wanted = list(revoice(frames, torch.from_numpy(sound), models_with_a_head, options))
    faces = len(TIMES) - 1
    generated = faces if every == 1 else 5
    assert asked.count("shape_head") == asked.count("face_decoder") == generated
    assert asked.count("face_landmarks") < asked.count("face_detector") + 3 * faces
    with Session(models_with_a_head).open_stream(options, in_flight=4) as stream:
        made = collect(stream, pictures, [sound])
    assert same(made, [image.numpy() for image in wanted])
    assert not same(made, specification(options))


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


def test_closing_frees_the_frames_on_their_way_at_once(
    session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Tensor]] = []
    encode = FrameGenerator.encode

    def noted(self: FrameGenerator, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        results = encode(self, *inputs)
        made.extend(weakref.ref(result) for result in results)
        return results

    monkeypatch.setattr(FrameGenerator, "encode", noted)
    gc.disable()  # it knows nothing of a GPU's memory
    try:
        with session.open_stream(Options(steps=1)) as stream:
            stream.push_audio(sound)
            stream.finish_audio()
            for number, image in enumerate(pictures[:4]):
                stream.push_frame(image, Fraction(number, FPS))
            stream.pull(60)
            assert any(tensor() is not None for tensor in made)
        assert [tensor() for tensor in made if tensor() is not None] == []
    finally:
        gc.enable()


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
        with pytest.raises(StreamError, match="takes only sound"):
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
    speech = Speech()
    for piece in np.array_split(sound, 7):
        speech.push(piece, 48000)
    speech.finish()
    assert abs(speech.length_s - Fraction(6, 10)) < Fraction(1, 1000)


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
        arrivals = stream._run._outbox._changed  # nobody else can tell that it waits
        assert true_within(60, lambda: bool(arrivals._waiters))
        stream.reset()
        thread.join(60)
    assert told == ["the stream was reset"]


@pytest.mark.parametrize("frame", [0, 4, 8])
@pytest.mark.parametrize("stage", ["track", "encode", "sample", "decode", "blend", "detail"])
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
    assert time.monotonic() - start < 2
    assert not threads_of_streams()
    for use in (stream.pull, lambda: stream.push_frame(pictures[5], TIMES[5])):
        with pytest.raises(StreamError, match="closed"):
            use()
    dropped = session.open_stream(Options(steps=1))
    del dropped
    assert not threads_of_streams()


@pytest.mark.parametrize(
    "number",
    [np.float32, np.float16, np.float64, np.int64, np.uint8, torch.tensor, Decimal, Fraction],
)
def test_numbers_of_any_type_are_taken(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray, number: Callable[[int], Any]
) -> None:
    with session.open_stream(Options(steps=1), fps=number(25)) as stream:
        stream.push_audio(sound[:300], number(200))
        for time_s in (0, 1):
            assert stream.push_frame(pictures[0], number(time_s), timeout_s=number(5))
        with pytest.raises(StreamError, match="times must increase"):
            stream.push_frame(pictures[0], number(1))
        stream.finish()
        frames = [stream.pull(number(60)) for _ in range(2)]
    found = [frame.time_s for frame in frames if frame is not None]
    assert found == [0, 1]
    assert {type(time_s.numerator) for time_s in found} == {int}


@pytest.mark.parametrize(
    "wrong", [None, "1/2", b"1", 1j, np.nan, float("inf"), np.float32("inf"), np.zeros(2), object()]
)
def test_what_is_no_number_is_refused(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray, wrong: Any
) -> None:
    with pytest.raises(ConfigError, match="expected frames per second, found"):
        session.open_stream(fps=wrong)
    with session.open_stream() as stream:
        with pytest.raises(StreamError, match="expected a time in seconds, found"):
            stream.push_frame(pictures[0], wrong)
        with pytest.raises(StreamError, match="expected a time in seconds, found"):
            asyncio.run(AsyncStream(stream).push_frame(pictures[0], wrong))
        with pytest.raises(StreamError, match="expected a sample rate in Hz"):
            stream.push_audio(sound, wrong)
        if wrong is not None:
            with pytest.raises(StreamError, match="expected a timeout in seconds or None"):
                stream.pull(wrong)


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
