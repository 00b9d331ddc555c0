"""Several processes train an autoencoder as one does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from autoencoders import (
    random_footage,
    random_start,
    small_config,
    train_discriminator,
    train_small,
)
from processes import newest_step, together

from dithead import checkpoint
from dithead.errors import ConfigError
from dithead.train import cli
from dithead.train.adapt import adapt
from dithead.train.data import Footage
from dithead.train.distributed import Processes
from dithead.train.pictures import KeyedPictures, PictureSampler
from dithead.train.settings import Execution, VQGANTraining
from dithead.train.shape import ShapeTraining, train_shape
from dithead.train.sync.training import SyncTraining, train_sync
from dithead.train.vqgan import train_vqgan

TRAINING = VQGANTraining(
    kind="masked", minutes=float("inf"), steps=8, batch=6, warm_share=0.4, keyed=True
)
"""The codebook is filled before the fifth step."""
UNQUANTISED = replace(TRAINING, quantised_share=0.5, latent_noise=0.2)
"""Three of six pictures pass through the codebook: two of one process, one of the other."""
SHARPENED = replace(TRAINING, decoder_only=True, adversarial_weight=0.1, learning_rate=3e-3)
EXACT = Execution(precision="fp32", save_steps=2, resume=True)
WEIGHTS = "vqgan_masked.safetensors"
TOLERANCE = 1e-5  # float32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of footage, with weights to start from in it."""
    root = tmp_path_factory.mktemp("footage") / "data"
    random_footage(root)
    random_start(root / "start.safetensors")
    return root


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two files of weights; of a run, its latents' scale included."""
    paths = (path / WEIGHTS if path.is_dir() else path for path in (one, other))
    a, b = (checkpoint.load(path)[0] for path in paths)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run in one process."""
    out = tmp_path_factory.mktemp("alone")
    together(1, train_small, out, data, TRAINING, EXACT)
    return out


def test_two_processes_train_as_one_does(alone: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    together(2, train_small, tmp_path, data, TRAINING, EXACT)
    assert furthest(alone, tmp_path) < TOLERANCE
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {WEIGHTS, "vqgan_masked.states"}
    assert [path.name for path in (tmp_path / "vqgan_masked.states").iterdir()] == ["finished.json"]


def test_two_processes_draw_the_noise_that_one_does(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    one, two = tmp_path / "one", tmp_path / "two"
    for count, out in ((1, one), (2, two)):
        together(count, train_small, out, data, UNQUANTISED, EXACT, None, None)
    assert furthest(one, two) < TOLERANCE


def test_two_processes_train_a_discriminator_as_one_does(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    start = data / "start.safetensors"
    one, two = tmp_path / "one", tmp_path / "two"
    for count, out in ((1, one), (2, two)):
        together(count, train_small, out, data, SHARPENED, EXACT, start)
    assert furthest(one, two) < TOLERANCE
    before, after = (checkpoint.load(path)[0] for path in (start, one / WEIGHTS))
    decoder = [name for name in before if name.startswith("decoder.")]
    moved = [float((after[name] - before[name]).abs().max()) for name in decoder]
    assert min(moved) > 10 * TOLERANCE  # the rate has only begun to rise


def test_two_processes_have_one_discriminator(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    for count, out in ((1, one), (2, two)):
        together(count, train_discriminator, out)
    assert furthest(one, two) < TOLERANCE
    after = checkpoint.load(one)[0]
    begun = {name: after.pop(name) for name in list(after) if name.startswith("before.")}
    moved = [float((after[name] - begun[f"before.{name}"]).abs().max()) for name in after]
    assert min(moved) > 100 * TOLERANCE


@pytest.mark.slow  # the first line of a log comes after 50 steps
def test_the_log_of_two_processes_is_of_the_whole_batch(data: Path, tmp_path: Path) -> None:
    """To 1e-3: of two pictures' losses and decibels, each is further from their mean."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    rows = []
    for count in (1, 2):
        out = tmp_path / str(count)
        together(count, train_small, out, data, replace(TRAINING, steps=50, batch=2), EXACT)
        (line,) = (out / "vqgan_masked.log").read_text().splitlines()
        rows.append(json.loads(line))
    for name in ("step", "samples", "quantised"):
        assert rows[0][name] == rows[1][name]
    for name in ("loss", "psnr_db", "used"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-3)


def test_another_seed_makes_a_difference_that_is_seen(
    alone: Path, data: Path, tmp_path: Path
) -> None:
    """The tolerance is far below what training changes."""
    together(1, train_small, tmp_path, data, replace(TRAINING, seed=1), EXACT)
    assert furthest(alone, tmp_path) > 100 * TOLERANCE


def test_two_processes_that_were_killed_go_on_in_one(
    alone: Path, data: Path, tmp_path: Path
) -> None:
    """Killed before the codebook is filled: what fills it is in the state."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    run = train_small, tmp_path, data, TRAINING, replace(EXACT, save_steps=1)
    states = tmp_path / "vqgan_masked.states"
    together(2, *run, until=lambda: newest_step(states) >= 2)
    together(1, *run)
    assert furthest(alone, tmp_path) < TOLERANCE


def test_the_pictures_of_a_step_do_not_depend_on_the_number_of_processes(data: Path) -> None:
    config, size = small_config(), (4, 8, 8)

    def draws(rank: int, count: int) -> KeyedPictures:
        sampler = PictureSampler(Footage(data), config, UNQUANTISED)
        return KeyedPictures(sampler, 0.2, size, Processes(torch.device("cpu"), rank, count))

    whole, *parts = [draws(0, 1), draws(0, 2), draws(1, 2)]
    seen = []
    for _ in range(3):
        expected = whole.next()
        for rank, part in enumerate(parts):
            share = part.next()
            assert torch.equal(share.image, expected.image[rank::2])
            assert expected.noise is not None and share.noise is not None
            assert torch.equal(share.noise, expected.noise[rank::2])
        seen.append(expected.image)
    assert not torch.equal(seen[0], seen[1])
    for each in (whole, *parts):
        each.close()
    assert len({float(each.sampler.sample(2).sum()) for each in (whole, *parts)}) == 1


def test_what_several_processes_cannot_do_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["vqgan", "face", "--preset", "base", "--data", str(data), "--out", str(tmp_path)]
    assert cli.main([*command, "--shard"]) == 1
    assert "not divided between processes" in capsys.readouterr().err
    monkeypatch.setattr(
        "dithead.train.vqgan.this_process", lambda _: Processes(torch.device("cpu"), 0, 4)
    )
    for training, message in (
        (TRAINING, "cannot be shared between 4 processes"),
        (replace(TRAINING, batch=8, steps=None), "--steps"),
        (replace(TRAINING, batch=8, minutes=5.0), "--steps"),
    ):
        with pytest.raises(ConfigError, match=message):
            train_vqgan(Footage(data), small_config(), training, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_one_process_trains_refuses_a_launcher_of_several(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="the shape head is trained by one process"):
        train_shape(Footage(data), small_config(), ShapeTraining(), tmp_path / "none", tmp_path)
    with pytest.raises(ConfigError, match="an adaptation is trained by one process"):
        adapt([tmp_path / "none.mp4"], tmp_path / "me.safetensors")
    with pytest.raises(ConfigError, match="the sync model is trained by one process"):
        train_sync(Footage(data), SyncTraining(), tmp_path / "sync.safetensors", {})
    assert list(tmp_path.iterdir()) == []
