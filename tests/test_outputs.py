"""Outputs of every kind: containers and what they say of themselves, encoders, pipes, servers."""

from __future__ import annotations

import io
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
from clips import (
    LISTENER,
    PUBLISHER,
    beside,
    copy_through,
    free_address,
    raw_times,
    said,
    tone,
    write_clip,
)

from dithead.errors import MediaError
from dithead.runtime.inputs import Demuxer, Input
from dithead.runtime.media import AudioSource, VideoSource
from dithead.runtime.mux import DISCLOSURE, VideoSink
from dithead.runtime.outputs import Encoding

SUFFIXES = [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".flv"]


class Pipe(io.RawIOBase):
    """A standard output that cannot be gone back in, and may be closed by its reader."""

    def __init__(self, open_for: int = sys.maxsize) -> None:
        super().__init__()
        self.taken = bytearray()
        self._open_for = open_for

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        if len(self.taken) > self._open_for:
            raise BrokenPipeError(32, "Broken pipe")
        self.taken += data
        return len(data)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_output_says_that_it_is_synthetic(tmp_path: Path, suffix: str) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=3)) as source:
        out = copy_through(source, tmp_path / f"out{suffix}")
    if suffix == ".ts":  # holds nothing but the name of the service, which PyAV does not show
        assert b"AI-generated video" in out.read_bytes()
        assert b"DiT-Head" in out.read_bytes()
    else:
        assert DISCLOSURE.items() <= said(out).items()


@pytest.mark.parametrize(
    ("container", "found"), [(None, "matroska,webm"), ("mp4", "mov,mp4"), ("mpegts", "mpegts")]
)
def test_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str | None, found: str
) -> None:
    clip = write_clip(tmp_path / "in.mp4", rate="29.97", sound=tone(44100, 1.4))
    pipe, halfway = Pipe(), 0
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=pipe))
    with VideoSource(clip) as source:
        sound, encoding = AudioSource(clip), Encoding(container)
        with VideoSink("-", source.info, audio=sound, encoding=encoding) as sink:
            for frame in source:
                sink.write(frame)
                halfway = halfway or (frame.index == 20 and len(pipe.taken))
    assert 1000 < halfway < len(pipe.taken)  # goes out as it comes
    out = tmp_path / "out"
    out.write_bytes(pipe.taken)
    with av.open(str(out)) as result:
        assert result.format.name.startswith(found)
        assert len(result.streams.audio) == 1
    wanted = [Fraction(1001 * i, 30000) for i in range(40)]
    times = raw_times(out)
    assert len(times) == 40
    tolerance_s = Fraction(1, 1000)
    assert all(abs(a - times[0] - b) <= tolerance_s for a, b in zip(times, wanted, strict=True))
    if container == "mp4":
        assert said(out)["synthetic_media"] == "yes"
        assert b"moof" in pipe.taken


def test_a_reader_that_goes_away_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=Pipe(open_for=2000)))
    with (
        VideoSource(write_clip(tmp_path / "in.mp4")) as source,
        pytest.raises(MediaError, match=r"standard output: cannot .*Broken pipe"),
        VideoSink("-", source.info) as sink,
    ):
        for frame in source:
            sink.write(frame)


def test_a_server_is_sent_everything(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", sound=tone(44100, 1.6))
    address, taken = free_address(), tmp_path / "taken.mkv"
    with VideoSource(clip) as source, beside(LISTENER, address, str(taken)):
        sink = patient_sink(address, source, AudioSource(clip))
        with sink:
            for frame in source:
                sink.write(frame)
    times = raw_times(taken)
    assert len(times) == 40
    assert all(abs(t - times[0] - Fraction(i, 25)) <= 0.001 for i, t in enumerate(times))
    with av.open(str(taken)) as result:
        ends = [f.time + f.samples / f.sample_rate for f in result.decode(audio=0)]
    assert ends[-1] - float(times[0]) == pytest.approx(1.6, abs=0.05)
    with av.open(str(taken)) as result:
        assert result.streams.video[0].codec_context.has_b_frames == 0


def patient_sink(address: str, source: VideoSource, sound: AudioSource) -> VideoSink:
    """A sink to a server that may not listen yet."""
    end = time.monotonic() + 30
    while True:
        try:
            return VideoSink(address, source.info, audio=sound)
        except MediaError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with (
        VideoSource(write_clip(tmp_path / "in.mp4", count=2)) as source,
        pytest.raises(MediaError, match=r"rtmp://127.0.0.1:9/live: cannot be reached"),
    ):
        VideoSink("rtmp://127.0.0.1:9/live", source.info)


def test_a_server_is_read_from(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.flv", sound=tone(44100, 1.6), b_frames=0)
    address = free_address()
    with beside(PUBLISHER, str(clip), address):
        given = Input(address, options=(("listen", "1"),))
        assert given.live
        shared = Demuxer(given, ["video", "audio"])
        with VideoSource(shared) as source:
            sound = AudioSource(shared)
            frames = list(source)
            assert len(frames) + source.dropped == 40
        # Publishing is faster than real time here, and a live source is never made to wait.
        speech = sum(len(block) for block in sound.blocks())
    first_s = frames[-1].time_s - Fraction(39, 25)  # the encoder's run-in of sound comes before
    assert 0 <= first_s < 0.05
    assert all((f.time_s - first_s) * 25 % 1 in (0, pytest.approx(1, abs=0.03)) for f in frames)
    assert speech == pytest.approx(1.6 * 16000, abs=1600)


@pytest.mark.parametrize(
    ("codec", "suffix", "settings", "name"),
    [
        ("libx264", ".mkv", {}, "h264"),
        ("libx265", ".mp4", {"preset": "ultrafast"}, "hevc"),
        ("libsvtav1", ".mp4", {"preset": "12"}, "av1"),
        ("libvpx-vp9", ".webm", {}, "vp9"),
        ("libvpx", ".webm", {}, "vp8"),
        ("ffv1", ".mkv", {}, "ffv1"),
        ("prores_ks", ".mov", {}, "prores"),
    ],
)
def test_the_encoder_is_the_one_asked_for(
    tmp_path: Path, codec: str, suffix: str, settings: dict[str, str], name: str
) -> None:
    encoding = Encoding(video_codec=codec, **settings)
    out = tmp_path / f"out{suffix}"
    with (
        VideoSource(write_clip(tmp_path / "in.mp4", count=8)) as source,
        VideoSink(out, source.info, encoding=encoding) as sink,
    ):
        for frame in source:
            sink.write(frame)
    with av.open(str(out)) as result:
        assert result.streams.video[0].codec_context.name in (name, f"lib{name}", "libdav1d")
    assert len(raw_times(out)) == 8


def size_of(source: VideoSource, path: Path, **settings: Any) -> int:
    with VideoSink(path, source.info, encoding=Encoding(**settings)) as sink:
        for frame in source:
            sink.write(frame)
    return path.stat().st_size


def test_quality_and_bit_rate_are_followed(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", size=(320, 240), options={"crf": "0"})
    with VideoSource(clip) as source:
        sizes = [size_of(source, tmp_path / f"{crf}.mp4", crf=crf) for crf in (10, 18, 40)]
        assert sizes[0] > 1.2 * sizes[1] > 1.5 * sizes[2]
        assert sizes[1] == size_of(source, tmp_path / "usual.mp4")
        rates = [size_of(source, tmp_path / f"{b}.mp4", bitrate_bps=b) for b in (50_000, 400_000)]
        assert rates[1] > 2 * rates[0]
        slow = size_of(source, tmp_path / "slow.mp4", preset="slow")
        assert slow != sizes[1]


def test_rgb_becomes_what_players_take(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", codec="libx264rgb", pix_fmt="rgb24", count=3)
    with VideoSource(clip) as source:
        for pix_fmt, found in ((None, "yuv420p"), ("yuv444p", "yuv444p")):
            with VideoSink(
                tmp_path / "out.mp4", source.info, encoding=Encoding(pix_fmt=pix_fmt)
            ) as sink:
                for frame in source:
                    sink.write(frame)
            with av.open(str(tmp_path / "out.mp4")) as result:
                assert result.streams.video[0].pix_fmt == found
