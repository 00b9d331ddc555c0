"""What orders the work of stages that run side by side: lanes and events.

A *lane* is a queue of work that is done in order: a CUDA stream on a GPU, a thread on the CPU. Work
in different lanes is ordered by *events* alone: one lane records an event, another waits for it.
A tensor belongs to the lane that made it. Its memory may be used again there as soon as nobody
holds it, so a :class:`~dithead.runtime.schedule.frame.Frame` keeps its tensors until all work on
the frame is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

Event: TypeAlias = torch.cuda.Event | None
"""A point in a lane's work; None where all work is done when the call returns."""

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Work(Protocol[R_co]):
    """What is run on tensors alone."""

    def __call__(self, *inputs: Tensor) -> R_co:
        """Run it."""


class Lane(Protocol):
    """A queue of work that is done in order, used by one thread."""

    name: str

    def active(self) -> AbstractContextManager[None]:
        """Queue what runs inside on this lane."""

    def record(self) -> Event:
        """An event that is reached when all work queued so far is done."""

    def wait(self, event: Event) -> None:
        """Let all work that is queued from now on begin after an event."""

    def upload(self, value: Tensor) -> Tensor:
        """A tensor of the host, on the device."""

    def download(self, value: Tensor) -> Tensor:
        """A tensor of the device, on the host; its values are there when an event that is recorded
        afterwards is reached."""

    def read(self, value: Tensor) -> Tensor:
        """A tensor's values on the host. Waits for this lane alone."""

    def drain(self) -> None:
        """Wait on the host until all that was queued is done."""

    def replay(self, work: Callable[P, R], *inputs: P.args, **constants: P.kwargs) -> R:
        """Run work of fixed shapes; an implementation may capture it once and replay it.

        Args:
            work: gives a tensor, or a tuple of them. The same work with the same shapes and
                constants is replayed, so nothing else may decide what it does.
            inputs: tensors, and nothing else. constants: anything that can be hashed.
        """


class Lanes(Protocol):
    """Makes the lanes of one stream."""

    def lane(self, name: str, *, host: bool = False) -> Lane:
        """A new lane. What runs on a *host* lane reads and writes on the host: there, waiting for
        an event means until it is reached."""
