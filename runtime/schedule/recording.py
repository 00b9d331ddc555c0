"""Lanes that note every access and every event, and the proof that a run was in order.

On a GPU, lanes run at the same time whatever the order in which they were filled. So what counts is
what is *ordered before* what: work in one lane by its queue, work in different lanes by an event
that one recorded and the other waited for. :func:`races` checks every pair of accesses to a buffer
of which one writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from dithead.runtime.schedule.host import HostBuffer


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that a lane was told to do."""

    lane: str
    act: Literal["read", "write", "record", "wait"]
    what: str
    """Name of a buffer, or of an event."""


class RecordingLane:
    """A lane on the CPU that notes what it is told; see
    :class:`dithead.runtime.schedule.lanes.Lane`."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self._log = log
        self._events = 0

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self) -> str:
        self._events += 1
        event = f"{self.name}#{self._events}"
        self._log.add(Entry(self.name, "record", event))
        return event

    def wait(self, event: str | None) -> None:
        if event is not None:
            self._log.add(Entry(self.name, "wait", event))

    def put(self, buffer: HostBuffer, value: Tensor) -> None:
        self._log.add(Entry(self.name, "write", buffer.name))
        buffer.value = value

    def get(self, buffer: HostBuffer) -> Tensor:
        self._log.add(Entry(self.name, "read", buffer.name))
        assert buffer.value is not None, f"{buffer.name} is read before it is written"
        return buffer.value

    def read(self, value: Tensor) -> Tensor:
        return value

    def drain(self) -> None:
        pass

    def replay(self, key: object, work: Callable[..., Any], *inputs: Tensor) -> Any:
        return work(*inputs)


@dataclass(slots=True)
class Log:
    """What all lanes of a stream were told, in the order in which they were told."""

    entries: list[Entry] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, entry: Entry) -> None:
        """Append an entry; from any thread."""
        with self._lock:
            self.entries.append(entry)


class RecordingLanes:
    """See :class:`dithead.runtime.schedule.lanes.Lanes`.

    Args:
        log: where it is noted, with other streams; None for one of its own.
        prefix: of all names, to tell streams apart.
    """

    def __init__(self, log: Log | None = None, prefix: str = "") -> None:
        self.log = log or Log()
        self._prefix = prefix

    def lane(self, name: str, *, host: bool = False) -> RecordingLane:
        return RecordingLane(self._prefix + name, self.log)

    def buffer(self, name: str, *, host: bool = False) -> HostBuffer:
        return HostBuffer(self._prefix + name)


Clock = dict[str, int]
"""For each lane, how many of its entries are known to be done."""


def races(entries: Iterable[Entry]) -> list[str]:
    """Accesses that nothing orders, by vector clocks (Mattern, 1989).

    Returns:
        One line for each; empty if every read comes after the write before it, and every write
        after the reads and the write before it.
    """
    clocks: dict[str, Clock] = {}
    events: dict[str, Clock] = {}
    wrote: dict[str, tuple[str, int]] = {}
    readers: dict[str, list[tuple[str, int]]] = {}
    found = []
    for number, entry in enumerate(entries):
        clock = clocks.setdefault(entry.lane, {})
        clock[entry.lane] = clock.get(entry.lane, 0) + 1
        here = (entry.lane, clock[entry.lane])
        if entry.act == "record":
            events[entry.what] = dict(clock)
            continue
        if entry.act == "wait":
            for lane, done in events[entry.what].items():
                clock[lane] = max(clock.get(lane, 0), done)
            continue
        before = [wrote[entry.what]] if entry.what in wrote else []
        if entry.act == "write":
            before += readers.get(entry.what, [])
            wrote[entry.what], readers[entry.what] = here, []
        else:
            readers.setdefault(entry.what, []).append(here)
        found += [
            f"entry {number}: {entry.lane} {entry.act}s {entry.what}, which {lane} may still use"
            for lane, count in before
            if clock.get(lane, 0) < count
        ]
    return found
