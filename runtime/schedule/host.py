"""Lanes on the CPU: each is the thread that uses it, so handing a slot over is all the order it
takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


class HostBuffer:
    """Holds whatever tensor was put."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Tensor | None = None


class HostLane:
    """See :class:`dithead.runtime.schedule.lanes.Lane`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> None:
        return None

    def wait(self, event: None) -> None:
        pass

    def put(self, buffer: HostBuffer, value: Tensor) -> None:
        buffer.value = value

    def get(self, buffer: HostBuffer) -> Tensor:
        assert buffer.value is not None, f"{buffer.name} is read before it is written"
        return buffer.value

    def read(self, value: Tensor) -> Tensor:
        return value

    def drain(self) -> None:
        pass

    def replay(self, key: object, work: Callable[..., Any], *inputs: Tensor) -> Any:
        return work(*inputs)


class HostLanes:
    """See :class:`dithead.runtime.schedule.lanes.Lanes`."""

    def lane(self, name: str, *, host: bool = False) -> HostLane:
        return HostLane(name)

    def buffer(self, name: str, *, host: bool = False) -> HostBuffer:
        return HostBuffer(name)
