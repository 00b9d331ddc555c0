"""Outputs of every kind: containers and what they say of themselves, encoders, pipes, servers."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from clips import (
    LISTENER,
    PUBLISHER,
    beside,
    copy_through,
    free_address,
    heed_interrupts,
    raw_times,
    said,
    tone,
    write_clip,
)
from streams import true_within, within

from dithead.errors import ConfigError, MediaError
from dithead.runtime.media.inputs import Demuxer, Input
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import DISCLOSURE, VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource

#: How the tests are run, before any of them has changed it.
POLICY = os.sched_getscheduler(0) if sys.platform == "linux" else None

SUFFIXES = [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".flv"]


class Reader:
    """Somebody who reads standard output: all of it or so many bytes, at once or later."""

    def __init__(
        self, patch: pytest.MonkeyPatch, most: int = sys.maxsize, at_once: bool = True
    ) -> None:
        self.taken = bytearray()
        self._source, target = os.pipe()
        self._stdout = io.TextIOWrapper(os.fdopen(target, "wb"))
        patch.setattr("sys.stdout", self._stdout)
        self._thread = threading.Thread(target=self._read, args=(most,))
        if at_once:
            self.start()

    def start(self) -> None:
        self._thread.start()

    def _read(self, most: int) -> None:
        while len(self.taken) < most and (data := os.read(self._source, 1 << 16)):
            self.taken += data
        os.close(self._source)

    def full_within(self, limit_s: float) -> bool:
        """Whether nothing more goes into the pipe."""
        full = true_within(
            limit_s, lambda: not select.select([], [self._stdout.fileno()], [], 0)[1]
        )
        time.sleep(0.5)  # the writer comes to its next frame
        return full

    def finish(self) -> bytes:
        """All that was written, once the writer has closed its end."""
        self._stdout.close()
        self._thread.join()
        return bytes(self.taken)


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
    reader, halfway = Reader(monkeypatch), 0
    with VideoSource(clip) as source:
        sound, encoding = AudioSource(clip), Encoding(container)
        with VideoSink("-", source.info, audio=sound, encoding=encoding) as sink:
            for frame in source:
                sink.write(frame)
                if frame.index == 20:
                    time.sleep(0.5)
                    halfway = len(reader.taken)
    taken = reader.finish()
    assert 0.2 * len(taken) < halfway < len(taken)  # goes out as it comes
    out = tmp_path / "out"
    out.write_bytes(taken)
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
        assert b"moof" in taken


def test_a_reader_that_goes_away_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch, most=2000)
    with (
        VideoSource(write_clip(tmp_path / "in.mp4")) as source,
        pytest.raises(MediaError, match=r"standard output: cannot .*Broken pipe"),
        VideoSink("-", source.info) as sink,
    ):
        for frame in source:
            sink.write(frame)
            time.sleep(0.01)
    reader.finish()


def test_a_reader_that_does_not_read_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch, at_once=False)
    clip = write_clip(tmp_path / "in.mp4", size=(640, 480), count=40)
    stuck: list[Exception] = []
    with VideoSource(clip) as source:
        sink = VideoSink("-", source.info, encoding=Encoding(crf=0))

        def write() -> None:
            try:
                for frame in source:
                    sink.write(frame)
            except MediaError as error:
                stuck.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        assert reader.full_within(60)
        within(20, sink.abort)  # nobody ever reads: what waits for that hangs
        thread.join(20)
        assert not thread.is_alive()
    assert "was stopped" in str(stuck[0])
    reader.start()
    assert reader.finish()


def test_an_interrupt_while_nobody_reads_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(monkeypatch, at_once=False)
    clip = write_clip(tmp_path / "in.mp4", size=(640, 480), count=40)

    def interrupt() -> None:
        assert reader.full_within(60)
        signal.raise_signal(signal.SIGINT)
        reader.start()  # whoever goes on writing comes to its end

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupting = threading.Thread(target=interrupt)
    try:
        with VideoSource(clip) as source, pytest.raises(KeyboardInterrupt):
            with VideoSink("-", source.info, encoding=Encoding(crf=0)) as sink:
                interrupting.start()
                for frame in source:
                    sink.write(frame)
            interrupting.join()
    finally:
        signal.signal(signal.SIGINT, before)
    interrupting.join()
    reader.finish()


OPENS = """
import signal, sys, threading
from dithead.command import terminate
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.media.sink import VideoSink
signal.signal(signal.SIGTERM, terminate)
with VideoSource(sys.argv[1]) as source:
    VideoSink(sys.argv[2], source.info)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has other signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_never_answers_can_be_left(tmp_path: Path, number: signal.Signals) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"rtmp://127.0.0.1:{server.getsockname()[1]}/live/name"
        process = subprocess.Popen(
            [sys.executable, "-c", OPENS, str(clip), address], preexec_fn=heed_interrupts
        )
        try:
            server.settimeout(60)
            connection, _ = server.accept()
            with connection:
                time.sleep(0.2)
                process.send_signal(number)
                assert process.wait(5) == -number
        finally:
            process.kill()
            process.wait()


def test_a_protocol_that_ffmpeg_lacks_is_named(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", count=2)
    with VideoSource(clip) as source:
        try:
            sink = VideoSink("srt://127.0.0.1:9", source.info)
        except MediaError as error:
            assert "built without that protocol" in str(error)
        else:  # this FFmpeg has it
            sink.abort()


def test_what_an_encoder_refuses_of_what_was_asked_is_named(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=2)) as source:
        for codec, preset in (("libx264", "bogus"), ("libsvtav1", "slow")):
            with pytest.raises(ConfigError, match=f"{codec} with preset {preset}"):
                VideoSink(
                    tmp_path / "out.mp4",
                    source.info,
                    encoding=Encoding(video_codec=codec, preset=preset),
                )
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


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
        codec = result.streams.video[0].codec_context
        assert codec.name in (name, f"lib{name}", "libdav1d")
        if name == "hevc":
            assert codec.codec_tag == "hvc1"  # or Apple's players refuse it
    assert len(raw_times(out)) == 8


@pytest.mark.skipif(
    POLICY != os.SCHED_OTHER, reason="needs Linux, and threads without a priority of their own"
)
def test_no_encoder_changes_the_priority_of_threads(tmp_path: Path) -> None:
    def policies() -> set[int]:
        found = set()
        for name in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                found.add(os.sched_getscheduler(int(name)))
        return found

    with VideoSource(write_clip(tmp_path / "in.mp4", count=8)) as source:
        encoding = Encoding(video_codec="libsvtav1", preset="12")  # run by root, it would
        with VideoSink(tmp_path / "out.mp4", source.info, encoding=encoding) as sink:
            for frame in source:
                sink.write(frame)
                assert policies() == {os.SCHED_OTHER}
    with pytest.raises(ConfigError), VideoSource(tmp_path / "in.mp4") as source:
        VideoSink(
            tmp_path / "no.mp4",
            source.info,
            encoding=Encoding(video_codec="libsvtav1", preset="slow"),
        )
    assert policies() == {os.SCHED_OTHER}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at threads the Linux way")
def test_a_thread_that_ends_while_an_encoder_opens_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*listed(path), "4194305"])  # no such thread
    with VideoSource(write_clip(tmp_path / "in.mp4", count=3)) as source:
        assert raw_times(copy_through(source, tmp_path / "out.mp4"))


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
