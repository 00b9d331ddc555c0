"""A queue between two threads that can be closed from either end, or stopped from outside."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Literal, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The channel was stopped: the thread should end quietly."""


class Closed(Exception):
    """No more items will come."""


class Channel(Generic[T]):
    """Hands items from one thread to another, in order.

    Args:
        capacity: items that may wait; a writer waits for room. None means no limit.
        paused_side: the side that :meth:`pause` stops.
    """

    def __init__(
        self, capacity: int | None = None, paused_side: Literal["reader", "writer"] = "reader"
    ) -> None:
        self._capacity = capacity
        self._paused_side = paused_side
        self._paused = ""
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._stopped = False

    def put(self, item: T, timeout_s: float | None = None) -> bool:
        """Add an item, waiting for room.

        Returns:
            False if there was no room in time.

        Raises:
            Stopped: the channel was stopped, or closed by its reader.
        """
        with self._changed:
            roomy = self._changed.wait_for(
                lambda: (
                    self._stopped
                    or self._closed
                    or self._paused == "writer"
                    or self._capacity is None
                    or len(self._items) < self._capacity
                ),
                timeout_s,
            )
            if self._stopped or self._closed or self._paused == "writer":
                raise Stopped
            if roomy:
                self._items.append(item)
                self._changed.notify_all()
            return roomy

    def get(self, timeout_s: float | None = None) -> T:
        """Take the next item, waiting for one.

        Raises:
            Closed: there is none, and none will come.
            Stopped: the channel was stopped.
            TimeoutError: none came in time.
        """
        with self._changed:
            ready = self._changed.wait_for(
                lambda: self._stopped or self._paused == "reader" or self._items or self._closed,
                timeout_s,
            )
            if self._stopped or self._paused == "reader":
                raise Stopped
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if not ready:
                raise TimeoutError
            raise Closed

    def close(self) -> None:
        """Accept no more items; those already there can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Wake both sides and stop them."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def pause(self) -> None:
        """Stop the thread of one side until :meth:`resume`; the other side goes on."""
        with self._changed:
            self._paused = self._paused_side
            self._changed.notify_all()

    def resume(self) -> None:
        """End a pause."""
        with self._changed:
            self._paused = ""

    def empty(self) -> None:
        """Drop all items, and accept more even after :meth:`close`."""
        with self._changed:
            self._items.clear()
            self._closed = False
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._items)
