"""Lanes on a GPU: CUDA streams, ordered by CUDA events; pinned staging; CUDA graphs.

Nothing here waits for the whole device. The host waits for one event of one lane: where a few
numbers decide what is run next (:meth:`CudaLane.read`), where a host lane takes a finished picture,
and when a lane's thread ends.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable

_POLL_S = 20e-6
_WARM_UP_RUNS = 3  # before a capture, as torch.cuda.graphs asks for

_KEPT_SHAPES = 4  # of a buffer, such as those of a face that is now larger, now smaller

_capturing = threading.Lock()  # graphs share the generator of random numbers
# A lane has its stream for itself. (PyTorch hands the same 32 out again and again: work of one lane
# would be captured into another's graph.) The next lane of a name takes it over, with all that
# back ends keep for it.
_free_streams: defaultdict[tuple[torch.device, str], list[Any]] = defaultdict(list)


def _new_stream(device: torch.device) -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailable(
            "--device cuda needs the package cuda-bindings, which recent PyTorch for Linux "
            "brings along",
            hint="pip install cuda-bindings",
        ) from error
    with torch.cuda.device(device):
        torch.cuda.current_stream().query()  # lets the device's context be this thread's, too
        status, handle = driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(f"{device} gives no CUDA stream: {status.name}")
    return torch.cuda.ExternalStream(int(handle), device)


class CudaBuffer:
    """Storage that stays where it is, for each of the latest shapes, and the latest tensor."""

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
            if len(kept) == _KEPT_SHAPES:  # a slot that is used again is done with the others
                del kept[next(iter(kept))]
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
        # Not by torch.cuda.graph, which makes all streams wait and empties the allocator's caches.
        with _capturing:
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._outputs = work(*self._inputs)
            except BaseException:
                with suppress(RuntimeError):  # that the capture is void
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def __call__(self, *inputs: Tensor) -> Any:
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        self._graph.replay()
        return self._outputs


class CudaLane:
    """A CUDA stream; see :class:`dithead.runtime.schedule.lanes.Lane`.

    A lane of the host has no stream: what it has waited for is done, and what it does is done
    before it goes on.
    """

    def __init__(self, name: str, device: torch.device, host: bool, replays: bool) -> None:
        self.name = name
        self._replays = replays
        self._stream: Any = None
        if not host:
            free = _free_streams[device, name]
            try:
                self._stream = free.pop()
            except IndexError:
                self._stream = _new_stream(device)
            weakref.finalize(self, free.append, self._stream)
            # What was queued before, such as copies of weights, comes first.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._pinned: dict[tuple[Any, ...], Tensor] = {}
        self._replayed: dict[object, _Replayed] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            yield

    def record(self) -> torch.cuda.Event | None:
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(self._stream)
        return event

    def wait(self, event: torch.cuda.Event | None) -> None:
        if event is None:
            return
        if self._stream is None:
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


def _until_reached(event: torch.cuda.Event | None) -> None:
    """Wait on the host; polled, as a wait inside CUDA would hold up other threads' launches."""
    while event is not None and not event.query():
        time.sleep(_POLL_S)


class CudaLanes:
    """See :class:`dithead.runtime.schedule.lanes.Lanes`.

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
