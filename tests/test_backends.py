"""Opening bundles: nothing damaged, stale or of another kind is run."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bundles import cases

from dithead.bundle import manifest as mf
from dithead.errors import BackendUnavailable, ConfigError, ExportError
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.export.folder import claimed
from dithead.runtime.backends import open_graphs
from dithead.runtime.backends.onnxruntime import KEPT_SIZES, OnnxGraphs
from dithead.runtime.doctor import look_at_bundle
from dithead.torchgraphs import TorchGraphs

pytest.importorskip("onnx", reason="exporting needs the extra 'export'")
pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")


@pytest.mark.parametrize("suffix", [".onnx", ".engine"])
def test_a_truncated_file_is_refused(bundle_copy: Path, suffix: str) -> None:
    manifest = mf.read_manifest(bundle_copy)
    file = next((f for f in manifest.files() if f.path.endswith(suffix)), None)
    if file is None:
        pytest.skip("TensorRT-RTX is not installed")
    path = bundle_copy / file.path
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExportError, match=f"{file.path} is damaged: .* bytes"):
        mf.check_file(bundle_copy, file)


def test_a_wrong_hash_is_refused_when_the_graph_is_opened(bundle_copy: Path) -> None:
    file = mf.read_manifest(bundle_copy).graph("noise").onnx[0].file
    path = bundle_copy / file.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ExportError, match=f"{file.path} is damaged: its hash"):
        OnnxGraphs(bundle_copy).run("noise", torch.tensor([1]), torch.tensor([0]))


def test_a_missing_file_is_refused(bundle_copy: Path) -> None:
    file = mf.read_manifest(bundle_copy).graph("noise").onnx[0].file
    (bundle_copy / file.path).unlink()
    with pytest.raises(ExportError, match=f"{file.path} is missing"):
        OnnxGraphs(bundle_copy).run("noise", torch.tensor([1]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema=99), "schema version 99"),
        (lambda v: v.pop("graphs"), "damaged"),
        (lambda v: v["graphs"][0].update(surprise=1), None),
        (lambda v: v["graphs"][0].pop("onnx"), "damaged"),
        (lambda v: v["config"].update(nonsense=1), "does not fit this version"),
    ],
)
def test_a_stale_or_damaged_manifest_is_refused(
    bundle_copy: Path, change: Callable[[dict], object], message: str | None
) -> None:
    path = bundle_copy / mf.MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    if message is None:  # a field of a later version that does not matter here
        OnnxGraphs(bundle_copy)
        return
    with pytest.raises(ExportError, match=message):
        OnnxGraphs(bundle_copy)


@pytest.mark.parametrize(("graph", "state"), [("face_shape", "habit"), ("crop_smoother", "state")])
def test_a_bundle_whose_states_have_another_length_is_refused(
    bundle_copy: Path, graph: str, state: str
) -> None:
    path = bundle_copy / mf.MANIFEST
    values = json.loads(path.read_text())
    port = {"name": state, "dtype": "float32", "shape": [7]}
    values["graphs"].append({**values["graphs"][0], "name": graph, "inputs": [port]})
    path.write_text(json.dumps(values))
    with pytest.raises(ExportError, match=f"'{graph}' of .* another version.* export again"):
        OnnxGraphs(bundle_copy)


def test_a_manifest_that_is_no_json_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / mf.MANIFEST).write_text('{"schema": 1')
    with pytest.raises(ExportError, match=r"damaged.*export again"):
        mf.read_manifest(bundle_copy)


@pytest.mark.parametrize("depth", [100_000, 300])
def test_a_manifest_of_nested_brackets_is_refused(bundle_copy: Path, depth: int) -> None:
    path = bundle_copy / mf.MANIFEST
    values = json.loads(path.read_text())
    nested = "[" * depth + "]" * depth
    text = json.dumps({**values, "targets": "here"}).replace('"here"', nested)
    for damaged in (nested, text):
        path.write_text(damaged)
        with pytest.raises(ExportError, match=r"damaged .nested more than 64 deep.: export again"):
            mf.read_manifest(bundle_copy)
        assert [found.state for found in look_at_bundle(bundle_copy)] == ["unusable"]
        with claimed(bundle_copy):
            pass  # it may be exported again


def test_a_graph_that_the_bundle_lacks_is_named(small_bundle: Path) -> None:
    graphs = OnnxGraphs(small_bundle)
    with pytest.raises(ExportError, match="largest rectangle round a face is 1024"):
        graphs.run("face_crop.2048", torch.zeros(1), torch.zeros(1))
    with pytest.raises(ExportError, match="no graph 'face_decoder'"):
        graphs.run("face_decoder", torch.zeros(1))


def test_wrong_inputs_are_named(small_bundle: Path) -> None:
    graphs = OnnxGraphs(small_bundle)
    from dithead.errors import StreamError

    with pytest.raises(StreamError, match=r"'window': .*for batches export again with --batch"):
        graphs.run("dit_context", torch.zeros(2, *graphs.config.audio.window_shape))
    with pytest.raises(StreamError, match="takes 2 inputs"):
        graphs.run("noise", torch.tensor([1]))
    with pytest.raises(StreamError, match=r"'seed': expected int64 \[1\].*float32"):
        graphs.run("noise", torch.tensor([1.0]), torch.tensor([0]))


def count_opened(graphs: OnnxGraphs, patch: pytest.MonkeyPatch) -> list[int]:
    """How many graphs were opened from now on."""
    opened, opener = [0], graphs._open

    def counted(*arguments: Any) -> Any:
        opened[0] += 1
        return opener(*arguments)

    patch.setattr(graphs, "_open", counted)
    return opened


def test_streams_open_graphs_at_the_same_time(
    small_bundle: Path, random_models: TorchGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = OnnxGraphs(small_bundle, threads=1)
    inputs = list(cases("dit_context", random_models, 1)[0].values())
    (wanted,) = OnnxGraphs(small_bundle, threads=1).run("dit_context", *inputs)
    opened = count_opened(graphs, monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: graphs.run("dit_context", *inputs)[0], range(32)))
    assert all(torch.equal(value, wanted) for value in found)
    assert opened == [1]


def test_back_ends_never_stand_in_for_each_other(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads a bundle"):
        open_graphs("onnxruntime")
    with pytest.raises(ConfigError, match="reads a checkpoint"):
        open_graphs("torch", bundle=small_bundle)
    with pytest.raises(ConfigError, match="unknown back end"):
        open_graphs("openvino")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="runs only on a GPU"):
        open_graphs("tensorrt-rtx", bundle=small_bundle)
    with pytest.raises(ExportError, match="is no bundle"):
        open_graphs("onnxruntime", bundle=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable):
            open_graphs("onnxruntime", bundle=small_bundle, device="cuda")
        with pytest.raises(BackendUnavailable):
            open_graphs("tensorrt-rtx", bundle=small_bundle, device="cuda")


def test_a_bundle_for_the_gpu_alone_does_not_run_on_the_cpu(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    options = ExportOptions(targets=("gpu",), graphs=("noise", "dit_context"))
    export_bundle(str(checkpoint_file), tmp_path / "bundle", options)
    manifest = mf.read_manifest(tmp_path / "bundle")
    assert [f.precision for f in manifest.graph("dit_context").onnx] == ["fp16"]
    with pytest.raises(ExportError, match="made only for gpu"):
        OnnxGraphs(tmp_path / "bundle")


def test_no_arithmetic_on_shapes_is_left_to_run(
    shipped_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnxruntime

    def shape_nodes(path: Path) -> int:
        nodes = onnx.load(str(path), load_external_data=False).graph.node
        return sum(node.op_type in ("Shape", "Size") for node in nodes)

    def saving() -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return options

    graphs = OnnxGraphs(shipped_bundle)
    monkeypatch.setattr(graphs, "_ort", SimpleNamespace(**vars(onnxruntime)))
    monkeypatch.setattr(graphs._ort, "SessionOptions", saving)
    frame = torch.zeros(120, 200, 3, dtype=torch.uint8)
    region = torch.tensor([[100.0, 60.0, 80.0, 80.0, 0.0]])
    between = torch.zeros(1, 3, 64, 96)
    for name, inputs in (
        ("face_detector", (frame,)),
        ("face_region.1", (frame, region)),
        ("interpolator", (between, between, torch.tensor(0.5))),
    ):
        graphs.run(name, *inputs)
        entry = mf.read_manifest(shipped_bundle).graph(name)
        assert shape_nodes(shipped_bundle / entry.onnx[0].file.path) > 0, "nothing to take away"
        assert shape_nodes(tmp_path / "optimised.onnx") == 0, name


def test_a_graph_is_kept_open_for_a_few_sizes_only(shipped_bundle: Path) -> None:
    graphs = OnnxGraphs(shipped_bundle)
    for width in (*range(100, 100 + 2 * KEPT_SIZES), 100):
        (_, scores, _) = graphs.run("face_detector", torch.zeros(90, width, 3, dtype=torch.uint8))
        assert not scores.any()
    gc.collect()
    kept = graphs._sessions.kept("face_detector")
    assert len(kept) == KEPT_SIZES
    assert (("H", 90), ("W", 100)) in kept


def test_callers_of_many_sizes_do_not_close_each_others_graphs(
    shipped_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, callers, rounds = OnnxGraphs(shipped_bundle, threads=1), KEPT_SIZES + 3, 4
    opened, together = count_opened(graphs, monkeypatch), threading.Barrier(callers)

    def call(number: int) -> None:
        frame = torch.zeros(90, 100 + number, 3, dtype=torch.uint8)
        for _ in range(rounds):
            together.wait(60)  # each meets all others between any two frames of its own
            graphs.run("face_detector", frame)

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(call, range(callers)))
    assert opened == [callers]
    gc.collect()
    assert len(graphs._sessions.kept("face_detector")) == KEPT_SIZES  # for whoever comes next


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", None, ""])
def test_a_bundle_has_its_files_in_its_own_folder(bundle_copy: Path, name: str | None) -> None:
    path = bundle_copy / "manifest.json"
    values = json.loads(path.read_text())
    values["graphs"][0]["onnx"][0]["file"]["path"] = name
    path.write_text(json.dumps(values))
    with pytest.raises(ExportError, match="is damaged"):
        mf.read_manifest(bundle_copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("targets", "cpu"),
        ("largest_rectangle", "256"),
        ("precision", None),
        ("checkpoint", None),
        ("config", []),
    ],
)
def test_wrong_types_in_a_manifest_are_named(bundle_copy: Path, key: str, value: object) -> None:
    path = bundle_copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ExportError, match=f"is damaged.*{key}"):
        mf.read_manifest(bundle_copy)
