"""A stream for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial

import numpy as np
from torch import Tensor

from dithead.face.search import Box
from dithead.runtime.checked import checked_time, checked_wait
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.stream import Stream

_SLICE_S = 0.1  # how long a thread waits before it checks whether it still should


class AsyncStream:
    """A :class:`Stream` for asyncio: calls that may wait are awaited, and run in two threads of its
    own. Close it, or use it as a context manager.

    A call that is cancelled loses no frame: a frame pulled meanwhile comes with the next pull, and
    a frame taken in meanwhile is not taken twice if it is pushed again.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pusher = ThreadPoolExecutor(1, "dithead push")
        self._puller = ThreadPoolExecutor(1, "dithead pull")
        self._pulled: asyncio.Future[OutputFrame | None] | None = None
        self._pushed: tuple[Fraction, asyncio.Future[bool]] | None = None
        self._closed = False

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See :meth:`Stream.close`. Also ends the two threads."""
        left = self._given_up()
        try:
            await asyncio.to_thread(self._stream.close)
            await asyncio.gather(*left, return_exceptions=True)
        finally:
            self._closed = True
            for thread in (self._pusher, self._puller):
                thread.shutdown(wait=False)  # they end at once: nothing is waiting any more

    async def reset(self) -> None:
        """See :meth:`Stream.reset`."""
        left = self._given_up()
        await asyncio.to_thread(self._stream.reset)
        await asyncio.gather(*left, return_exceptions=True)

    def _given_up(self) -> list[asyncio.Future[OutputFrame | None] | asyncio.Future[bool]]:
        """What calls that may have been cancelled still wait for; forgotten from now on."""
        waited = [self._pulled, None if self._pushed is None else self._pushed[1]]
        left = [future for future in waited if future is not None]
        self._pulled = self._pushed = None
        return left

    async def push_audio(self, samples: np.ndarray | Tensor, sample_rate_hz: int = 16_000) -> None:
        """See :meth:`Stream.push_audio`."""
        self._stream.push_audio(samples, sample_rate_hz)

    async def push_frame(
        self,
        image: np.ndarray,
        time_s: Fraction | float,
        timeout_s: float | None = None,
        *,
        face_box: Box | None = None,
    ) -> bool:
        """See :meth:`Stream.push_frame`."""
        loop, at = asyncio.get_running_loop(), checked_time(time_s)
        timeout_s = checked_wait(timeout_s)
        end = None if timeout_s is None else loop.time() + timeout_s
        while True:
            if self._closed:
                return self._stream.push_frame(image, time_s, 0.0)  # raises the error
            if self._pushed is None:
                left = _SLICE_S if end is None else max(0.0, min(_SLICE_S, end - loop.time()))
                push = partial(self._stream.push_frame, image, time_s, left, face_box=face_box)
                work = loop.run_in_executor(self._pusher, push)
                self._pushed = at, work
            # If this call is cancelled, the slice goes on; the next push asks for its result.
            pushed = pushed_s, work = self._pushed
            await asyncio.wait({work})
            if self._pushed is pushed:
                self._pushed = None
            if work.result() and pushed_s == at:
                return True
            if pushed_s == at and end is not None and loop.time() >= end:
                return False

    async def pull(self, timeout_s: float | None = None) -> OutputFrame | None:
        """See :meth:`Stream.pull`."""
        loop, timeout_s = asyncio.get_running_loop(), checked_wait(timeout_s)
        end = None if timeout_s is None else loop.time() + timeout_s
        while True:
            if self._closed:
                return self._stream.pull(0.0)  # raises the error
            if self._pulled is None:
                left = _SLICE_S if end is None else max(0.0, min(_SLICE_S, end - loop.time()))
                self._pulled = loop.run_in_executor(self._puller, self._stream.pull, left)
            pulled = self._pulled
            await asyncio.wait({pulled})
            if self._pulled is pulled:
                self._pulled = None
            try:
                return pulled.result()
            except TimeoutError:
                if end is not None and loop.time() >= end:
                    raise TimeoutError(f"no frame was finished within {timeout_s} s") from None

    async def frames(self) -> AsyncIterator[OutputFrame]:
        """See :meth:`Stream.frames`."""
        while (frame := await self.pull()) is not None:
            yield frame

    @property
    def queued_s(self) -> float:
        """See :attr:`Stream.queued_s`."""
        return self._stream.queued_s

    async def mark(self, piece: str | None) -> None:
        """See :meth:`Stream.mark`."""
        self._stream.mark(piece)

    async def flush_audio(self) -> list[str]:
        """See :meth:`Stream.flush_audio`."""
        return await asyncio.to_thread(self._stream.flush_audio)

    async def set_source(
        self,
        *,
        portrait: np.ndarray | None = None,
        loop: str | os.PathLike[str] | None = None,
    ) -> None:
        """See :meth:`Stream.set_source`."""
        await asyncio.to_thread(self._stream.set_source, portrait=portrait, loop=loop)

    async def finish_audio(self) -> None:
        """See :meth:`Stream.finish_audio`."""
        self._stream.finish_audio()

    async def finish(self) -> None:
        """See :meth:`Stream.finish`."""
        self._stream.finish()
