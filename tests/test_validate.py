"""Every file equal to PyTorch; what is not is refused by name."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import cases, spec_of

from dithead import footage
from dithead.bundle.graphspecs import GraphSpec, graph_specs
from dithead.errors import ConfigError, ExportError
from dithead.export.inputs import Recorder
from dithead.export.layers import ReducedGraphs, reduce_precision, spell_out
from dithead.export.onnx import check_names, export_onnx
from dithead.export.validate import (
    TOLERANCES,
    layer_outputs,
    relative_error,
    run_torch,
    to_arrays,
    validate,
    validate_precision,
)
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation.clips import Clip, fit_meshes, load_clip
from dithead.train.evaluation.looped import compare_precision

pytest.importorskip("onnx", reason="exporting needs the extra 'export'")
pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")


def test_an_overflow_in_fp16_is_refused_with_its_layer(random_models: TorchGraphs) -> None:
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


def test_a_wrong_value_is_refused_with_its_layer(
    random_models: TorchGraphs, tmp_path: Path
) -> None:
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


def test_a_renamed_output_is_refused(random_models: TorchGraphs, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "name", ["masked_encoder", "audio_encoder", "dit_context", "dit_step", "face_decoder"]
)
def test_reduced_graphs_stay_close(random_models: TorchGraphs, name: str, precision: str) -> None:
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


def test_group_norms_keep_their_digits_in_onnxruntime(tmp_path: Path) -> None:
    norm = torch.nn.GroupNorm(1, 8)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-1.0, 1.0)
    spec = GraphSpec("norm", ("x",), ("y",))
    # Far from zero, and large: what sums in float32 lose digits on.
    inputs = {"x": 3.0 + torch.rand(1, 8, 256, 256)}
    spelt = spell_out(torch.nn.Sequential(norm))
    for x in (inputs["x"], inputs["x"][..., 0]):
        torch.testing.assert_close(spelt(x), norm(x), atol=1e-5, rtol=1e-5)
    path = tmp_path / "norm.onnx"
    export_onnx(torch.nn.Sequential(norm), spec, inputs, path)
    assert validate(path, norm, spec, [inputs], 3e-6) > 0


def test_float32_is_the_module_itself(random_models: TorchGraphs) -> None:
    module = random_models.module("dit_step")
    assert reduce_precision(module, "fp32") is module
    with pytest.raises(ConfigError, match="fp32, fp16, bf16"):
        reduce_precision(module, "fp8")  # type: ignore[arg-type]


def test_open_dimensions_take_other_sizes(random_models: TorchGraphs, tmp_path: Path) -> None:
    spec = spec_of("face_region.2")
    path = tmp_path / "face_region.onnx"
    first, second, third = cases("face_region.2", random_models, 3)
    export_onnx(random_models.module("face_region.2"), spec, first, path)
    assert len({tuple(c["frame"].shape) for c in (first, second, third)}) > 1
    validate(path, random_models.module("face_region.2"), spec, [second, third], 1e-4)


def test_an_activation_is_spelt_out_exactly() -> None:
    activation = torch.nn.PReLU(3)
    with torch.no_grad():
        activation.weight.copy_(torch.tensor([-1.5, 0.25, 1.25]))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(spell_out(torch.nn.Sequential(activation))(x), activation(x))


def test_layers_are_named_as_in_pytorch(random_models: TorchGraphs, tmp_path: Path) -> None:
    spec, inputs = spec_of("dit_step"), cases("dit_step", random_models)[0]
    path = tmp_path / "dit_step.onnx"
    export_onnx(random_models.module("dit_step"), spec, inputs, path)
    names = list(layer_outputs(path, to_arrays(inputs)))
    assert names.index("dit.blocks.0.qkv") < names.index("dit.blocks.1.qkv")
    assert not path.with_name(".dit_step.layers.onnx").exists()


def test_a_graph_without_modules_is_refused_all_the_same(
    random_models: TorchGraphs, tmp_path: Path
) -> None:
    spec, inputs = spec_of("face_crop.64"), cases("face_crop.64", random_models)
    path = tmp_path / "face_crop.onnx"
    module = random_models.module("face_crop.64")
    export_onnx(module, spec, inputs[0], path)
    assert layer_outputs(path, to_arrays(inputs[0])) == {}
    with pytest.raises(ExportError, match=r"graph 'face_crop.64' is refused: output '(crop|lit)'"):
        validate(path, module, spec, inputs, -1.0, path)


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


def test_recorder_keeps_what_graphs_meet(random_models: TorchGraphs, astronaut: np.ndarray) -> None:
    picture = torch.from_numpy(astronaut[20:260, 104:344].copy())
    recorder = Recorder(random_models, graph_specs(512, random_models.config.shape_head), keep=2)
    frames = [(picture, i / 25) for i in range(9)]
    plain = list(revoice(iter(frames), torch.zeros(8000), random_models, Options()))
    recorded = list(revoice(iter(frames), torch.zeros(8000), recorder, Options()))
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
    assert len(recorder.cases["dit_step"]) == 2
    assert set(recorder.cases["dit_step"][0]) == set(spec_of("dit_step").inputs)


MOUTH_MEAN_LEVELS, MOUTH_LARGEST_LEVELS = 2, 8
"""How far the mouth box in float16 may be from float32, of 255."""


@pytest.mark.slow  # half precision on a CPU
def test_fp16_keeps_the_mouth_of_a_real_clip(carphone_clip: Path) -> None:
    models = TorchGraphs.load("tiny")
    with VideoSource(carphone_clip) as video:
        frames = [torch.from_numpy(frame.rgb()) for frame in islice(video, 24)]
    sound = np.concatenate(list(AudioSource(footage.speech()).blocks()))[:16000]
    times = [i / 25 for i in range(len(frames))]
    clip = Clip("carphone", frames, times, sound, fit_meshes(frames, models))
    for reference in ("fixed", "previous"):
        options = Options(reference=reference)  # type: ignore[arg-type]
        found = compare_precision(clip, models, ReducedGraphs(models, "fp16"), options, 0.9)
        assert found["frames"] == 24
        assert 0 < found["worst_frame_mean_levels"] <= MOUTH_MEAN_LEVELS
        assert found["largest_levels"] <= MOUTH_LARGEST_LEVELS


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(0, marks=pytest.mark.slow),
        pytest.param(1, marks=pytest.mark.soak),
        pytest.param(2, marks=pytest.mark.soak),
    ],
)
def test_fp16_keeps_the_mouth_over_250_frames_fed_back(shared_footage: Path, number: int) -> None:
    models = TorchGraphs.load("tiny")
    path = sorted((shared_footage / "grid_s1" / "clips").glob("*.mp4"))[number]
    clip = load_clip(path, models)
    options = Options(reference="previous")
    found = compare_precision(clip, models, ReducedGraphs(models, "fp16"), options)
    assert found["frames"] >= 250
    assert found["worst_frame_mean_levels"] <= MOUTH_MEAN_LEVELS
    assert found["largest_levels"] <= MOUTH_LARGEST_LEVELS
    assert abs(found["fp32_db"] - found["reduced_db"]) <= 0.5
    assert found["largest_loss_db"] <= 0.5
