"""Streams from asyncio: no frame is lost, none waits for another's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from streams import TIMES, same, threads_of_streams

from dithead.errors import StreamError
from dithead.options import Options
from dithead.runtime.asyncstream import AsyncStream
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.session import Session


def test_asyncio_calls_that_are_cancelled_lose_no_frame(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3)

    async def run() -> list[OutputFrame]:
        stream = session.open_stream(options, in_flight=1, waiting=1)
        async with AsyncStream(stream) as patient:

            async def push() -> None:
                for image, at in zip(pictures, TIMES, strict=True):
                    while True:  # whoever gives up may be just too late
                        try:
                            await asyncio.wait_for(patient.push_frame(image, at), 0.03)
                            break
                        except asyncio.TimeoutError:
                            continue
                await patient.finish()

            await patient.push_audio(sound)
            await patient.finish_audio()
            with pytest.raises(TimeoutError, match="no frame was finished within 0"):
                await patient.pull(timeout_s=0.0)
            pushing, frames = asyncio.create_task(push()), []
            while True:
                try:
                    frame = await asyncio.wait_for(patient.pull(), 0.02)
                except asyncio.TimeoutError:
                    continue
                if frame is None:
                    break
                frames.append(frame)
            await pushing
        return frames

    assert same(asyncio.run(run()), specification(options))


def test_asyncio_streams_do_not_starve_each_other(
    session: Session, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    count = 4 + min(32, (os.cpu_count() or 1) + 4)  # more than asyncio's own threads

    async def speak(stream: AsyncStream) -> int:
        pulling = asyncio.create_task(stream.pull())
        await asyncio.sleep(0.05)  # all wait
        await stream.push_audio(sound)
        for image, at in zip(pictures[:2], TIMES, strict=False):
            await stream.push_frame(image, at)
        await stream.finish()
        assert await pulling is not None
        return 1 + len([frame async for frame in stream.frames()])

    async def run() -> list[int]:
        streams = [AsyncStream(session.open_stream(Options(steps=1))) for _ in range(count)]
        found = await asyncio.gather(*map(speak, streams))
        await asyncio.gather(*(stream.close() for stream in streams))
        return found

    assert asyncio.run(run()) == [2] * count
    assert not threads_of_streams()


def test_a_closed_asyncio_stream_leaves_no_thread(
    session: Session, pictures: list[np.ndarray]
) -> None:
    async def run() -> list[str]:
        stream = AsyncStream(session.open_stream(Options(steps=1)))
        assert await stream.push_frame(pictures[0], 0)
        pulling = asyncio.create_task(stream.pull())
        await asyncio.sleep(0.05)
        assert threads_of_streams(0)
        await stream.close()
        with pytest.raises(StreamError, match="the stream is closed"):
            await pulling
        for _ in range(2):
            with pytest.raises(StreamError, match="the stream is closed"):
                await stream.pull()
            with pytest.raises(StreamError, match="the stream is closed"):
                await stream.push_frame(pictures[1], 1)
            await stream.close()
        return threads_of_streams()

    assert asyncio.run(run()) == []


def test_asyncio(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3)

    async def run() -> list[OutputFrame]:
        async with AsyncStream(session.open_stream(options, in_flight=2)) as stream:

            async def push() -> None:
                await stream.push_audio(sound)
                await stream.finish_audio()
                for image, at in zip(pictures, TIMES, strict=True):
                    await stream.push_frame(image, at)
                await stream.finish()

            pushing = asyncio.create_task(push())
            frames = [frame async for frame in stream.frames()]
            await pushing
            return frames

    assert same(asyncio.run(run()), specification(options))
