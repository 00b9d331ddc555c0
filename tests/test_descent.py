"""What a setting says of the optimiser is what trains, and a recipe can say it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import autoencoders
import denoisers
import pytest
from torch import Tensor

from dithead import checkpoint
from dithead.errors import ConfigError
from dithead.train.recipe import load_recipe
from dithead.train.settings import PLAIN, DiTTraining, VQGANTraining

DENOISER = DiTTraining(
    minutes=math.inf, steps=3, batch=2, warmup_steps=2, generated_share=0.0, keyed=True
)
AUTOENCODER = VQGANTraining(
    minutes=math.inf, steps=3, batch=2, warmup_steps=2, warm_share=0.0, keyed=True
)
OF_BOTH = {
    "beta1": 0.5,
    "beta2": 0.9,
    "weight_decay": 0.3,
    "gradient_clip": 1e-3,
    "average_decay": 0.0,
    "warmup_steps": 1,
}
OF_AUTOENCODERS = {**OF_BOTH, "commitment_weight": 4.0}


def denoiser(folder: Path, training: DiTTraining) -> dict[str, Tensor]:
    path = denoisers.train_small(folder / "out", training, PLAIN)
    return checkpoint.load(path)[0]


def autoencoder(folder: Path, training: VQGANTraining) -> dict[str, Tensor]:
    autoencoders.random_footage(folder / "data")
    path = autoencoders.train_small(folder / "out", folder / "data", training, PLAIN)
    return checkpoint.load(path)[0]


@pytest.mark.parametrize(
    ("train", "training", "changes"),
    [(denoiser, DENOISER, OF_BOTH), (autoencoder, AUTOENCODER, OF_AUTOENCODERS)],
    ids=["denoiser", "autoencoder"],
)
def test_each_setting_changes_what_is_learnt(
    train: Callable[[Path, Any], dict[str, Tensor]],
    training: Any,
    changes: Mapping[str, float],
    tmp_path: Path,
) -> None:
    plain = train(tmp_path / "plain", training)
    again = train(tmp_path / "again", replace(training))
    assert all(again[name].equal(value) for name, value in plain.items())
    for setting, value in changes.items():
        other = train(tmp_path / setting, replace(training, **{setting: value}))
        assert not all(other[name].equal(value) for name, value in plain.items()), setting


def test_the_papers_recipe_says_where_each_of_them_is_from() -> None:
    recipe = load_recipe("paper")
    wanted = {"vqgan": OF_AUTOENCODERS, "decoder": OF_BOTH, "dit": OF_BOTH}
    for section, settings in wanted.items():
        assert {recipe.sources[f"{section}.{setting}"] for setting in settings} == {"assumed"}


@pytest.mark.parametrize("cls", [DiTTraining, VQGANTraining])
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("beta1", 1.0, "beta1 and beta2 must lie in"),
        ("beta2", -0.1, "beta1 and beta2 must lie in"),
        ("weight_decay", -1.0, "weight_decay must not be negative"),
        ("gradient_clip", 0.0, "gradient_clip must be positive"),
        ("average_decay", 1.5, r"average_decay must lie in 0\.\.1"),
        ("warmup_steps", 0, "warmup_steps at least 1"),
    ],
)
def test_what_cannot_train_is_refused(
    cls: Callable[..., object], setting: str, value: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**{setting: value})


def test_a_negative_commitment_is_refused() -> None:
    with pytest.raises(ConfigError, match="commitment_weight must not be negative"):
        VQGANTraining(commitment_weight=-0.25)
