"""What the stages of training are given by mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from denoisers import random_cache, small_config

from dithead import checkpoint
from dithead.config import PRESETS, preset
from dithead.errors import CheckpointError
from dithead.train import cli, commands
from dithead.train.data import Clip, Footage, make_folders, save_clip, write_index
from dithead.train.distil import plan_lesson
from dithead.train.latents import load_vqgan
from dithead.train.loop import PART
from dithead.train.settings import Distillation
from dithead.train.vqgan import reconstruction_psnr
from dithead.vqgan import VQGAN


def test_what_a_stage_cannot_begin_with_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = small_config(), tmp_path / "out"
    monkeypatch.setitem(PRESETS, "test", config)
    monkeypatch.setattr(commands, "load_cache", lambda folder: random_cache(config))
    given = ["dit", "--latents=x", f"--out={out}", "--threads=1", "--preset=test", "--steps=1"]
    (tmp_path / "file").touch()
    for wrong, message in (
        (["--start=nope.safetensors"], "no weights at nope.safetensors"),
        (["--device=cpuu"], "unknown device 'cpuu'"),
        (["--device=cuda:99"], "'cuda:99' was asked for"),
        (["--steps=0"], "steps must be at least 1"),
        (["--batch=0"], "steps must be at least 1"),
        (["--preset=tiny"], "those of tiny are (16, 16, 16), with (11, 768)"),
        ([f"--out={tmp_path / 'file' / 'out'}"], f"{tmp_path / 'file'}"),
    ):
        assert cli.main([*given, *wrong]) == 1
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert not out.exists()


def test_weights_of_another_part_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two autoencoders have equal shapes: swapped, they would be packed without a word."""
    config = preset("tiny")
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("face", "masked")}
    state = VQGAN(config.vqgan).state_dict()
    for kind, path in paths.items():
        checkpoint.save(path, state, config.to_dict(), {PART: f"{kind}_vqgan"})
    given = [f"--face={paths['masked']}", f"--masked={paths['face']}", f"--dit={paths['face']}"]
    out = tmp_path / "x.safetensors"
    assert cli.main(["pack", *given, f"--shape={paths['face']}", f"--out={out}"]) == 1
    assert "holds the weights of masked_vqgan, not of face_vqgan" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(CheckpointError, match="of face_vqgan, not of dit"):
        plan_lesson(Distillation(paths["face"]), config)
    load_vqgan(paths["face"], "face_vqgan", config)


def test_footage_of_which_nothing_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says nothing of how good an autoencoder is; and weights are looked at before the sound."""
    make_folders(tmp_path)
    track = {
        "transform": np.tile(np.eye(2, 3, dtype=np.float32), (2, 1, 1)),
        "mesh": np.zeros((2, 468, 2), np.float32),
        "time_s": np.arange(2) / 25,
        "audio": np.zeros(1280, np.float16),
    }
    save_clip(tmp_path, "c", np.zeros((2, 8, 8, 3), np.uint8), track)
    write_index(tmp_path, [Clip("c", "a", "train", 2)])
    config = small_config()
    assert reconstruction_psnr(VQGAN(config.vqgan), Footage(tmp_path), config, "face") == {}
    weights, out = str(checkpoint.asset_path("tiny")), tmp_path / "latents"
    parts = ["--face", weights, "--masked", weights, "--out", str(out)]
    assert cli.main(["latents", "--preset=base", "--data", str(tmp_path), *parts]) == 1
    assert "does not fit this VQGAN" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(CheckpointError, match="cannot write"):
        checkpoint.save(tmp_path / "none" / "x.safetensors", {"a": torch.zeros(1)}, {})
