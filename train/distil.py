"""Progressive distillation (Salimans and Ho, arXiv 2202.00512): a student learns to reach in one
step of DDIM what its teacher reaches in two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.diffusion import Diffusion, ddim_timesteps, signal_levels
from dithead.errors import ConfigError
from dithead.train.draws import Drawn
from dithead.train.loop import check_part, precision
from dithead.train.settings import Distillation, Precision


@dataclass(frozen=True, slots=True)
class Lesson:
    """One round: who teaches, and what the student is to be."""

    path: Path
    """The teacher's weights."""
    teacher: DitHeadConfig
    """``diffusion.steps`` are those that it teaches."""
    student: DitHeadConfig

    @property
    def halves(self) -> bool:
        """Whether two of the teacher's steps become one; otherwise each remains one."""
        return self.student.diffusion.steps < self.teacher.diffusion.steps

    @property
    def grid(self) -> list[int]:
        """The timesteps that the student's sampler visits, from the noisiest down: it learns no
        others. The teacher's sampler visits them, too."""
        return ddim_timesteps(self.student.diffusion, self.student.diffusion.steps)

    def __str__(self) -> str:
        of, to = self.teacher.diffusion, self.student.diffusion
        return f"{of.steps} steps ({of.prediction}) -> {to.steps} steps ({to.prediction})"


def plan_lesson(distillation: Distillation, config: DitHeadConfig) -> Lesson:
    """What a teacher can teach a denoiser.

    The student has the teacher's diffusion, but predicts the velocity: a small error in the noise
    is a large one in the latent where there is little signal, and few steps begin there (section
    4). A teacher that predicts the noise therefore teaches that first, with as many steps; any
    other, half of its steps.

    Args:
        config: of the denoiser to train; its own diffusion does not count.

    Raises:
        CheckpointError: there is no such teacher.
        ConfigError: its denoiser is of another shape, or its steps cannot be halved.
    """
    path = distillation.teacher
    check_part(path, "dit")
    try:
        found = DitHeadConfig.from_dict(checkpoint.load_config(path))
    except ConfigError as error:
        raise ConfigError(f"{path} is no teacher: {error}") from error
    of_teacher, of_student = _shape(found), _shape(config)
    unlike = [
        f"{name} is {value!r}, and {of_student[name]!r} in {config.preset}"
        for name, value in of_teacher.items()
        if value != of_student[name]
    ]
    if unlike:
        raise ConfigError(
            f"{path} is a teacher of another shape: {'; '.join(unlike[:3])}",
            hint="give the --preset that it was trained with, or another --teacher",
        )
    steps = distillation.steps or found.diffusion.steps
    ddim_timesteps(found.diffusion, steps)  # raises if there are not so many
    converts = found.diffusion.prediction == "noise"
    if not converts and steps % 2:
        raise ConfigError(
            f"{steps} steps of the teacher {path} cannot be halved",
            hint="give an even number as --teacher-steps; a power of two leads down to 1",
        )
    of = replace(found.diffusion, steps=steps)
    to = replace(of, steps=steps if converts else steps // 2, prediction="velocity")
    return Lesson(path, replace(found, diffusion=of), replace(config, diffusion=to))


def _shape(config: DitHeadConfig) -> dict[str, Any]:
    """What two denoisers must have in common for the weights of one to fit the other."""
    return {
        **{f"dit.{name}": value for name, value in asdict(config.dit).items()},
        "latent_channels": config.vqgan.latent_channels,
        "latent_size": config.latent_size,
        "audio.window_shape": config.audio.window_shape,
    }


class Teacher:
    """Says what a student should have predicted.

    Args:
        model: the teacher's denoiser, in evaluation mode, without gradients.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        lesson: Lesson,
        device: torch.device,
        products: Precision = "bf16",
    ) -> None:
        self.model, self.halves, self.products = model, lesson.halves, products
        self.diffusion = Diffusion(lesson.teacher.diffusion).to(device)
        self.following, self.share = (table.to(device) for table in _tables(lesson))

    @torch.no_grad()
    def __call__(self, noisy: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise, each (B, C, S, S) float32, from which one step of DDIM
        leads where the teacher's two do (its one, if it does not halve them).

        With r the signal's level by the noise's, the step from r over r' to r'' ends where the mean
        of the teacher's two estimates of the clean latent, with the weight (r'' - r') / (r'' - r)
        for the second, would lead at once: appendix G's target (z'' - s''/s z) / (a'' - s''/s a),
        without its differences of numbers that are almost equal. The last step ends at r'' without
        bound, where only the second counts.

        Args:
            noisy: (B, C, S, S) at the timesteps drawn, all of them of the lesson's grid.
        """
        timestep = drawn.timestep
        said = self._predict(noisy, drawn, timestep)
        clean, noise = self.diffusion.split(noisy, said, timestep)
        if not self.halves:
            return clean, noise
        middle = self.following[timestep]
        between = self.diffusion.ddim_update(noisy, said, timestep, middle)
        said = self._predict(between, drawn, middle)
        later, _ = self.diffusion.split(between, said, middle)
        clean = torch.lerp(clean, later, self.share[timestep].view(-1, 1, 1, 1))
        return clean, self.diffusion.noise_in(noisy, clean, timestep)

    def _predict(self, noisy: Tensor, drawn: Drawn, timestep: Tensor) -> Tensor:
        batch = drawn.batch
        with precision(noisy.device, self.products):
            said = self.model(
                noisy, batch.masked, drawn.reference, timestep, batch.window, *batch.conditions
            )
        return said


def _tables(lesson: Lesson) -> tuple[Tensor, Tensor]:
    """By timestep, where the teacher's step from there leads, (T,) int64, and, where the student
    starts, the weight of the teacher's second estimate, (T,) float32; NaN elsewhere."""
    config = lesson.teacher.diffusion
    levels = signal_levels(config)
    ratio = (levels / (1.0 - levels)).sqrt().tolist()
    following = torch.full((config.timesteps,), -1)
    for now, after in pairwise(ddim_timesteps(config, config.steps)):
        following[now] = after
    share = torch.full((config.timesteps,), torch.nan)
    for now, end in pairwise([*lesson.grid, -1]):
        middle = int(following[now])
        share[now] = 1.0 if end < 0 else (ratio[end] - ratio[middle]) / (ratio[end] - ratio[now])
    return following, share
