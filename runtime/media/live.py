"""Frames of a live source, read at its own pace."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing

from dithead.runtime.media.videoframe import VideoFrame, planes

_BYTES = 512 << 20  # limit of waiting frames, whatever their time


class NewestFrames:
    """Reads frames in a thread of its own; if nobody takes them, drops the oldest that wait.

    So its frames are never old, and nothing piles up where a source cannot be made to wait.

    Args:
        frames: the source; iterated, and closed, in that thread.
        behind_s: a frame that is older than the newest by more than this is dropped; the latest two
            never are.

    Attributes:
        dropped: number of frames dropped so far.
    """

    def __init__(self, frames: Generator[VideoFrame], behind_s: float) -> None:
        self.dropped = 0
        self._behind_s = behind_s
        self._waiting: deque[VideoFrame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._read, args=(frames,), name="dithead live source", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> NewestFrames:
        return self

    def __next__(self) -> VideoFrame:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                return self._waiting.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def stop(self) -> None:
        """Stop reading; the thread ends when the source gives its next frame."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()

    def _drop(self) -> None:
        """Drop frames that are too old."""
        newest = self._waiting[-1]
        size = sum(plane.nbytes for plane in planes(newest.picture))
        while len(self._waiting) > 2 and (
            newest.time_s - self._waiting[0].time_s > self._behind_s
            or len(self._waiting) * size > _BYTES
        ):
            self._waiting.popleft()
            self.dropped += 1

    def _read(self, frames: Generator[VideoFrame]) -> None:
        try:
            with closing(frames):
                for frame in frames:
                    with self._changed:
                        if self._ended:
                            return
                        self._waiting.append(frame)
                        self._drop()
                        self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
