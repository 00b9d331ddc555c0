"""Deinterlaces pictures, so that a face never mixes two moments."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

import av
from av.filter import Graph

from dithead.runtime.media.videoframe import VideoFrame


def deinterlaced(frames: Iterable[VideoFrame]) -> Generator[VideoFrame]:
    """Yield frames as they come; from the first interlaced one on, through FFmpeg's bwdif.

    One frame for each, with its own time; frames that are not interlaced keep their pixels.
    """
    filtering: _Filter | None = None
    last: VideoFrame | None = None
    for frame in frames:
        if filtering is None and frame.picture.interlaced_frame:
            filtering = _Filter(before=last or frame)
        if filtering is None:
            last = frame
            yield frame
        else:
            yield from filtering.push(frame)
    if filtering is not None:
        yield from filtering.finish()


class _Filter:
    """bwdif, which returns a frame once it has seen the one after it.

    Args:
        before: what came before the first frame; without it, the first frame would be left as it
            is.
    """

    def __init__(self, before: VideoFrame) -> None:
        self._graph, picture = Graph(), before.picture
        source = self._graph.add_buffer(
            width=picture.width,
            height=picture.height,
            format=picture.format,
            time_base=before.time_base,
        )
        bwdif = self._graph.add("bwdif", "mode=send_frame:deint=interlaced")
        sink = self._graph.add("buffersink")
        source.link_to(bwdif)
        bwdif.link_to(sink)
        self._graph.configure()
        self._inside: deque[VideoFrame | None] = deque()
        self._push(before, before.pts - 1)
        self._inside.append(None)

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        self._push(frame, frame.pts)
        self._inside.append(frame)
        return self._pull()

    def finish(self) -> Iterator[VideoFrame]:
        self._graph.push(None)
        return self._pull()

    def _push(self, frame: VideoFrame, pts: int) -> None:
        frame.picture.pts, frame.picture.time_base = pts, frame.time_base
        self._graph.push(frame.picture)

    def _pull(self) -> Iterator[VideoFrame]:
        while self._inside:
            try:
                picture = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            assert isinstance(picture, av.VideoFrame)
            frame = self._inside.popleft()
            if frame is not None:
                yield replace(frame, picture=picture)
