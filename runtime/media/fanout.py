"""One pass over items, for several readers at their own pace."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FanOut(Generic[T]):
    """Gives each reader, from any thread, the items meant for it; items that it has not taken wait.

    A reader with waiting items gets one at once, even while another reader waits for the source.

    Args:
        items: the source.
        readers: their numbers.
        meant_for: returns the readers of an item.
    """

    def __init__(
        self,
        items: Iterator[T],
        readers: Iterable[int],
        meant_for: Callable[[T], Iterable[int]],
    ) -> None:
        self._items = items
        self._held: dict[int, deque[T]] = {reader: deque() for reader in readers}
        self._meant_for = meant_for
        self._lock = threading.RLock()  # used directly, it is released whenever Ctrl-C comes
        self._changed = threading.Condition(self._lock)
        self._reading = False
        self._ended = False

    def take(self, reader: int) -> T | None:
        """A reader's next item, None at the end. Raises what the source raises."""
        held = self._held[reader]
        while True:
            ours = False
            try:
                with self._lock:
                    self._changed.wait_for(lambda: held or not self._reading)
                    if held:
                        return held.popleft()
                    if self._ended:
                        return None
                    ours = self._reading = True
                self._keep(next(self._items, None))
            finally:
                if ours:
                    with self._lock:
                        self._reading = False
                        self._changed.notify_all()

    def waiting(self, reader: int) -> T | None:
        """An item that waits for a reader; None if the source would have to be read for one."""
        with self._lock:
            held = self._held[reader]
            return held.popleft() if held else None

    def _keep(self, item: T | None) -> None:
        with self._lock:
            if item is None:
                self._ended = True
                return
            for reader in self._meant_for(item):
                self._held[reader].append(item)

    def read(self, reader: int) -> Iterator[T]:
        """A reader's items up to the end."""
        while (item := self.take(reader)) is not None:
            yield item
