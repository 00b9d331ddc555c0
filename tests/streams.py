"""What the tests of streams share: pictures, sound, feeding from other threads, what is batched."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

import numpy as np
import pytest
from torch import Tensor

from dithead.errors import StreamError
from dithead.generator import FrameGenerator
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.stream import Stream

T = TypeVar("T")

FPS = 25
TIMES = [Fraction(i, FPS) for i in range(9)]
"""Of the frames that the fixture ``pictures`` gives."""
BLANK = 5
"""The one among them that shows no face."""


RATE = 16_000
"""Samples a second of the sounds below."""


def warble(seconds: float) -> np.ndarray:
    """A warbling tone, (S,) float32 at 16 kHz."""
    time_s = np.arange(round(16000 * seconds)) / 16000
    return (0.3 * np.sin(2 * np.pi * (220 + 90 * np.sin(7 * time_s)) * time_s)).astype(np.float32)


def voice(seconds: float, pitch: float = 300.0) -> np.ndarray:
    """Another sound than :func:`warble`."""
    time_s = np.arange(round(RATE * seconds)) / RATE
    return (0.25 * np.sin(2 * np.pi * pitch * time_s * (1 + 0.1 * time_s))).astype(np.float32)


def alike(image: np.ndarray, other: np.ndarray) -> bool:
    """Equal but for sums in another order: those round to the next level, and may shift the detail
    layer's mesh by a hundredth of a pixel, which shows at the steepest edges alone."""
    apart = np.abs(image.astype(int) - other).max(-1)
    return bool((apart > 1).mean() < 1e-3 and apart.max() <= 8)


def same(frames: list[OutputFrame], expected: list[np.ndarray]) -> bool:
    return len(frames) == len(expected) and all(
        np.array_equal(frame.image, image) for frame, image in zip(frames, expected, strict=True)
    )


def close(frames: list[OutputFrame], expected: list[np.ndarray]) -> bool:
    """Equal but for the rounding of sums in another order."""
    return len(frames) == len(expected) and all(
        alike(frame.image, image) for frame, image in zip(frames, expected, strict=True)
    )


def moving(portrait: np.ndarray, count: int) -> list[np.ndarray]:
    """Frames (160, 160, 3) of a portrait (512, 512, 3) that moves a little."""
    return [portrait[14 + i : 174 + i, 120:280].copy() for i in range(count)]


def true_within(limit_s: float, test: Callable[[], bool]) -> bool:
    """Whether something becomes true in that time."""
    limit = time.monotonic() + limit_s
    while not test():
        if time.monotonic() > limit:
            return False
        time.sleep(0.01)
    return True


def within(limit_s: float, call: Callable[[], T]) -> T:
    """What a call gives, which must not hang: in that time it ends."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(limit_s)
    assert results, "it hangs, or has failed"
    return results[0]


def threads_of_streams(limit_s: float = 2.0) -> list[str]:
    """What is left of them after that time; work that is under way ends by itself."""

    def found() -> list[str]:
        names = [thread.name for thread in threading.enumerate()]
        return [name for name in names if name.startswith("dithead ")]

    true_within(limit_s, lambda: not found())
    return found()


def rows_denoised(patch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many frames the denoiser is given at a time."""
    rows, sample = [], FrameGenerator.sample

    def noted(self: FrameGenerator, noise: Tensor, *others: Tensor) -> Tensor:
        rows.append(noise.shape[0])
        return sample(self, noise, *others)

    patch.setattr(FrameGenerator, "sample", noted)
    return rows


def feed(stream: Stream, pictures: Sequence[np.ndarray], sound: Sequence[np.ndarray]) -> None:
    """Push everything: pieces of sound from one thread, frames from another."""

    def hear() -> None:
        with contextlib.suppress(StreamError):  # the frames get it, too
            for piece in sound:
                stream.push_audio(piece)
            stream.finish_audio()

    thread = threading.Thread(target=hear)
    thread.start()
    for number, image in enumerate(pictures):
        assert stream.push_frame(image, Fraction(number, FPS))
    thread.join()
    stream.finish()


def start_feeding(
    stream: Stream, pictures: Sequence[np.ndarray], sound: Sequence[np.ndarray]
) -> threading.Thread:
    """Feed a stream from other threads, until it fails or is closed."""

    def work() -> None:
        with contextlib.suppress(StreamError):  # whoever pulls gets it, too
            feed(stream, pictures, sound)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def collect(
    stream: Stream,
    pictures: Sequence[np.ndarray],
    sound: Sequence[np.ndarray],
    came: Callable[[int], object] = lambda count: None,
) -> list[OutputFrame]:
    """Feed a stream from other threads and pull all that comes; ``came`` is told how many frames
    have come."""
    thread = start_feeding(stream, pictures, sound)
    frames = []
    for frame in stream.frames():
        frames.append(frame)
        came(len(frames))
    thread.join()
    return frames
