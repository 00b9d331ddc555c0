"""Packs the samples of finished parts into shards, in the order of the parts.

Which sample is in which shard depends on nothing but the samples' sizes and that order: not on when
a part was finished, by how many workers, or how often the run was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from dithead.errors import MediaError
from dithead.train.shards.ledger import Page, fragment_path, read_page
from dithead.train.shards.lists import Part
from dithead.train.shards.store import END, Entry, Placed, whole_file

_COPIED = 1 << 20


class Packer:
    """Packs as far as the parts are finished.

    Args:
        out: the folder of the run. parts: all of them, in order.
        shard_bytes: a shard is full with the sample that brings it to so many bytes.

    Attributes:
        placed: the samples in shards that are written. pages: the finished parts, in order, up to
            the first that is not.
    """

    def __init__(self, out: Path, parts: Sequence[Part], shard_bytes: int) -> None:
        self._out = out
        self._parts = parts
        self._shard_bytes = shard_bytes
        self._open: list[tuple[str, int, Entry]] = []  # part, offset in its fragment, sample
        self._bytes = 0
        self._shards = 0
        self._packed: list[str] = []  # parts whose samples are all in written or open shards
        self.placed: list[Placed] = []
        self.pages: list[Page] = []

    def advance(self) -> None:
        """Pack what has been finished since the last call."""
        while len(self.pages) < len(self._parts):
            page = read_page(self._out, self._parts[len(self.pages)].name)
            if page is None:
                return
            self.pages.append(page)
            offset = 0
            for entry in page.entries:
                self._open.append((page.part, offset, entry))
                self._bytes += entry.size
                offset += entry.size
                if self._bytes >= self._shard_bytes:
                    self._close()
            self._packed.append(page.part)
            self._remove_packed()

    def finish(self) -> None:
        """Write the last shard, which need not be full."""
        self.advance()
        assert len(self.pages) == len(self._parts), "a part is not finished"
        if self._open:
            self._close()
        self._remove_packed()

    def _close(self) -> None:
        path = self._out / f"shard-{self._shards:06}.tar"
        if not path.is_file():
            self._write(path)
        if path.stat().st_size != self._bytes + len(END):
            raise MediaError(
                f"{path} is damaged: delete it and {self._out / 'work'}, and start anew"
            )
        at = 0
        for _, _, entry in self._open:
            self.placed.append(Placed(entry, path.name, at))
            at += entry.size
        self._open, self._bytes = [], 0
        self._shards += 1

    def _write(self, path: Path) -> None:
        with whole_file(path) as file:
            for part, offset, entry in self._open:
                try:
                    with fragment_path(self._out, part).open("rb") as fragment:
                        fragment.seek(offset)
                        _copy(fragment, file, entry.size)
                except FileNotFoundError as error:
                    raise MediaError(
                        f"{path.name} was deleted after it was written, and cannot be made again "
                        f"from what is in {self._out}: start anew in another folder"
                    ) from error
            file.write(END)

    def _remove_packed(self) -> None:
        """Delete the fragments that written shards hold; those that an open one needs stay."""
        needed = {part for part, _, _ in self._open}
        for part in [part for part in self._packed if part not in needed]:
            fragment_path(self._out, part).unlink(missing_ok=True)
            self._packed.remove(part)


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy the next so many bytes."""
    while size > 0:
        piece = source.read(min(size, _COPIED))
        if not piece:
            raise MediaError(f"{source.name} is cut short: delete the folder work and start anew")
        target.write(piece)
        size -= len(piece)
