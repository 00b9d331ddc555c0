"""The ablation: rows that differ in one choice, trained alike, resumed, and put into a table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from denoisers import random_cache, small_config

from dithead import checkpoint
from dithead.audio import AudioEncoder, encode_audio
from dithead.config import DitHeadConfig, VQGANConfig, preset
from dithead.errors import ConfigError, MediaError
from dithead.model import DitHead
from dithead.train import ablation, evaluate
from dithead.train.ablation import MEASURES, ROWS, Ablation, Row, ablate, chosen, narrowed
from dithead.train.evaluation.table import as_markdown
from dithead.train.latents import LatentCache
from dithead.train.settings import DiTTraining, Execution


@pytest.fixture
def config() -> DitHeadConfig:
    """The small denoiser, with small autoencoders."""
    channels = (8, 8, 8, 8)
    vqgan = VQGANConfig(channels, channels, blocks=1, attention=False, codebook_size=16)
    return replace(small_config(), vqgan=vqgan, shape_head=False)


@pytest.fixture
def cache(config: DitHeadConfig) -> LatentCache:
    made = random_cache(config)
    return replace(made, landmarks=torch.zeros(len(made.face), 26, 2))


@pytest.fixture
def shared(config: DitHeadConfig, tmp_path: Path) -> Ablation:
    """Two steps each."""
    parts = tmp_path / "parts.safetensors"
    checkpoint.save(parts, DitHead(config).state_dict(), config.to_dict())
    training = DiTTraining(steps=2, minutes=float("inf"), batch=4, generated_share=0.0)
    return Ablation(config, training, parts, parts, None, tmp_path / "out")


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_each_row_differs_from_the_base_in_one_choice(name: str) -> None:
    base = ROWS[0].config(preset(name))
    assert (base.dit.skip, base.dit.conditioning, base.audio.window_frames) == (False, "tokens", 11)
    seen = set()
    for row in ROWS[1:]:
        changes = flat(row.config(preset(name)).to_dict()).items() - flat(base.to_dict()).items()
        changes |= row.training.items()
        options = {"steps": row.steps, "reference": row.reference}
        changes |= {(key, value) for key, value in options.items() if value not in (None, "fixed")}
        assert len(changes) == 1, row.name
        seen |= changes
        assert row.trained == (row.reference == "fixed" and not row.steps and not row.inpaint)
    assert len(seen) == len(ROWS) - 1


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name."""
    sections = {name: value for name, value in values.items() if isinstance(value, dict)}
    return {f"{s}.{name}": value for s, inner in sections.items() for name, value in inner.items()}


def test_a_narrow_window_is_the_middle_of_a_wide_one(whisper: AudioEncoder) -> None:
    """So rows with narrow windows need no latents of their own."""
    samples = (0.1 * np.random.standard_normal(12800)).astype(np.float32)
    wide = encode_audio(whisper, samples)
    windows = wide.window(0.4)
    cache = LatentCache([], windows, windows, {"c": windows[None, None].numpy()}, {}, windows)
    for frames in (1, 5):
        narrow = replace(wide, config=replace(wide.config, window_frames=frames)).window(0.4)
        found = narrowed(cache, frames)
        assert torch.equal(found.silence_window, narrow)
        assert np.array_equal(found.windows["c"][0, 0], narrow.numpy())


def test_rows_are_trained_packed_and_kept(
    shared: Ablation, cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = chosen(["tokens", "window of 5", "known laid back"])
    execution = Execution(resume=True, precision="fp32", save_steps=1)
    table = ablate(shared, rows, cache, execution, [])
    assert [name for name, _ in table.rows] == [row.name for row in rows]
    assert {cell for _, cells in table.rows for cell in cells} == {"-"}  # nothing was judged
    files = {row.name: shared.out / f"{row.name.replace(' ', '_')}.safetensors" for row in rows}
    models = {name: DitHead.load(path) for name, path in files.items()}
    for row in rows:
        assert models[row.name].config == row.config(shared.base)
    plain, known = (models[name].dit.state_dict() for name in ("tokens", "known laid back"))
    assert all(torch.equal(plain[name], known[name]) for name in plain)
    assert models["window of 5"].dit.audio_positions.shape[0] == 5

    def again(*_: object) -> None:
        raise AssertionError("trained once more")

    monkeypatch.setattr("dithead.train.dit.build_dit", again)
    ablate(shared, rows, cache, execution, [])


def test_rows_are_judged_once_and_end_in_a_table(
    shared: Ablation, cache: LatentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def judge(arguments: list[str]) -> int:
        asked.append(arguments)
        value = float(len(asked))
        figures = {"clips": 1, "fine_with_audio": value, "people": {}}
        report = {"settings": {}, "crossed, 2 steps, fixed reference": figures}
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(report))
        return 0

    monkeypatch.setattr(evaluate, "main", judge)
    monkeypatch.setattr(ablation.Ablation, "train", lambda *_: None)
    shared.out.mkdir()
    rows = chosen(["tokens", "reference previous", "2 steps"])
    clips = ["--manifest", "clips.tsv"]
    for _ in range(2):
        table = ablate(shared, rows, cache, Execution(), clips)
    assert [given[:2] for given in asked] == [clips] * 3
    assert asked[1][asked[1].index("--reference") + 1] == "previous"
    assert asked[2][asked[2].index("--steps") + 1] == "2"
    lines = as_markdown(table).splitlines()
    assert lines[0] == f"|  | {' | '.join(MEASURES)} |"
    assert lines[2] == "| tokens | 1 | - | - | - | - |"
    assert lines[4] == "| 2 steps | 3 | - | - | - | - |"
    monkeypatch.setattr(evaluate, "main", lambda _: 1)
    with pytest.raises(MediaError, match="'landmarks' could not be judged"):
        ablate(shared, chosen(["landmarks"]), cache, Execution(), clips)


def test_unknown_rows_and_wide_windows_are_refused(cache: LatentCache) -> None:
    with pytest.raises(ConfigError, match=r"'windw'.*window of 5"):
        chosen(["windw"])
    assert chosen([]) == list(ROWS)
    with pytest.raises(ConfigError, match="windows of 11 frames, not of 13"):
        narrowed(cache, 13)
    assert narrowed(cache, 11).windows.keys() == cache.windows.keys()
    assert isinstance(ROWS[0], Row)
