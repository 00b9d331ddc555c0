"""Inputs that can be read but once: pipes that stall, end, break or are left."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import (
    all_samples,
    same_planes,
    tone,
    write_clip,
)

from dithead.command import Terminated, terminate
from dithead.errors import MediaError
from dithead.runtime.media.inputs import Demuxer, Input
from dithead.runtime.media.sources import AudioSource, VideoSource


@pytest.mark.parametrize("name", ["in.mkv", "in.ts", "in.mp4"])
def test_a_pipe_gives_what_the_file_gives_once(
    tmp_path: Path, pipe_of: Callable[..., Path], name: str
) -> None:
    faststart = {"movflags": "+faststart"} if name == "in.mp4" else None
    clip = write_clip(
        tmp_path / name, sound=tone(44100, 1.6), b_frames=0, container_options=faststart
    )
    with VideoSource(clip) as source:
        wanted = list(source)
    pipe = Input(pipe_of(clip.read_bytes()))
    assert pipe.once
    assert not pipe.live
    shared = Demuxer(pipe, ["video", "audio"])
    with VideoSource(shared) as source:
        sound = AudioSource(shared)
        assert not sound.duration_known
        with pytest.raises(MediaError, match="length is not known before its end"):
            _ = sound.duration_s
        found = list(source)
        with pytest.raises(MediaError, match="can be read once only"):
            next(iter(source))
    assert [frame.time_s for frame in found] == [frame.time_s for frame in wanted]
    assert all(map(same_planes, found, wanted))
    speech = np.concatenate(list(sound.blocks()))
    assert np.array_equal(speech, np.concatenate(list(AudioSource(clip).blocks())))
    assert np.array_equal(all_samples(sound), all_samples(AudioSource(clip)))
    assert sound.duration_s == AudioSource(clip).duration_s


def test_an_index_at_the_end_of_a_pipe_is_explained(
    tmp_path: Path, pipe_of: Callable[..., Path]
) -> None:
    clip = write_clip(tmp_path / "in.mp4", size=(640, 480), options={"crf": "0"})
    with pytest.raises(MediaError, match=r"must have its index in front \(\+faststart\)"):
        VideoSource(pipe_of(clip.read_bytes()))


def test_an_empty_pipe_is_said_to_be_empty(pipe_of: Callable[..., Path]) -> None:
    with pytest.raises(MediaError, match="nothing came"):
        VideoSource(pipe_of(b""))


def test_a_silent_pipe_can_be_left(tmp_path: Path, pipe_of: Callable[..., Path]) -> None:
    content = write_clip(tmp_path / "in.ts", b_frames=0).read_bytes()
    held = threading.Event()
    source = VideoSource(pipe_of(content[: len(content) * 3 // 4], held))
    threading.Timer(0.3, source.stop).start()
    assert 0 < len(list(source)) < 40
    assert not held.is_set()  # it was left while it was open
    held.set()


def test_an_interrupt_while_a_pipe_is_opened_is_none_of_its_faults(
    pipe_of: Callable[..., Path],
) -> None:
    held = threading.Event()
    pipe = pipe_of(b"", held)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            VideoSource(pipe)
    finally:
        signal.signal(signal.SIGINT, before)
        held.set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_pipe_stalls_is_not_its_end(
    tmp_path: Path, pipe_of: Callable[..., Path], number: signal.Signals
) -> None:
    content = write_clip(tmp_path / "in.ts", b_frames=0).read_bytes()
    held = threading.Event()
    source = VideoSource(pipe_of(content[: len(content) * 3 // 4], held))
    before = signal.signal(number, terminate)
    try:
        threading.Timer(0.5, signal.raise_signal, [number]).start()
        with pytest.raises(Terminated, match=number.name):
            list(source)
    finally:
        signal.signal(number, before)
        held.set()
    assert source.decode_errors == 0


def test_a_pipe_that_cannot_be_read_on_is_damaged(
    tmp_path: Path, pipe_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large enough that much of it is unread when the first frame is there, however full the pipe.
    clip = write_clip(tmp_path / "in.ts", b_frames=0, size=(640, 480), options={"crf": "0"})
    source = VideoSource(pipe_of(clip.read_bytes()))

    def fail(number: int, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        frames = iter(source)
        next(frames)
        patch.setattr(os, "read", fail)
        assert 0 < len(list(frames)) < 39
        assert source.decode_errors >= 1
        with pytest.raises(MediaError, match=r"not a readable media file \(Input/output error"):
            VideoSource(pipe_of(clip.read_bytes()))


def test_picture_and_sound_too_far_apart_in_a_pipe(
    tmp_path: Path, pipe_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "in.mkv", sound=tone(44100, 1.6), b_frames=0)
    monkeypatch.setattr("dithead.runtime.media.inputs._APART_BYTES", 200)
    shared = Demuxer(Input(pipe_of(clip.read_bytes())), ["video", "audio"])
    with pytest.raises(MediaError, match="too far apart"):
        list(VideoSource(shared))
