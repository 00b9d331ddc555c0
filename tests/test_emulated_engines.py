"""Bundles on the emulated device: engines in TensorRT, graphs in ONNX Runtime's CUDA provider."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import needs_rtx
from emulated_cuda import EmulatedCuda
from emulated_engines import Engine, emulate_onnxruntime, emulate_tensorrt
from streams import alike, collect, moving, warble
from torch import Tensor

from dithead.bundle import manifest as mf
from dithead.errors import ExportError, StreamError
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.export.verify import verify_bundle
from dithead.options import Options
from dithead.runtime.backends import RuntimeGraphs
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.runtime.backends.tensorrt import EngineGraphs
from dithead.runtime.schedule.batch import Batcher
from dithead.runtime.schedule.devicelanes import make_lanes
from dithead.runtime.session import Session

pytest.importorskip("onnx", reason="exporting needs the extra 'export'")
pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")

FRAMES = 8


@pytest.fixture
def pictures(astronaut: np.ndarray) -> list[np.ndarray]:
    return moving(astronaut, FRAMES)


def images(
    graphs: RuntimeGraphs, pictures: list[np.ndarray], emulated: EmulatedCuda | None = None
) -> list[np.ndarray]:
    """What a stream makes of the pictures."""
    options = Options(steps=2, generate_every=2)
    with Session(graphs).open_stream(options, interpolate=2) as stream:

        def came(count: int) -> None:
            if count == 4 and emulated is not None:
                emulated.waits.clear()

        frames = collect(stream, pictures, [warble(FRAMES / 25)], came)
    assert len(frames) == 2 * FRAMES - 1
    return [frame.image for frame in frames]


@pytest.fixture
def on_the_cpu(shipped_bundle: Path, pictures: list[np.ndarray]) -> list[np.ndarray]:
    return images(OnnxGraphs(shipped_bundle), pictures)


@needs_rtx
def test_engines_make_the_frames_of_their_graphs(
    shipped_bundle: Path,
    on_the_cpu: list[np.ndarray],
    emulated_cuda: EmulatedCuda,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulate_tensorrt(monkeypatch, emulated_cuda, shipped_bundle)
    graphs = EngineGraphs(shipped_bundle, "cuda", "tensorrt-rtx")
    graphs.preload()
    found = images(graphs, pictures, emulated_cuda)
    for image, other in zip(found, on_the_cpu, strict=True):
        assert alike(image, other)
    assert emulated_cuda.waits == []
    assert emulated_cuda.races() == []
    assert emulated_cuda.replays > FRAMES


@needs_rtx
def test_a_speaker_that_leaves_takes_no_engine_from_the_others(
    shipped_bundle: Path,
    emulated_cuda: EmulatedCuda,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulate_tensorrt(monkeypatch, emulated_cuda, shipped_bundle)
    session = Session(EngineGraphs(shipped_bundle, "cuda", "tensorrt-rtx"), batch=1)
    session._batcher = Batcher(make_lanes(session.graphs.device, True), most=1, wait_s=0.0)
    options, sound = Options(steps=1), [warble(FRAMES / 25)]
    with session.open_stream(options) as stays:
        with session.open_stream(options) as leaves:
            assert len(collect(leaves, pictures[:2], sound)) == 2
        del leaves
        gc.collect()
        assert len(collect(stays, pictures, sound)) == FRAMES
    assert emulated_cuda.races() == []


def test_onnxruntime_on_cuda_makes_the_frames_of_the_cpu(
    shipped_bundle: Path,
    on_the_cpu: list[np.ndarray],
    emulated_cuda: EmulatedCuda,
    pictures: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulate_onnxruntime(monkeypatch, emulated_cuda)
    found = images(OnnxGraphs(shipped_bundle, "cuda"), pictures)
    for image, other in zip(found, on_the_cpu, strict=True):
        assert np.abs(image.astype(int) - other).mean() < 0.5
    assert emulated_cuda.races() == []
    assert emulated_cuda.replays == 0


@needs_rtx
def test_every_engine_is_verified(
    shipped_bundle: Path,
    emulated_cuda: EmulatedCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = Path(shutil.copytree(shipped_bundle, tmp_path / "bundle"))
    emulate_tensorrt(monkeypatch, emulated_cuda, bundle)
    engines = [e for entry in mf.read_manifest(bundle).graphs for e in entry.engines]
    assert engines and not any(engine.executed for engine in engines)
    errors = verify_bundle(bundle)
    assert max(errors.values()) < 1e-6
    entries = mf.read_manifest(bundle).graphs
    assert all(engine.executed for entry in entries for engine in entry.engines)
    assert {entry.name for entry in entries if entry.engines} == set(errors)

    compute = Engine.compute

    def wrong(engine: Engine, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = compute(engine, *inputs)
        return tuple(1.5 * x for x in found) if "noisy" in engine.inputs else found

    monkeypatch.setattr(Engine, "compute", wrong)
    with pytest.raises(ExportError, match=r"graph 'dit_step': its engine is off by .* relative"):
        verify_bundle(bundle)


@pytest.fixture
def shared_bundle(checkpoint_file: Path, tmp_path: Path) -> Path:
    """A graph for one stream and for two."""
    options = ExportOptions(graphs=("dit_context",), flavour="tensorrt-rtx", batches=(1, 2))
    export_bundle(str(checkpoint_file), tmp_path / "bundle", options)
    return tmp_path / "bundle"


@needs_rtx
def test_a_batch_takes_the_engine_built_for_it(
    shared_bundle: Path, emulated_cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, on_cpu = shared_bundle, OnnxGraphs(shared_bundle)
    windows = torch.randn(3, *on_cpu.config.audio.window_shape)
    emulate_tensorrt(monkeypatch, emulated_cuda, bundle)
    graphs = EngineGraphs(bundle, "cuda", "tensorrt-rtx")
    for rows in (1, 2):
        (wanted,) = on_cpu.run("dit_context", windows[:rows])
        (found,) = graphs.run("dit_context", windows[:rows].to("cuda"))
        torch.testing.assert_close(found.cpu(), wanted)
    with pytest.raises(ExportError, match=r"for 1,2 streams at once, not for 3.*--batch 1,2,3"):
        graphs.run("dit_context", windows.to("cuda"))
    with pytest.raises(StreamError, match="on cuda:0, found float32"):
        graphs.run("dit_context", windows[:1])


@needs_rtx
def test_an_engine_that_does_not_open_says_what_to_do(
    small_bundle: Path, emulated_cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulate_tensorrt(monkeypatch, emulated_cuda, small_bundle)
    graphs = EngineGraphs(small_bundle, "cuda", "tensorrt-rtx")
    monkeypatch.setattr(graphs._engines._runtime, "deserialize_cuda_engine", lambda data: None)
    window = torch.zeros(1, *graphs.config.audio.window_shape, device="cuda")
    with pytest.raises(
        ExportError,
        match=r"does not open on this GPU \(compute capability 9\.0; built for portable\): export",
    ):
        graphs.run("dit_context", window)
