"""Runs the denoiser once for several streams."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, cast

import torch
from torch import Tensor

from dithead.runtime.schedule.channel import Stopped
from dithead.runtime.schedule.lanes import Event, Lane, Lanes, Work

P = ParamSpec("P")

WAIT_S = 0.002
"""How long a stream waits for the others: about a denoising step of a small model on a GPU."""


@dataclass(slots=True, eq=False)
class Request:
    """Work requested by one stream."""

    member: Member
    """The stream that asks."""
    work: Work[Tensor]
    inputs: tuple[Tensor, ...]
    ready: Event
    """When the inputs may be read, and the member's result of the previous batch is no longer
    used."""
    written: Event = None
    ran: bool = False
    """Whether the result is there."""
    taken: bool = False
    done: bool = False
    error: Exception | None = None

    @property
    def key(self) -> object:
        """Requests with the same key may run together."""
        return self.member.key

    @property
    def rows(self) -> int:
        """Length of the first dimension of each input, and of the result."""
        return self.inputs[0].shape[0]


class Batcher:
    """Combines what streams request at about the same time into one run of the same work.

    The stream that has waited longest leads. It waits a moment for the others, runs their requests
    together with its own, and gives each its part. While a batch runs, the next one gathers. If a
    batch fails, each part is run by itself, so that one stream's fault does not affect the others.

    Args:
        lanes: make the lane that the work is queued on.
        most: maximum number of rows in a batch.
        wait_s: how long the leader waits for streams that have not asked yet.
    """

    def __init__(self, lanes: Lanes, most: int, wait_s: float = WAIT_S) -> None:
        self._lane = lanes.lane("denoise together")
        self._most = most
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._waiting: list[Request] = []
        self._running = False
        self._members: Counter[object] = Counter()
        self._works: dict[object, Work[Tensor]] = {}

    def join(self, key: object) -> Member:
        """Let a stream take part. Streams with the same key may run together: they request the same
        work."""
        with self._changed:
            self._members[key] += 1
        return Member(self, key)

    def come_back(self, key: object) -> None:
        """Wait for one more stream."""
        with self._changed:
            self._members[key] += 1

    def leave(self, key: object) -> None:
        """Wait for one stream less."""
        with self._changed:
            self._members[key] -= 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Let waiting streams see whether they were stopped."""
        with self._changed:
            self._changed.notify_all()

    def run(self, request: Request, stopped: threading.Event) -> None:
        """Wait until a request is done, and lead a batch if it is its turn.

        Raises:
            Stopped: stopped before the request was taken into a batch.
        """
        with self._changed:
            self._waiting.append(request)
            self._changed.notify_all()  # a leader may be gathering
            self._changed.wait_for(
                lambda: (
                    request.done
                    or (not request.taken and (stopped.is_set() or self._may_lead(request)))
                )
            )
            if request.done:
                return
            if stopped.is_set():
                self._waiting.remove(request)
                self._changed.notify_all()
                raise Stopped
            self._running = True
            self._changed.wait_for(lambda: self._gathered(request), self._wait_s)
            batch = self._take(request)
        try:
            with self._lane.active():
                self._execute(batch)
        except Exception as error:
            for part in batch:
                if not part.ran:
                    part.error = error
        finally:
            with self._changed:
                self._running = False
                for part in batch:
                    part.done = True
                self._changed.notify_all()

    def _may_lead(self, request: Request) -> bool:
        return not self._running and self._waiting[0] is request

    def _gathered(self, leader: Request) -> bool:
        fitting = [r for r in self._waiting if r.key == leader.key]
        return (
            len(fitting) >= self._members[leader.key] or sum(r.rows for r in fitting) >= self._most
        )

    def _take(self, leader: Request) -> list[Request]:
        """The leader's batch: its own part first, then other parts that fit."""
        batch, rows = [leader], leader.rows
        for request in self._waiting:
            if request is not leader and request.key == leader.key:
                rows += request.rows
                if rows > self._most:
                    break
                batch.append(request)
        for request in batch:
            request.taken = True
            self._waiting.remove(request)
        return batch

    def _execute(self, batch: list[Request]) -> None:
        lane, first = self._lane, batch[0]
        for request in batch:
            lane.wait(request.ready)
        try:
            inputs = [torch.cat(parts) for parts in zip(*(r.inputs for r in batch), strict=True)]
            # Always the same stream's work: what is captured once serves all.
            found = lane.replay(self._works.setdefault(first.key, first.work), *inputs)
        except Exception as error:
            if len(batch) == 1:
                first.error = error
                return
            for request in batch:
                self._execute([request])
            return
        start = 0
        for request in batch:
            request.member.result = found[start : start + request.rows]
            start += request.rows
        event = lane.record()
        for request in batch:
            request.written, request.ran = event, True


class Member:
    """A stream's part in a :class:`Batcher`."""

    def __init__(self, batcher: Batcher, key: object) -> None:
        self.key = key
        self.result: Tensor | None = None
        """Made by the batcher's lane, and held until the next result replaces it, after its use."""
        self._batcher = batcher
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._left = False

    def run(
        self,
        lane: Lane,
        work: Callable[P, Tensor],
        *inputs: P.args,
        **constants: P.kwargs,
    ) -> Tensor:
        """Like :meth:`Lane.replay`, together with other streams; every input and the result have a
        first dimension of the same length.

        Raises:
            Stopped: :meth:`stop` was called. Also raises what the work raised.
        """
        assert not constants, "what streams share depends on tensors alone"
        given = cast(tuple[Tensor, ...], inputs)
        request = Request(self, cast(Work[Tensor], work), given, lane.record())
        self._batcher.run(request, self._stopped)
        if request.error is not None:
            raise request.error
        lane.wait(request.written)
        assert self.result is not None
        return self.result.clone()

    def come_back(self) -> None:
        """The stream goes on after :meth:`leave`. Otherwise does nothing."""
        with self._lock:
            left, self._left = self._left, False
        if left:
            self._batcher.come_back(self.key)

    def leave(self) -> None:
        """The stream has ended. A second call does nothing."""
        with self._lock:
            left, self._left = self._left, True
        if not left:
            self._batcher.leave(self.key)

    def stop(self) -> None:
        """Wake the stream's thread where it waits, with :class:`Stopped`."""
        self._stopped.set()
        self._batcher.wake()
        self.leave()
