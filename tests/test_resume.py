"""A run that is interrupted goes on where it was."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from denoisers import PRELOADED, newest_step, random_cache, small_config, train_small

from dithead import checkpoint
from dithead.errors import CheckpointError, ConfigError
from dithead.train import cli
from dithead.train.dit import train_dit
from dithead.train.settings import DiTTraining, Execution
from dithead.train.states import SavedState, States

TRAINING = DiTTraining(minutes=float("inf"), steps=40, batch=4, warmup_steps=5)
EVERY_STEP = Execution(resume=True, save_steps=1)


def started(out: Path) -> BaseProcess:
    """A process that trains, or goes on. Its server has imported everything, but run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train_small, args=(out, TRAINING, EVERY_STEP))
    process.start()
    return process


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

    class Stopped(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        saved = States.save

        def save_and_stop(self: States, step: int, *rest: object) -> None:
            saved(self, step, *rest)  # type: ignore[arg-type]
            raise Stopped

        patch.setattr(States, "save", save_and_stop)
        with pytest.raises(Stopped):
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
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["000000002.safetensors", "000000003.safetensors"]
    newest = tmp_path / names[1]
    newest.write_bytes(newest.read_bytes()[:-1])
    found = States(tmp_path, {}, True).newest
    assert found is not None and found.values == {"step": 2}
    assert found.tensors("a")["b"].tolist() == [2]
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
