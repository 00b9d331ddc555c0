"""A small denoiser and random latents to train it on. Importable by processes that tests start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dithead.config import DiTConfig, DitHeadConfig, preset
from dithead.train.dit import train_dit
from dithead.train.latents import LatentCache, Run
from dithead.train.settings import DiTTraining, Execution

FRAMES = 20
LONGEST_S = 300.0
"""After this long a run hangs."""
PRELOADED = [
    "dithead.train.dit",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "accelerate",
]
"""What a server of processes imports before it starts them: each would do so at its first step."""


def small_config(name: str = "tiny") -> DitHeadConfig:
    """The latents of 64 px crops, and a denoiser of two blocks; the rest as in a preset."""
    base = preset(name)
    dit = DiTConfig(width=32, depth=2, heads=2, conditioning=base.dit.conditioning)
    return replace(base, face=replace(base.face, crop_px=64), dit=dit)


def random_cache(config: DitHeadConfig) -> LatentCache:
    """Three clips of one person and two of another, of random numbers."""
    random = np.random.default_rng(0)
    runs = [
        Run(f"c{i}", "a" if i < 3 else "b", int(i >= 3), 0, FRAMES * i, FRAMES, i < 3)
        for i in range(5)
    ]
    size = (FRAMES * len(runs), config.vqgan.latent_channels, config.latent_size)
    face, masked = (
        torch.from_numpy(random.standard_normal((*size, size[-1])).astype(np.float16))
        for _ in range(2)
    )
    shape = (2, FRAMES, *config.audio.window_shape)
    windows = {run.clip: random.standard_normal(shape).astype(np.float16) for run in runs}
    silent = {run.clip: np.arange(FRAMES) < 5 for run in runs}
    return LatentCache(runs, face, masked, windows, silent, torch.zeros(shape[2:]))


def train_small(out: Path, training: DiTTraining, execution: Execution) -> Path:
    """Train the small denoiser, in one thread."""
    torch.set_num_threads(1)
    config = small_config()
    return train_dit(random_cache(config), config, training, out, execution=execution)


def train_rank(
    rank: int,
    count: int,
    port: int,
    out: Path,
    training: DiTTraining,
    execution: Execution,
    name: str = "tiny",
    depth: int | None = None,
) -> None:
    """Be one of several processes that train a denoiser, as a launcher starts them: the small one
    or, with a depth, a preset's with so many blocks."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in names.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    config = small_config(name)
    if depth is not None:
        config = preset(name)
        config = replace(config, dit=replace(config.dit, depth=depth))
    train_dit(random_cache(config), config, training, out, execution=execution)


def train_together(count: int, *arguments: Any, until: Callable[[], bool] | None = None) -> None:
    """Train in so many processes at once.

    Args:
        arguments: of :func:`train_rank`, from ``out`` on.
        until: kill all of them as soon as this is true.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    processes = [
        context.Process(target=train_rank, args=(rank, count, port, *arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    if until is not None:
        while not until():
            assert all(process.is_alive() for process in processes)
        for process in processes:
            process.kill()
    for process in processes:
        process.join(LONGEST_S)
        alive = process.is_alive()
        if alive:  # it waits for one that failed
            process.kill()
        assert not alive
        assert process.exitcode == (0 if until is None else -signal.SIGKILL)


def newest_step(out: Path) -> int:
    """The step of the newest state on disk."""
    return max((int(p.stem) for p in (out / "dit.states").glob("*.safetensors")), default=0)
