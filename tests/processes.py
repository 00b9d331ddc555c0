"""Processes that tests start: several that train together, and one that is killed again and
again."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

LONGEST_S = 300.0
"""After this long a run hangs."""
PRELOADED = [
    "dithead.train.dit",
    "dithead.train.vqgan",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "accelerate",
]
"""What a server of processes imports before it starts them: each would do so at its first step."""


def started(work: Callable[..., object], *arguments: Any) -> BaseProcess:
    """A process that calls a function. Its server has imported everything, but run nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def together(
    count: int,
    work: Callable[..., object],
    *arguments: Any,
    until: Callable[[], bool] | None = None,
) -> None:
    """Call a function in so many processes at once, as a launcher starts them.

    Args:
        until: kill all of them as soon as this is true.
    """
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    processes = [started(_as_rank, rank, count, port, work, arguments) for rank in range(count)]
    if until is not None:
        while not until():
            assert all(process.is_alive() for process in processes)
            time.sleep(0.001)  # they may need the core
        for process in processes:
            process.kill()
    for process in processes:
        process.join(LONGEST_S)
        alive = process.is_alive()
        if alive:  # it waits for one that failed
            process.kill()
        assert not alive
        assert process.exitcode == (0 if until is None else -signal.SIGKILL)


def _as_rank(
    rank: int, count: int, port: int, work: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    work(*arguments)


def newest_step(states: Path) -> int:
    """The step of the newest state in a folder of them."""
    return max((int(path.stem) for path in states.glob("*.safetensors")), default=0)


def killed_ten_times(start: Callable[[], BaseProcess], states: Path, steps: int) -> None:
    """Kill a run of so many steps ten times, each time further on, and let it end.

    Args:
        start: starts it, or lets it go on. states: the folder of its states, one of each step.
    """
    chance = random.Random(5)
    for step in [0, *sorted(chance.sample(range(1, steps - 10), 9))]:
        process = start()
        while newest_step(states) < step:
            assert process.is_alive()
            time.sleep(0.001)  # it may need the core
        time.sleep(chance.uniform(0.0, 0.03))  # anywhere in a step, or while a state is written
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert not (states / "finished.json").exists()
    last = start()
    last.join()
    assert last.exitcode == 0
