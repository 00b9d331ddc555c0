"""Shards made on a Ray cluster of two machines, as far as Ray can tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from shardwork import Fatal, MadeUp, contents, made_up_parts

from dithead.errors import BackendUnavailable, MediaError
from dithead.train.shards import ray as ours
from dithead.train.shards.run import make_shards, on_processes

PARTS = made_up_parts(8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes with one core each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'dithead[ray]'")
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for the work, to the workers
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
            yield nodes.address
        finally:
            nodes.shutdown()


@pytest.mark.slow  # half a minute, to start the nodes and import PyTorch on each
def test_two_workers_make_what_one_process_makes(cluster: str, tmp_path: Path) -> None:
    for name, runner in (("one", on_processes(1)), ("two", ours.on_ray(cluster))):
        seen = tmp_path / f"by_{name}"
        seen.mkdir()
        make_shards(PARTS, tmp_path / name, MadeUp(0.3, seen), {}, runner, 150_000)
    workers = {path.name for path in seen.iterdir()}
    assert len(workers) == 2
    assert str(os.getpid()) not in workers
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*.tar"))) >= 2


@pytest.mark.slow  # as above, and a worker is started again and again
def test_lost_workers_are_one_clear_error_and_cost_nothing(cluster: str, tmp_path: Path) -> None:
    out, work = tmp_path / "out", Fatal(part=PARTS[5].name)
    with pytest.raises(MediaError, match="workers were lost 4 times"):
        make_shards(PARTS, out, work, {}, ours.on_ray(cluster), 150_000)
    make_shards(PARTS, out, MadeUp(), {}, on_processes(1), 150_000)
    make_shards(PARTS, tmp_path / "whole", MadeUp(), {}, on_processes(1), 150_000)
    assert contents(out) == contents(tmp_path / "whole")


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "ray", None)
    with pytest.raises(BackendUnavailable, match=r"dithead\[ray\]"):
        ours.on_ray("auto")
