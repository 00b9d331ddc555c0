"""``dithead-eval`` and the ablation judge what ``dithead stream`` runs: other speech encoders, face
models and attentions, on a GPU, too; what is missing is said before the work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from emulated_cuda import EmulatedCuda
from speechweights import TINY, save_tiny_wav2vec2

from dithead import checkpoint
from dithead.audio import AUDIO_PRESETS
from dithead.audio import wav2vec2 as ours
from dithead.errors import CheckpointError, ConfigError
from dithead.model import DitHead
from dithead.options import Options
from dithead.torchgraphs import TorchGraphs
from dithead.train import cli, evaluate
from dithead.train.ablation import ROWS, Ablation, ablate
from dithead.train.evaluation.baselines import ceiling_frames, frozen_frames
from dithead.train.evaluation.clips import Clip, follow_meshes, track
from dithead.train.evaluation.models import JudgedModel, load_models, revoiced
from dithead.train.evaluation.reconstruction import reconstruct
from dithead.train.settings import DiTTraining, Execution


@pytest.fixture(autouse=True)
def nothing_loaded() -> Iterator[None]:
    """What a test has loaded is gone after it."""
    yield
    load_models.cache_clear()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """wav2vec2 is small here, and other processes would not know."""
    monkeypatch.setattr(ours, "SIZES", TINY)
    here = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.setattr(evaluate, "multiprocessing", here)


@pytest.fixture
def hears_by_wav2vec2(random_models: TorchGraphs, tmp_path: Path) -> Path:
    """A small checkpoint with the paper's speech encoder."""
    audio = AUDIO_PRESETS["wav2vec2-xlsr-english"]
    model = DitHead(replace(random_models.config, audio=audio))
    path = tmp_path / "wav2vec2.safetensors"
    checkpoint.save(path, model.state_dict(), model.config.to_dict())
    return path


@pytest.mark.usefixtures("in_this_process")
def test_a_checkpoint_with_wav2vec2_has_its_row_of_the_papers_table(
    hears_by_wav2vec2: Path,
    talking_clip: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, figures = tmp_path / "clips", tmp_path / "figures.json"
    folder.mkdir()
    talking_clip(folder / "a.mp4")
    command = [str(folder), "--validation=1", "--workers=1", "--kinds", "own", "--paper-table"]
    command += ["--no-perceptual", "--no-identity", "--no-fid", f"--json={figures}"]
    command += ["--checkpoint", str(hears_by_wav2vec2), "--attention", "math"]
    weights = tmp_path / "weights"
    for given in ([], ["--audio-weights", str(weights)]):
        assert evaluate.main([*command, *given]) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "`hf download jonatasgrosman/wav2vec2-large" in told
    save_tiny_wav2vec2(weights)
    assert evaluate.main([*command, "--audio-weights", str(weights)]) == 0
    report = json.loads(figures.read_text())
    assert report["settings"]["attention"] == "math"
    assert report["own, 2 steps, previous reference"]["face"]["psnr_db"] > 15
    assert "wav2vec2.safetensors, 1 clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--face-models", "fan", "--face-weights", "none"], "dithead train convert fan"),
        (["--face-weights", "none"], "choose the face models fan, too"),
        (["--attention", "flash"], "dithead[flash]"),
        (["--device", "cuda:77"], "choose the device cpu"),
        (["--device", "npu"], "expected cpu, cuda or cuda:N"),
    ],
)
def test_what_is_missing_is_said_before_any_process_begins(
    given: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(evaluate, "multiprocessing", None)
    (tmp_path / "a.mp4").touch()
    assert evaluate.main([str(tmp_path), "--validation=1", *given]) == 1
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1


def test_a_model_is_checked_without_a_device_and_drawn_ones_too(checkpoint_file: Path) -> None:
    assert JudgedModel(str(checkpoint_file)).check().diffusion.steps == 2
    assert JudgedModel("random:tiny").check().preset == "tiny"
    with pytest.raises(ConfigError, match="choose one of mediapipe, fan"):
        JudgedModel(face_models="dlib")  # type: ignore[arg-type]


@pytest.mark.slow  # the emulated device takes half a minute for two frames
def test_a_gpu_measures_what_the_host_does(
    checkpoint_file: Path, pictures: list[np.ndarray], emulated_cuda: EmulatedCuda
) -> None:
    """On the emulated device, where tensors of the host and of the device do not mix."""
    frames, times = [torch.from_numpy(image) for image in pictures[:2]], [0.0, 0.04]
    samples, options = torch.zeros(1280), Options(steps=1)
    found: dict[str, list[Any]] = {}
    for device in ("cpu", "cuda"):
        models = load_models(JudgedModel(str(checkpoint_file), device=device))
        assert models.device.type == device
        meshes, seen = follow_meshes(frames, models)
        assert seen.all()
        clip = Clip("a", frames, times, samples.numpy(), meshes)
        made = list(revoiced(zip(frames, times, strict=True), samples, models, options))
        frozen, ceiling = frozen_frames(clip, models), ceiling_frames(clip, models)
        pictured = [picture.float() for picture in (*made, *frozen, *ceiling)]
        crops = [crop for pair in reconstruct(frames, times, models) for crop in pair]
        transforms, outlines = track(clip, models)
        found[device] = [meshes, outlines, *transforms, *crops, *pictured]
    for one, other in zip(found["cpu"], found["cuda"], strict=True):
        # float32; attention is another kernel's there. A level of 255 may be rounded otherwise.
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < 1 + 1e-3
    for one, other in zip(found["cpu"][:-6], found["cuda"][:-6], strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-3, atol=1e-2)


@pytest.mark.usefixtures("in_this_process")
def test_an_ablation_is_judged_as_it_is_trained(
    hears_by_wav2vec2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = DitHead.load(hears_by_wav2vec2).config
    parts, weights = hears_by_wav2vec2, tmp_path / "weights"
    trained: list[str] = []
    judged: list[list[str]] = []

    def judge(arguments: list[str]) -> int:
        judged.append(arguments)
        return 0

    monkeypatch.setattr(evaluate, "main", judge)
    monkeypatch.setattr(Ablation, "train", lambda self, row, *_: trained.append(row.name))
    given = config, DiTTraining(steps=1), parts, parts, None, tmp_path
    execution = Execution(attention="math")
    for shared in (Ablation(*given), Ablation(*given, audio_weights=weights)):
        with pytest.raises(CheckpointError, match="`hf download jonatasgrosman/wav2vec2-large"):
            ablate(shared, ROWS[:1], None, execution, ["clips"])  # type: ignore[arg-type]
    assert trained == []
    save_tiny_wav2vec2(weights)
    ablate(shared, ROWS[:1], None, execution, ["clips"])  # type: ignore[arg-type]
    assert trained == ["tokens"]
    wanted = ["--device", "cpu", "--attention", "math", "--audio-weights", str(weights)]
    assert judged[0][-len(wanted) :] == wanted
    monkeypatch.setattr("dithead.train.commands.load_cache", lambda _: None)
    command = ["ablate", "--preset", "paper", "--latents=l", "--face=f", "--masked=m", "--steps=1"]
    command += [f"--out={tmp_path}", "--manifest=c.tsv", "--audio-weights", str(tmp_path / "none")]
    assert cli.main([*command, "--attention", "sdpa"]) == 1
    assert f"no folder or file {tmp_path / 'none'}" in capsys.readouterr().err
    assert trained == ["tokens"]
