"""References are distant frames, also where several clips were cut from one video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from denoisers import random_cache, small_config

from dithead.errors import ConfigError
from dithead.train.latents import Run
from dithead.train.recipe import load_recipe
from dithead.train.references import References
from dithead.train.samples import LatentSampler
from dithead.train.settings import DiTTraining
from dithead.train.shards.store import part_and_number, sample_name


def runs_of(frames: dict[str, int]) -> list[Run]:
    """Clips of one person with one look, one after the other."""
    firsts = np.cumsum([0, *frames.values()]).tolist()
    return [
        Run(clip, "a", 0, 0, first, count, True)
        for first, (clip, count) in zip(firsts, frames.items(), strict=False)
    ]


def draw(
    runs: Sequence[Run], training: DiTTraining, draws: int = 1500
) -> list[tuple[int, int, bool]]:
    """Rows of samples and of their references, and whether these are of the same clip."""
    references, random = References(runs, training), np.random.default_rng(0)
    found = []
    for _ in range(draws):
        run = runs[random.integers(len(runs))]
        frame = int(random.integers(run.frames))
        row = references.draw(run, frame, random)
        inside = run.first <= row < run.first + run.frames
        found.append((run.first + frame, row, inside))
    return found


CUT = {sample_name("video", number): 130 for number in range(4)}


def test_with_the_papers_recipe_none_is_nearer_than_60_frames() -> None:
    training = DiTTraining(**load_recipe("paper").sections["dit"])
    found = draw(runs_of(CUT), training)
    assert all(same for *_, same in found)
    away = [abs(row - reference) for row, reference, _ in found]
    assert min(away) in range(60, 64) and max(away) > 120  # no further than need be


def test_the_distance_is_kept_between_clips_cut_from_one_video() -> None:
    found = draw(runs_of(CUT), DiTTraining(other_clip_share=1.0))
    away = [row - reference for row, reference, _ in found]
    assert not any(same for *_, same in found)
    assert min(map(abs, away)) in range(60, 64)
    assert min(away) < -300 and max(away) > 300


def test_a_clip_with_no_distant_frame_gives_none() -> None:
    """Of 90 frames in two clips, the middle ones have none in the other that is 60 away."""
    found = draw(runs_of({"v_0000": 50, "v_0001": 40, "w_0000": 200}), DiTTraining())
    others = [(row, reference) for row, reference, same in found if not same and row < 90]
    near = [(row, reference) for row, reference in others if reference < 90]
    assert min(abs(row - reference) for row, reference in near) in range(60, 64)
    assert not any(30 <= row < 60 for row, _ in near)
    assert any(30 <= row < 60 for row, _ in others)  # these are shown the other video


def test_clips_of_other_videos_may_be_neighbours() -> None:
    """Rows that follow each other are chance, and so are names that only look alike."""
    frames = {"a_0000": 100, "b_0001": 100, "c": 100, "a_1": 100, "a": 100}
    found = draw(runs_of(frames), DiTTraining(other_clip_share=1.0), 4000)
    pairs = {(row // 100, reference // 100) for row, reference, _ in found}
    assert pairs == {(one, other) for one in range(5) for other in range(5) if one != other}
    assert min(abs(row - reference) for row, reference, _ in found) < 5


def test_names_of_samples_are_read_back() -> None:
    for part, number in (("video", 0), ("WDA_x_000_1", 12), ("v", 12345)):
        assert part_and_number(sample_name(part, number)) == (part, number)
    for name in ("video", "s1_bbaf2n", "v_012", "v_00012", "v_-001", "0001"):
        assert part_and_number(name) is None


@pytest.mark.parametrize(("share", "warned"), [(0.0, True), (0.9, False)])
def test_clips_too_short_for_the_rule_are_counted(
    share: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cache = random_cache(small_config())
    looks = [replace(run, look=1) for run in cache.runs]  # each clip counts once
    frames = {run.clip: 120 if run.clip == "c0" else run.frames for run in cache.runs}
    runs = [replace(run, frames=frames[run.clip]) for run in (*cache.runs, *looks)]
    training = DiTTraining(other_clip_share=share)
    LatentSampler(replace(cache, runs=runs), training)
    text = "4 of 5 clips have fewer than 120 frames"
    assert (text in caplog.text) == warned
    caplog.clear()
    References(runs_of({"c": 120}), training)
    assert not caplog.text
    found = draw(runs_of({"c": 119}), DiTTraining(other_clip_share=0.0))
    assert min(abs(row - reference) for row, reference, _ in found) == 59  # the middle


def test_a_distance_or_share_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="min_distance must be at least 1 frame, not 0"):
        DiTTraining(min_distance=0)
    with pytest.raises(ConfigError, match=r"other_clip_share must lie in 0\.\.1, not 2"):
        DiTTraining(other_clip_share=2.0)
