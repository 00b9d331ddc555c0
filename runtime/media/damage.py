"""Finds out what is missing from a file, from the lengths that its container states, if any."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_PNG, _JPEG, _EBML = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"  # Matroska's, which contains everything but the header
# The boxes that an MP4, MOV or AVIF may begin with, and those that form its index.
_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"meta"}
_INDEX = {b"moov", b"meta"}
# Sizes from here on mean that the writer of the header did not know them.
_RIFF_UNKNOWN = 0x7FFF_0000
_PIECE_BYTES = 1 << 20


def damage(path: str | os.PathLike[str]) -> str | None:
    """Say in words what is missing from a file: "is empty", "has no index", "is truncated".

    Returns:
        None if nothing is known to be missing, or it is not a readable file.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0 and os.path.isfile(path):
                return "is empty"
            head = file.read(12)
            if head[4:8] in _BOXES:
                return _boxes(file, size)
            if head[:4] in (b"RIFF", b"RF64"):
                return _cut(_riff_end(file, head), size)
            if head[:4] == _EBML:
                return _cut(_segment_end(file), size)
            if head.startswith(_PNG):
                return _cut(_png_end(file, size), size)
            if head.startswith(_JPEG):
                return None if _jpeg_ends(file) else "is truncated: the picture's end is missing"
    except (OSError, ValueError):
        pass
    except (struct.error, IndexError):
        return "is truncated: it ends within its header"
    return None


def _cut(end: int | None, size: int) -> str | None:
    if end is None or end <= size:
        return None
    return f"is truncated: {end - size:,} bytes are missing at its end"


def _boxes(file: BinaryIO, size: int) -> str | None:
    """MP4, MOV, AVIF: boxes one after the other."""
    at, index = 0, False
    while at + 8 <= size:
        file.seek(at)
        length: int
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        elif length == 0:  # the last box, up to the end
            length = size - at
        if length < 8:
            break
        at += length
        index |= kind in _INDEX and at <= size
    cut = _cut(at, size)
    if index:
        return cut
    if cut:
        return f"{cut}, and with them its index (moov), without which nothing can be read"
    return "has no index (moov): the recording was not finished, or is a piece of another"


def _riff_end(file: BinaryIO, head: bytes) -> int | None:
    """WAV, AVI, WebP."""
    (length,) = struct.unpack("<I", head[4:8])
    if head[:4] == b"RF64":  # its first chunk states the length
        file.seek(20)
        (length,) = struct.unpack("<Q", file.read(8))
        return int(length) + 8 if length else None
    return int(length) + 8 if 0 < length < _RIFF_UNKNOWN else None


def _segment_end(file: BinaryIO) -> int | None:
    """Matroska and WebM: a header, and a segment with all the rest."""
    file.seek(4)
    header = _ebml_size(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    length = _ebml_size(file)
    return None if length is None else file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """A size in EBML's encoding; None if it was unknown."""
    first = file.read(1)[0]
    count = 8 - first.bit_length()  # bytes that follow
    if count > 7:
        return None
    value = int.from_bytes(bytes([first & ((1 << (7 - count)) - 1)]) + file.read(count), "big")
    return None if value == (1 << (7 * (count + 1))) - 1 else value


def _png_end(file: BinaryIO, size: int) -> int:
    """Chunks up to the one that is marked as the last."""
    at = len(_PNG)
    while at + 12 <= size:
        file.seek(at)
        length: int
        length, kind = struct.unpack(">I4s", file.read(8))
        at += 12 + length
        if kind == b"IEND":
            return at
    return max(at, size + 1)


def _jpeg_ends(file: BinaryIO) -> bool:
    """Whether the marker of a picture's end follows its data; a thumbnail's does not count."""
    file.seek(2)
    while len(mark := file.read(4)) == 4 and mark[0] == 0xFF:
        file.seek(struct.unpack(">H", mark[2:])[0] - 2, os.SEEK_CUR)
        if mark[1] == 0xDA:  # the data begins
            break
    last = b""
    while piece := file.read(_PIECE_BYTES):
        if b"\xff\xd9" in last + piece:
            return True
        last = piece[-1:]
    return False
