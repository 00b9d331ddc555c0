"""The method with S3FD and FAN in the place of the packaged face networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import needs_rtx
from fanfaces import drawn_networks, random_networks
from torch import Tensor

from dithead.bundle import manifest as mf
from dithead.bundle.graphspecs import graph_specs, networks, select
from dithead.config import preset
from dithead.errors import ConfigError, ExportError
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.export.inputs import example_inputs
from dithead.export.onnx import export_onnx
from dithead.export.tensorrt import build_engine
from dithead.face.crop import placement_from_mesh, stable_template
from dithead.face.networks import FaceNetworks
from dithead.face.tracker import FaceTracker
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime import cli, doctor
from dithead.runtime.backends import open_graphs
from dithead.runtime.backends.cpu import CpuGraphs
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation import facemodels

FRAMES = 3


@pytest.fixture(scope="module")
def drawn() -> FaceNetworks:
    return drawn_networks()


@pytest.fixture(scope="module")
def drawn_models(drawn: FaceNetworks, random_models: TorchGraphs) -> TorchGraphs:
    return TorchGraphs(random_models.dithead, random_models.audio, drawn)


@pytest.fixture
def frames(astronaut: np.ndarray) -> list[Tensor]:
    shifts = [2 * i for i in range(FRAMES)]
    return [torch.from_numpy(astronaut[10 + s : 260 + s, 90 + s : 350 + s].copy()) for s in shifts]


def placement(mesh: Tensor) -> Tensor:
    return placement_from_mesh(mesh[None], stable_template())[0]


def test_both_stacks_follow_a_face_to_the_same_place(
    drawn: FaceNetworks, frames: list[Tensor]
) -> None:
    ours, theirs = FaceTracker(drawn.run), FaceTracker(FaceNetworks.load().run)
    for number, frame in enumerate(frames):
        a, b = ours(frame), theirs(frame)
        assert a is not None
        assert b is not None
        assert a.changed == (number == 0)
        assert a.measures.score > 0.9
        found, expected = placement(a.mesh), placement(b.mesh)
        side = expected[2].exp()
        assert (found[:2] - expected[:2]).norm() < 0.02 * side
        assert (found[2] - expected[2]).abs() < 0.05
        assert (found[3] - expected[3]).abs() < 0.03
        for measure in ("sharpness", "contrast", "level"):  # judged at about the same scale
            other = getattr(b.measures, measure)
            assert getattr(a.measures, measure) == pytest.approx(other, rel=0.15), measure


def test_a_face_on_its_side_is_followed(drawn: FaceNetworks, frames: list[Tensor]) -> None:
    upright, turned = FaceTracker(drawn.run), FaceTracker(drawn.run)
    expected = upright(frames[0])
    found = turned(torch.rot90(frames[0]).contiguous())
    assert expected is not None
    assert found is not None
    assert placement(found.mesh)[3].abs() == pytest.approx(torch.pi / 2, abs=0.15)
    assert placement(found.mesh)[2] == pytest.approx(float(placement(expected.mesh)[2]), abs=0.1)


def test_nothing_is_found_where_there_is_no_face(drawn: FaceNetworks) -> None:
    assert FaceTracker(drawn.run)(torch.full((200, 160, 3), 90, dtype=torch.uint8)) is None


def test_the_agreement_of_both_stacks_is_told(
    drawn: FaceNetworks,
    portrait_clip: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = portrait_clip("in.mp4", [Fraction(i, 25) for i in range(4)], blank=(2,))
    missing = ["--face-weights", str(tmp_path / "none")]
    assert facemodels.main([str(clip), *missing]) == 1
    assert "no weights of S3FD" in capsys.readouterr().err
    parts = drawn.detector, drawn.landmarks
    monkeypatch.setattr("dithead.face.fanweights.load_fan", lambda _: parts)
    assert facemodels.main([str(clip), "--frames", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["both"], told["only_first"], told["only_second"]) == (3, 2, 0, 0)
    for measure, most in (("centre", 0.02), ("side_apart", 0.05), ("roll", 2.0), ("mesh", 0.03)):
        assert 0 < told[measure] < most, measure
    same = facemodels.agreement([(torch.zeros(99, 99, 3, dtype=torch.uint8), 0.0)], drawn, drawn)
    assert (same.frames, same.both) == (1, 0)
    assert np.isnan(same.centre)


def test_a_stream_equals_the_method(
    drawn_models: TorchGraphs, random_models: TorchGraphs, frames: list[Tensor], sound: np.ndarray
) -> None:
    frames = frames[:2]
    timed = [(frame, i / 25) for i, frame in enumerate(frames)]
    samples = torch.from_numpy(sound)
    expected = list(revoice(timed, samples, drawn_models, Options()))
    assert all(not torch.equal(a, b) for a, b in zip(expected, frames, strict=True))
    with Session(drawn_models).open_stream(Options()) as stream:
        stream.push_audio(sound)
        stream.finish_audio()
        for frame, (_, time_s) in zip(frames, timed, strict=True):
            stream.push_frame(frame.numpy(), time_s)
        stream.finish()
        found = [frame.image for frame in stream.frames()]
    assert len(found) == len(frames)
    for image, picture in zip(found, expected, strict=True):
        np.testing.assert_array_equal(image, picture.numpy())


def test_random_weights_leave_pictures_alone(
    random_models: TorchGraphs, frames: list[Tensor], sound: np.ndarray
) -> None:
    faces = random_networks()
    models = TorchGraphs(random_models.dithead, random_models.audio, faces)
    (found,) = revoice([(frames[0], 0.0)], torch.from_numpy(sound), models, Options())
    assert torch.equal(found, frames[0])


def test_the_command_takes_the_networks_that_it_is_told(
    drawn: FaceNetworks,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = portrait_clip("in.mp4", [Fraction(i, 25) for i in range(FRAMES)])
    arguments = [str(clip), str(tone_file(0.2)), "-o", str(tmp_path / "out.mp4"), "--json"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main([*arguments, "--face-models", "fan"]) == 1
    assert "dithead train convert fan -o" in capsys.readouterr().out
    asked = []

    def load(weights: str | None) -> tuple[object, object]:
        asked.append(weights)
        return drawn.detector, drawn.landmarks

    monkeypatch.setattr("dithead.face.fanweights.load_fan", load)
    folder = tmp_path / "weights"
    assert cli.main([*arguments, "--face-models", "fan", "--face-weights", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["faces"] == FRAMES
    assert asked == [folder]


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a bundle holds its own face models"):
        open_graphs("onnxruntime", bundle=tmp_path, face_models="fan")
    with pytest.raises(ConfigError, match="choose the face models fan"):
        open_graphs("torch", face_weights=tmp_path)
    with pytest.raises(ConfigError, match="unknown face models 'dlib'"):
        open_graphs("torch", face_models="dlib")  # type: ignore[arg-type]


def test_the_doctor_says_whether_the_weights_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "dithead" / "fan"
    remedy = f"dithead train convert fan -o {folder}"
    found = {finding.name: finding for finding in doctor.look_at_face_models()}
    assert (found["mediapipe"].state, found["fan"].state) == ("ok", "missing")
    assert found["fan"].remedy == remedy
    folder.mkdir(parents=True)
    (folder / "s3fd.safetensors").write_bytes(b"cut off")
    found = {finding.name: finding for finding in doctor.look_at_face_models()}
    assert found["fan"].state == "unusable"
    assert remedy in found["fan"].remedy


def test_a_bundle_of_unknown_networks_is_refused(tmp_path: Path) -> None:
    config = preset("tiny").to_dict()
    made = mf.Manifest(config, "tiny", "", "fp32", ("cpu",), 256, {}, (), face_models="dlib")
    mf.write_manifest(tmp_path, made)
    with pytest.raises(ExportError, match=r"unknown face models 'dlib'.*export again"):
        mf.read_manifest(tmp_path).face_networks()
    path = tmp_path / mf.MANIFEST
    values = json.loads(path.read_text())
    del values["face_models"]  # as bundles were before
    path.write_text(json.dumps(values))
    assert mf.read_manifest(tmp_path).face_networks() == "mediapipe"


@pytest.mark.slow  # two large graphs go through torch.export
def test_a_bundle_runs_what_pytorch_runs(random_models: TorchGraphs, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exporting needs the extra 'export'")
    models = TorchGraphs(random_models.dithead, random_models.audio, random_networks())
    in_file = {"face_detector", "face_landmarks"}
    assert in_file < set(networks(False, "fan"))
    options = ExportOptions(targets=("cpu",), graphs=tuple(in_file))
    export_bundle(None, tmp_path / "bundle", options, models=models)
    assert mf.read_manifest(tmp_path / "bundle").face_models == "fan"
    graphs = CpuGraphs(tmp_path / "bundle")
    generator = torch.Generator().manual_seed(2)
    others = {"face_region.1", "face_sighting", "face_judge", "face_look"}
    for spec in select(graph_specs(64), in_file | others):
        inputs = example_inputs(spec, models.config, generator, 1, "fan")
        given = [inputs[name] for name in spec.inputs]
        found, expected = graphs.run(spec.name, *given), models.run(spec.name, *given)
        for a, b in zip(found, expected, strict=True):
            scale = max(float(b.abs().max()), 1.0)  # float32
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * scale)


@pytest.mark.slow  # exports and builds three graphs
@needs_rtx
def test_engines_are_built(tmp_path: Path) -> None:
    faces = random_networks()
    config = preset("tiny")
    generator = torch.Generator().manual_seed(3)
    for name in ("face_detector", "face_landmarks", "face_judge"):
        (spec,) = select(graph_specs(128), [name])
        path = tmp_path / f"{name}.onnx"
        inputs = example_inputs(spec, config, generator, 1, "fan")
        export_onnx(faces.build(name).eval(), spec, inputs, path)
        built = build_engine(path, spec, "tensorrt-rtx")
        assert {port.name for port in built.inputs} == set(spec.inputs)
        assert {port.name for port in built.outputs} == set(spec.outputs)
