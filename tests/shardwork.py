"""Work for the tests of shards that costs nothing: made-up samples of a part, always the same."""

from __future__ import annotations

import os
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dithead.train.shards.ledger import Add, Row
from dithead.train.shards.lists import Part
from dithead.train.shards.report import report_row
from dithead.train.shards.store import npy, packed

SIDE = 8


@dataclass(frozen=True)
class MadeUp:
    """Some samples of a part, none for some parts; it may take its time over each."""

    pause_s: float = 0.0
    seen: Path | None = None
    """A folder in which each process leaves its number."""

    def __call__(self, part: Part, add: Add) -> Row:
        seed = zlib.crc32(part.name.encode())
        random = np.random.default_rng(seed)
        count = seed % 4
        if self.seen is not None:
            (self.seen / str(os.getpid())).touch()
        for number in range(count):
            frames = int(random.integers(3, 12))
            contents = {
                "crops.npy": npy(random.integers(0, 256, (frames, SIDE, SIDE, 3), np.uint8)),
                "transform.npy": npy(random.random((frames, 2, 3), np.float32)),
                "mesh.npy": npy(random.random((frames, 468, 2), np.float32)),
                "time_s.npy": npy(np.arange(frames) / 25),
                "audio.npy": npy(random.random(640 * frames).astype(np.float16)),
            }
            name = f"{part.name}_{number:03}"
            add(*packed(name, part.person, "train", frames, contents))
            time.sleep(self.pause_s)
        return report_row(part.name, part.person, "train", samples=count, kept_s=float(count))


@dataclass(frozen=True)
class Fatal(MadeUp):
    """The same, but one part kills its process."""

    part: str = ""

    def __call__(self, part: Part, add: Add) -> Row:
        if part.name == self.part:
            os.kill(os.getpid(), signal.SIGKILL)
        return MadeUp.__call__(self, part, add)


def made_up_parts(count: int) -> list[Part]:
    """So many parts of a few people."""
    return [Part(f"p{i:03}", f"p{i:03}.mp4", f"person{i % 5}") for i in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a finished folder, without the ledger."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
