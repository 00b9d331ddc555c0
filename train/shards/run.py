"""Makes the shards of many parts: on processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from dithead.errors import ConfigError, MediaError
from dithead.train.loop import single_thread
from dithead.train.shards.ledger import Work, claimed, do_part, page_path
from dithead.train.shards.lists import Part, unique
from dithead.train.shards.pack import Packer
from dithead.train.shards.report import write_report
from dithead.train.shards.rules import SHARD_BYTES
from dithead.train.shards.store import Placed, write_index

log = logging.getLogger(__name__)

Runner = Callable[[Sequence[Part], Path, Work], Iterator[None]]
"""Does all parts, in any order, and yields after each."""


def make_shards(
    parts: Sequence[Part],
    out: Path,
    work: Work,
    settings: Mapping[str, Any],
    runner: Runner,
    shard_bytes: int = SHARD_BYTES,
    notes: Sequence[str] = (),
) -> list[Placed]:
    """Make the shards, their index and the report in a folder.

    A run that was killed, at any moment, is gone on with by the same call, and ends with the same
    bytes in every file as one that was not.

    Args:
        work: makes a part's samples; given to other processes. settings: all that it depends on
            besides the part, as JSON. notes: for the report, on what is in no part.

    Returns:
        The samples, in order.

    Raises:
        ConfigError: the folder holds something else. MediaError: two parts have the same name, or
            what an earlier run has left is damaged.
    """
    parts = unique(parts)
    if shard_bytes <= 0:
        raise ConfigError(f"a shard has at least one byte, not {shard_bytes}")
    settings = {**settings, "shard_bytes": shard_bytes}
    with claimed(out, parts, settings):
        packer = Packer(out, parts, shard_bytes)
        packer.advance()
        todo = [part for part in parts if not page_path(out, part.name).is_file()]
        if len(todo) < len(parts):
            log.info("%d of %d were finished before", len(parts) - len(todo), len(parts))
        for done, _ in enumerate(runner(todo, out, work), start=1):
            packer.advance()
            log.info("finished %d of %d", done, len(todo))
        packer.finish()
        write_report(out, [page.row for page in packer.pages], notes)
        write_index(out, packer.placed, settings)
        return packer.placed


def on_processes(workers: int) -> Runner:
    """Runs parts in so many processes, one in this one; each computes with one thread, so the
    result does not depend on their number."""
    if workers < 1:
        raise ConfigError(f"at least one worker is needed, not {workers}")

    def run(parts: Sequence[Part], out: Path, work: Work) -> Iterator[None]:
        if min(workers, len(parts)) <= 1:
            for part in parts:
                with one_thread():
                    do_part(part, out, work)
                yield
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(parts)), spawn, _begin) as pool:
            try:
                for done in as_completed([pool.submit(do_part, p, out, work) for p in parts]):
                    done.result()
                    yield
            except BrokenProcessPool as error:
                raise MediaError(
                    "a worker was killed, perhaps for the memory it took: run the same command "
                    "again to go on, with fewer --workers"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: the bits of a result depend on the number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _begin() -> None:
    """Initialise a worker, which ends with the process that started it, even if that is killed."""
    single_thread()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, name="follow", daemon=True).start()
