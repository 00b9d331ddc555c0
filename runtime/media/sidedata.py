"""What a decoder supplies besides a picture: its orientation, and its HDR data."""

from __future__ import annotations

from fractions import Fraction
from math import atan2, degrees
from struct import unpack
from typing import Any

import av
from av.filter import Graph
from av.sidedata.sidedata import Type

_NUMBERS = 64  # more than the kinds that FFmpeg has


def side_data(picture: av.VideoFrame) -> dict[Type, bytes]:
    """A decoded picture's side data by kind, as FFmpeg's structures in memory.

    Use it for one picture of a video: PyAV links the picture and its side data in a cycle, which
    keeps both until Python's garbage collector runs.
    """
    try:
        found: Any = picture.side_data
    except ValueError:  # for an unknown kind, such as EXIF, PyAV refuses all side data
        try:
            found = _of_known_kinds(picture).side_data
        except (av.FFmpegError, ValueError):
            return {}
    return {item.type: bytes(item) for item in found}


def _of_known_kinds(picture: av.VideoFrame) -> av.VideoFrame:
    """The picture without the kinds of side data that PyAV does not know."""
    graph = Graph()
    last = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=Fraction(1, 25),
    )
    for number in sorted(set(range(_NUMBERS)) - {kind.value for kind in Type}):
        without = graph.add("sidedata", f"mode=delete:type={number}")
        last.link_to(without)
        last = without
    sink = graph.add("buffersink")
    last.link_to(sink)
    graph.configure()
    graph.push(picture)
    pulled = graph.pull()
    assert isinstance(pulled, av.VideoFrame)
    return pulled


def orientation(found: dict[Type, bytes]) -> tuple[bool, int]:
    """How a player shows a picture: whether it mirrors it, left to right, and by how many degrees,
    a multiple of 90, it then turns it counter-clockwise."""
    if Type.DISPLAYMATRIX not in found:
        return False, 0
    # The stored picture's right is shown as (right, down), and its down as (down_x, down_y).
    right, down, _, down_x, down_y, *_ = unpack("=9i", found[Type.DISPLAYMATRIX])
    size = right * down_y - down * down_x
    if size == 0:
        return False, 0
    if size < 0:
        right, down = -right, -down
    return size < 0, round(-degrees(atan2(down, right)) / 90) * 90


class Mirror:
    """Swaps left and right of pictures of one format and size; all their properties stay."""

    def __init__(self, like: av.VideoFrame) -> None:
        self._graph = Graph()
        source = self._graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=Fraction(1, 25)
        )
        flip, sink = self._graph.add("hflip"), self._graph.add("buffersink")
        source.link_to(flip)
        flip.link_to(sink)
        self._graph.configure()

    def __call__(self, picture: av.VideoFrame) -> av.VideoFrame:
        self._graph.push(picture)
        flipped = self._graph.pull()
        assert isinstance(flipped, av.VideoFrame)
        return flipped
