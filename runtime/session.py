"""The runtime as a library: a session holds the weights, a stream is one speaker.

    session = Session.open(checkpoint="tiny")
    with session.open_stream(Options(steps=2)) as stream:
        stream.push_audio(samples)                  # 16 kHz mono, as it comes
        stream.push_frame(image, time_s)            # (H, W, 3) uint8 RGB
        stream.finish()                             # or finish_audio(), where the sound ends first
        for frame in stream.frames():
            show(frame.image, frame.time_s)

Nothing has to be known of the total length. Every frame that is pushed comes out, in order, with
its own time; without a face it comes out as it is. After the end of the sound, frames are silent.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.attention import AttentionBackend
from dithead.errors import ConfigError, StreamError
from dithead.face.choice import Box
from dithead.pipeline import FrameGenerator, Options
from dithead.runtime.backends import Backend, RuntimeGraphs, open_graphs
from dithead.runtime.checked import (
    checked_device,
    checked_number,
    checked_picture,
    checked_time,
    checked_wait,
)
from dithead.runtime.defaults import IN_FLIGHT, WAITING
from dithead.runtime.pushed import OutputFrame, PushedRun
from dithead.runtime.schedule.batch import WAIT_S, Batcher
from dithead.runtime.schedule.lanes import Lanes, make_lanes
from dithead.runtime.schedule.trace import Trace

_SLICE_S = 0.1  # for which a thread waits before it asks whether it still should


class Session:
    """The weights of a model on a device. Streams share it, from any thread.

    Args:
        graphs: the model, as a back end runs it.
        batch: frames of different streams that may be denoised at a time. 1 keeps streams apart:
            then each gives exactly the frames that it would give alone. More is faster on a GPU,
            and equal within the rounding of another order of sums.
        batch_wait_s: how long a stream waits for the others to make up a batch.

    Raises:
        ConfigError: the batch is smaller than 1.
    """

    def __init__(self, graphs: RuntimeGraphs, batch: int = 1, batch_wait_s: float = WAIT_S) -> None:
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, not {batch}")
        self.graphs = graphs
        self._batcher: Batcher | None = None
        if batch > 1:
            lanes = make_lanes(graphs.device, graphs.replayable)
            self._batcher = Batcher(lanes, batch, batch_wait_s)

    @classmethod
    def open(
        cls,
        backend: Backend = "torch",
        *,
        checkpoint: str = "tiny",
        bundle: str | Path | None = None,
        device: torch.device | str = "cpu",
        audio_weights: str | Path | None = None,
        threads: int | None = None,
        attention: AttentionBackend | None = None,
        batch: int = 1,
    ) -> Session:
        """Load a checkpoint or a bundle.

        Args:
            backend: ``torch`` runs a checkpoint; ``onnxruntime``, ``tensorrt`` and ``tensorrt-rtx``
                run a bundle. Nothing else takes its place.
            checkpoint: name of a packaged checkpoint, or a .safetensors file.
            bundle: folder written by ``dithead export``.
            device: ``cpu``, ``cuda`` or ``cuda:N``.
            audio_weights: folder of the speech encoder, for a checkpoint that uses wav2vec2.
            threads: of a graph on the CPU, for ``onnxruntime``. None takes PyTorch's number.
            attention: of the denoiser, with ``torch``: ``sdpa``, ``math``, ``flash`` or
                ``xformers``. None takes ``sdpa``.
            batch: see :class:`Session`. A bundle must have been made for batches of that size
                (``dithead export --batch``).

        Raises:
            ConfigError: an option is invalid, or two exclude each other.
            CheckpointError, ExportError: the checkpoint or the bundle cannot be used.
            BackendUnavailable: a package or device is missing.
        """
        return cls(
            open_graphs(
                backend,
                checkpoint=checkpoint,
                bundle=None if bundle is None else Path(bundle),
                device=checked_device(device),
                audio_weights=None if audio_weights is None else Path(audio_weights),
                threads=threads,
                attention=attention,
            ),
            batch,
        )

    def open_stream(
        self,
        options: Options | None = None,
        *,
        interpolate: int = 1,
        in_flight: int = IN_FLIGHT,
        waiting: int = WAITING,
        batch: int = 1,
        portrait: np.ndarray | None = None,
        fps: Fraction | float = 25,
        trace: Trace | None = None,
        lanes: Lanes | None = None,
    ) -> Stream:
        """Open a stream for one speaker.

        Args:
            options: what is asked of it. interpolate: 2 puts a frame between every two (RIFE).
            in_flight: frames that may be on their way at a time; fewer cost throughput, more cost
                latency.
            waiting: pushed frames that may wait before those. Live, sound for a frame comes up to
                0.38 s after it with ``tiny`` (``audio.longest_wait_ms`` of the configuration), so
                that many frames must find room; where all sound is there, 1 is enough.
            batch: frames of this stream that are denoised at a time, with a fixed reference; each
                waits for the last of them.
            portrait: a still picture (H, W, 3) uint8 RGB in the place of pushed frames, held at
                ``fps`` for as long as there is sound.
            trace: where every stage's work is noted. lanes: what orders the stages' work; None
                takes the device's own.

        Raises:
            ConfigError: an option is invalid.
        """
        if interpolate not in (1, 2):
            raise ConfigError(f"interpolate must be 1 or 2, not {interpolate}")
        if portrait is not None:
            portrait = checked_picture(portrait)
        if waiting < 1:
            raise ConfigError(f"waiting must be at least 1, not {waiting}")
        rate = checked_number(fps, "frames per second", ConfigError).limit_denominator(100_100)
        if rate <= 0:
            raise ConfigError(f"fps must be above 0, not {fps}")

        def start() -> PushedRun:
            return PushedRun(
                FrameGenerator(self.graphs, options or Options()),
                interpolate,
                in_flight,
                waiting,
                None if portrait is None else (portrait, rate),
                trace,
                lanes or make_lanes(self.graphs.device, self.graphs.replayable),
                batch,
                self._batcher,
            )

        return Stream(start)


class Stream:
    """One speaker: sound and frames in, frames out. Made by :meth:`Session.open_stream`.

    Sound and frames may be pushed and pulled from different threads, each by one at a time. A
    source that runs ahead waits in :meth:`push_frame`; with ``timeout_s=0`` it is told at once that
    there is no room, and may drop the frame. Sound that is pushed ahead is kept until frames reach
    it.
    """

    def __init__(self, start: Callable[[], PushedRun]) -> None:
        self._start = start
        self._changing = threading.Lock()
        self._closed = False
        self._run: PushedRun = start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_run"):
            self._run.stop()

    def push_audio(self, samples: np.ndarray | Tensor, sample_rate_hz: int = 16_000) -> None:
        """Take in sound.

        Args:
            samples: (S,) float32 in [-1, 1], mono; copied; may be empty.
            sample_rate_hz: the same for every call; other rates than 16 kHz are resampled.

        Raises:
            StreamError: another shape or type, or the sound has ended; or what a stage failed with.
        """
        self._run.push_audio(samples, sample_rate_hz)

    def push_frame(
        self,
        image: np.ndarray,
        time_s: Fraction | float,
        timeout_s: float | None = None,
        *,
        face_box: Box | None = None,
    ) -> bool:
        """Take in a frame, waiting for room.

        Room comes when frames are pulled, and when there is sound for those on their way: a single
        thread should push sound first, and pull before it waits.

        Args:
            image: (H, W, 3) uint8 RGB; not to be changed afterwards.
            time_s: presentation time in seconds, a number of any type, on the clock on which the
                sound starts at 0; later than the last frame's.
            timeout_s: how long to wait for room; None for as long as it takes, 0 not at all.
            face_box: where in this frame the face that speaks is, for a caller who knows: left,
                top, right, bottom in pixels; (0, 0, 0, 0) where nobody speaks. None goes on with
                the face of the frame before.

        Returns:
            False where there was no room in time: the frame was not taken.

        Raises:
            StreamError: another shape or type, a time that is not later, or a finished stream; or
                what a stage failed with.
        """
        return self._run.push_frame(image, time_s, timeout_s, face_box)

    def pull(self, timeout_s: float | None = None) -> OutputFrame | None:
        """The next finished frame, waiting for it; None when all have come.

        Raises:
            TimeoutError: none was finished in time.
            StreamError: what a stage failed with, or the stream was closed.
        """
        return self._run.pull(timeout_s)

    def frames(self) -> Iterator[OutputFrame]:
        """The finished frames until all have come."""
        while (frame := self.pull()) is not None:
            yield frame

    def finish_audio(self) -> None:
        """Declare the sound ended: what follows is silent. Until then, a frame waits for sound
        after it, up to 0.38 s with ``tiny``. A second call does nothing."""
        self._run.finish_audio()

    def finish(self) -> None:
        """Declare sound and frames ended. A second call does nothing."""
        self._run.finish()

    def reset(self) -> None:
        """Forget everything, frames on their way included: the stream equals a fresh one.

        Raises:
            StreamError: the stream is closed.
        """
        with self._changing:
            if self._closed:
                raise StreamError("the stream is closed", hint="open another")
            self._run.stop("the stream was reset")
            self._run = self._start()

    def close(self) -> None:
        """Stop, wherever the frames are. Harmless when closed before."""
        with self._changing:
            self._closed = True
            self._run.stop()


class AsyncStream:
    """A :class:`Stream` for asyncio: what may wait is awaited, in two threads of its own. To be
    closed, or used as a context manager.

    A call that is cancelled loses no frame: what was pulled meanwhile comes with the next pull, and
    a frame that was taken in meanwhile is not taken twice where it is pushed again.
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
        """See :meth:`Stream.close`. Ends the two threads, too."""
        left = self._given_up()
        try:
            await asyncio.to_thread(self._stream.close)
            await asyncio.gather(*left, return_exceptions=True)
        finally:
            self._closed = True
            for thread in (self._pusher, self._puller):
                thread.shutdown(wait=False)  # they end at once: nothing waits any more

    async def reset(self) -> None:
        """See :meth:`Stream.reset`."""
        left = self._given_up()
        await asyncio.to_thread(self._stream.reset)
        await asyncio.gather(*left, return_exceptions=True)

    def _given_up(self) -> list[asyncio.Future[Any]]:
        """What calls that may have been cancelled still wait for; forgotten from now on."""
        left: list[asyncio.Future[Any]] = [] if self._pulled is None else [self._pulled]
        left += [] if self._pushed is None else [self._pushed[1]]
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
                return self._stream.push_frame(image, time_s, 0.0)  # says so
            if self._pushed is None:
                left = _SLICE_S if end is None else max(0.0, min(_SLICE_S, end - loop.time()))
                push = partial(self._stream.push_frame, image, time_s, left, face_box=face_box)
                work = loop.run_in_executor(self._pusher, push)
                self._pushed = at, work
            # Cancelled here, the slice goes on; what it comes to is asked for by the next push.
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
                return self._stream.pull(0.0)  # says so
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

    async def finish_audio(self) -> None:
        """See :meth:`Stream.finish_audio`."""
        self._stream.finish_audio()

    async def finish(self) -> None:
        """See :meth:`Stream.finish`."""
        self._stream.finish()
