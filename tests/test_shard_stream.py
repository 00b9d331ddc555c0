"""Samples streamed from shards: all of them, each once, in an order that the seed decides."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from shardwork import MadeUp, made_up_parts
from torch.utils.data import DataLoader

from dithead.errors import ConfigError, MediaError
from dithead.train.shards.run import make_shards, on_processes
from dithead.train.shards.store import read_array, read_shards
from dithead.train.shards.stream import Sample, ShardStream, ShardStreaming

KINDS = ("crops.npy", "audio.npy")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stream") / "out"
    make_shards(made_up_parts(24), out, MadeUp(), {}, on_processes(1), 100_000)
    return out


def first(rows: list[Sample]) -> Sample:
    return rows[0]


def names(stream: ShardStream, workers: int = 0) -> list[str]:
    loader = DataLoader(stream, batch_size=1, num_workers=workers, collate_fn=first)
    return [sample.name for sample in loader]


def test_each_sample_comes_once_with_its_arrays(root: Path) -> None:
    samples = list(ShardStream([root], ShardStreaming(KINDS, buffer=5)))
    assert sorted(s.name for s in samples) == sorted(read_shards(root))
    for sample in samples:
        placed = read_shards(root)[sample.name]
        assert (sample.person, sample.frames) == (placed.entry.person, placed.entry.frames)
        assert set(sample.arrays) == set(KINDS)
        for kind, array in sample.arrays.items():
            assert np.array_equal(array, read_array(root, sample.name, kind))


def test_the_order_is_decided_by_seed_and_epoch(root: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        stream = ShardStream([root], ShardStreaming(seed=seed))
        stream.set_epoch(epoch)
        return names(stream)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert order(1, 2) != list(read_shards(root))


def test_a_buffer_mixes_what_is_not_side_by_side(root: Path) -> None:
    def mixed(buffer: int) -> int:
        shards = [
            read_shards(root)[s.name].shard
            for s in ShardStream([root], ShardStreaming(buffer=buffer))
        ]
        return sum(a != b for a, b in pairwise(shards))

    shards = len({placed.shard for placed in read_shards(root).values()})
    assert mixed(1) == shards - 1
    assert mixed(16) > 2 * shards


@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (3, 0), (2, 2)])
def test_ranks_and_workers_share_the_samples(root: Path, ranks: int, workers: int) -> None:
    found = []
    for rank in range(ranks):
        stream = ShardStream([root], ShardStreaming(seed=3, rank=rank, ranks=ranks))
        own = names(stream, workers)
        assert own == names(stream, workers)
        assert own
        found += own
    assert sorted(found) == sorted(read_shards(root))


def test_what_is_not_there_is_one_clear_error(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"has no face\.npy"):
        ShardStream([root], ShardStreaming(("face.npy",)))
    with pytest.raises(MediaError, match="samples for validation"):
        ShardStream([root], ShardStreaming(split="validation"))
    with pytest.raises(MediaError, match="no complete shards"):
        ShardStream([tmp_path], ShardStreaming())
    for wrong in ({"kinds": ("x",)}, {"rank": 1}, {"buffer": 0}, {"split": "test"}):
        with pytest.raises(ConfigError):
            ShardStreaming(**wrong)  # type: ignore[arg-type]


def test_a_shard_that_is_cut_short_is_noticed(root: Path, tmp_path: Path) -> None:
    for path in root.iterdir():
        if path.is_file():
            content = path.read_bytes()
            cut = path.suffix == ".tar"
            (tmp_path / path.name).write_bytes(content[: len(content) // 2] if cut else content)
    with pytest.raises(MediaError, match="missing or damaged"):
        list(ShardStream([tmp_path], ShardStreaming()))
