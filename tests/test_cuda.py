"""The runtime on a GPU: equal to the specification there, overlapping, without needless waits."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from streams import collect, warble

from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.schedule.cuda import CudaLanes
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

pytestmark = pytest.mark.gpu

FRAMES = 40


@pytest.fixture(scope="module")
def models() -> TorchGraphs:
    """The shipped model on the GPU."""
    return TorchGraphs.load("tiny", "cuda")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    portrait = np.array(data.astronaut())
    return [portrait[14 + i % 8 : 334 + i % 8, 70:390].copy() for i in range(FRAMES)]


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return warble(FRAMES / 25)


def run(
    models: TorchGraphs,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    options: Options,
    lanes: CudaLanes | None = None,
    came: Callable[[int], object] = lambda count: None,
) -> list[OutputFrame]:
    with Session(models).open_stream(options, lanes=lanes) as stream:
        return collect(stream, pictures, [sound], came)


def test_streams_equal_the_specification(
    models: TorchGraphs, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    options = Options(steps=2, seed=3)
    frames = [(torch.from_numpy(p).cuda(), n / 25) for n, p in enumerate(pictures)]
    wanted = [i.cpu().numpy() for i in revoice(frames, torch.from_numpy(sound), models, options)]
    for replays in (False, True):
        lanes = CudaLanes(torch.device("cuda"), replays)
        found = run(models, pictures, sound, options, lanes)
        for frame, image in zip(found, wanted, strict=True):
            difference = np.abs(frame.image.astype(int) - image)
            assert difference.max() <= 3
            assert difference.mean() < 0.1


def test_nothing_waits_for_the_device(
    models: TorchGraphs, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    def came(count: int) -> None:
        if count == FRAMES // 4:  # by then, buffers are there and graphs are captured
            torch.cuda.set_sync_debug_mode("error")

    try:
        assert len(run(models, pictures, sound, Options(steps=2), came=came)) == FRAMES
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_streams_overlap(
    models: TorchGraphs, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    from torch.profiler import ProfilerActivity, profile

    run(models, pictures, sound, Options(steps=2))
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run(models, pictures, sound, Options(steps=2))
    kernels = sorted(
        (event.time_range.start, event.time_range.end, event.device_resource_id)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    assert len({stream for _, _, stream in kernels}) >= 5
    overlapping = sum(
        later[0] < earlier[1] and later[2] != earlier[2]
        for earlier, later in itertools.pairwise(kernels)
    )
    assert overlapping > FRAMES
