"""A run that is interrupted goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import PRELOADED, newest_step, random_cache, small_config, train_small

from dithead import checkpoint
from dithead.config import VQGANConfig
from dithead.errors import CheckpointError, ConfigError
from dithead.train import cli
from dithead.train.data import Clip, Footage, write_index
from dithead.train.dit import train_dit
from dithead.train.settings import DiTTraining, Execution, VQGANTraining
from dithead.train.states import SavedState, States
from dithead.train.vqgan import train_vqgan
from dithead.vqgan import VQGAN

TRAINING = DiTTraining(minutes=float("inf"), steps=40, batch=4, warmup_steps=5)
EVERY_STEP = Execution(resume=True, save_steps=1)


def started(out: Path) -> BaseProcess:
    """A process that trains, or goes on. Its server has imported everything, but run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train_small, args=(out, TRAINING, EVERY_STEP))
    process.start()
    return process


@contextmanager
def interrupted() -> Iterator[None]:
    """What runs in here ends once it has saved a state."""

    class Interrupted(Exception):
        pass

    saved = States.save

    def save(self: States, *arguments: Any) -> None:
        saved(self, *arguments)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(States, "save", save)
        with pytest.raises(Interrupted):
            yield


def test_a_run_killed_ten_times_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    undisturbed = started(whole)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    chance = random.Random(5)
    for step in [0, *sorted(chance.sample(range(1, TRAINING.steps - 10), 9))]:
        process = started(broken)
        while newest_step(broken) < step:
            assert process.is_alive()
        time.sleep(chance.uniform(0.0, 0.03))  # anywhere in a step, or while a state is written
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (broken / "dit.states" / "finished.json").exists()
    last = started(broken)
    last.join()
    assert last.exitcode == 0
    expected, _ = checkpoint.load(whole / "dit.safetensors")
    found, _ = checkpoint.load(broken / "dit.safetensors")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [path.name for path in (broken / "dit.states").iterdir()] == ["finished.json"]


def test_all_of_a_state_comes_back(tmp_path: Path) -> None:
    """The log, too, is that of an undisturbed run, and a finished run is not begun again."""
    torch.set_num_threads(1)  # more only wait for each other at this size
    config, out = small_config(), tmp_path / "broken"
    cache, training = random_cache(config), replace(TRAINING, steps=100, batch=2)
    train_dit(cache, config, training, tmp_path / "whole")

    with interrupted():
        train_dit(cache, config, training, out, execution=Execution(save_steps=60))
    torch.manual_seed(99)
    path = train_dit(cache, config, training, out, execution=Execution(resume=True))
    (expected,), (found,) = (
        [json.loads(line) for line in (folder / "dit.log").read_text().splitlines()]
        for folder in (tmp_path / "whole", out)
    )
    for name in ("step", "samples", "loss"):
        assert expected[name] == found[name]
    written = path.stat().st_mtime_ns
    train_dit(cache, config, training, out, execution=Execution(resume=True))
    assert path.stat().st_mtime_ns == written


@pytest.fixture
def footage(tmp_path: Path) -> Footage:
    """Noise, as prepared pictures of two people."""
    root, random = tmp_path / "data", np.random.default_rng(0)
    (root / "crops").mkdir(parents=True)
    clips = [Clip(f"c{i}", person, "train", 10) for i, person in enumerate("aab")]
    for clip in clips:
        crops = random.integers(0, 255, (clip.frames, 80, 80, 3), dtype=np.uint8)
        np.save(root / "crops" / f"{clip.name}.npy", crops)
    write_index(root, clips)
    return Footage(root)


@pytest.mark.parametrize(("interrupted_at", "decoder_only"), [(2, False), (5, False), (3, True)])
def test_an_autoencoder_goes_on_where_it_was(
    footage: Footage, tmp_path: Path, interrupted_at: int, decoder_only: bool
) -> None:
    """Before and after the codebook is filled; with a discriminator."""
    torch.set_num_threads(1)
    small = VQGANConfig((8, 8, 16), (8, 8, 16), blocks=1, attention=False, codebook_size=64)
    config = replace(small_config("base"), vqgan=small)
    training = VQGANTraining(minutes=float("inf"), steps=8, batch=2, warm_share=0.5)
    start = None
    if decoder_only:
        start = tmp_path / "start.safetensors"
        checkpoint.save(start, VQGAN(small).state_dict(), config.to_dict(), dtype=None)
        training = replace(training, decoder_only=True, adversarial_weight=0.1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = checkpoint.load(train_vqgan(footage, config, training, whole, start))[0]
    with interrupted():
        saving = Execution(save_steps=interrupted_at)
        train_vqgan(footage, config, training, broken, start, saving)
    torch.manual_seed(99)
    path = train_vqgan(footage, config, training, broken, start, Execution(resume=True))
    found = checkpoint.load(path)[0]
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [path.name for path in (broken / "vqgan_face.states").iterdir()] == ["finished.json"]


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    tensors = [("a", torch.arange(3))]
    States(tmp_path, {"rate": 1.0}, False).save(1, tensors, {"step": 1})
    with pytest.raises(ConfigError, match=r"unfinished run, at step 1.*--resume"):
        States(tmp_path, {"rate": 1.0}, False)
    with pytest.raises(ConfigError, match=r"rate was 1\.0, is 2\.0"):
        States(tmp_path, {"rate": 2.0}, True)


def test_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    states = States(tmp_path, {}, False)
    for step in (1, 2, 3):
        states.save(step, [("a.b", torch.tensor([step]))], {"step": step})
    (tmp_path / "000000004.17.tmp").write_bytes(b"half")
    (tmp_path / ".tmpqX3b7a").write_bytes(b"half")  # safetensors names its own so
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["000000002.safetensors", "000000003.safetensors"]
    newest = tmp_path / names[1]
    newest.write_bytes(newest.read_bytes()[:-1])
    found = States(tmp_path, {}, True).newest
    assert found is not None and found.values == {"step": 2}
    assert found.tensors("a")["b"].tolist() == [2]
    states.save(5, [("a.b", torch.tensor([5]))], {"step": 5})
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]
    with pytest.raises(CheckpointError, match="another version"):
        found.tensor("c")
    checkpoint.save(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="not a readable state"):
        SavedState(tmp_path / "other.safetensors")


def test_a_stage_bounded_by_steps_has_no_limit_of_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dit", "--latents", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--minutes", "500"]) == 1
    assert "--steps" in capsys.readouterr().err
    assert cli.main([*command, "--steps", "1000000"]) == 1  # for want of latents
    assert "run dithead-train latents" in capsys.readouterr().err
