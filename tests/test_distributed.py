"""Several processes train as one does."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import random_cache, refused_apart, small_config, train_small
from processes import newest_step, together

from dithead import checkpoint
from dithead.diffusion import Diffusion
from dithead.errors import BackendUnavailable, ConfigError
from dithead.model import build_dit
from dithead.train import cli
from dithead.train.distributed import Processes
from dithead.train.dit import train_dit
from dithead.train.keyed import KeyedDraws
from dithead.train.memory import recompute_blocks
from dithead.train.samples import LatentSampler, OwnOutputs
from dithead.train.settings import Distillation, DiTTraining, Execution

TRAINING = DiTTraining(
    minutes=float("inf"), steps=8, batch=8, warmup_steps=4, generated_share=0.4, keyed=True
)
EXACT = Execution(precision="fp32", save_steps=2, resume=True)
SHARDED = replace(EXACT, shard=True, recompute=True, accumulate=2)
TOLERANCE = 1e-5  # float32


def train_together(count: int, *arguments: Any, until: Callable[[], bool] | None = None) -> None:
    """Train the small denoiser in so many processes, see :func:`processes.together`."""
    together(count, train_small, *arguments, until=until)


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two runs' weights."""
    a, b = (checkpoint.load(folder / "dit.safetensors")[0] for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in one process."""
    out = tmp_path_factory.mktemp("alone")
    train_together(1, out, TRAINING, EXACT)
    return out


@pytest.mark.parametrize("execution", [EXACT, SHARDED], ids=["whole", "sharded"])
def test_two_processes_train_as_one_does(alone: Path, tmp_path: Path, execution: Execution) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    train_together(2, tmp_path, TRAINING, execution)
    assert furthest(alone, tmp_path) < TOLERANCE


def test_two_processes_with_a_teacher_train_as_one_does(alone: Path, tmp_path: Path) -> None:
    """The student is sharded; the teacher is not."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    learnt = "tiny", None, Distillation(alone / "dit.safetensors", 4)
    one, two = tmp_path / "one", tmp_path / "two"
    train_together(1, one, TRAINING, EXACT, *learnt)
    train_together(2, two, TRAINING, SHARDED, *learnt)
    assert furthest(one, two) < TOLERANCE
    assert furthest(one, alone) > 100 * TOLERANCE
    assert checkpoint.load(two / "dit.safetensors")[1]["diffusion"]["steps"] == 2


def test_another_seed_makes_a_difference_that_is_seen(alone: Path, tmp_path: Path) -> None:
    """The tolerance is far below what training changes."""
    train_together(1, tmp_path, replace(TRAINING, seed=1), EXACT)
    assert furthest(alone, tmp_path) > 100 * TOLERANCE


def test_a_sharded_run_that_was_killed_goes_on_in_one_process(alone: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    train_together(
        2, tmp_path, TRAINING, SHARDED, until=lambda: newest_step(tmp_path / "dit.states") >= 4
    )
    train_together(1, tmp_path, TRAINING, EXACT)
    assert furthest(alone, tmp_path) < TOLERANCE


def test_a_run_that_only_one_process_finds_finished_is_refused(alone: Path, tmp_path: Path) -> None:
    """And not waited for."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    shutil.copytree(alone, tmp_path / "0")
    message = "states of different steps.*'the end'"
    together(2, refused_apart, tmp_path, TRAINING, EXACT, [message, message])


def test_a_run_that_only_one_process_may_not_go_on_with_is_refused(tmp_path: Path) -> None:
    """And not waited for."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    unfinished = tmp_path / "1"
    train_together(
        1, unfinished, TRAINING, EXACT, until=lambda: newest_step(unfinished / "dit.states") >= 2
    )
    messages = ["process 1 may not go on", "holds an unfinished run"]
    again = replace(EXACT, resume=False)
    together(2, refused_apart, tmp_path, TRAINING, again, messages)


def test_the_samples_of_a_step_do_not_depend_on_the_number_of_processes() -> None:
    config = small_config()
    cache = random_cache(config)
    diffusion = Diffusion(config.diffusion)
    size = tuple(cache.face.shape[1:])

    def draws(rank: int, count: int) -> KeyedDraws:
        own = OwnOutputs(diffusion, TRAINING, size)
        generator = torch.Generator().manual_seed(7)
        own.latents = {person: torch.randn(size, generator=generator) for person in range(2)}
        place = Processes(torch.device("cpu"), rank, count)
        return KeyedDraws(LatentSampler(cache, TRAINING), own, place)

    whole, *parts = [draws(0, 1), draws(0, 2), draws(1, 2)]
    seen = []
    for _ in range(3):
        all_of_it, *shares = [each.next() for each in (whole, *parts)]
        for name in ("reference", "noise", "timestep"):
            expected = getattr(all_of_it, name)
            for rank, share in enumerate(shares):
                assert torch.equal(getattr(share, name), expected[rank::2])
        for rank, share in enumerate(shares):
            for name in ("clean", "masked", "window", "person"):
                expected = getattr(all_of_it.batch, name)
                assert torch.equal(getattr(share.batch, name), expected[rank::2])
        seen.append(all_of_it.noise)
    assert not torch.equal(seen[0], seen[1])
    for each in (whole, *parts):
        each.close()


def test_blocks_that_run_again_have_the_same_gradients() -> None:
    config = small_config("paper")
    model = build_dit(config, "math")
    torch.nn.init.normal_(model.patch_out.weight)
    again = copy.deepcopy(model)
    recompute_blocks(again)
    size = (2, config.vqgan.latent_channels, config.latent_size, config.latent_size)
    latents = [torch.randn(size) for _ in range(3)]
    window = torch.randn(2, *config.audio.window_shape)
    for each in (model, again):
        each(*latents, torch.tensor([3, 900]), window).square().mean().backward()
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)
    assert model.blocks[0].qkv.weight.grad.abs().max() > 0  # type: ignore[union-attr]


def test_what_several_processes_cannot_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    cache = random_cache(config)

    def train(training: DiTTraining, execution: Execution) -> None:
        train_dit(cache, config, training, tmp_path, execution=execution)

    with pytest.raises(ConfigError, match="--shard"):
        train(TRAINING, SHARDED)
    with pytest.raises(ConfigError, match="multiple of 3"):
        train(TRAINING, replace(EXACT, accumulate=3))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(BackendUnavailable, match=r"dithead\[scale\]"):
        train(TRAINING, EXACT)
    assert list(tmp_path.iterdir()) == []


def test_attention_that_cannot_run_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dit", "--latents", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert cli.main([*command, "--attention", "flash"]) == 1
    assert "flash" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="precision must be one of bf16, fp32"):
        Execution(precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="generated_share must lie in"):
        DiTTraining(generated_share=1.5)


@pytest.mark.parametrize("name", ["paper", "paper-512"])
def test_the_papers_model_is_trained_by_two_processes(name: str, tmp_path: Path) -> None:
    """As wide as the paper's, with one of its 24 blocks."""
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    step = replace(TRAINING, steps=1, batch=2, generated_share=0.0)
    train_together(2, tmp_path, step, replace(SHARDED, accumulate=1, save_steps=2), name, 1)
    row = checkpoint.load(tmp_path / "dit.safetensors")[0]
    assert row["blocks.0.qkv.weight"].shape == (3072, 1024)
    assert row["patch_out.weight"].abs().max() > 0  # it begins at 0


@pytest.mark.soak(reason="455 million weights: two minutes, and 14 GB of memory")
def test_all_of_the_papers_model_is_trained_by_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="several processes need accelerate")
    step = replace(TRAINING, steps=1, batch=2, generated_share=0.0)
    train_together(2, tmp_path, step, replace(SHARDED, accumulate=1), "paper", 24)
    row = checkpoint.load(tmp_path / "dit.safetensors")[0]
    assert "blocks.23.qkv.weight" in row
    assert row["patch_out.weight"].abs().max() > 0
