"""Work of several streams run as one: who leads, who waits, whose fault it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dithead.runtime.schedule import batch
from dithead.runtime.schedule.batch import Batcher, Member
from dithead.runtime.schedule.channel import Stopped
from dithead.runtime.schedule.host import HostLane, HostLanes


def double(values: Tensor) -> Tensor:
    return 2 * values


def test_what_fails_before_the_work_is_told_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(HostLanes(), most=4, wait_s=5.0)
    members = [batcher.join("key") for _ in range(2)]
    calls = [partial(ask, member, double, 1.0) for member in members]
    assert [value[0, 0] for value in together(calls) if isinstance(value, Tensor)] == [2.0, 2.0]

    def no_room(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(batch.torch, "cat", no_room)
        found = together(calls)
    assert [str(error) for error in found] == ["out of memory"] * 2
    calls = [partial(ask, member, double, 3.0) for member in members]
    assert [value[0, 0] for value in together(calls) if isinstance(value, Tensor)] == [6.0, 6.0]


@pytest.fixture
def sizes() -> list[int]:
    """Rows of the batches that were run."""
    return []


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times, in seconds, for which a leader waited in vain."""
    found: list[float] = []

    class Condition(threading.Condition):
        def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
            result = super().wait_for(predicate, timeout)
            if timeout is not None and not result:
                found.append(timeout)
            return result

    replaced = SimpleNamespace(**(vars(threading) | {"Condition": Condition}))
    monkeypatch.setattr(batch, "threading", replaced)
    return found


@pytest.fixture
def work(sizes: list[int]) -> Callable[[Tensor], Tensor]:
    """Doubles what it is given, and refuses what is negative."""

    def run(values: Tensor) -> Tensor:
        sizes.append(values.shape[0])
        if values.min() < 0:
            raise ValueError("a negative number")
        return 2 * values

    return run


def ask(
    member: Member,
    work: Callable[[Tensor], Tensor],
    value: float,
    rows: int = 1,
) -> Tensor:
    return member.run(HostLane("lane"), work, torch.full((rows, 2), value)).clone()


def together(calls: list[Callable[[], Tensor]]) -> list[Tensor | BaseException]:
    """What each call gives or raises, each in a thread of its own."""
    results: list[Tensor | BaseException] = [RuntimeError("no result")] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    return results


def test_what_is_asked_together_runs_together(
    work: Callable[[Tensor], Tensor], sizes: list[int], waited: list[float]
) -> None:
    batcher = Batcher(HostLanes(), most=8, wait_s=5.0)
    members = [batcher.join("key") for _ in range(5)]
    found = together([lambda m=m, n=n: ask(m, work, n) for n, m in enumerate(members)])
    assert waited == []  # all have asked
    assert sizes == [5]
    for number, value in enumerate(found):
        assert isinstance(value, Tensor)
        assert torch.equal(value, torch.full((1, 2), 2.0 * number))


def test_a_batch_has_so_many_rows_at_most(
    work: Callable[[Tensor], Tensor], sizes: list[int]
) -> None:
    batcher = Batcher(HostLanes(), most=4, wait_s=5.0)  # not for a batch that is full
    members = [batcher.join("key") for _ in range(4)]
    together([lambda m=m: ask(m, work, 1, rows=2) for m in members])
    assert sizes == [4, 4]
    sizes.clear()
    batcher = Batcher(HostLanes(), most=4, wait_s=0.2)
    members = [batcher.join("key") for _ in range(2)]
    together([lambda m=m: ask(m, work, 1, rows=3) for m in members])
    assert sizes == [3, 3]
    sizes.clear()
    assert ask(members[0], work, 1, rows=9).shape == (9, 2)  # one alone is never refused
    assert sizes == [9]


def test_other_work_runs_by_itself(
    work: Callable[[Tensor], Tensor], sizes: list[int], waited: list[float]
) -> None:
    batcher = Batcher(HostLanes(), most=8, wait_s=5.0)
    members = [batcher.join(key) for key in "aba"]
    found = together([lambda m=m: ask(m, work, 1) for m in members])
    assert waited == []  # for other work nobody waits
    assert all(isinstance(value, Tensor) for value in found)
    assert sorted(sizes) == [1, 2]


def test_a_stream_waits_for_others_no_longer_than_was_said(
    work: Callable[[Tensor], Tensor], sizes: list[int], waited: list[float]
) -> None:
    batcher = Batcher(HostLanes(), most=8, wait_s=0.1)
    first, second = batcher.join("key"), batcher.join("key")
    ask(first, work, 1)
    assert waited == [0.1]
    second.leave()
    second.leave()  # counts once
    ask(first, work, 1)
    assert waited == [0.1]
    assert sizes == [1, 1]


def test_ones_fault_stays_its_own(work: Callable[[Tensor], Tensor], sizes: list[int]) -> None:
    batcher = Batcher(HostLanes(), most=8, wait_s=5.0)
    members = [batcher.join("key") for _ in range(3)]
    values = (1.0, -1.0, 2.0)
    found = together(
        [lambda m=m, v=v: ask(m, work, v) for m, v in zip(members, values, strict=True)]
    )
    assert sizes == [3, 1, 1, 1]
    assert isinstance(found[1], ValueError)
    for value, asked in zip((found[0], found[2]), (1.0, 2.0), strict=True):
        assert isinstance(value, Tensor)
        assert torch.equal(value, torch.full((1, 2), 2 * asked))


def test_whoever_is_stopped_goes_and_the_others_stay() -> None:
    batcher = Batcher(HostLanes(), most=1, wait_s=0.0)
    members = [batcher.join(key) for key in ("slow", "double", "double")]
    running, go_on = threading.Event(), threading.Event()

    def slow(values: Tensor) -> Tensor:
        running.set()
        assert go_on.wait(10)
        return values

    def stop() -> Tensor:
        assert running.wait(10)
        time.sleep(0.1)  # the others wait behind the slow one
        members[1].stop()
        time.sleep(0.1)
        go_on.set()
        return torch.zeros(1)

    def later(member: Member) -> Tensor:
        assert running.wait(10)
        return ask(member, double, 3)

    found = together(
        [
            lambda: ask(members[0], slow, 1),
            lambda: later(members[1]),
            lambda: later(members[2]),
            stop,
        ]
    )
    assert isinstance(found[0], Tensor)
    assert isinstance(found[1], Stopped)
    assert isinstance(found[2], Tensor)
    assert torch.equal(found[2], torch.full((1, 2), 6.0))
