"""Arrays that are written to disk as they are made, so that memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from dithead.errors import MediaError
from dithead.train.shards.store import PARTIAL, whole_file


class Rows:
    """A ``.npy`` file whose rows are added from first to last; equal, byte for byte, to what
    np.save writes of all of them.

    It is written, not mapped: on a full disk, a write is an error, and a mapped page is a crash.
    """

    def __init__(self, file: IO[bytes], count: int) -> None:
        self._file = file
        self._count = count
        self._added = 0

    def add(self, rows: np.ndarray) -> None:
        """Add the next rows (K, ...); all have one shape and dtype."""
        rows = np.ascontiguousarray(rows)
        if self._added == 0:
            header = np.lib.format.header_data_from_array_1_0(rows)
            header["shape"] = (self._count, *rows.shape[1:])
            np.lib.format.write_array_header_1_0(self._file, header)
        self._file.write(rows.data)
        self._added += len(rows)

    def finish(self) -> None:
        """All rows were added."""
        assert self._added == self._count, "rows are missing, or there are too many"


@contextmanager
def written_rows(path: Path, count: int) -> Iterator[Rows]:
    """Write an array of so many rows; the file has its name only once it is whole.

    Raises:
        MediaError: there are no rows.
    """
    if count == 0:
        raise MediaError(
            "the footage has no moving clips to train on: expected one at least",
            hint="run dithead-train prepare with videos whose split is train",
        )
    with whole_file(path) as file:
        rows = Rows(file, count)
        yield rows
        rows.finish()


def remove_partial(folder: Path) -> None:
    """Remove what a killed run has left in a folder."""
    for partial in folder.glob(f"*.npy.*{PARTIAL}"):
        partial.unlink()


def check_frames(name: str, found: int, expected: int) -> None:
    """Raise MediaError if a clip has not as many frames as the footage's index says."""
    if found != expected:
        raise MediaError(
            f"the clip {name} has {found} frames, and its index says {expected}",
            hint="prepare the footage again",
        )
