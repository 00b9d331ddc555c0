"""What orders the work of stages that run side by side: lanes, events, and buffers that pass from
stage to stage.

A *lane* is a queue of work that is done in order: a CUDA stream on a GPU, a thread on the CPU. Work
in different lanes is ordered by *events* alone: one lane records an event, another waits for it. A
*slot* holds every buffer that one frame needs on its way; there is a fixed number of slots, and a
slot is used again when the last stage is done with it. So memory is bounded, and a source that runs
ahead waits.

Stages touch buffers through their lane only. So an implementation that records
(:mod:`~dithead.runtime.schedule.recording`) can prove, without a GPU, that every access is ordered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

Event = Any
"""A point in a lane's work. What it is made of is the implementation's own."""


Buffer = Any
"""A place for one tensor, used by one frame after the other. Likewise."""


class Lane(Protocol):
    """A queue of work that is done in order, used by one thread."""

    name: str

    def active(self) -> AbstractContextManager[None]:
        """Queue what runs inside on this lane."""

    def record(self) -> Event:
        """An event that is reached when all work queued so far is done."""

    def wait(self, event: Event) -> None:
        """Let all work that is queued from now on begin after an event."""

    def put(self, buffer: Buffer, value: Tensor) -> None:
        """Write a tensor into a buffer. A tensor on the host may go to a buffer on the device."""

    def get(self, buffer: Buffer) -> Tensor:
        """A buffer's tensor, to be read by work on this lane."""

    def read(self, value: Tensor) -> Tensor:
        """A tensor's values on the host. Waits for this lane alone."""

    def drain(self) -> None:
        """Wait on the host until all that was queued is done."""

    def replay(self, key: object, work: Callable[..., Any], *inputs: Tensor) -> Any:
        """Run work of fixed shapes; an implementation may record it once and replay it."""


class Lanes(Protocol):
    """Makes the lanes and buffers of one stream."""

    def lane(self, name: str, *, host: bool = False) -> Lane:
        """A new lane. What runs on a *host* lane reads and writes on the host: there, waiting for
        an event means until it is reached."""

    def buffer(self, name: str, *, host: bool = False) -> Buffer:
        """A new buffer, on the device or, pinned, on the host."""


def make_lanes(device: torch.device, replays: bool) -> Lanes:
    """The lanes of a device, and whether they may record work once and replay it."""
    if device.type == "cuda":
        from dithead.runtime.schedule.cuda import CudaLanes

        return CudaLanes(device, replays)
    from dithead.runtime.schedule.host import HostLanes

    return HostLanes()
