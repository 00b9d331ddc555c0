"""The format of shards, and their index.

A shard is a plain tar file in the form of WebDataset: a sample is a run of members that share a
name up to the first dot, and what follows says what is in it. Headers say nothing of who wrote the
file or when, so equal samples give equal bytes. The index beside the shards says where each member
is, so that any clip can be read without the others.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from dithead.errors import MediaError

VERSION = 1
INDEX = "shards.json"
CROPS, LATENTS, WINDOWS = "crops.npy", ("face.npy", "masked.npy"), "windows.npy"
TRACK = ("transform", "mesh", "time_s", "audio")
"""Arrays of a track (``dithead.train.data.Footage.track``), each a member such as ``mesh.npy``."""
END = bytes(2 * tarfile.BLOCKSIZE)
"""What a tar file ends with."""
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Entry:
    """One sample: a few seconds of one person."""

    name: str
    person: str
    split: str
    frames: int
    size: int
    """Bytes in the shard, a multiple of 512."""
    members: dict[str, tuple[int, int]]
    """What is in it -> offset from the sample's start, and bytes."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a sample is."""

    entry: Entry
    shard: str
    """Name of the file."""
    offset: int
    """Of the sample in it."""


def sample_name(part: str, number: int) -> str:
    """What a sample is called: the samples of a part are numbered as they follow each other."""
    return f"{part}_{number:04}"


def part_and_number(name: str) -> tuple[str, int] | None:
    """The reverse of :func:`sample_name`; None for what is called otherwise."""
    part, _, number = name.rpartition("_")
    if not number.isdecimal() or sample_name(part, int(number)) != name:
        return None
    return part, int(number)


def packed(
    name: str, person: str, split: str, frames: int, contents: Mapping[str, bytes]
) -> tuple[Entry, bytes]:
    """A sample's members as a piece of a tar file, and its entry."""
    buffer, members = io.BytesIO(), {}
    for kind, content in contents.items():
        header = tarfile.TarInfo(f"{name}.{kind}")
        header.size, header.mode = len(content), 0o644
        buffer.write(header.tobuf(tarfile.GNU_FORMAT))
        members[kind] = (buffer.tell(), len(content))
        buffer.write(content)
        buffer.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    value = buffer.getvalue()
    return Entry(name, person, split, frames, len(value), members), value


def npy(array: np.ndarray) -> bytes:
    """An array as the content of a ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def parsed(content: bytes) -> np.ndarray:
    """The reverse of :func:`npy`. Raises ValueError: no such content, or cut short."""
    try:
        array: np.ndarray = np.load(io.BytesIO(content), allow_pickle=False)
    except EOFError as error:
        raise ValueError("it ends too early") from error
    return array


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that has its name only once it is complete and on disk."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole_json(path: Path, value: object) -> None:
    """Write a JSON file in that way."""
    with whole_file(path) as file:
        file.write(json.dumps(value, indent=1).encode())


def write_index(root: Path, placed: Sequence[Placed], settings: Mapping[str, Any]) -> None:
    """Write the index of a folder of shards; ``settings`` say how they were made."""
    rows = [{**asdict(one.entry), "shard": one.shard, "offset": one.offset} for one in placed]
    write_whole_json(root / INDEX, {"version": VERSION, "settings": settings, "samples": rows})


def has_shards(root: Path) -> bool:
    """Whether a folder holds complete shards."""
    return (root / INDEX).is_file()


@cache
def read_shards(root: Path) -> dict[str, Placed]:
    """The samples of a folder by name, in the order of the shards; read once per process.

    Raises:
        MediaError: there is no index, it is damaged, or of another version.
    """
    try:
        index = json.loads((root / INDEX).read_bytes())
        if index["version"] != VERSION:
            raise MediaError(f"{root} holds shards of another version: prepare them again")
        return {row["name"]: _placed(row) for row in index["samples"]}
    except FileNotFoundError as error:
        raise MediaError(
            f"{root} holds no complete shards: run dithead-train prepare --shards, again if it was "
            "interrupted"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise MediaError(
            f"{root / INDEX} is damaged ({error}): prepare the shards again"
        ) from error


def _placed(row: dict[str, Any]) -> Placed:
    shard, offset = row.pop("shard"), row.pop("offset")
    row["members"] = {kind: (int(at), int(size)) for kind, (at, size) in row["members"].items()}
    return Placed(Entry(**row), shard, offset)


def read_array(root: Path, name: str, kind: str) -> np.ndarray:
    """One array of a sample, mapped from its shard.

    Raises:
        MediaError: the sample has none such, or the shard is missing or cut short.
    """
    placed = read_shards(root)[name]
    if kind not in placed.entry.members:
        raise MediaError(f"{root}: {name} has no {kind}; it has {', '.join(placed.entry.members)}")
    at, size = placed.entry.members[kind]
    path = root / placed.shard
    try:
        with path.open("rb") as file:
            file.seek(placed.offset + at)
            shape, fortran, dtype = _header(file)
            start = file.tell()
        if start + dtype.itemsize * int(np.prod(shape)) != placed.offset + at + size or fortran:
            raise ValueError(f"{kind} of {name} is not as the index says")
        if 0 in shape:  # which cannot be mapped
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape)
    except (OSError, ValueError) as error:
        raise MediaError(f"{path} is missing or damaged ({error}): prepare it again") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an array")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise ValueError("an array of objects")
    return shape, fortran, dtype


def read_track_of(root: Path, name: str) -> dict[str, np.ndarray]:
    """A sample's track, in memory; see ``dithead.train.data.Footage.track``."""
    return {part: np.array(read_array(root, name, f"{part}.npy")) for part in TRACK}
