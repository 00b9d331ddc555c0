"""Proof that work in lanes that run side by side is in order.

On a GPU, lanes run at the same time whatever the order in which they were filled. So what counts is
what is *ordered before* what: work in one lane by its queue, work in different lanes by an event
that one recorded and the other waited for. :func:`races` checks every pair of accesses to a place
of which one writes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that a lane was told to do."""

    lane: str
    act: Literal["read", "write", "record", "wait"]
    what: str
    """Name of a place, or of an event."""


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
