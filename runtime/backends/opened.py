"""What is open of graphs that are opened anew for each size: the latest few, and those in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")
Sizes = tuple[tuple[str, int], ...]
_Latest = dict[str, OrderedDict[Sizes, T]]


class Opened(Generic[T]):
    """Opens each size of a graph once, and keeps it open.

    However many callers there are, none closes what another works with: every thread keeps its own
    latest sizes for as long as it lives, and all together keep theirs for whoever comes next.

    Args:
        most: sizes of a graph that each of them keeps.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._opening = threading.Lock()
        self._open: WeakValueDictionary[tuple[str, Sizes], T] = WeakValueDictionary()
        self._shared: _Latest[T] = {}
        self._own = threading.local()

    def get(self, name: str, sizes: Sizes, opener: Callable[[], T]) -> T:
        """A graph for its sizes, opened if nobody has it open."""
        if not hasattr(self._own, "latest"):
            self._own.latest = {}
        own: _Latest[T] = self._own.latest
        # Before the lock: others may be opening something meanwhile.
        found = own[name].get(sizes) if name in own else None
        if found is None:
            with self._opening:
                found = self._open.get((name, sizes))
                if found is None:
                    found = self._open[name, sizes] = opener()
                self._keep(self._shared, name, sizes, found)
        self._keep(own, name, sizes, found)
        return found

    def kept(self, name: str) -> list[Sizes]:
        """The sizes of a graph that are open, whoever uses them."""
        return [sizes for of, sizes in list(self._open) if of == name]

    def _keep(self, latest: _Latest[T], name: str, sizes: Sizes, opened: T) -> None:
        kept = latest.setdefault(name, OrderedDict())
        kept[sizes] = opened
        kept.move_to_end(sizes)
        if len(kept) > self._most:
            kept.popitem(last=False)
