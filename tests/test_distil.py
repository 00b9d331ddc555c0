"""A student learns to do in one step of the sampler what its teacher does in two."""

from __future__ import annotations

import itertools
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from denoisers import random_cache, small_config
from torch import Tensor

from dithead import checkpoint
from dithead.config import PRESETS, DitHeadConfig, VQGANConfig
from dithead.diffusion import Diffusion, ddim_timesteps
from dithead.errors import ConfigError
from dithead.model import DitHead, build_dit, draw_what_is_zero
from dithead.train import cli, commands
from dithead.train.distil import Teacher, plan_lesson
from dithead.train.distributed import Processes
from dithead.train.dit import train_dit
from dithead.train.draws import Drawn, SequentialDraws
from dithead.train.keyed import KeyedDraws
from dithead.train.samples import Batch, LatentSampler, OwnOutputs
from dithead.train.settings import Distillation, DiTTraining, Execution
from dithead.train.states import States
from dithead.vqgan import VQGAN

CPU = torch.device("cpu")
EXACT = Execution(precision="fp32")
TRAINING = DiTTraining(
    minutes=float("inf"), steps=6, batch=4, warmup_steps=5, learning_rate=3e-3, generated_share=0.25
)
SMALL = VQGANConfig((8, 8, 8, 8), (8, 8, 8, 8), blocks=1, attention=False, codebook_size=64)
"""An autoencoder with the latents of ``base`` and ``paper``."""


def random_teacher(path: Path, name: str = "base", **diffusion: Any) -> DitHeadConfig:
    """Write a small denoiser with random weights, and return its configuration."""
    torch.set_num_threads(1)
    config = small_config(name)
    config = replace(config, diffusion=replace(config.diffusion, **diffusion))
    torch.manual_seed(3)
    model = build_dit(config)
    draw_what_is_zero(model)
    checkpoint.save(path, model.state_dict(), config.to_dict(), dtype=None)
    return config


def batch_of(config: DitHeadConfig, count: int) -> tuple[Batch, Tensor]:
    """Samples, and noise of their shape."""
    batch = LatentSampler(random_cache(config), DiTTraining(seed=1)).sample(count)
    return batch, torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(1))


def made_up(
    noisy: Tensor, masked: Tensor, reference: Tensor, timestep: Tensor, window: Tensor
) -> Tensor:
    """A denoiser whose prediction depends on all that matters here."""
    return torch.sin(3 * noisy + masked) + 0.5 * reference + timestep.view(-1, 1, 1, 1) / 1000


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("prediction", "steps"), [("velocity", 2), ("velocity", 50), ("velocity", 1000), ("noise", 48)]
)
def test_one_step_lands_where_the_teachers_steps_do(
    schedule: str, prediction: str, steps: int, tmp_path: Path
) -> None:
    """At every timestep of the student's grid. One that predicts the noise keeps its steps."""
    path = tmp_path / "teacher.safetensors"
    config = random_teacher(path, schedule=schedule, prediction=prediction, steps=steps)
    lesson = plan_lesson(Distillation(path), config)
    student = lesson.student.diffusion
    ratio = 1 if prediction == "noise" else 2
    assert (student.prediction, student.steps * ratio) == ("velocity", steps)
    teacher = Teacher(made_up, lesson, CPU, "fp32")
    old, new = Diffusion(config.diffusion), Diffusion(student)
    visits = [*ddim_timesteps(config.diffusion, steps), -1]
    assert visits[:-1:ratio] == lesson.grid
    batch, noise = batch_of(config, 2)
    for place, (now, end) in enumerate(itertools.pairwise([*lesson.grid, -1])):
        timestep = torch.full((2,), now)
        noisy = old.add_noise(batch.clean, noise, timestep)
        wanted = teacher(noisy, Drawn(batch, batch.reference, noise, timestep))
        one = new.ddim_update(noisy, new.target(*wanted, timestep), timestep, torch.full((2,), end))
        landed = noisy
        for at, after in itertools.pairwise(visits[place * ratio : (place + 1) * ratio + 1]):
            t = torch.full((2,), at)
            said = made_up(landed, batch.masked, batch.reference, t, batch.window)
            landed = old.ddim_update(landed, said, t, torch.full((2,), after))
        torch.testing.assert_close(one, landed, atol=2e-5, rtol=2e-5)  # float32


def samples(path: Path, batch: Batch, noise: Tensor, steps: int) -> Tensor:
    """What a denoiser makes of noise for a batch, (B, C, S, S)."""
    tensors, values = checkpoint.load(path)
    config = DitHeadConfig.from_dict(values)
    model = build_dit(config)
    checkpoint.load_into(model, tensors, path)
    with torch.inference_mode():
        return Diffusion(config.diffusion).sample(
            lambda z, t: model(z, batch.masked, batch.reference, t, batch.window), noise, steps
        )


def test_a_student_is_nearer_its_teachers_samples_than_the_teacher_with_as_few_steps(
    tmp_path: Path,
) -> None:
    path = tmp_path / "teacher.safetensors"
    config = random_teacher(path, steps=4)
    training = replace(TRAINING, steps=40, batch=8, average_decay=0.9, generated_share=0.0)
    cache = random_cache(config)
    student = train_dit(
        cache, config, training, tmp_path, execution=EXACT, distillation=Distillation(path)
    )
    batch, noise = batch_of(config, 16)
    wanted = samples(path, batch, noise, 4)
    hurried, found = (samples(weights, batch, noise, 2) for weights in (path, student))
    assert (found - wanted).square().mean() < 0.5 * (hurried - wanted).square().mean()
    values = checkpoint.load(student)[1]
    assert (values["diffusion"]["steps"], values["diffusion"]["prediction"]) == (2, "velocity")


def test_rounds_lead_from_many_steps_with_noise_to_one_and_into_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, each round from the weights of the one before."""
    path = tmp_path / "teacher.safetensors"
    config = random_teacher(path, "paper", steps=250)
    config = replace(config, vqgan=SMALL)
    monkeypatch.setitem(PRESETS, "test", config)
    monkeypatch.setattr(commands, "load_cache", lambda folder: random_cache(config))
    given = ["dit", "--preset", "test", "--threads", "1", "--latents", "x", "--precision", "fp32"]
    given += ["--steps", "1", "--batch", "2"]
    taken: list[str] = ["--teacher-steps", "4"]
    for steps in (4, 2, 1):
        out = tmp_path / str(steps)
        command = [*given, "--out", str(out), "--teacher", str(path), *taken]
        assert cli.main(command) == 0
        path, taken = out / "dit.safetensors", []
        found = DitHeadConfig.from_dict(checkpoint.load(path)[1])
        student = replace(config.diffusion, prediction="velocity", steps=steps)
        assert found == replace(config, diffusion=student)
    assert cli.main([*given, "--out", str(tmp_path / "none"), "--teacher", str(path)]) == 1
    assert "1 steps of the teacher" in capsys.readouterr().err

    vqgan = tmp_path / "vqgan.safetensors"
    checkpoint.save(vqgan, VQGAN(SMALL).state_dict(), config.to_dict())
    packed = tmp_path / "packed.safetensors"
    command = ["pack", "--preset", "test", "--out", str(packed), "--dit", str(path)]
    assert cli.main([*command, "--face", str(vqgan), "--masked", str(vqgan)]) == 0
    assert DitHead.load(packed).config == found


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "teacher.safetensors"
    config = random_teacher(path, steps=6)
    cache, distillation = random_cache(config), Distillation(path, 4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def distil(out: Path, execution: Execution, of: Distillation = distillation) -> Path:
        return train_dit(cache, config, TRAINING, out, execution=execution, distillation=of)

    expected = checkpoint.load(distil(whole, EXACT))[0]
    saved = States.save

    def save_and_end(self: States, *arguments: Any) -> None:
        saved(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(States, "save", save_and_end)
        with pytest.raises(KeyboardInterrupt):
            distil(broken, replace(EXACT, save_steps=3))
    torch.manual_seed(99)
    resumed = replace(EXACT, resume=True)
    with pytest.raises(ConfigError, match="begun differently: config was"):
        distil(broken, resumed, Distillation(path, 2))
    found = checkpoint.load(distil(broken, resumed))[0]
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.parametrize("keyed", [False, True])
def test_samples_and_own_outputs_are_of_the_students_grid(keyed: bool, tmp_path: Path) -> None:
    config = small_config()
    training = replace(TRAINING, batch=32, generated_share=0.5, first_step_share=0.0)
    diffusion = Diffusion(config.diffusion)
    sampler, own = (
        LatentSampler(random_cache(config), training),
        OwnOutputs(diffusion, training, (16, 8, 8), EXACT, 3),
    )
    grid = ddim_timesteps(config.diffusion, 3)
    drawn = (
        KeyedDraws(sampler, own, Processes(CPU), grid)
        if keyed
        else SequentialDraws(sampler, own, diffusion, CPU, grid)
    )
    visited: list[int] = []

    def model(
        noisy: Tensor, masked: Tensor, reference: Tensor, timestep: Tensor, *_: Tensor
    ) -> Tensor:
        visited.append(int(timestep[0]))
        return noisy

    with closing(drawn):
        step = drawn.next()
        drawn.generate(model, step)  # type: ignore[arg-type]
    assert set(step.timestep.tolist()) == set(grid)
    assert visited == grid


def test_what_cannot_teach_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "teacher.safetensors"
    config = random_teacher(path, steps=6)
    monkeypatch.setitem(PRESETS, "test", config)
    monkeypatch.setattr(commands, "load_cache", lambda folder: random_cache(config))
    given = ["dit", "--preset", "test", "--threads", "1", "--latents", "x"]
    given += ["--out", str(tmp_path / "out")]
    for command, said in (
        (["--teacher", str(tmp_path / "no.safetensors")], "no.safetensors: give the path"),
        (["--teacher", str(path), "--teacher-steps", "7"], "7 steps of the teacher .* an even"),
        (["--teacher", str(path), "--teacher-steps", "0"], "must be at least 1, not 0"),
        (["--teacher", str(path), "--teacher-steps", "1002"], r"must lie in 1\.\.1000"),
        (["--teacher-steps", "4"], "needs --teacher"),
        (
            ["--teacher", str(path), "--preset", "base"],
            "another shape: dit.width is 32, and 768 in base.*--preset",
        ),
    ):
        assert cli.main([*given, *command]) == 1
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and re.search(said, error)
    assert not (tmp_path / "out").exists()
