"""CUDA lanes, with their streams, events and graphs, on the emulated device."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda
from emulated_tensor import set_device
from torch import Tensor

from dithead.errors import StreamError
from dithead.pipeline import FrameGenerator, Models, Options, revoice
from dithead.runtime.lanes import cuda
from dithead.runtime.lanes.cuda import CudaLane, CudaLanes
from dithead.runtime.pushed import OutputFrame
from dithead.runtime.session import Session, Stream

FRAMES = 12  # the detector looks again after ten
DEVICE = torch.device("cuda")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedCuda]:
    """The emulated device, for this thread and those of streams."""
    emulated = EmulatedCuda()
    emulated.replace_cuda(monkeypatch)
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with emulated.active(), torch.inference_mode():
        yield emulated
    torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
    set_device(None)


@pytest.fixture
def models(device: EmulatedCuda, random_models: Models) -> Models:
    """The small model on the device, every graph of it."""
    given = random_models
    parts = (given.dithead, given.audio, given.detector, given.mesh)
    return Models(*(copy.deepcopy(part).to(DEVICE) for part in parts))


@pytest.fixture
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    return [astronaut[14 + i : 174 + i, 120:280].copy() for i in range(FRAMES)]


@pytest.fixture
def sound() -> np.ndarray:
    time_s = np.arange(round(FRAMES / 25 * 16000)) / 16000
    return (0.3 * np.sin(2 * np.pi * (220 + 90 * np.sin(7 * time_s)) * time_s)).astype(np.float32)


def feed(stream: Stream, pictures: list[np.ndarray], sound: np.ndarray) -> None:
    """Push everything, from a thread of its own."""

    def push() -> None:
        with contextlib.suppress(StreamError):  # the stream was closed, or has failed
            stream.push_audio(sound)
            for number, image in enumerate(pictures):
                stream.push_frame(image, Fraction(number, 25))
            stream.finish()

    threading.Thread(target=push).start()


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
    device: EmulatedCuda,
    models: Models,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    options: Options,
    arguments: dict[str, Any],
    replays: bool,
) -> None:
    frames = [(torch.from_numpy(p).to(DEVICE), n / 25) for n, p in enumerate(pictures)]
    wanted = [
        image.cpu().numpy() for image in revoice(frames, torch.from_numpy(sound), models, options)
    ]
    first = Session(models).open_stream(options, lanes=CudaLanes(DEVICE, replays), **arguments)
    with first as stream:
        feed(stream, pictures, sound)
        found = []
        for frame in stream.frames():
            if len(found) == 2:  # buffers are there, and graphs are captured
                device.waits.clear()
            found.append(frame)
            assert frame.face
    assert device.waits == []
    assert device.races() == []
    assert (device.replays > 0) == replays
    for image, other in zip(images(found), wanted, strict=True):
        if arguments.get("batch"):  # sums in another order
            assert np.abs(image.astype(int) - other).max() <= 1
        else:
            np.testing.assert_array_equal(image, other)


def test_streams_that_share_a_batch(
    device: EmulatedCuda, models: Models, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    session = Session(models, batch=4, batch_wait_s=0.5)
    with session.open_stream(Options(steps=1)) as a, session.open_stream(Options(steps=1)) as b:
        feed(a, pictures, sound)
        feed(b, pictures, sound)
        for one, other in zip(a.frames(), b.frames(), strict=True):
            np.testing.assert_array_equal(one.image, other.image)
    assert device.races() == []


def test_a_stream_that_is_closed_early_frees_nothing_in_use(
    device: EmulatedCuda, models: Models, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    for pulled in (0, 2):
        stream = Session(models).open_stream(Options(steps=1))
        feed(stream, pictures, sound)
        for _ in range(pulled):
            stream.pull()
        stream.close()
        del stream
        gc.collect()
    assert device.races() == []


@pytest.mark.parametrize(
    ("owner", "name", "stand_in"),
    [
        (CudaLane, "wait", lambda lane, event: None),
        (CudaLane, "drain", lambda lane: None),
        (cuda, "_until_reached", lambda event: None),
    ],
)
def test_a_forgotten_event_is_a_race(
    device: EmulatedCuda,
    models: Models,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    stand_in: Callable[..., None],
) -> None:
    monkeypatch.setattr(owner, name, stand_in)
    stream = Session(models).open_stream(Options(steps=1))
    feed(stream, pictures, sound)
    for _ in range(FRAMES // 2):
        stream.pull()
    stream.close()
    del stream
    gc.collect()
    assert device.races() != []


def test_a_number_read_back_is_a_wait(
    device: EmulatedCuda,
    models: Models,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = FrameGenerator.begin

    def peek(generator: FrameGenerator, crop: Tensor, index: int, fresh: bool) -> Any:
        if index == FRAMES - 1:
            device.waits.clear()
            assert float(crop.mean()) < 1
        return begin(generator, crop, index, fresh)

    monkeypatch.setattr(FrameGenerator, "begin", peek)
    with Session(models).open_stream(Options(steps=1)) as stream:
        feed(stream, pictures, sound)
        assert len(list(stream.frames())) == FRAMES
    assert device.waits == ["aten._local_scalar_dense.default"]


def test_a_copy_from_the_host_is_not_captured(
    device: EmulatedCuda,
    models: Models,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        FrameGenerator, "decode", lambda _, x: x + torch.tensor([1.0], device=DEVICE)
    )
    with Session(models).open_stream(Options(steps=1)) as stream:
        feed(stream, pictures, sound)
        with pytest.raises(StreamError, match=r"'decode face' failed at frame 0: .*captured"):
            list(stream.frames())


def test_a_graph_keeps_what_the_host_said_at_capture(device: EmulatedCuda) -> None:
    lane, factor = CudaLane("lane", DEVICE, host=False, replays=True), [2.0]
    with lane.active():
        ones = torch.ones(3, device=DEVICE)
        results = []
        for factor[0] in (2.0, 3.0):
            results.append(lane.replay("key", lambda x: factor[0] * x, ones + 1).clone())
    assert [lane.read(result).tolist() for result in results] == [[4.0] * 3, [4.0] * 3]


def test_graphs_are_captured_one_at_a_time(
    device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(x: Tensor) -> Tensor:
        time.sleep(0.005)
        return x + 1

    def capture_in_two_threads() -> list[Exception]:
        failed: list[Exception] = []
        both = threading.Barrier(2)

        def capture() -> None:
            lane = CudaLane("lane", DEVICE, host=False, replays=True)
            with device.active(), lane.active():
                try:
                    x = torch.ones(3, device=DEVICE)
                    both.wait()
                    for key in range(5):
                        lane.replay(key, slow, x)
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


def test_memory_that_another_stream_still_uses_is_not_freed_unnoticed(device: EmulatedCuda) -> None:
    a, b = (CudaLane(name, DEVICE, host=False, replays=False) for name in "ab")
    with a.active():
        value = torch.ones(3, device=DEVICE)
    b.wait(a.record())
    with b.active():
        doubled = value * 2
    assert device.races() == []
    del value
    assert len(device.races()) == 1
    assert doubled.tolist() == [2.0] * 3
