"""CUDA lanes, with their streams, events and graphs, on the emulated device."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda
from exactness import enlarge_blocks
from races import Entry, races
from streams import alike, collect, moving, rows_denoised, start_feeding, warble
from torch import Tensor

from dithead.errors import StreamError
from dithead.generator import FrameGenerator
from dithead.kernels import choice
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.schedule import cuda
from dithead.runtime.schedule.cuda import CudaLane, CudaLanes
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

FRAMES = 12  # the detector looks again after ten
DEVICE = torch.device("cuda")


@pytest.fixture
def models(emulated_cuda: EmulatedCuda, random_models: TorchGraphs) -> TorchGraphs:
    """The small model on the device, every graph of it."""
    given = random_models
    dithead, audio, faces = copy.deepcopy((given.dithead, given.audio, given.faces))
    return TorchGraphs(dithead.to(DEVICE), audio.to(DEVICE), faces.to(DEVICE))


@pytest.fixture
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    return moving(astronaut, FRAMES)


@pytest.fixture
def sound() -> list[np.ndarray]:
    return [warble(FRAMES / 25)]


def specified(
    models: TorchGraphs, pictures: list[np.ndarray], sound: list[np.ndarray], options: Options
) -> list[np.ndarray]:
    """What dithead.pipeline makes of them, on the device."""
    frames = [(torch.from_numpy(p).to(DEVICE), n / 25) for n, p in enumerate(pictures)]
    made = revoice(frames, torch.from_numpy(sound[0]), models, options)
    return [image.cpu().numpy() for image in made]


def images(frames: list[OutputFrame]) -> list[np.ndarray]:
    return [frame.image for frame in frames if not frame.between]


@pytest.mark.parametrize(
    ("options", "arguments", "replays"),
    [
        (Options(steps=2), {}, True),
        (Options(steps=2), {"in_flight": 1}, False),
        (Options(steps=2, reference="previous"), {"interpolate": 2}, True),
        (Options(steps=1, generate_every=2), {}, True),
        (Options(steps=1), {"batch": 3}, True),
    ],
)
def test_streams_equal_the_specification_without_races_or_waits(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    options: Options,
    arguments: dict[str, Any],
    replays: bool,
) -> None:
    wanted = specified(models, pictures, sound, options)
    first = Session(models).open_stream(options, lanes=CudaLanes(DEVICE, replays), **arguments)
    with first as stream:

        def came(count: int) -> None:
            if count == 2:  # buffers are there, and graphs are captured
                emulated_cuda.waits.clear()

        found = collect(stream, pictures, sound, came)
    assert all(frame.face for frame in found)
    assert emulated_cuda.waits == []
    assert emulated_cuda.races() == []
    assert (emulated_cuda.replays > 0) == replays
    for image, other in zip(images(found), wanted, strict=True):
        assert alike(image, other) if arguments.get("batch") else np.array_equal(image, other)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels need Triton's interpreter here")
def test_the_kernels_are_captured_and_replayed(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream through the Triton kernels, as operations in CUDA graphs."""
    enlarge_blocks(monkeypatch)
    pictures, options = pictures[:3], Options(steps=2)
    made = {}
    for kind in ("reference", "triton"):
        monkeypatch.setenv(choice.VARIABLE, kind)
        made[kind] = specified(models, pictures, sound, options)
    with Session(models).open_stream(options, lanes=CudaLanes(DEVICE, True)) as stream:
        found = images(collect(stream, pictures, sound))
    assert emulated_cuda.races() == []
    assert emulated_cuda.replays > 0
    replayed = {call[0] for graph in emulated_cuda.captured for call in graph.calls}
    ours = {str(call).split(".")[1] for call in replayed if str(call).startswith("dithead.")}
    assert ours == {
        "attention", "audio_attention", "modulated_layer_norm", "added_layer_norm", "ddim_step",
        "group_norm_silu", "composite",
    }  # fmt: skip
    for image, same, other in zip(found, made["triton"], made["reference"], strict=True):
        assert np.array_equal(image, same)
        assert alike(image, other)


def test_dropped_speech_is_undone_without_races(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
) -> None:
    found: list[np.ndarray] = []
    with Session(models).open_stream(Options(steps=1), waiting=FRAMES) as stream:
        for number, image in enumerate(pictures):
            stream.push_frame(image, number / 25)
        for turn in range(2):
            stream.push_audio(np.zeros(32_000, np.float32))
            for _ in range(2 * turn):
                assert stream.pull(60) is not None
            stream.flush_audio()
        stream.push_audio(sound[0])
        stream.finish()
        found = [frame.image for frame in stream.frames()]
    assert len(found) == FRAMES - 2
    assert emulated_cuda.races() == []


def test_streams_that_share_a_batch(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session, rows = Session(models, batch=4, batch_wait_s=0.5), rows_denoised(monkeypatch)
    with session.open_stream(Options(steps=1)) as a, session.open_stream(Options(steps=1)) as b:
        start_feeding(a, pictures, sound)
        start_feeding(b, pictures, sound)
        for one, other in zip(a.frames(), b.frames(), strict=True):
            assert alike(one.image, other.image)
    assert max(rows) == 2
    assert emulated_cuda.races() == []


def close_early(
    models: TorchGraphs, pictures: list[np.ndarray], sound: list[np.ndarray], pulled: int
) -> None:
    """Close a stream after so many frames, and let go of all that it held."""
    with Session(models).open_stream(Options(steps=1)) as stream:
        start_feeding(stream, pictures, sound)
        for _ in range(pulled):
            stream.pull()
    del stream
    gc.collect()


def test_a_stream_that_is_closed_early_frees_nothing_in_use(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
) -> None:
    for pulled in (0, 2):
        close_early(models, pictures, sound, pulled)
    assert emulated_cuda.races() == []


@pytest.mark.parametrize(
    ("owner", "name", "stand_in"),
    [
        (CudaLane, "wait", lambda lane, event: None),
        (CudaLane, "drain", lambda lane: None),
        (cuda, "_until_reached", lambda event: None),
    ],
)
def test_a_forgotten_event_is_a_race(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    stand_in: Callable[..., None],
) -> None:
    monkeypatch.setattr(owner, name, stand_in)
    close_early(models, pictures, sound, pulled=FRAMES // 2)
    assert emulated_cuda.races() != []


@pytest.mark.parametrize("interpolate", [1, 2])
def test_no_wait_can_be_left_out(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    interpolate: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[tuple[str, str]] = []
    wait = CudaLane.wait

    def noted(lane: CudaLane, event: Any) -> None:
        if event is not None:
            waits.append((lane.name, event.name))
        wait(lane, event)

    monkeypatch.setattr(CudaLane, "wait", noted)
    with Session(models).open_stream(
        Options(steps=1), in_flight=2, waiting=4, interpolate=interpolate
    ) as stream:
        for part in sound:
            stream.push_audio(part)
        stream.finish_audio()
        for number, picture in enumerate(pictures[:4]):
            stream.push_frame(picture, Fraction(number, 25))
        # Until all have come no stage ends: its lane is drained then, which orders what it did.
        frames = [stream.pull(60) for _ in range(4 * interpolate - (interpolate == 2))]
        stream.finish()
        assert None not in frames
        assert stream.pull(60) is None
    assert emulated_cuda.races() == []
    # A host lane's work is done when it returns: nobody waits for the composite.
    assert len(waits) == 4 * (8 + (interpolate == 2))
    needless = [lane for lane, event in waits if not emulated_cuda.races(without=event)]
    assert needless == ["deliver"] * (interpolate == 2)  # before the first, nothing is between


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


def test_a_number_read_back_is_a_wait(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = FrameGenerator.begin

    def peek(generator: FrameGenerator, crop: Tensor, index: int, *how: Any) -> Any:
        if index == FRAMES - 1:
            emulated_cuda.waits.clear()
            assert float(crop.mean()) < 1
        return begin(generator, crop, index, *how)

    monkeypatch.setattr(FrameGenerator, "begin", peek)
    with Session(models).open_stream(Options(steps=1)) as stream:
        assert len(collect(stream, pictures, sound)) == FRAMES
    assert emulated_cuda.waits == ["aten._local_scalar_dense.default"]


def test_a_copy_from_the_host_is_not_captured(
    emulated_cuda: EmulatedCuda,
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        FrameGenerator, "decode", lambda _, x: x + torch.tensor([1.0], device=DEVICE)
    )
    with (
        Session(models).open_stream(Options(steps=1)) as stream,
        pytest.raises(StreamError, match=r"'decode face' failed at frame 0: .*captured"),
    ):
        collect(stream, pictures, sound)


def test_a_graph_keeps_what_the_host_said_at_capture(emulated_cuda: EmulatedCuda) -> None:
    lane, factor = CudaLane("lane", DEVICE, host=False, replays=True), [2.0]

    def scaled(x: Tensor) -> Tensor:
        return factor[0] * x

    with lane.active():
        ones = torch.ones(3, device=DEVICE)
        results = []
        for factor[0] in (2.0, 3.0):
            results.append(lane.replay(scaled, ones + 1))
    assert [lane.read(result).tolist() for result in results] == [[4.0] * 3, [4.0] * 3]


def test_graphs_are_captured_one_at_a_time(
    emulated_cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(x: Tensor, key: int) -> Tensor:
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(1)  # where both capture at a time, one of them is refused
        return x + 1

    both, met = threading.Barrier(2), threading.Barrier(2)

    def capture_in_two_threads() -> list[Exception]:
        failed: list[Exception] = []
        both.reset()
        met.reset()

        def capture() -> None:
            lane = CudaLane("lane", DEVICE, host=False, replays=True)
            with emulated_cuda.active(), lane.active():
                try:
                    x = torch.ones(3, device=DEVICE)
                    both.wait()
                    for key in range(5):
                        lane.replay(slow, x, key=key)
                except Exception as error:
                    failed.append(error)

        threads = [threading.Thread(target=capture) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failed

    assert capture_in_two_threads() == []
    monkeypatch.setattr(cuda, "_capturing", contextlib.nullcontext())
    assert capture_in_two_threads() != []


def test_a_lane_has_a_stream_for_itself_and_gives_it_back(emulated_cuda: EmulatedCuda) -> None:
    lanes = CudaLanes(DEVICE, replays=True)
    held = [lanes.lane("denoise") for _ in range(40)]
    streams = {lane._stream for lane in held}
    assert len(streams) == 40
    held.clear()
    assert lanes.lane("denoise")._stream in streams
    assert lanes.lane("blend")._stream not in streams
    assert lanes.lane("host", host=True)._stream is None


def test_what_fails_while_it_is_captured_is_told(emulated_cuda: EmulatedCuda) -> None:
    lane, runs = CudaLane("lane", DEVICE, host=False, replays=True), []

    def work(x: Tensor) -> Tensor:
        runs.append(x)
        if len(runs) == 4:  # after the warm-up
            raise ValueError("no such thing")
        return x + 1

    with lane.active():
        with pytest.raises(ValueError, match="no such thing"):
            lane.replay(work, torch.ones(3, device=DEVICE))
        assert lane.replay(work, torch.ones(3, device=DEVICE)).tolist() == [2.0] * 3


def test_memory_that_another_stream_still_uses_is_not_freed_unnoticed(
    emulated_cuda: EmulatedCuda,
) -> None:
    a, b = (CudaLane(name, DEVICE, host=False, replays=False) for name in "ab")
    with a.active():
        value = torch.ones(3, device=DEVICE)
    b.wait(a.record())
    with b.active():
        doubled = value * 2
    assert emulated_cuda.races() == []
    del value
    assert len(emulated_cuda.races()) == 1
    assert doubled.tolist() == [2.0] * 3
