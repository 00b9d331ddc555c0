"""A run that is interrupted goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import autoencoders
import pytest
import torch
from autoencoders import random_footage, random_start
from denoisers import random_cache, small_config, train_small
from processes import killed_ten_times, started

from dithead import checkpoint
from dithead.errors import CheckpointError, ConfigError
from dithead.train import cli
from dithead.train.dit import train_dit
from dithead.train.settings import DiTTraining, Execution, VQGANTraining
from dithead.train.states import SavedState, States
from dithead.train.vqgan import train_vqgan

TRAINING = DiTTraining(minutes=float("inf"), steps=40, batch=4, warmup_steps=5)
EVERY_STEP = Execution(resume=True, save_steps=1)


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


def differing(one: Path, other: Path) -> list[str]:
    """The tensors of two files that are not alike, bit for bit."""
    expected, found = checkpoint.load(one)[0], checkpoint.load(other)[0]
    assert expected.keys() == found.keys()
    return [name for name in expected if not torch.equal(expected[name], found[name])]


def killed_and_whole(work: Callable[..., object], folder: Path, name: str, *arguments: Any) -> None:
    """A run killed ten times ends like one that was not.

    Args:
        work: trains for 40 steps: (out, *arguments). name: of its files.
    """
    whole, broken = folder / "whole", folder / "broken"
    undisturbed = started(work, whole, *arguments)
    undisturbed.join()
    assert undisturbed.exitcode == 0
    states = broken / f"{name}.states"
    killed_ten_times(lambda: started(work, broken, *arguments), states, 40)
    assert differing(*(out / f"{name}.safetensors" for out in (whole, broken))) == []
    assert [path.name for path in states.iterdir()] == ["finished.json"]


def test_a_run_killed_ten_times_ends_like_one_that_was_not(tmp_path: Path) -> None:
    killed_and_whole(train_small, tmp_path, "dit", TRAINING, EVERY_STEP)


@pytest.mark.slow  # twelve processes, each of which draws pictures anew
def test_an_autoencoder_killed_ten_times_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """Before and after its codebook is filled."""
    random_footage(tmp_path / "data")
    training = VQGANTraining(minutes=float("inf"), steps=40, batch=2, warm_share=0.5)
    killed_and_whole(
        autoencoders.train_small, tmp_path, "vqgan_face", tmp_path / "data", training, EVERY_STEP
    )


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


@pytest.mark.parametrize(
    ("interrupted_at", "decoder_only", "keyed"),
    [(2, False, False), (5, False, False), (3, True, False), (3, False, True)],
)
def test_an_autoencoder_goes_on_where_it_was(
    tmp_path: Path, interrupted_at: int, decoder_only: bool, keyed: bool
) -> None:
    """Before and after the codebook is filled; with a discriminator; with noise by key."""
    torch.set_num_threads(1)
    footage = random_footage(tmp_path / "data")
    config = autoencoders.small_config(None if keyed else 0.0)
    training = VQGANTraining(
        minutes=float("inf"), steps=8, batch=2, warm_share=0.5, keyed=keyed, latent_noise=0.2
    )
    start = None
    if decoder_only:
        start = random_start(tmp_path / "start.safetensors")
        training = replace(training, decoder_only=True, adversarial_weight=0.1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train_vqgan(footage, config, training, whole, start)
    with interrupted():
        saving = Execution(save_steps=interrupted_at)
        train_vqgan(footage, config, training, broken, start, saving)
    torch.manual_seed(99)
    found = train_vqgan(footage, config, training, broken, start, Execution(resume=True))
    assert differing(expected, found) == []
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
