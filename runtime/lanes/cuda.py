"""Lanes on a GPU: CUDA streams, ordered by CUDA events; pinned staging; CUDA graphs.

The host waits in two places, each for one event of one lane: where a few numbers decide what is run
next (:meth:`CudaLane.read`), and where a host lane takes a finished picture. It waits for the whole
device when a graph is captured, once for each shape, and for each lane when its thread ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_POLL_S = 20e-6
_WARM_UP_RUNS = 3  # before a capture, as torch.cuda.graphs asks for

# A capture begins with a wait for the whole device, which CUDA refuses while another is going on.
_capturing = threading.Lock()


class CudaBuffer:
    """Storage that stays where it is, one for every shape that was met, and the latest tensor."""

    def __init__(self, name: str, device: torch.device, host: bool) -> None:
        self.name = name
        self.device = torch.device("cpu") if host else device
        self.value: Tensor | None = None
        self._storage: dict[tuple[Any, ...], Tensor] = {}
        self._staging: dict[tuple[Any, ...], Tensor] = {}

    def place(self, value: Tensor) -> Tensor:
        """Storage of a tensor's shape and type."""
        return self._made(self._storage, value, self.device)

    def staged(self, value: Tensor) -> Tensor:
        """A tensor of the host copied to pinned memory, from which a copy to the device need not be
        waited for. The slot's reuse guards it."""
        pinned = self._made(self._staging, value, torch.device("cpu"))
        return pinned.copy_(value)

    @staticmethod
    def _made(kept: dict[tuple[Any, ...], Tensor], value: Tensor, device: torch.device) -> Tensor:
        key = (*value.shape, value.dtype)
        if key not in kept:
            kept[key] = torch.empty(
                value.shape, dtype=value.dtype, device=device, pin_memory=device.type == "cpu"
            )
        return kept[key]


class _Replayed:
    """Work that was captured once, with its inputs and outputs where they were."""

    def __init__(self, work: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        self._work = work  # what it refers to must live as long as the graph
        self._inputs = [value.clone() for value in inputs]
        for _ in range(_WARM_UP_RUNS):
            work(*self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        with (
            _capturing,
            torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"),
        ):
            self._outputs = work(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Any:
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs


class CudaLane:
    """A CUDA stream; see :class:`dithead.runtime.lanes.Lane`."""

    def __init__(self, name: str, device: torch.device, host: bool, replays: bool) -> None:
        self.name = name
        self._host = host
        self._replays = replays
        self._stream = torch.cuda.Stream(device)
        # What was queued before, such as copies of weights, comes first.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._pinned: dict[tuple[Any, ...], Tensor] = {}
        self._replayed: dict[object, _Replayed] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            yield

    def record(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: torch.cuda.Event | None) -> None:
        if event is None:
            return
        if self._host:
            _until_reached(event)
        else:
            self._stream.wait_event(event)

    def put(self, buffer: CudaBuffer, value: Tensor) -> None:
        place = buffer.place(value)
        if value.device.type == "cpu" and place.device.type == "cuda":
            value = buffer.staged(value)
        place.copy_(value, non_blocking=True)
        buffer.value = place

    def get(self, buffer: CudaBuffer) -> Tensor:
        assert buffer.value is not None, f"{buffer.name} is read before it is written"
        return buffer.value

    def read(self, value: Tensor) -> Tensor:
        if value.device.type == "cpu":
            return value
        key = (*value.shape, value.dtype)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        self._pinned[key].copy_(value, non_blocking=True)
        _until_reached(self.record())
        return self._pinned[key].clone()

    def drain(self) -> None:
        _until_reached(self.record())

    def replay(self, key: object, work: Callable[..., Any], *inputs: Tensor) -> Any:
        if not self._replays:
            return work(*inputs)
        if key not in self._replayed:
            self._replayed[key] = _Replayed(work, inputs)
        return self._replayed[key](*inputs)


def _until_reached(event: torch.cuda.Event) -> None:
    """Wait on the host; polled, as a wait inside CUDA would hold up other threads' launches."""
    while not event.query():
        time.sleep(_POLL_S)


class CudaLanes:
    """See :class:`dithead.runtime.lanes.Lanes`.

    Args:
        replays: whether work of fixed shapes is captured and replayed. Off for back ends whose work
            cannot be captured.
    """

    def __init__(self, device: torch.device, replays: bool) -> None:
        self._device = device
        self._replays = replays

    def lane(self, name: str, *, host: bool = False) -> CudaLane:
        return CudaLane(name, self._device, host, self._replays)

    def buffer(self, name: str, *, host: bool = False) -> CudaBuffer:
        return CudaBuffer(name, self._device, host)
