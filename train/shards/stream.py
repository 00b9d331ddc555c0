"""Streams samples from shards for training, in an order that a seed decides.

For footage that is read from front to back rather than mapped: from disks that turn, or over a
network. Shards are dealt out to ranks and their workers, read in a new order in every epoch, and
mixed in a buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from dithead.errors import ConfigError, MediaError
from dithead.train.shards.store import CROPS, LATENTS, TRACK, WINDOWS, Placed, parsed, read_shards

KINDS = (CROPS, *(f"{part}.npy" for part in TRACK), WINDOWS, *LATENTS)
"""All that a sample may hold."""


@dataclass(frozen=True, slots=True)
class ShardStreaming:
    """How samples are streamed."""

    kinds: tuple[str, ...] = (CROPS,)
    """What to read of each sample; the rest is skipped."""
    split: str = "train"
    buffer: int = 64
    """Samples to choose the next one from; all are in memory."""
    seed: int = 0
    rank: int = 0
    """Of this process among all that train together."""
    ranks: int = 1

    def __post_init__(self) -> None:
        wrong = sorted(set(self.kinds) - set(KINDS))
        if wrong or not self.kinds:
            raise ConfigError(f"no such content: {wrong}; a sample has {', '.join(KINDS)}")
        if self.split not in ("train", "validation"):
            raise ConfigError(f"the split is train or validation, not {self.split!r}")
        if self.buffer < 1 or not 0 <= self.rank < self.ranks:
            raise ConfigError(
                "the buffer holds 1 sample at least, and the rank is from 0 to below the number "
                f"of ranks; not {self.buffer}, and rank {self.rank} of {self.ranks}"
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """A streamed sample."""

    name: str
    person: str
    frames: int
    arrays: dict[str, np.ndarray]
    """By kind, such as ``crops.npy``; see :mod:`dithead.train.shards.store`."""


class ShardStream(IterableDataset[Sample]):
    """The samples of some folders of shards; one pass is one epoch.

    Each sample comes once in an epoch, from one worker of one rank. Whole shards are dealt out, so
    there should be many more of them than readers. Ranks may get different numbers of samples: a
    loop that steps in step must count steps, not epochs.

    Args:
        roots: folders written by ``dithead-train prepare --shards``.

    Raises:
        MediaError: a folder has no complete shards, or none of their samples is in the split, or
            lacks what is to be read.
    """

    def __init__(self, roots: Sequence[Path], streaming: ShardStreaming) -> None:
        self.streaming = streaming
        self.epoch = 0
        self._shards: dict[Path, list[Placed]] = {}
        for root in roots:
            for placed in read_shards(root).values():
                if placed.entry.split == streaming.split:
                    self._shards.setdefault(root / placed.shard, []).append(placed)
                    missing = set(streaming.kinds) - placed.entry.members.keys()
                    if missing:
                        raise MediaError(
                            f"{root}: {placed.entry.name} has no {', '.join(sorted(missing))}: "
                            "prepare the shards with it"
                        )
        if not self._shards:
            raise MediaError(f"no shards with samples for {streaming.split}: prepare some first")

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the passes that begin from now on; a DataLoader's persistent workers
        would not hear of it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        streaming = self.streaming
        order = np.random.default_rng([streaming.seed, self.epoch]).permutation(len(self._shards))
        reader = streaming.rank * workers + number
        mine = order[reader :: streaming.ranks * workers]
        chance = np.random.default_rng([streaming.seed, self.epoch, reader])
        shards, buffer = list(self._shards), []
        for index in mine:
            for sample in self._read(shards[index]):
                buffer.append(sample)
                if len(buffer) >= streaming.buffer:
                    yield _drawn(buffer, chance)
        while buffer:
            yield _drawn(buffer, chance)

    def _read(self, path: Path) -> Iterator[Sample]:
        """The samples of a shard, from front to back."""
        try:
            with path.open("rb") as file:
                for placed in self._shards[path]:
                    entry, arrays = placed.entry, {}
                    for kind in sorted(self.streaming.kinds, key=lambda k: entry.members[k]):
                        at, size = entry.members[kind]
                        file.seek(placed.offset + at)
                        arrays[kind] = parsed(file.read(size))
                    yield Sample(entry.name, entry.person, entry.frames, arrays)
        except (OSError, ValueError) as error:
            raise MediaError(f"{path} is missing or damaged ({error}): prepare it again") from error


def _drawn(buffer: list[Sample], chance: np.random.Generator) -> Sample:
    """Take one out at random; the last one takes its place."""
    index = int(chance.integers(len(buffer)))
    buffer[index], buffer[-1] = buffer[-1], buffer[index]
    return buffer.pop()
