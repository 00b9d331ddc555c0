"""Shards: always the same bytes, whoever makes them and however often that was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shardwork import Fatal, MadeUp, contents, made_up_parts

from dithead.errors import ConfigError, MediaError
from dithead.train.shards import store
from dithead.train.shards.ledger import claimed
from dithead.train.shards.lists import Part
from dithead.train.shards.report import table, totals
from dithead.train.shards.run import make_shards, on_processes

PARTS = made_up_parts(14)
SHARD_BYTES = 150_000


def make(
    out: Path, workers: int = 1, pause_s: float = 0.0, parts: Sequence[Part] = PARTS
) -> dict[str, bytes]:
    make_shards(parts, out, MadeUp(pause_s), {"x": 1}, on_processes(workers), SHARD_BYTES)
    return contents(out)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return make(tmp_path_factory.mktemp("undisturbed") / "out")


def test_shards_are_plain_tar_files_without_a_trace_of_their_maker(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    shards = {name: value for name, value in undisturbed.items() if name.endswith(".tar")}
    assert len(shards) >= 3
    assert set(undisturbed) - set(shards) == {"shards.json", "report.json", "report.txt"}
    listed = [row["name"] for row in json.loads(undisturbed["shards.json"])["samples"]]
    found = []
    for name, value in sorted(shards.items()):
        (tmp_path / name).write_bytes(value)
        with tarfile.open(tmp_path / name, "r:") as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                assert (member.uname, member.gname, member.mode) == ("", "", 0o644)
                key, _, kind = member.name.partition(".")
                found += [key] if kind == "crops.npy" else []
    assert found == listed
    assert len(set(found)) == len(found)


def test_the_number_of_processes_does_not_matter(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert make(tmp_path / "out", workers=2) == undisturbed


@pytest.mark.slow  # two more processes that import PyTorch
def test_a_worker_that_is_killed_is_noticed(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out, work = tmp_path / "out", Fatal(part=PARTS[7].name)
    with pytest.raises(MediaError, match="a worker was killed"):
        make_shards(PARTS, out, work, {"x": 1}, on_processes(2), SHARD_BYTES)
    assert make(out) == undisturbed


def test_webdataset_reads_them(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    paths = []
    for name, value in sorted(undisturbed.items()):
        (tmp_path / name).write_bytes(value)
        paths += [str(tmp_path / name)] if name.endswith(".tar") else []
    samples = list(wds.WebDataset(paths, shardshuffle=False).decode())
    placed = list(store.read_shards(tmp_path).values())
    assert [sample["__key__"] for sample in samples] == [one.entry.name for one in placed]
    for sample, one in zip(samples, placed, strict=True):
        for kind in one.entry.members:
            ours = store.read_array(tmp_path, one.entry.name, kind)
            assert np.array_equal(sample[kind], ours)
            assert sample[kind].dtype == ours.dtype


def in_child(action: Callable[[], object]) -> int:
    """Run something in a fork of this process, and return the child's number."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return child


def test_killed_at_random_moments(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    chance = random.Random(3)
    out = tmp_path / "out"
    for pages in range(10):  # of 14: the last parts take longer than the longest pause
        child = in_child(lambda: make(out, pause_s=0.02))
        while len(list(out.glob("work/*.json"))) < pages:
            time.sleep(0.001)  # it may need the core
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert not (out / store.INDEX).exists()
    assert make(out) == undisturbed


def test_killed_between_steps(tmp_path: Path) -> None:
    """Killed just before a change of a file's name or a removal, again and again."""
    chance, few = random.Random(5), PARTS[:5]
    undisturbed = make(tmp_path / "undisturbed", parts=few)
    assert len([name for name in undisturbed if name.endswith(".tar")]) >= 2
    out, kills = tmp_path / "out", 0

    def killed(at: int) -> None:
        left = [at]

        def before(change: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **kwargs: Any) -> Any:
                left[0] -= args[0].exists()  # or it changes nothing
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return change(*args, **kwargs)

            return step

        Path.replace = before(Path.replace)  # type: ignore[method-assign]
        Path.unlink = before(Path.unlink)  # type: ignore[method-assign]
        make(out, parts=few)

    while not (out / store.INDEX).exists():
        at = chance.randint(1, 7)
        kills += os.WIFSIGNALED(os.waitpid(in_child(lambda: killed(at)), 0)[1])  # noqa: B023
        assert kills < 100, "the run does not get on"
    assert kills >= len(few)
    assert make(out, parts=few) == undisturbed
    assert not list(out.rglob("*.partial"))
    assert not list((out / "work").glob("*.samples"))


def test_a_finished_run_is_not_done_again(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    make(tmp_path / "out")

    def never(part: object, add: object) -> dict[str, Any]:
        raise AssertionError("a finished part was done again")

    make_shards(PARTS, tmp_path / "out", never, {"x": 1}, on_processes(1), SHARD_BYTES)
    assert contents(tmp_path / "out") == undisturbed


def test_other_parts_or_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(ConfigError, match="other x: give the same"):
        make_shards(PARTS, out, MadeUp(), {"x": 2}, on_processes(1), SHARD_BYTES)
    with pytest.raises(ConfigError, match="other videos"):
        make_shards(PARTS[1:], out, MadeUp(), {"x": 1}, on_processes(1), SHARD_BYTES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(ConfigError, match="not empty"):
        make(tmp_path / "mine")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = {"x": 1, "shard_bytes": SHARD_BYTES}
    with claimed(out, PARTS, settings), pytest.raises(MediaError, match="another run"):
        make(out)


def test_a_deleted_or_damaged_shard_is_noticed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    shard = out / "shard-000001.tar"
    value = shard.read_bytes()
    shard.write_bytes(value[:-600])
    with pytest.raises(MediaError, match="damaged"):
        make(out)
    shard.unlink()
    with pytest.raises(MediaError, match="deleted after it was written"):
        make(out)


def test_damage_is_one_clear_error(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no complete shards"):
        store.read_shards(tmp_path / "none")
    for name, value in undisturbed.items():
        (tmp_path / name).write_bytes(value)
    placed = next(iter(store.read_shards(tmp_path).values()))
    with pytest.raises(MediaError, match=r"has no face\.npy"):
        store.read_array(tmp_path, placed.entry.name, "face.npy")
    (tmp_path / placed.shard).write_bytes(b"x" * 4096)
    with pytest.raises(MediaError, match="damaged"):
        store.read_array(tmp_path, placed.entry.name, store.CROPS)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / store.INDEX).write_text("{}")
    with pytest.raises(MediaError, match="damaged"):
        store.read_shards(tmp_path / "other")


def test_the_report_adds_up(undisturbed: dict[str, bytes]) -> None:
    report = json.loads(undisturbed["report.json"])
    rows = report["parts"]
    assert [row["part"] for row in rows] == [part.name for part in PARTS]
    assert report["totals"] == totals(rows)
    assert report["totals"]["samples"] == len(json.loads(undisturbed["shards.json"])["samples"])
    rows[3] |= {"cuts": 12, "left_out_s": {"no face": 2.0, "scene too short": 4.0}}
    rows[4] |= {"error": "the video is missing"}
    assert rows[3]["unjudged_s"] == 0
    lines = table(rows).splitlines()
    assert lines[4].endswith("6.0  scene too short 4.0, no face 2.0")
    assert lines[4].split()[3] == lines[-1].split()[5] == "12"
    assert lines[5].endswith("the video is missing")
    assert lines[-1].startswith("all 14")
