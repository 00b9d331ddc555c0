"""Orders the work of stages that run in parallel: lanes and events.

A *lane* is a queue of work that is done in order: a CUDA stream on a GPU, a thread on the CPU. Only
*events* order the work of different lanes: one lane records an event, another waits for it. A
tensor belongs to the lane that made it, which may reuse its memory as soon as nobody holds it. So a
:class:`~dithead.runtime.schedule.frame.Frame` keeps its tensors until all work on the frame is
done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

Event: TypeAlias = torch.cuda.Event | None
"""A point in a lane's work; None if all work is done when the call returns."""

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[R_co]):
    """Work that depends on tensors only."""

    def __call__(self, *inputs: Tensor) -> R_co:
        """Run it."""


class Lane(Protocol):
    """A queue of work that is done in order, used by one thread."""

    name: str

    def active(self) -> AbstractContextManager[None]:
        """Queue the work inside the block on this lane."""

    def record(self) -> Event:
        """An event that is reached when all work queued so far is done."""

    def wait(self, event: Event) -> None:
        """Let all work queued from now on begin after an event."""

    def upload(self, value: Tensor) -> Tensor:
        """Copy a tensor from the host to the device."""

    def download(self, value: Tensor) -> Tensor:
        """Copy a tensor from the device to the host; its values are there when an event recorded
        afterwards is reached."""

    def read(self, value: Tensor) -> Tensor:
        """A tensor's values on the host. Waits for this lane only."""

    def drain(self) -> None:
        """Wait on the host until all queued work is done."""

    def replay(self, work: Callable[P, R], *inputs: P.args, **constants: P.kwargs) -> R:
        """Run work of fixed shapes; an implementation may capture it once and replay it.

        Args:
            work: returns a tensor, or a tuple of them. The same work with the same shapes and
                constants is replayed, so its result must not depend on anything else.
            inputs: tensors only.
            constants: anything that can be hashed.
        """


class Lanes(Protocol):
    """Makes the lanes of one stream."""

    def lane(self, name: str, *, host: bool = False) -> Lane:
        """A new lane. Work on a *host* lane reads and writes on the host: there, waiting for an
        event blocks until it is reached."""
