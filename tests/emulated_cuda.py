"""A CUDA device for machines without one: PyTorch's CPU kernels behind tensors that say they are on
``cuda:0``, and what CUDA asks of a program checked at every call.

- Values are real. Streams' work is done at once, but what orders it is noted, for every tensor's
  memory: :meth:`EmulatedCuda.races` names each access that no
  event orders. Memory that is freed counts as written by the stream that allocated it, as PyTorch's
  allocator gives it out again there.
- Calls for which the host would have to wait are noted (:attr:`EmulatedCuda.waits`), copies to or
  from memory that is not pinned among them, and refused while a graph is captured.
- A graph replays the kernels that it captured, on the memory that it captured them with: what
  depended on the host at capture stays as it was then.
- Tensors of the host and of the device do not mix.

It shows nothing of speed, of the rounding of a GPU's kernels, or of what the driver does itself.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from emulated_tensor import (
    DeviceMode,
    DeviceTensor,
    accesses,
    aten,
    inner,
    memory,
    on_device,
    set_device,
)
from races import Entry, races
from streams import threads_of_streams
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils._pytree import tree_leaves, tree_map

from dithead.runtime.schedule import cuda
from dithead.runtime.schedule.channel import Channel
from dithead.runtime.schedule.scheduler import Scheduler
from dithead.torchgraphs import TorchGraphs

#: Kernels whose result is a number in Python, or whose size depends on values.
_READ_BACK = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}
_COPIES = {aten._to_copy.default, aten.copy_.default}
_PINNING = {aten.pin_memory.default, aten._pin_memory.default}

_numbers = itertools.count()


class Stream:
    """Stands in for torch.cuda.Stream."""

    def __init__(self, owner: EmulatedCuda) -> None:
        self.cuda_stream = next(_numbers)
        self.name = f"stream {self.cuda_stream}"
        self._owner = owner

    def synchronize(self) -> None:
        self._owner.wait_for(self, "Stream.synchronize")

    def wait_event(self, event: Event) -> None:
        self._owner.note(self.name, "wait", event.name)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self._owner)
        event.record(other)
        self.wait_event(event)


class Event:
    """Stands in for torch.cuda.Event."""

    def __init__(self, owner: EmulatedCuda, enable_timing: bool = False) -> None:
        self.name = f"event {next(_numbers)}"
        self._owner = owner
        self._asked = False
        self._timed = enable_timing
        self._recorded_s: float | None = None
        self._waited = False

    def record(self, stream: Stream | None = None) -> None:
        self._owner.note((stream or self._owner.stream).name, "record", self.name)
        self._recorded_s, self._waited = time.perf_counter(), False

    def synchronize(self) -> None:
        self._owner.waits.append("Event.synchronize")
        self._owner.note_host("wait", self.name)
        self._waited = True

    def elapsed_time(self, end: Event) -> float:
        assert self._timed and end._timed, "events that take no time"
        assert self._recorded_s is not None and end._recorded_s is not None, "not recorded"
        assert end._waited, "the end may not have been reached"
        return 1e3 * (end._recorded_s - self._recorded_s)

    def query(self) -> bool:
        asked, self._asked = self._asked, True
        if asked:  # the first time, it has not been reached
            self._owner.note_host("wait", self.name)
        return asked


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    def __init__(self, owner: EmulatedCuda) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.users: list[weakref.ref[Any]] = []
        """What libraries keep for the kernels that they have launched."""
        self._owner = owner

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local", "other threads go on calling CUDA"
        self._owner.begin_capture(self)

    def capture_end(self) -> None:
        self._owner.end_capture()

    def replay(self) -> None:
        """Run the captured kernels again, on the memory that they were captured with."""
        self._owner.replays += 1
        assert all(user() is not None for user in self.users), "a library's state is gone"
        for func, args, kwargs, made in self.calls:
            found = func(*tree_map(inner, args), **tree_map(inner, kwargs))
            kept = {memory(value) for value in tree_leaves((args, kwargs)) if on_device(value)}
            for old, new in zip(tree_leaves(made), tree_leaves(found), strict=True):
                if on_device(old) and memory(old) not in kept:
                    old.inner.copy_(new)
            self._owner.account(func, args, kwargs, made)


class EmulatedCuda:
    """The device, once it has taken torch.cuda's place.

    Attributes:
        waits: calls for which the host had to wait.
        replays: number of graphs that were replayed.
        captured: the graphs that were captured.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.replays = 0
        self.captured: list[Graph] = []
        self._entries: list[Entry] = []
        self._lock = threading.RLock()  # tensors may be freed while it is held
        self._here = threading.local()
        self._default = Stream(self)
        self._references: Counter[str] = Counter()
        self._addressed: weakref.WeakValueDictionary[int, DeviceTensor] = (
            weakref.WeakValueDictionary()
        )
        self._allocated: dict[str, str] = {}  # memory -> stream
        self._pinned: dict[int, tuple[str, Tensor]] = {}
        self._noted: Counter[str] = Counter()  # by thread
        self._launched: dict[tuple[str, str], int] = {}
        self._capturing: str | None = None  # a stream's name
        self._ended: str | None = None

    @contextmanager
    def replacing_cuda(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Take torch.cuda's place, for this thread and those of streams."""
        self._replace_cuda(monkeypatch)
        set_device(self)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with self.active():
                yield
        finally:
            threads_of_streams(30)  # none may go on on another test's device
            torch.__future__.set_overwrite_module_params_on_conversion(overwrites)
            set_device(None)

    def active(self) -> AbstractContextManager[Any]:
        """Let this thread, too, use the device."""
        return DeviceMode()

    def races(self, without: str = "") -> list[str]:
        """Accesses to memory that nothing orders; had nobody waited for the event ``without``."""
        with self._lock:
            entries = list(self._entries)
        return races(entry for entry in entries if (entry.act, entry.what) != ("wait", without))

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a kernel, on the device or on the host."""
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        given = any(map(on_device, tensors))
        wanted = kwargs.get("device")
        to_device = wanted is not None and torch.device(wanted).type == "cuda"
        if not given and not to_device:
            return self._run_on_host(func, args, kwargs)
        if func in _COPIES:
            return self._copy(func, args, kwargs)
        if func is aten._fused_sdp_choice.default:
            return SDPBackend.MATH.value  # the others are kernels of one kind of device
        for value in tensors:
            if not on_device(value) and value.dim() > 0 and func not in _INDEXED:
                raise RuntimeError(f"{func}: a tensor of the host among those of the device")
        if func in _READ_BACK or (func in _INDEXED and _waits_for_indices(args[1])):
            self.wait_for(self.stream, str(func))
        return self._execute(func, args, kwargs)

    def _execute(self, func: Any, args: Any, kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        found = func(*tree_map(inner, args), **tree_map(inner, kwargs))
        made = self._wrapped(func, found, [t for t in tree_leaves((args, kwargs)) if on_device(t)])
        if self._captured is not None:
            self._captured.calls.append((func, args, kwargs, made))
        self.account(func, args, kwargs, made)
        return made

    def _wrapped(self, func: Any, found: Any, given: list[DeviceTensor]) -> Any:
        """Results as tensors of the device: what was changed in place stays what it is, and views
        share their memory's name."""
        same = {id(value.inner): value for value in given}
        keys = {memory(value): value.key for value in given}

        def wrap(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in same:
                return same[id(value)]
            place = memory(value)
            if place == 0 or place not in keys:
                keys[place] = f"memory {next(_numbers)} of {func}"
                self._allocated[keys[place]] = self.stream.name
            made, key = DeviceTensor(value, keys[place]), keys[place]
            with self._lock:
                self._references[key] += 1
            weakref.finalize(made, self._drop, key).atexit = False
            return made

        return tree_map(wrap, found)

    def _drop(self, key: str) -> None:
        """A tensor is gone; with the last of its memory, the allocator may use that again.

        Whichever thread collects it, what threads that have ended waited for is done.
        """
        with self._lock:
            self._references[key] -= 1
            if self._references[key] == 0:
                if self._ended is not None and getattr(self._here, "ended", None) != self._ended:
                    self._here.ended = self._ended
                    self.note_host("wait", self._ended)
                self.note(self._launch(self._allocated[key]), "write", key)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A copy within the device, or to or from it."""
        source: Tensor = args[0]
        target: Tensor | None = None
        blocking = not kwargs.get("non_blocking", False)
        if func is aten.copy_.default:
            target, source = args[:2]
            blocking = not (len(args) > 2 and args[2])
            to_device = on_device(target)
        else:
            wanted = kwargs.get("device")
            kept = wanted is None and on_device(source)
            to_device = kept or (wanted is not None and torch.device(wanted).type == "cuda")
        if to_device == on_device(source):
            return self._execute(func, args, kwargs)
        host = source if to_device else target
        pinned = None if host is None else self._pinned.get(memory(host))
        if blocking or pinned is None:
            way, kind = "to" if to_device else "from", "pinned" if pinned else "pageable"
            self.wait_for(self.stream, f"{func}: a copy {way} the device, {kind} memory")
        if self._captured is not None:
            raise RuntimeError(f"{func}: a copy to or from the host was captured")
        if target is not None:
            made = target
            inner(target).copy_(inner(source))
        else:
            copied = func(inner(source), **{**kwargs, "device": torch.device("cpu")})
            made = self._wrapped(func, copied, []) if to_device else copied
        stream = self._launch(self.stream.name)
        for act, value in (("read", source), ("write", made)):
            key = value.key if isinstance(value, DeviceTensor) else pinned[0] if pinned else None
            if key is not None:
                self.note(stream, act, key)
        if blocking:
            self._wait_quietly(self.stream)
        return made

    def _run_on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        pins = kwargs.get("pin_memory") or func in _PINNING
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        found = args[0].clone() if func in _PINNING else func(*args, **kwargs)
        if pins:
            if self._captured is not None:
                raise RuntimeError("memory was pinned while a graph was captured")
            self._pinned[memory(found)] = f"pinned {next(_numbers)}", found
        for act, value in accesses(func, args, kwargs, found):
            self._by_host(act, value)
        return found

    def address_of(self, tensor: DeviceTensor) -> int:
        """Where a tensor's values are."""
        address = tensor.inner.data_ptr()
        self._addressed[address] = tensor
        return address

    def addressed(self, address: int) -> DeviceTensor:
        """The tensor whose address was asked for."""
        return self._addressed[address]

    def run_library(
        self,
        compute: Callable[..., tuple[Tensor, ...]],
        inputs: list[DeviceTensor],
        outputs: list[DeviceTensor],
        user: Any,
    ) -> None:
        """Do what a library has queued on the current stream, with what it keeps for that."""
        for output, value in zip(outputs, compute(*map(inner, inputs)), strict=True):
            output.inner.copy_(value)
        if self._captured is not None:
            self._captured.calls.append((compute, inputs, {}, outputs))
            self._captured.users.append(weakref.ref(user))
        self.account(compute, inputs, {}, outputs)

    def ran_by_itself(self, inputs: list[DeviceTensor], outputs: list[DeviceTensor]) -> None:
        """Note what a library did on a stream of its own, waiting for it on the host."""
        own = Stream(self)
        with self.on_stream(own):
            self.account(None, inputs, {}, outputs)
        self.wait_for(own, "a library's own stream")

    def account(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """Note what a kernel of the device reads and writes."""
        found = accesses(func, args, kwargs, made)
        stream = self._launch(self.stream.name) if found else ""
        for act, value in found:
            if isinstance(value, DeviceTensor):
                self.note(stream, act, value.key)

    def _by_host(self, act: str, tensor: Tensor) -> None:
        if memory(tensor) in self._pinned:
            self.note_host(act, self._pinned[memory(tensor)][0])

    def note(self, lane: str, act: Any, what: str) -> None:
        """Note what a stream does."""
        with self._lock:
            self._entries.append(Entry(lane, act, what))

    def note_host(self, act: Any, what: str) -> None:
        """Note what this thread does itself."""
        lane = f"host {threading.get_ident()}"
        with self._lock:
            self._noted[lane] += 1
            self._entries.append(Entry(lane, act, what))

    def _end_thread(self) -> None:
        """Note that a stream's thread ends."""
        end = f"end of {threading.get_ident()}"
        with self._lock:
            self.note_host("record", end)
            self.note("ended threads", "wait", end)
            self._ended = f"ended {next(_numbers)}"
            self.note("ended threads", "record", self._ended)

    def _launch(self, stream: str) -> str:
        """What this thread has done, and waited for, comes before what it queues now."""
        lane = f"host {threading.get_ident()}"
        if self._captured is None and stream == self._capturing:
            raise RuntimeError("work on a stream whose work another thread captures")
        with self._lock:
            if self._launched.get((lane, stream)) != self._noted[lane]:
                self._launched[lane, stream] = self._noted[lane]
                self._order(lane, stream)
        return stream

    def _order(self, before: str, after: str) -> None:
        """Order what a lane has done so far before what another does from now on."""
        event = f"order {next(_numbers)}"
        self._entries.append(Entry(before, "record", event))
        self._entries.append(Entry(after, "wait", event))

    def wait_for(self, stream: Stream, what: str) -> None:
        """Let the host wait for a stream."""
        if self._captured is not None:
            raise RuntimeError(f"{what}: not permitted while a graph is captured")
        self.waits.append(what)
        self._wait_quietly(stream)

    def _wait_quietly(self, stream: Stream) -> None:
        event = Event(self)
        event.record(stream)
        self.note_host("wait", event.name)

    @property
    def stream(self) -> Stream:
        """This thread's stream."""
        return getattr(self._here, "stream", self._default)

    @contextmanager
    def on_stream(self, stream: Stream | None) -> Iterator[None]:
        """Stands in for torch.cuda.stream."""
        before, self._here.stream = self.stream, stream or self.stream
        try:
            yield
        finally:
            self._here.stream = before

    @property
    def _captured(self) -> Graph | None:
        return getattr(self._here, "captured", None)

    def begin_capture(self, graph: Graph) -> None:
        """Capture what this thread launches on its stream from now on."""
        assert self.stream is not self._default
        with self._lock:
            if self._capturing is not None:
                raise RuntimeError("two threads capture at a time, with one random generator")
            self._capturing = self.stream.name
        self._here.captured = graph
        self.captured.append(graph)

    def end_capture(self) -> None:
        """Launch as usual."""
        self._here.captured = self._capturing = None

    def _replace_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tensor, numpy, guard = torch.tensor, Tensor.numpy, Scheduler._guard
        join = threading.Thread.join
        put, get, module = Channel.put, Channel.get, TorchGraphs.module

        def make_tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            made = tensor(data, **options)
            return made if device is None else made.to(device)

        def as_numpy(value: Tensor, **options: Any) -> Any:
            if not on_device(value) and value.numel():
                self._by_host("read", value)
            return numpy(value, **options)

        def guarded(scheduler: Scheduler, *arguments: Any) -> None:
            with self.active():
                guard(scheduler, *arguments)
            self._end_thread()

        # What a thread knows to be done, the thread that it hands something to knows as well.
        def module_noted(models: TorchGraphs, name: str) -> Any:
            with self._lock:
                act = "wait" if name in models._modules else "record"
                found = module(models, name)
                self.note_host(act, f"made {id(models)} {name}")
            return found

        def joined(thread: threading.Thread, timeout_s: float | None = None) -> None:
            join(thread, timeout_s)
            if not thread.is_alive() and thread.name.startswith("dithead "):
                self.note_host("wait", f"end of {thread.ident}")

        def put_noted(channel: Any, item: Any, *arguments: Any) -> bool:
            self.note_host("record", f"handed over {id(item)}")
            return put(channel, item, *arguments)

        def get_noted(channel: Any, *arguments: Any) -> Any:
            item = get(channel, *arguments)
            self.note_host("wait", f"handed over {id(item)}")
            return item

        stand_ins: list[tuple[Any, str, Any]] = [
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_available", lambda: True),
            (cuda, "_new_stream", lambda device: Stream(self)),
            (cuda, "_free_streams", defaultdict(list)),
            (torch.cuda, "Event", lambda **options: Event(self, **options)),
            (torch.cuda, "CUDAGraph", lambda: Graph(self)),
            (torch.cuda, "stream", self.on_stream),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "current_stream", lambda device=None: self.stream),
            (torch, "tensor", make_tensor),
            (Tensor, "numpy", as_numpy),
            (Scheduler, "_guard", guarded),
            (TorchGraphs, "module", module_noted),
            (threading.Thread, "join", joined),
            (Channel, "put", put_noted),
            (Channel, "get", get_noted),
        ]
        for owner, name, stand_in in stand_ins:
            monkeypatch.setattr(owner, name, stand_in)


def _waits_for_indices(indices: Any) -> bool:
    """Whether indices are masks, whose values decide how much is taken, or lie on the host."""
    return any(
        isinstance(index, Tensor) and (index.dtype == torch.bool or not on_device(index))
        for index in indices
    )
