"""Weights that are drawn in a preset's shapes, to measure it, are said to be that everywhere."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from dithead.__main__ import main as dithead_main
from dithead.bench import cli as bench
from dithead.errors import CheckpointError, ConfigError
from dithead.model import DitHead
from dithead.runtime.backends import open_graphs
from dithead.runtime.cli import main
from dithead.torchgraphs import TorchGraphs

NAME = "random:tiny"


def test_they_are_the_same_every_time() -> None:
    first, second = (TorchGraphs.load(NAME) for _ in range(2))
    assert first.random_weights and not TorchGraphs.load("tiny").random_weights
    assert first.config.preset == "tiny"
    for one, other in zip(first.dithead.parameters(), second.dithead.parameters(), strict=True):
        assert torch.equal(one, other)
    trained = TorchGraphs.load("tiny").dithead.dit.patch_in.weight
    assert not torch.equal(first.dithead.dit.patch_in.weight, trained)


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_the_summary_and_the_file_say_so(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    suffix: str,
) -> None:
    clip = portrait_clip("clip.mp4", [Fraction(n, 25) for n in range(3)])
    out = tmp_path / f"out{suffix}"
    given = [str(clip), str(tone_file(0.12)), "-o", str(out), "--steps", "1", "--detail", "off"]
    assert main([*given, "--checkpoint", NAME]) == 0
    assert "random weights in the shapes of tiny, never trained" in capsys.readouterr().out
    assert b"; random weights, never trained" in out.read_bytes()


def test_they_are_not_adapted(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["a.mp4", "a.wav", "-o", "b.mp4", "--adapt", "1", "--checkpoint", NAME]
    assert dithead_main(["stream", *args]) == 2
    assert "not random ones" in capsys.readouterr().err


def test_no_file_is_looked_for() -> None:
    with pytest.raises(CheckpointError, match=r"random:tiny is no file.*--backend torch"):
        DitHead.load(NAME)
    with pytest.raises(ConfigError, match="unknown preset 'huge'; choose one of tiny"):
        open_graphs("torch", checkpoint="random:huge")


def test_a_benchmark_takes_them() -> None:
    args = bench._parser("dithead-bench").parse_args(["stages", "--checkpoint", NAME])
    found = {(case.backend, case.checkpoint, case.bundle) for case in bench.cases_of(args)}
    assert found == {("torch", NAME, None)}
