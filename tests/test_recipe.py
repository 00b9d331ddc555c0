"""Recipes are whole, checked, and what the command takes its settings from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dithead.config import preset
from dithead.errors import ConfigError
from dithead.train import cli, commands
from dithead.train.recipe import FOLDER, load_recipe, names


@pytest.mark.parametrize("name", ["base", "paper"])
def test_a_recipe_has_every_stage_of_its_preset(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.preset == name and preset(name)
    for section in ("vqgan", "decoder", "dit"):
        settings = recipe.sections[section]
        assert {"steps", "batch", "learning_rate"} <= settings.keys()
        assert all(f"{section}.{setting}" in recipe.sources for setting in settings)
    assert recipe.sections["dit"]["keyed"]


def test_what_the_paper_says_is_marked_as_stated() -> None:
    recipe = load_recipe("paper")
    assert recipe.sections["dit"]["min_distance"] == 60
    stated = {name for name, source in recipe.sources.items() if source == "stated"}
    assert stated == {"dit.min_distance"}
    facts = json.loads((FOLDER / "paper.json").read_text())["footage"]
    found = {name: fact["value"] for name, fact in facts.items()}
    assert found == {"data": "HDTF", "frames_per_s": 25, "hours": 6, "gpus": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dti": {}}, r"unknown key \['dti'\].*valid keys: about, preset"),
        ({"dit": {"rate": {"value": 1}}}, r"unknown key \['rate'\].*learning_rate"),
        ({"dit": {"batch": 8}}, "expected settings by name, found int"),
        ({"dit": {"batch": {"value": 8, "why": "so"}}}, "needs a source, one of stated"),
        (
            {"dit": {"batch": {"value": "many", "source": "stated", "why": "so"}}},
            "'many' is no .*int",
        ),
        (
            {"dit": {"made_share": {"value": 2.0, "source": "stated", "why": "so"}}},
            "made_share must lie in",
        ),
        ({"preset": "huge"}, "unknown preset 'huge'"),
    ],
)
def test_a_recipe_with_what_is_no_setting_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"preset": "tiny", **change}))
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_those_that_exist() -> None:
    assert names() == ["base", "paper"]
    with pytest.raises(ConfigError, match="packaged: base, paper"):
        load_recipe("tiny")


def test_given_options_count_before_a_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []

    def train_dit(cache: object, *rest: object) -> Path:
        seen.extend(rest)
        return tmp_path

    monkeypatch.setattr(commands, "train_dit", train_dit)
    monkeypatch.setattr(commands, "load_cache", lambda folder: None)
    command = ["dit", "--latents", "x", "--out", "x", "--recipe", "paper", "--threads", "1"]
    assert cli.main([*command, "--batch", "8", "--no-shard"]) == 0
    config, training, _, _, execution, _, _ = seen
    assert config == preset("paper")
    assert (training.batch, training.learning_rate, training.steps) == (8, 1e-4, 200_000)
    assert math.isinf(training.minutes) and training.outside_weight == 1.0
    assert (training.other_clip_share, training.min_distance) == (0.0, 60)
    assert (training.beta1, training.beta2, training.weight_decay) == (0.9, 0.999, 0.0)
    assert (execution.shard, execution.recompute, execution.device) == (False, True, "cpu")


@pytest.mark.parametrize("kind", ["face", "masked"])
@pytest.mark.parametrize("options", [[], ["--decoder-only"]])
def test_stage_1_takes_its_settings_from_the_recipe(
    kind: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(commands, "train_vqgan", lambda *given: seen.append(given[2]))
    monkeypatch.setattr(commands, "Footage", lambda folder: None)
    monkeypatch.setattr(commands, "is_main", lambda: False)  # no weights to measure
    command = ["vqgan", kind, "--data", "x", "--out", "x", "--recipe", "paper", "--threads", "1"]
    assert cli.main([*command, *options]) == 0
    (training,) = seen
    assert training.kind == kind and training.decoder_only == bool(options)
    assert training.perceptual_whole and training.perceptual_weight == 1.0
    assert (training.beta1, training.beta2, training.commitment_weight) == (0.5, 0.9, 0.25)
