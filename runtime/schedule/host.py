"""Lanes on the CPU: each is the thread that uses it, so handing a frame over keeps the order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

from torch import Tensor

from dithead.runtime.schedule.lanes import Event

P = ParamSpec("P")
R = TypeVar("R")


class HostLane:
    """See :class:`dithead.runtime.schedule.lanes.Lane`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> Event:
        return None

    def wait(self, event: Event) -> None:
        pass

    def upload(self, value: Tensor) -> Tensor:
        return value

    def download(self, value: Tensor) -> Tensor:
        return value

    def read(self, value: Tensor) -> Tensor:
        return value

    def drain(self) -> None:
        pass

    def replay(self, work: Callable[P, R], *inputs: P.args, **constants: P.kwargs) -> R:
        return work(*inputs, **constants)


class HostLanes:
    """See :class:`dithead.runtime.schedule.lanes.Lanes`."""

    def lane(self, name: str, *, host: bool = False) -> HostLane:
        return HostLane(name)
