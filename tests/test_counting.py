"""What a frame costs, counted: against figures that can be worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from dithead.bench import cli
from dithead.bench.counting import CARDS, Cost, count
from dithead.config import PRESETS, DiTConfig
from dithead.errors import BackendUnavailable

PAPER = PRESETS["paper"]


def of_step(impl: str) -> dict[str, Cost]:
    return count(PAPER, impl)["dit_step"]


def test_a_step_of_the_paper_is_what_its_sizes_say() -> None:
    found = of_step("reference")
    d, tokens, depth = 1024, 256, 24
    # Per block: qkv 3, out 1, cross q and out 2, MLP 8 square matrices for every token; keys and
    # values of one token of twice the width.
    products = depth * (14 * d * d * tokens + 4 * d * d)
    products += 256 * d + d * d  # nothing of the timestep: that is another graph
    ends = tokens * d * 2 * 2 * 4  # into the patches' four channels
    assert found["addmm"].operations == pytest.approx(2 * (products + ends), rel=0.01)
    attended = depth * (4 * tokens * tokens * d + 4 * tokens * d)
    assert found["scaled_dot_product_attention"].operations == attended
    weights = 2 * depth * (14 * d * d + 4 * d * d)
    assert weights < found["addmm"].bytes < 1.6 * weights


def test_the_kernels_do_the_same_products_in_fewer_launches_and_bytes() -> None:
    before, after = of_step("reference"), of_step("triton")
    assert {"attention", "audio_attention", "added_layer_norm", "ddim_step"} <= after.keys()
    assert "native_layer_norm" not in after
    operations, launches, size = (
        [sum(getattr(cost, name) for cost in costs.values()) for costs in (before, after)]
        for name in ("operations", "launches", "bytes")
    )
    assert operations[1] == pytest.approx(operations[0], rel=0.01)
    assert launches[1] < 0.5 * launches[0]
    assert size[1] < size[0]


def test_twice_the_depth_costs_twice_as_much() -> None:
    costs = []
    for depth in (2, 4, 6):
        dit = dataclasses.replace(PAPER.dit, depth=depth)
        found = count(dataclasses.replace(PAPER, dit=dit), "triton")["dit_step"]
        costs.append(sum(cost.bytes for cost in found.values()))
    assert costs[2] - costs[1] == costs[1] - costs[0] > 0


def test_a_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    (card,) = (card for card in CARDS if card.name == "H200")
    memory, arithmetic = Cost(1, 4_800_000_000, 0), Cost(1, 0, 989_000_000_000)
    assert card.floor_ms([memory]) == pytest.approx(1.0)
    assert card.floor_ms([arithmetic]) == pytest.approx(1.0)
    assert card.floor_ms([memory, arithmetic]) == pytest.approx(2.0)


def test_the_command_prints_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the command sets it for good
    assert cli.main(["counts", "--presets", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "### `tiny`" in printed and "| H200 |" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| `")]
    assert len(rows) > 20 and {row.count("|") for row in rows} == {9}
    assert cli.main(["counts", "--presets", "huge"]) == 2
    assert "unknown preset 'huge'" in capsys.readouterr().err


def test_neither_a_gpu_nor_the_interpreter_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_step("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert of_step("triton") == found
    monkeypatch.setattr("dithead.kernels.choice.INSTALLED", False)
    with pytest.raises(BackendUnavailable, match="triton is not installed"):
        of_step("triton")


def test_presets_of_tokens_are_counted_too() -> None:
    config = dataclasses.replace(PAPER, dit=DiTConfig(256, 2, 4, conditioning="tokens"))
    assert count(config, "reference")["dit_step"]["addmm"].operations > 0
