"""Cameras and other live sources: the newest frames, devices that have none, an end."""

from __future__ import annotations

import errno
import math
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
from clips import (
    as_frame,
    picture,
    tone,
    write_clip,
)
from streams import true_within, within

from dithead.errors import MediaError
from dithead.runtime.media.inputs import Input
from dithead.runtime.media.live import NewestFrames
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.media.videoframe import VideoFrame


class Reluctant:
    """A container that has nothing yet whenever it is asked first, like FFmpeg's devices of macOS,
    and nothing any more after so many packets."""

    def __init__(self, container: Any, count: int) -> None:
        self._container = container
        self._packets: Any = None
        self._left = count
        self._ready = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, streams: Any) -> Iterator[Any]:
        self._packets = self._packets or self._container.demux(streams)
        while True:
            self._ready = not self._ready
            if self._ready or not self._left:
                raise av.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            self._left -= 1
            packet = next(self._packets, None)
            if packet is None:
                return
            yield packet


@pytest.fixture
def device_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., VideoSource]:
    """Opens a file as such a device."""
    opened = av.open

    def make(clip: Path, count: int = sys.maxsize) -> VideoSource:
        monkeypatch.setattr(av, "open", lambda *a, **k: Reluctant(opened(*a, **k), count))
        return VideoSource(clip)

    return make


def test_a_device_that_has_no_frame_yet_has_not_ended(
    tmp_path: Path, device_of: Callable[..., VideoSource]
) -> None:
    source = device_of(write_clip(tmp_path / "in.ts", b_frames=0, sound=tone(44100, 1.6)))
    assert len(list(source)) == 40
    assert source.decode_errors == 0


def test_a_device_that_gives_nothing_more_has_ended(
    tmp_path: Path, device_of: Callable[..., VideoSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dithead.runtime.media.inputs._SILENT_S", 0.2)
    frames = iter(device_of(write_clip(tmp_path / "in.ts", b_frames=0), 20))
    next(frames)
    time.sleep(0.3)  # nobody asked meanwhile
    assert 10 < len(list(frames)) < 20


def test_a_silent_device_can_be_left(
    tmp_path: Path,
    device_of: Callable[..., VideoSource],
    pipe_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dithead.runtime.media.inputs._SILENT_S", math.inf)  # never by itself
    clip = write_clip(tmp_path / "in.ts", b_frames=0)
    source = device_of(pipe_of(clip.read_bytes()), 20)  # what is read but once can be stopped
    threading.Timer(0.3, source.stop).start()
    assert 10 < len(within(20, lambda: list(source))) <= 20


class Camera:
    """Gives frames when it is told to."""

    def __init__(self) -> None:
        self.told = threading.Semaphore(0)
        self.given = 0
        self.ended = threading.Event()

    def frames(self, count: int, failing: bool = False) -> Generator[VideoFrame, None, None]:
        try:
            for index in range(count):
                self.told.acquire()
                self.given = index + 1
                yield replace(as_frame(picture(0, 4, 4, "yuv420p")), index=index, pts=index)
            if failing:
                raise MediaError("the camera was pulled out")
        finally:
            self.ended.set()


@pytest.mark.parametrize(("behind_s", "kept"), [(0.0, 2), (0.04, 2), (0.13, 4)])
def test_of_what_is_live_the_oldest_frames_are_dropped(behind_s: float, kept: int) -> None:
    camera = Camera()
    newest = NewestFrames(camera.frames(20), behind_s)
    camera.told.release(12)
    assert true_within(20, lambda: newest.dropped >= 12 - kept)
    assert (camera.given, newest.dropped) == (12, 12 - kept)  # it is not made to wait
    assert [next(newest).index for _ in range(kept)] == list(range(12 - kept, 12))
    camera.told.release(8)
    assert camera.ended.wait(5)
    assert [frame.index for frame in newest] == list(range(20 - kept, 20))
    assert newest.dropped == 20 - 2 * kept


def test_of_what_is_live_nothing_is_dropped_without_need() -> None:
    camera = Camera()
    newest = NewestFrames(camera.frames(20), 0.0)
    for index in range(20):
        camera.told.release()
        assert next(newest).index == index
    assert list(newest) == []
    assert newest.dropped == 0


def test_a_live_source_that_fails_says_so() -> None:
    camera = Camera()
    camera.told.release(3)
    with pytest.raises(MediaError, match="pulled out"):
        list(NewestFrames(camera.frames(3, failing=True), 0.0))


def test_a_live_source_can_be_left() -> None:
    camera = Camera()
    newest = NewestFrames(camera.frames(10), 0.0)
    camera.told.release()
    assert next(newest).index == 0
    threading.Timer(0.2, newest.stop).start()
    assert list(newest) == []  # whoever waits for a frame is woken
    camera.told.release()
    assert camera.ended.wait(5)
    assert camera.given == 2


@pytest.mark.parametrize(
    ("text", "format_name", "live"),
    [
        ("rtmp://host/live", None, True),
        ("RTSP://host/live", None, True),
        ("udp://:5000", None, True),
        ("/dev/video0", "v4l2", True),
        ("https://host/clip.mp4", None, False),
        ("clip.mp4", None, False),
    ],
)
def test_what_is_live(text: str, format_name: str | None, live: bool) -> None:
    given = Input(text, format_name)
    assert given.live == live
    assert given.once == live
