"""Exporting: the shipped checkpoint whole, nothing built twice, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import HAS_RTX, SMALL, needs_rtx, spec_of

from dithead import checkpoint
from dithead.bundle import manifest as mf
from dithead.bundle.engines import find_engine
from dithead.bundle.graphspecs import graph_specs, select, with_batch
from dithead.config import preset
from dithead.errors import CheckpointError, ConfigError, ExportError
from dithead.export import cli
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.export.inputs import example_inputs
from dithead.export.reuse import hash_tensors, weights_read
from dithead.export.validate import (
    TOLERANCES,
    onnx_session,
    relative_error,
    run_torch,
    to_arrays,
)
from dithead.filehash import hash_file
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.torchgraphs import TorchGraphs

pytest.importorskip("onnx", reason="exporting needs the extra 'export'")
pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")


def test_shipped_bundle_is_whole(shipped_bundle: Path) -> None:
    manifest = mf.read_manifest(shipped_bundle)
    specs = graph_specs(manifest.largest_rectangle, manifest.model_config().shape_head)
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
    models = TorchGraphs.load("tiny")
    generator = torch.Generator().manual_seed(77)  # not the inputs it was validated on
    worst: dict[str, float] = {}
    for spec in graph_specs(manifest.largest_rectangle, manifest.model_config().shape_head):
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
            assert hash_file(shipped_bundle / engine.file.path) == engine.file.sha256
            assert engine.executed is torch.cuda.is_available() or not engine.executed
    assert engines == sum(
        spec.engine
        for spec in graph_specs(manifest.largest_rectangle, manifest.model_config().shape_head)
    )


def test_streaming_from_the_shipped_bundle_equals_pytorch(
    shipped_bundle: Path, astronaut: np.ndarray
) -> None:
    picture = torch.from_numpy(astronaut[20:260, 104:344].copy())
    frames = [(picture.roll(i, 1), i / 25) for i in range(6)]
    sound = 0.2 * torch.randn(16000)
    options = Options(steps=2, reference="previous")
    expected = list(revoice(iter(frames), sound, TorchGraphs.load("tiny"), options))
    found = list(revoice(iter(frames), sound, OnnxGraphs(shipped_bundle), options))
    for a, b in zip(expected, found, strict=True):
        difference = (a.int() - b.int()).abs()
        assert difference.max() <= 2  # levels of 255, after six frames fed back
        assert difference.float().mean() < 0.02
    assert (expected[0] != frames[0][0]).any()


def test_a_second_export_builds_nothing(checkpoint_file: Path, bundle_copy: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in bundle_copy.iterdir()}
    flavour = "tensorrt-rtx" if HAS_RTX else None
    options = ExportOptions(graphs=SMALL, flavour=flavour)
    report = export_bundle(str(checkpoint_file), bundle_copy, options)
    assert report.built == []
    assert report.kept == 5 + 2 * HAS_RTX
    assert {p.name: p.stat().st_mtime_ns for p in bundle_copy.iterdir()} == before


@pytest.fixture
def changed_file(random_models: TorchGraphs, tmp_path: Path) -> Path:
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
    # patch_out belongs to the denoiser, of which the context's graph takes another part.
    assert {name.partition(".")[0] for name in report.built} == {"dit_step"}
    manifest = mf.read_manifest(bundle_copy)
    assert {p.name for p in bundle_copy.glob("*.onnx")} == {f.path for f in manifest.files()}


def test_weights_are_hashed_by_value_and_name() -> None:
    a = {"weight": torch.rand(2, 2), "bias": torch.rand(2)}
    b = {name: value.clone() for name, value in a.items()}
    assert hash_tensors(a) == hash_tensors(b)
    b["bias"][1] += 1e-6
    assert hash_tensors(a) != hash_tensors(b)
    assert hash_tensors(a) != hash_tensors({"weight": a["bias"], "bias": a["weight"]})


def test_a_graph_holds_the_weights_it_reads_and_no_others(random_models: TorchGraphs) -> None:
    def read(name: str) -> set[str]:
        spec, module = spec_of(name), random_models.module(name)
        inputs = example_inputs(spec, random_models.config, torch.Generator().manual_seed(1))
        return set(weights_read(module, lambda: run_torch(module, spec, inputs))[1])

    encoder, decoder = read("reference_encoder"), read("face_decoder")
    scale = {"face_vqgan.latent_mean", "face_vqgan.latent_std"}
    assert decoder & encoder == scale
    assert {name.split(".")[1] for name in encoder - scale} == {"encoder"}
    assert {name.split(".")[1] for name in decoder - scale} == {"decoder", "codebook"}
    context, timestep, step = read("dit_context"), read("dit_timestep"), read("dit_step")
    assert {name.rpartition(".cross_kv.")[1] for name in context if "blocks" in name} == {
        ".cross_kv."
    }
    of_the_denoiser = {f"dit.{name}" for name, _ in random_models.dithead.dit.named_parameters()}
    assert context | timestep | {n for n in step if n.startswith("dit.")} >= of_the_denoiser
    assert not context & step
    assert not timestep & (context | step)


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
    assert not folder.exists()


def test_a_damaged_bundle_is_mended_by_exporting_again(
    checkpoint_file: Path, bundle_copy: Path
) -> None:
    file = mf.read_manifest(bundle_copy).graph("noise").onnx[0].file
    (bundle_copy / file.path).write_bytes(b"nothing")
    report = export_bundle(str(checkpoint_file), bundle_copy, ExportOptions(graphs=SMALL))
    assert report.built == [file.path]
    OnnxGraphs(bundle_copy).run("noise", torch.tensor([1]), torch.tensor([0]))


def test_a_nan_in_the_checkpoint_is_refused(
    random_models: TorchGraphs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_unknown_graphs_and_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="largest rectangle must be one of 64, 128"):
        graph_specs(100)
    with pytest.raises(ConfigError, match="unknown graph 'dit'"):
        select(graph_specs(128), ["dit"])


# Other shapes and precisions.


@pytest.fixture(scope="session")
def shared_bundle(checkpoint_file: Path, made_once: Callable[..., Path]) -> Path:
    """A bundle in bfloat16 whose graphs take one or three streams."""

    def export(folder: Path) -> None:
        arguments = ["--checkpoint", str(checkpoint_file), "--precision", "bf16"]
        arguments += ["--batch", "3,1", "-o", str(folder / "bundle"), "--quiet"]
        arguments += ["--graphs", "dit_step,dit_context,face_decoder,noise,face_blend.64"]
        assert cli.main(arguments) == 0

    return made_once("shared", export) / "bundle"


def test_streams_in_one_batch_equal_streams_alone(
    shared_bundle: Path, checkpoint_file: Path
) -> None:
    graphs, models = OnnxGraphs(shared_bundle), TorchGraphs.load(str(checkpoint_file))
    for name in ("dit_context", "dit_step", "face_decoder"):
        spec = with_batch(spec_of(name), models.config, 3)
        inputs = example_inputs(spec, models.config, torch.Generator().manual_seed(5), 3)
        axes = {port: next(iter(dims)) for port, dims in spec.dynamic.items()}
        (together,) = graphs.run(name, *(inputs[port] for port in spec.inputs))
        for i in range(3):
            one = [inputs[port].narrow(axes[port], i, 1) for port in spec.inputs]
            (alone,) = graphs.run(name, *one)
            expected = together.narrow(axes[spec.outputs[0]], i, 1)
            torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(alone, models.run(name, *one)[0], atol=1e-4, rtol=1e-4)


def test_graphs_of_one_stream_stay_so_beside_those_of_several(shared_bundle: Path) -> None:
    manifest = mf.read_manifest(shared_bundle)
    shapes = {port.name: port.shape for port in manifest.graph("face_blend.64").inputs}
    assert shapes["face"][0] == shapes["crop"][0] == 1
    assert OnnxGraphs(shared_bundle).sizes_to_preload() == {
        "dit_context": {"B": 1},
        "dit_step": {"B": 1},
        "face_decoder": {"B": 1},
        "noise": {},
    }
    OnnxGraphs(shared_bundle).preload()


def test_bfloat16_files_are_valid_and_hold_bfloat16(shared_bundle: Path) -> None:
    import onnx

    for entry in mf.read_manifest(shared_bundle).graphs:
        for file in entry.onnx:
            onnx.checker.check_model(str(shared_bundle / file.file.path), full_check=True)
            kinds = {
                tensor.data_type
                for tensor in onnx.load(str(shared_bundle / file.file.path)).graph.initializer
            }
            assert (onnx.TensorProto.BFLOAT16 in kinds) == (file.precision == "bf16")
    assert not list(shared_bundle.glob(".*widened*"))


@needs_rtx
def test_engines_are_built_for_each_number_of_streams(shared_bundle: Path) -> None:
    manifest = mf.read_manifest(shared_bundle)
    for name in ("dit_context", "dit_step", "face_decoder"):
        engines = manifest.graph(name).engines
        assert [(e.batch, e.precision) for e in engines] == [(1, "bf16"), (3, "bf16")]
        for engine in engines:
            sizes = {
                port.shape[2 if port.name == "context" else 0]
                for port in (*engine.inputs, *engine.outputs)
            }
            assert sizes == {engine.batch}
    version = engines[0].version
    entry = manifest.graph("dit_step")
    assert find_engine(entry, "tensorrt-rtx", version, shared_bundle, 3).batch == 3
    with pytest.raises(ExportError, match=r"for 1,3 streams at once, not for 2.*--batch 1,3,2"):
        find_engine(entry, "tensorrt-rtx", version, shared_bundle, 2)


def test_random_weights_are_said_to_be_random(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--preset", "tiny", "--graphs", "dit_context", "--engines", "none"]
    assert cli.main([*arguments, "-o", str(tmp_path / "bundle"), "--quiet"]) == 0
    manifest = mf.read_manifest(tmp_path / "bundle")
    assert manifest.checkpoint == "random weights, preset tiny"
    OnnxGraphs(tmp_path / "bundle")
    assert "random weights, preset tiny: it says how fast" in caplog.text


# The command.


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--precision", "fp8"], 2, "unknown precision 'fp8'"),
        (["--batch", "1,two"], 2, "--batch takes numbers"),
        (["--batch", "0"], 2, "batches must be"),
        (["--preset", "huge"], 2, "unknown preset 'huge'"),
        (["--preset", "base", "--checkpoint", "tiny"], 2, "--preset draws its weights"),
        (["--compute-capability", "8.9", "--engines", "none"], 2, "none are to be built"),
        (["--targets", "tpu"], 2, "targets must be"),
        (["--checkpoint", "huge"], 1, "no packaged checkpoint named 'huge' (packaged: tiny)"),
        (["--largest-rectangle", "100"], 2, "largest rectangle must be"),
        (["--graphs", "lips"], 2, "unknown graph 'lips'"),
        (["--graphs", ","], 2, "--graphs takes names"),
        (["--clip", "nowhere.mp4"], 2, "nowhere.mp4"),
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


def test_only_what_exports_made_is_tidied_away(checkpoint_file: Path, tmp_path: Path) -> None:
    mine = {"notes.log", "train.data", "mine.onnx", "readme.txt"}
    options = ExportOptions(graphs=("noise",))
    export_bundle(str(checkpoint_file), tmp_path, options)
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "sub.data").mkdir()
    report = export_bundle(str(checkpoint_file), tmp_path, options)
    assert report.built == []
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


@pytest.mark.parametrize("text", ['{"name": "an app"}', "[]", "no json"])
def test_somebody_elses_manifest_is_no_bundle(
    checkpoint_file: Path, tmp_path: Path, text: str
) -> None:
    for name in ("manifest.json", "index.html", "server.log"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match="is not empty and holds no bundle"):
        export_bundle(str(checkpoint_file), tmp_path, ExportOptions(graphs=("noise",)))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        ("manifest.json", "index.html", "server.log"), text
    )


def test_a_part_does_not_replace_a_bundle_of_another_schema(
    checkpoint_file: Path, bundle_copy: Path
) -> None:
    path = bundle_copy / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    before = {p.name for p in bundle_copy.iterdir()}
    with pytest.raises(ExportError, match="cannot be read: choose another folder"):
        export_bundle(str(checkpoint_file), bundle_copy, ExportOptions(graphs=("noise",)))
    assert {p.name for p in bundle_copy.iterdir()} == before


def test_two_exports_do_not_share_a_folder(checkpoint_file: Path, tmp_path: Path) -> None:
    options = ExportOptions(graphs=("noise",))
    messages = []

    def second(_: str) -> None:
        with pytest.raises(ExportError) as caught:
            export_bundle(str(checkpoint_file), tmp_path / "bundle", options)
        messages.append(str(caught.value))

    export_bundle(str(checkpoint_file), tmp_path / "bundle", options, progress=second)
    assert len(messages) == 1 and "another export is at work" in messages[0]
    assert len(mf.read_manifest(tmp_path / "bundle").graphs) == 1
    assert not list((tmp_path / "bundle").glob(".*"))


def test_an_edited_manifest_is_put_right(checkpoint_file: Path, bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    before = path.read_text()
    values = json.loads(before)
    values["graphs"][0]["outputs"][0]["shape"] = [7, 7]
    path.write_text(json.dumps(values))
    flavour = "tensorrt-rtx" if HAS_RTX else None
    options = ExportOptions(graphs=SMALL, flavour=flavour)
    assert export_bundle(str(checkpoint_file), bundle_copy, options).built == []
    assert path.read_text() == before


def test_random_weights_are_always_the_same(tmp_path: Path) -> None:
    options = ExportOptions(graphs=("dit_context",))
    for built in (2, 0):
        models = TorchGraphs.random(preset("tiny"))
        report = export_bundle(None, tmp_path / "bundle", options, models=models)
        assert len(report.built) == built


def test_a_file_that_looks_like_a_bundles_stays(checkpoint_file: Path, bundle_copy: Path) -> None:
    log, left = bundle_copy / "stream.20250101.log", bundle_copy / ".noise.0123abcd.widened.onnx"
    log.write_text("mine")
    left.write_text("from an export that was killed")
    export_bundle(str(checkpoint_file), bundle_copy, ExportOptions(graphs=SMALL))
    assert log.read_text() == "mine"
    assert not left.exists()
    log.rename(bundle_copy.parent / log.name)
    with pytest.raises(ExportError, match="is not empty and holds no bundle"):
        export_bundle(str(checkpoint_file), bundle_copy.parent, ExportOptions(graphs=SMALL))


def test_a_folder_with_other_things_is_left_alone(checkpoint_file: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.onnx").write_text("mine")
    with pytest.raises(ExportError, match="is not empty and holds no bundle"):
        export_bundle(str(checkpoint_file), tmp_path, ExportOptions(graphs=("noise",)))
    assert (tmp_path / "notes.onnx").read_text() == "mine"
