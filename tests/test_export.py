"""Exporting: every file equal to PyTorch, nothing built twice, planted faults caught by name."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dithead import checkpoint
from dithead.errors import BackendUnavailable, CheckpointError, ConfigError, ExportError
from dithead.export import cli, tensorrt
from dithead.export import manifest as mf
from dithead.export.bundle import ExportOptions, export_bundle, hash_weights
from dithead.export.graphs import GraphSpec, example_inputs, graph_specs, select
from dithead.export.onnx import check_names, export_onnx
from dithead.export.precision import reduce_precision
from dithead.export.validate import (
    TOLERANCES,
    Recorder,
    layer_outputs,
    onnx_session,
    relative_error,
    run_torch,
    to_arrays,
    validate,
    validate_precision,
)
from dithead.pipeline import Models, Options, revoice
from dithead.runtime.backends import open_graphs
from dithead.runtime.backends.onnxruntime import OnnxGraphs

pytest.importorskip("onnx", reason="exporting needs the extra 'export'")
pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")

SMALL = ("dit_step", "dit_context", "noise")
HAS_RTX = tensorrt.installed_flavour() == "tensorrt-rtx"
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed")


def spec_of(name: str) -> GraphSpec:
    return select(graph_specs(128), [name])[0]


def cases(name: str, models: Models, count: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [example_inputs(spec_of(name), models.config, generator) for _ in range(count)]


@pytest.fixture(scope="module")
def checkpoint_file(random_models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random model as a file."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    model = random_models.dithead
    checkpoint.save(path, model.state_dict(), model.config.to_dict())
    return path


@pytest.fixture(scope="module")
def small_bundle(checkpoint_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three graphs of the small random model."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    flavour = "tensorrt-rtx" if HAS_RTX else None
    export_bundle(str(checkpoint_file), folder, ExportOptions(graphs=SMALL, flavour=flavour))
    return folder


@pytest.fixture
def bundle_copy(small_bundle: Path, tmp_path: Path) -> Path:
    """That bundle, to be damaged."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def shipped_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint as a whole bundle; DITHEAD_BUNDLE names one made before."""
    if made := os.environ.get("DITHEAD_BUNDLE"):
        return Path(made)
    folder = tmp_path_factory.mktemp("shipped") / "bundle"
    arguments = ["--fp16", "--largest-rectangle", "256", "-o", str(folder), "--quiet"]
    assert cli.main(arguments) == 0
    return folder


# The shipped checkpoint, whole.


def test_shipped_bundle_is_whole(shipped_bundle: Path) -> None:
    manifest = mf.read_manifest(shipped_bundle)
    specs = graph_specs(manifest.largest_rectangle)
    assert [entry.name for entry in manifest.graphs] == [spec.name for spec in specs]
    for file in manifest.files():
        mf.check_file(shipped_bundle, file)
    named = {file.path for file in manifest.files()}
    found = {p.name for p in shipped_bundle.iterdir() if p.suffix in (".onnx", ".engine")}
    assert found == {name for name in named if not name.endswith(".data")}
    for spec, entry in zip(specs, manifest.graphs, strict=True):
        assert entry.engine == spec.engine
        precisions = [file.precision for file in entry.onnx]
        assert precisions == (["fp32", "fp16"] if spec.reduced else ["fp32"])
        assert all(file.error <= file.tolerance for file in entry.onnx)
        if HAS_RTX:
            assert len(entry.engines) == int(spec.engine), spec.name


def test_every_shipped_file_runs_and_equals_pytorch(shipped_bundle: Path) -> None:
    manifest = mf.read_manifest(shipped_bundle)
    models = Models.load("tiny")
    generator = torch.Generator().manual_seed(77)  # not the inputs it was validated on
    worst: dict[str, float] = {}
    for spec in graph_specs(manifest.largest_rectangle):
        entry = manifest.graph(spec.name)
        inputs = example_inputs(spec, models.config, generator)
        expected = run_torch(models.module(spec.name), spec, inputs)
        for file in entry.onnx:
            session = onnx_session(shipped_bundle / file.file.path)
            assert [v.name for v in session.get_inputs()] == [p.name for p in entry.inputs]
            assert [v.name for v in session.get_outputs()] == [p.name for p in entry.outputs]
            found = session.run(list(spec.outputs), to_arrays(inputs))
            for name, value in zip(spec.outputs, found, strict=True):
                error = relative_error(value, expected[name])
                worst[file.precision] = max(worst.get(file.precision, 0.0), error)
                assert error <= TOLERANCES[file.precision], (spec.name, file.precision, name)
    assert worst["fp32"] < worst["fp16"], "fp16 must really be another precision"


@needs_rtx
def test_every_shipped_engine_has_the_signature_of_its_graph(shipped_bundle: Path) -> None:
    manifest = mf.read_manifest(shipped_bundle)
    engines = 0
    for entry in manifest.graphs:
        for engine in entry.engines:
            engines += 1
            for ports, recorded in (
                (entry.inputs, engine.inputs),
                (entry.outputs, engine.outputs),
            ):
                by_name = {port.name: port for port in recorded}
                assert set(by_name) == {port.name for port in ports}
                for port in ports:
                    assert by_name[port.name].dtype == port.dtype
                    for n, m in zip(by_name[port.name].shape, port.shape, strict=True):
                        assert n in (m, "?")
            assert engine.file.bytes > 10_000
            assert mf.hash_file(shipped_bundle / engine.file.path) == engine.file.sha256
            assert engine.executed is torch.cuda.is_available() or not engine.executed
    assert engines == sum(spec.engine for spec in graph_specs(manifest.largest_rectangle))


def test_streaming_from_the_shipped_bundle_equals_pytorch(
    shipped_bundle: Path, astronaut: np.ndarray
) -> None:
    picture = torch.from_numpy(astronaut[20:260, 104:344].copy())
    frames = [(picture.roll(i, 1), i / 25) for i in range(6)]
    sound = 0.2 * torch.randn(16000)
    options = Options(steps=2, reference="previous")
    expected = list(revoice(iter(frames), sound, Models.load("tiny"), options))
    found = list(revoice(iter(frames), sound, OnnxGraphs(shipped_bundle), options))
    for a, b in zip(expected, found, strict=True):
        difference = (a.int() - b.int()).abs()
        assert difference.max() <= 2  # levels of 255, after six frames fed back
        assert difference.float().mean() < 0.02
    assert (expected[0] != frames[0][0]).any()


# Doing again only what changed.


def test_a_second_export_builds_nothing(checkpoint_file: Path, bundle_copy: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in bundle_copy.iterdir()}
    flavour = "tensorrt-rtx" if HAS_RTX else None
    options = ExportOptions(graphs=SMALL, flavour=flavour)
    report = export_bundle(str(checkpoint_file), bundle_copy, options)
    assert report.built == []
    assert report.kept == 5 + 2 * HAS_RTX
    assert {p.name: p.stat().st_mtime_ns for p in bundle_copy.iterdir()} == before


@pytest.fixture
def changed_file(random_models: Models, tmp_path: Path) -> Path:
    """The small random model with one weight of the denoiser changed."""
    tensors = {k: v.clone() for k, v in random_models.dithead.state_dict().items()}
    tensors["dit.patch_out.bias"][0] += 0.5
    path = tmp_path / "changed.safetensors"
    checkpoint.save(path, tensors, random_models.config.to_dict())
    return path


def test_one_changed_weight_rebuilds_the_graphs_that_hold_it(
    changed_file: Path, bundle_copy: Path
) -> None:
    report = export_bundle(str(changed_file), bundle_copy, ExportOptions(graphs=SMALL))
    # patch_out is read by the step, not by the context; but both hash the whole denoiser.
    assert {name.partition(".")[0] for name in report.built} == {"dit_step", "dit_context"}
    manifest = mf.read_manifest(bundle_copy)
    assert {p.name for p in bundle_copy.glob("*.onnx")} == {f.path for f in manifest.files()}


def test_weights_are_hashed_by_value_and_name() -> None:
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert hash_weights(a) == hash_weights(b)
    with torch.no_grad():
        b.bias[1] += 1e-6
    assert hash_weights(a) != hash_weights(b)


def test_an_interrupted_export_leaves_the_old_bundle(
    changed_file: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in bundle_copy.iterdir()}

    def interrupt(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("dithead.export.bundle.validate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(str(changed_file), bundle_copy, ExportOptions(graphs=SMALL))
    assert {p.name: p.read_bytes() for p in bundle_copy.iterdir()} == before


def test_a_full_disk_is_one_error_and_leaves_nothing(
    checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dithead.export.bundle.mf.write_manifest", full)
    folder = tmp_path / "bundle"
    with pytest.raises(ExportError, match=r"No space left on device.*MB are free"):
        export_bundle(str(checkpoint_file), folder, ExportOptions(graphs=("noise",)))
    assert list(folder.iterdir()) == []


# Planted faults, caught by name.


def test_an_overflow_in_fp16_is_refused_with_its_layer(random_models: Models) -> None:
    module = copy.deepcopy(random_models.module("dit_step"))
    block = module.dit.blocks[1]  # type: ignore[union-attr,index]
    with torch.no_grad():
        block.mlp_in.weight.mul_(1e4)
        block.mlp_out.weight.mul_(1e4)
    spec, inputs = spec_of("dit_step"), cases("dit_step", random_models)
    reduced = reduce_precision(module, "fp16")
    message = r"'dit_step' is refused.*NaN or infinite.*in layer 'dit\.blocks\.1\.mlp_out'"
    with pytest.raises(ExportError, match=message):
        validate_precision(module, reduced, spec, inputs, TOLERANCES["fp16"])
    sound = random_models.module("dit_step")
    validate_precision(sound, reduce_precision(sound, "fp16"), spec, inputs, TOLERANCES["fp16"])


def test_a_wrong_value_is_refused_with_its_layer(random_models: Models, tmp_path: Path) -> None:
    module = random_models.module("dit_step")
    wrong = copy.deepcopy(module)
    with torch.no_grad():
        wrong.dit.blocks[1].mlp_in.bias.add_(0.3)  # type: ignore[union-attr,index]
    spec, inputs = spec_of("dit_step"), cases("dit_step", random_models)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    export_onnx(module, spec, inputs[0], good)
    export_onnx(wrong, spec, inputs[0], bad)
    assert validate(good, module, spec, inputs, TOLERANCES["fp32"]) < 1e-4
    with pytest.raises(ExportError, match=r"off by .* first in layer 'dit\.blocks\.1\.mlp_in'"):
        validate(bad, module, spec, inputs, TOLERANCES["fp32"], good)


def test_a_renamed_output_is_refused(random_models: Models, tmp_path: Path) -> None:
    import onnx

    spec = spec_of("dit_context")
    path = tmp_path / "dit_context.onnx"
    export_onnx(
        random_models.module("dit_context"), spec, cases("dit_context", random_models)[0], path
    )
    model = onnx.load(str(path))
    old = model.graph.output[0].name
    model.graph.output[0].name = "renamed"
    for node in model.graph.node:
        node.output[:] = ["renamed" if name == old else name for name in node.output]
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match=r"'dit_context': its outputs are \['renamed'\]"):
        check_names(path, spec)


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


def test_a_damaged_bundle_is_mended_by_exporting_again(
    checkpoint_file: Path, bundle_copy: Path
) -> None:
    file = mf.read_manifest(bundle_copy).graph("noise").onnx[0].file
    (bundle_copy / file.path).write_bytes(b"nothing")
    report = export_bundle(str(checkpoint_file), bundle_copy, ExportOptions(graphs=SMALL))
    assert report.built == [file.path]
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


def test_a_manifest_that_is_no_json_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / mf.MANIFEST).write_text('{"schema": 1')
    with pytest.raises(ExportError, match=r"damaged.*export again"):
        mf.read_manifest(bundle_copy)


def test_a_nan_in_the_checkpoint_is_refused(
    random_models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = {k: v.clone() for k, v in random_models.dithead.state_dict().items()}
    tensors["dit.patch_out.bias"][0] = float("nan")
    path = tmp_path / "nan.safetensors"
    checkpoint.save(path, tensors, random_models.config.to_dict())
    with pytest.raises(CheckpointError, match=r"NaN.*dit\.patch_out\.bias"):
        export_bundle(str(path), tmp_path / "bundle", ExportOptions())
    assert cli.main(["--checkpoint", str(path), "-o", str(tmp_path / "bundle")]) == 1
    assert "NaN" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


# Precision and the graphs themselves.


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "name", ["masked_encoder", "audio_encoder", "dit_context", "dit_step", "face_decoder"]
)
def test_reduced_graphs_stay_close(random_models: Models, name: str, precision: str) -> None:
    spec = spec_of(name)
    module = random_models.module(name)
    reduced = reduce_precision(module, precision)  # type: ignore[arg-type]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert any(p.dtype == dtype for p in reduced.parameters())
    assert not any(p.dtype == dtype for p in module.parameters()), "the original must not change"
    for inputs in cases(name, random_models):
        expected, found = (run_torch(m, spec, inputs) for m in (module, reduced))
        for output in spec.outputs:
            assert relative_error(found[output], expected[output]) < TOLERANCES[precision]


def test_float32_is_the_module_itself(random_models: Models) -> None:
    module = random_models.module("dit_step")
    assert reduce_precision(module, "fp32") is module
    with pytest.raises(ConfigError, match="fp32, fp16, bf16"):
        reduce_precision(module, "fp8")  # type: ignore[arg-type]


def test_open_dimensions_take_other_sizes(random_models: Models, tmp_path: Path) -> None:
    spec = spec_of("face_landmarks")
    path = tmp_path / "face_landmarks.onnx"
    first, second, third = cases("face_landmarks", random_models, 3)
    export_onnx(random_models.module("face_landmarks"), spec, first, path)
    assert len({tuple(c["frame"].shape) for c in (first, second, third)}) > 1
    validate(path, random_models.module("face_landmarks"), spec, [second, third], 1e-4)


def test_layers_are_named_as_in_pytorch(random_models: Models, tmp_path: Path) -> None:
    spec, inputs = spec_of("dit_step"), cases("dit_step", random_models)[0]
    path = tmp_path / "dit_step.onnx"
    export_onnx(random_models.module("dit_step"), spec, inputs, path)
    names = list(layer_outputs(path, to_arrays(inputs)))
    assert names.index("dit.blocks.0.qkv") < names.index("dit.blocks.1.qkv")
    assert not path.with_name(".dit_step.layers.onnx").exists()


def test_relative_error_sees_what_matters() -> None:
    ones = np.ones((2, 2), np.float32)
    assert relative_error(ones, ones) == 0
    assert relative_error(ones * 1.01, ones) == pytest.approx(0.01, rel=1e-3)
    assert relative_error(ones * np.nan, ones) == float("inf")
    assert relative_error(ones[:1], ones) == float("inf")
    assert relative_error(ones.astype(np.float64), ones) == float("inf")
    grey = np.full((100,), 7, np.uint8)
    off = grey.copy()
    off[0] = 8
    assert relative_error(off, grey) == pytest.approx(0.01 / 255)
    off[0] = 9
    assert relative_error(off, grey) == pytest.approx(2 / 255)


def test_recorder_keeps_what_graphs_meet(random_models: Models, astronaut: np.ndarray) -> None:
    picture = torch.from_numpy(astronaut[20:260, 104:344].copy())
    recorder = Recorder(random_models, graph_specs(512), keep=2)
    frames = [(picture, i / 25) for i in range(9)]
    plain = list(revoice(iter(frames), torch.zeros(8000), random_models, Options()))
    recorded = list(revoice(iter(frames), torch.zeros(8000), recorder, Options()))
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    assert len(recorder.cases["dit_step"]) == 2
    assert set(recorder.cases["dit_step"][0]) == set(spec_of("dit_step").inputs)


def test_unknown_graphs_and_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="largest rectangle must be one of 64, 128"):
        graph_specs(100)
    with pytest.raises(ConfigError, match="unknown graph 'dit'"):
        select(graph_specs(128), ["dit"])


@needs_rtx
def test_engines_can_be_narrowed_to_one_gpu(random_models: Models, tmp_path: Path) -> None:
    spec = spec_of("dit_context")
    path = tmp_path / "dit_context.onnx"
    export_onnx(
        random_models.module("dit_context"), spec, cases("dit_context", random_models)[0], path
    )
    built = tensorrt.build_engine(path, spec, "tensorrt-rtx", "8.9")
    assert len(built.data) > 1000
    assert [port.name for port in built.inputs] == ["window"]
    with pytest.raises(ConfigError, match=r"unknown compute capability '1.0'.*8\.9"):
        tensorrt.build_engine(path, spec, "tensorrt-rtx", "1.0")


@needs_rtx
def test_what_tensorrt_cannot_parse_is_named(tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"this is no protobuf")
    with pytest.raises(ExportError, match=r"graph 'noise'.*cannot parse noise\.onnx"):
        tensorrt.build_engine(path, spec_of("noise"), "tensorrt-rtx")


def test_a_placeholder_of_tensorrt_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    with pytest.raises(BackendUnavailable, match=r"placeholder.*NVIDIA's own package index"):
        tensorrt.load_flavour("tensorrt")
    with pytest.raises(ConfigError, match="unknown TensorRT flavour"):
        tensorrt.load_flavour("tensorrt-11")  # type: ignore[arg-type]


# Back ends.


def test_a_graph_that_the_bundle_lacks_is_named(small_bundle: Path) -> None:
    graphs = OnnxGraphs(small_bundle)
    with pytest.raises(ExportError, match="largest rectangle round a face is 1024"):
        graphs.run("face_crop.2048", torch.zeros(1), torch.zeros(1))
    with pytest.raises(ExportError, match="no graph 'face_decoder'"):
        graphs.run("face_decoder", torch.zeros(1))


def test_wrong_inputs_are_named(small_bundle: Path) -> None:
    graphs = OnnxGraphs(small_bundle)
    from dithead.errors import StreamError

    with pytest.raises(StreamError, match="takes 2 inputs"):
        graphs.run("noise", torch.tensor([1]))
    with pytest.raises(StreamError, match=r"'seed': expected int64 \[1\].*float32"):
        graphs.run("noise", torch.tensor([1.0]), torch.tensor([0]))


def test_back_ends_never_stand_in_for_each_other(small_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads a bundle"):
        open_graphs("onnxruntime")
    with pytest.raises(ConfigError, match="reads a checkpoint"):
        open_graphs("torch", bundle=small_bundle)
    with pytest.raises(ConfigError, match="unknown back end"):
        open_graphs("openvino")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="runs on a GPU alone"):
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
    with pytest.raises(ExportError, match="made for gpu alone"):
        OnnxGraphs(tmp_path / "bundle")


# The command.


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--precision", "fp8"], 2, "unknown precision 'fp8'"),
        (["--precision", "bf16"], 2, "bf16 cannot be proven"),
        (["--compute-capability", "8.9", "--engines", "none"], 2, "none are to be built"),
        (["--targets", "tpu"], 2, "targets must be"),
        (["--checkpoint", "huge"], 1, "no packaged weights named 'huge'"),
        (["--largest-rectangle", "100"], 2, "largest rectangle must be"),
        (["--graphs", "lips"], 2, "unknown graph 'lips'"),
        (["--clip", "nowhere.mp4"], 1, "nowhere.mp4"),
        (["--verify", "nowhere"], 1, "is no bundle"),
    ],
)
def test_misuse_is_one_clear_line(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*arguments, "-o", str(tmp_path / "bundle")]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "bundle").exists()


def test_a_part_does_not_replace_a_bundle(checkpoint_file: Path, bundle_copy: Path) -> None:
    before = {p.name for p in bundle_copy.iterdir()}
    with pytest.raises(ExportError, match=r"holds 2 graphs that were not asked for.*'dit_context'"):
        export_bundle(str(checkpoint_file), bundle_copy, ExportOptions(graphs=("noise",)))
    assert {p.name for p in bundle_copy.iterdir()} == before


def test_what_a_killed_export_left_does_not_stop_the_next(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "noise.fp32.01234567.onnx").write_bytes(b"half")
    report = export_bundle(str(checkpoint_file), tmp_path, ExportOptions(graphs=("noise",)))
    assert len(report.built) == 1
    assert not (tmp_path / "noise.fp32.01234567.onnx").exists()


def test_a_folder_with_other_things_is_left_alone(checkpoint_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("mine")
    with pytest.raises(ExportError, match="is not empty and holds no bundle"):
        export_bundle(str(checkpoint_file), tmp_path, ExportOptions(graphs=("noise",)))
    assert (tmp_path / "notes.onnx").read_text() == "mine"


def test_an_engine_of_another_version_is_refused(small_bundle: Path) -> None:
    from dithead.runtime.backends.tensorrt import find_engine

    entry = mf.read_manifest(small_bundle).graph("dit_step")
    if not entry.engines:
        pytest.skip("TensorRT-RTX is not installed")
    version = entry.engines[0].version
    assert find_engine(entry, "tensorrt-rtx", version, small_bundle) == entry.engines[0]
    with pytest.raises(ExportError, match=r"tensorrt-rtx 99\.0 is installed: export again"):
        find_engine(entry, "tensorrt-rtx", "99.0", small_bundle)
    with pytest.raises(ExportError, match="no engine for graph"):
        find_engine(replace(entry, engines=()), "tensorrt", version, small_bundle)
