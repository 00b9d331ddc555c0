"""Runs parts on a Ray cluster (extra ``ray``): several machines that share a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from dithead.errors import BackendUnavailable, MediaError
from dithead.train.loop import single_thread
from dithead.train.shards.ledger import Work, do_part
from dithead.train.shards.lists import Part
from dithead.train.shards.run import Runner

try:
    ray: Any = import_module("ray")
except ImportError:
    ray = None

RETRIES = 3
"""A part whose machine is lost is done again by another."""
AHEAD = 1000
"""At most this many parts are given to the cluster at once."""


def on_ray(address: str) -> Runner:
    """Runs each part as a task that takes one core.

    Videos, weights and the output folder must have the same paths on all machines, as on a network
    file system. Bits depend on the kind of processor: shards equal those of one machine if all are
    of its kind.

    Args:
        address: of the cluster; ``auto`` for the one that runs on this machine, ``local`` for one
            of this machine alone, which is started.

    Raises:
        BackendUnavailable: Ray is not installed, or there is no such cluster.
    """
    if ray is None:
        raise BackendUnavailable("Ray is not installed: pip install 'dithead[ray]'")

    def run(parts: Sequence[Part], out: Path, work: Work) -> Iterator[None]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or Ray reports over the network
        started = not ray.is_initialized()
        if started:
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise BackendUnavailable(
                    f"no Ray cluster at {address!r} ({error}): start one with ray start --head, or "
                    "give its address"
                ) from error
        try:
            yield from _done(parts, out, work)
        finally:
            if started:
                ray.shutdown()

    return run


def _done(parts: Sequence[Part], out: Path, work: Work) -> Iterator[None]:
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_do)
    shared, rest = ray.put(work), iter(parts)
    waiting: list[Any] = []
    while True:
        while len(waiting) < AHEAD and (part := next(rest, None)) is not None:
            waiting.append(task.remote(part, str(out), shared))
        if not waiting:
            return
        finished, waiting = ray.wait(waiting)
        for one in finished:
            _check(one)
            yield


def _check(task: Any) -> None:
    """Raise what a task raised. Raises MediaError: its worker was lost, again and again."""
    lost = ray.exceptions
    try:
        ray.get(task)
    except (lost.WorkerCrashedError, lost.NodeDiedError, lost.OutOfMemoryError) as error:
        raise MediaError(
            f"workers were lost {RETRIES + 1} times, perhaps for their memory ({error}): run "
            "the same command again to go on"
        ) from error


def _do(part: Part, out: str, work: Work) -> None:
    single_thread()
    do_part(part, Path(out), work)
