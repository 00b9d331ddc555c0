"""Block sizes that were measured take the place of the fixed ones; nothing else does."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from exactness import DEVICE, numbers
from torch import Tensor

from dithead.bench.kernels import tune
from dithead.errors import DitheadError
from dithead.kernels import settings
from dithead.kernels.modulated_layer_norm import modulated_layer_norm
from dithead.kernels.modulated_layer_norm import triton as of_norm
from dithead.kernels.settings import Measured, Settings, keep, known, measuring

SHAPE = (1, 6, 32)
BETTER = of_norm.CANDIDATES[-1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings._table.cache_clear()
    yield
    settings._table.cache_clear()


def norm() -> Tensor:
    return modulated_layer_norm(numbers(*SHAPE), impl="triton")[1]


def blocks_of_a_norm(monkeypatch: pytest.MonkeyPatch) -> Settings | None:
    """What a call is launched with; None for the fixed blocks."""
    seen, plan = [], of_norm.plan

    def noted(*given: object) -> object:
        seen.append(given[-1])
        return plan(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(of_norm, "plan", noted)
        norm()
    return seen[-1]


def measured(blocks: Settings | None, shape: tuple[int, ...] = SHAPE) -> Measured:
    return Measured("modulated_layer_norm", shape, "float32", blocks, 1.0, 2.0)


def test_fixed_blocks_run_where_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks_of_a_norm(monkeypatch) is None
    assert known(DEVICE) == 0


def test_what_was_measured_is_used_for_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep(
        [measured(BETTER), measured(BETTER, (2, 6, 32)), measured(None, (3, 6, 32))], DEVICE
    )
    assert known(DEVICE) == 2
    assert blocks_of_a_norm(monkeypatch) == BETTER
    keep([measured(BETTER, (9, 6, 32))], DEVICE)
    assert blocks_of_a_norm(monkeypatch) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_blocks_that_no_kernel_offers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    keep([measured(Settings((3,), num_warps=5))], DEVICE)
    assert blocks_of_a_norm(monkeypatch) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 99, "settings": []}',
        '{"schema": 1, "settings": [{}]}',
        '{"schema": 1, "settings": [{"operation": "a", "shape": [1e999]}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_table_is_told_and_left(
    text: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep([measured(BETTER)], DEVICE)
    path.write_text(text)
    settings._table.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert blocks_of_a_norm(monkeypatch) is None
        norm()
    (told,) = caplog.messages
    assert str(path) in told and "dithead bench kernels --tune" in told


def test_measuring_finds_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate runs, and gives the same result as the fixed blocks."""
    times = iter([5.0, *(9.0 for _ in of_norm.CANDIDATES[:-1]), 1.0])

    def timed(run: object, device: torch.device) -> float:
        run()  # type: ignore[operator]
        return next(times)

    monkeypatch.setattr(settings, "seconds_of", timed)
    with measuring() as found:
        norm()
    (one,) = found
    assert one == Measured("modulated_layer_norm", SHAPE, "float32", BETTER, 1e6, 5e6)
    keep(found, DEVICE)
    assert blocks_of_a_norm(monkeypatch) == BETTER
    (entry,) = json.loads(settings.table_path(DEVICE).read_text())["settings"]
    assert (entry["microseconds"], entry["fixed_microseconds"]) == (1e6, 5e6)


@dataclass
class Fill:
    """Stands in for a launch that writes one number everywhere."""

    out: Tensor
    value: float

    def run(self) -> None:
        self.out.fill_(self.value)


def test_blocks_that_give_another_result_are_refused() -> None:
    out, other = torch.zeros(4, device=DEVICE), Settings((8,))
    with measuring(), pytest.raises(DitheadError, match=r"fill \(4,\): with .*\(8,\).* is another"):
        settings.launch("fill", (4,), (out,), lambda given: [Fill(out, 1.0 + bool(given))], [other])
    with measuring(), pytest.raises(DitheadError, match="is another"):  # it writes nothing
        settings.launch(
            "fill", (4,), (out,), lambda given: [] if given else [Fill(out, 1)], [other]
        )


def once(run: Callable[[], object], device: torch.device) -> float:
    run()
    return 1.0


def test_every_kernel_with_blocks_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any of its candidates, its result is the same."""
    monkeypatch.setattr(settings, "seconds_of", once)
    found = tune(DEVICE, small=True)
    assert {one.operation for one in found} == {
        "attention", "audio_attention", "modulated_layer_norm", "added_layer_norm",
        "group_norm_silu", "composite",
    }  # fmt: skip
    assert {one.dtype for one in found} == {"float16", "uint8"}
    assert len(set(found)) == len({(one.operation, one.shape, one.dtype) for one in found})
