"""Lanes on a GPU: CUDA streams, ordered by CUDA events; pinned memory; CUDA graphs.

Nothing here waits for the whole device. The host waits for one event of one lane in three places:
where a few numbers decide what runs next (:meth:`CudaLane.read`), where a host lane takes a
finished picture, and when a lane's thread ends.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Generic, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dithead.errors import BackendUnavailable
from dithead.runtime.schedule.lanes import Event, Work

_POLL_S = 20e-6
_WARM_UP_RUNS = 3  # before a capture, as torch.cuda.graphs requires

_capturing = threading.Lock()  # graphs share the random number generator
# Each lane owns a CUDA stream; a later lane with the same name reuses it, with everything that back
# ends keep for it. PyTorch's own 32 streams are reused in turn: one lane's work would be captured
# with another's.
_free_streams: defaultdict[tuple[torch.device, str], list[torch.cuda.Stream]] = defaultdict(list)

P = ParamSpec("P")
R = TypeVar("R")


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendUnavailable(
            "--device cuda needs the package cuda-bindings, which recent PyTorch for Linux "
            "brings along",
            hint="pip install cuda-bindings",
        ) from error
    with torch.cuda.device(device):
        torch.cuda.current_stream().query()  # makes the device's context this thread's, too
        status, handle = driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(f"{device} gives no CUDA stream: {status.name}")
    made: torch.cuda.Stream = torch.cuda.ExternalStream(int(handle), device)  # type: ignore[no-untyped-call]
    return made


class _Captured(Generic[R]):
    """Work that was captured once, with its inputs and outputs in fixed places."""

    def __init__(self, work: Work[R], inputs: tuple[Tensor, ...]) -> None:
        self._work = work  # what it refers to must live as long as the graph
        self._inputs = [value.clone() for value in inputs]
        for _ in range(_WARM_UP_RUNS):
            work(*self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        # Not with torch.cuda.graph, which makes all streams wait and empties the allocator's
        # caches.
        with _capturing:
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._outputs = work(*self._inputs)
            except BaseException:
                with suppress(RuntimeError):  # raised because the capture is void
                    self._graph.capture_end()
                raise
            self._graph.capture_end()

    def __call__(self, *inputs: Tensor) -> R:
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        self._graph.replay()
        # The next replay overwrites them.
        return cast(R, tree_map(torch.clone, self._outputs))


class CudaLane:
    """A CUDA stream; see :class:`dithead.runtime.schedule.lanes.Lane`.

    A host lane has no stream: its waits and its work are complete before it goes on.
    """

    def __init__(self, name: str, device: torch.device, host: bool, replays: bool) -> None:
        self.name = name
        self._replays = replays
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if not host:
            free = _free_streams[device, name]
            try:
                self._stream = free.pop()
            except IndexError:
                self._stream = _new_stream(device)
            weakref.finalize(self, free.append, self._stream)
            # Work queued before, such as copies of weights, comes first.
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._captured: dict[object, _Captured[object]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            yield

    def record(self) -> Event:
        if self._stream is None:
            return None
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def wait(self, event: Event) -> None:
        if event is None:
            return
        if self._stream is None:
            _until_reached(event)
        else:
            self._stream.wait_event(event)

    def upload(self, value: Tensor) -> Tensor:
        # From pinned memory; otherwise the host would wait for the copy.
        return value.pin_memory().to(self._device, non_blocking=True)

    def download(self, value: Tensor) -> Tensor:
        pinned = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        return pinned.copy_(value, non_blocking=True)

    def read(self, value: Tensor) -> Tensor:
        if value.device.type == "cpu":
            return value
        pinned = self.download(value)
        _until_reached(self.record())
        return pinned

    def drain(self) -> None:
        _until_reached(self.record())

    def replay(self, work: Callable[P, R], *inputs: P.args, **constants: P.kwargs) -> R:
        if not self._replays:
            return work(*inputs, **constants)
        tensors = cast(tuple[Tensor, ...], inputs)
        shapes = tuple((value.shape, value.dtype) for value in tensors)
        key = (work, shapes, tuple(constants.items()))
        if key not in self._captured:
            self._captured[key] = _Captured(partial(work, **constants), tensors)
        return cast(R, self._captured[key](*tensors))


def _until_reached(event: Event) -> None:
    """Wait on the host. Polls, as a wait inside CUDA would hold up other threads' launches."""
    while event is not None and not event.query():  # type: ignore[no-untyped-call]
        time.sleep(_POLL_S)


class CudaLanes:
    """See :class:`dithead.runtime.schedule.lanes.Lanes`.

    Args:
        replays: whether work of fixed shapes is captured and replayed; off for back ends whose work
            cannot be captured.
    """

    def __init__(self, device: torch.device, replays: bool) -> None:
        self._device = device
        self._replays = replays

    def lane(self, name: str, *, host: bool = False) -> CudaLane:
        return CudaLane(name, self._device, host, self._replays)
