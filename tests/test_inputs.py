"""Inputs of every kind: pictures, pipes, tracks, transparency, interlaced, live."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import (
    all_samples,
    as_frame,
    copy_through,
    declared_interlaced,
    picture,
    raw_times,
    same_planes,
    tone,
    write_clip,
    write_gif,
    write_wav,
)

from dithead.command import Terminated, terminate
from dithead.errors import ConfigError, MediaError
from dithead.runtime.media.deinterlace import deinterlaced
from dithead.runtime.media.fanout import FanOut
from dithead.runtime.media.inputs import Demuxer, Input
from dithead.runtime.media.live import NewestFrames
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.media.videoframe import VideoFrame, has_alpha, planes, upright


def write_pictures(folder: Path, first: int, count: int) -> Path:
    """Numbered PNGs; their pattern."""
    folder.mkdir()
    for number in range(first, first + count):
        image = av.VideoFrame.from_ndarray(
            np.full((48, 64, 3), 20 * (number - first) + 30, np.uint8), "rgb24"
        )
        image.save(folder / f"Bild {number:04d}.png")
    return folder / "Bild %04d.png"


def test_pictures_in_a_row(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path / "Bilder", 7, 5)
    with VideoSource(Input(pattern, fps=Fraction(10))) as source:
        frames = list(source)
        assert not source.info.still
        assert source.info.average_rate == 10
        assert [frame.time_s for frame in source] == [Fraction(i, 10) for i in range(5)]
    levels = [int(frame.rgb().mean()) for frame in frames]
    assert np.abs(np.subtract(levels, [30, 50, 70, 90, 110])).max() <= 1
    with VideoSource(pattern) as source:
        assert [frame.time_s for frame in source] == [Fraction(i, 25) for i in range(5)]


def test_a_number_that_is_missing_is_named(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path / "frames", 4, 6)
    (pattern.parent / "Bild 0006.png").unlink()
    with pytest.raises(MediaError, match=r"no number 6, and 9 is the last: .* without gaps"):
        VideoSource(Input(pattern))


def test_ffmpegs_own_pictures() -> None:
    with VideoSource(Input("testsrc=duration=0.2:size=64x48:rate=25", "lavfi")) as source:
        assert len(list(source)) == 5


@pytest.mark.parametrize("starts_s", [0, 300])
def test_a_stream_whose_clock_starts_anew_goes_on(tmp_path: Path, starts_s: int) -> None:
    options = {"output_ts_offset": str(starts_s)}
    sound = tone(44100, 1.6)
    parts = [
        write_clip(tmp_path / "a.ts", sound=sound),
        write_clip(tmp_path / "b.ts", sound=sound, container_options=options),
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoSource(joined) as source:
        frames = list(source)
    assert len(frames) == 80
    assert frames[-1].end_s == pytest.approx(3.2, abs=0.05)
    assert float(AudioSource(joined).duration_s) == pytest.approx(3.2, abs=0.1)


def test_a_clock_that_goes_back_a_little_goes_on(tmp_path: Path) -> None:
    part = write_clip(tmp_path / "a.ts", count=20, sound=tone(44100, 0.8)).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(3 * part)
    with VideoSource(joined) as source:
        frames = list(source)
        assert source.restarts == 2
    assert [frame.time_s for frame in frames] == [
        frames[0].time_s + Fraction(i, 25) for i in range(60)
    ]
    sound = AudioSource(joined)
    samples = all_samples(sound)[0]
    assert sound.restarts == 2
    assert len(samples) / 44100 == pytest.approx(2.4, abs=0.15)  # blocks of AAC
    bursts = np.abs(samples[: len(samples) // 256 * 256]).reshape(-1, 256).max(1) > 0.4
    assert np.diff(bursts.astype(int)).clip(0).sum() == 6  # two in each part, none cut


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda folder: Input(folder), "a folder; expected a media file, or a pattern"),
        (lambda folder: Input(folder / "%04d.png"), "no picture of that pattern"),
        (lambda folder: Input(folder / "%d" / "a.png"), "belongs in its name"),
        (lambda folder: Input(folder / "in.mp4", fps=Fraction(10)), "a frame rate of its own, 25"),
        (lambda folder: Input(folder / "in.mp4", "rawvideo"), "not a readable"),
        (lambda folder: Input("rtmp://127.0.0.1:9/live"), "not a readable"),
    ],
)
def test_inputs_that_cannot_be(tmp_path: Path, given: Callable[[Path], Input], reason: str) -> None:
    write_clip(tmp_path / "in.mp4", count=2)
    with pytest.raises(MediaError, match=reason):
        VideoSource(given(tmp_path))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="FFmpeg knows no format 'nonsense'"):
        Input("in.mp4", "nonsense")
    with pytest.raises(ConfigError, match="audio tracks count from 0"):
        Input("in.mp4", audio_track=-1)
    with pytest.raises(ConfigError, match="frame rate must be above 0"):
        Input("in.mp4", fps=Fraction(0))


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
    source = VideoSource(pipe_of(content[: len(content) * 3 // 4], keep_open_s=20))
    threading.Timer(0.3, source.stop).start()
    start = time.monotonic()
    assert 0 < len(list(source)) < 40
    assert time.monotonic() - start < 2


def test_an_interrupt_while_a_pipe_is_opened_is_none_of_its_faults(
    pipe_of: Callable[..., Path],
) -> None:
    pipe = pipe_of(b"", keep_open_s=5)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            VideoSource(pipe)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_a_pipe_stalls_is_not_its_end(
    tmp_path: Path, pipe_of: Callable[..., Path], number: signal.Signals
) -> None:
    content = write_clip(tmp_path / "in.ts", b_frames=0).read_bytes()
    source = VideoSource(pipe_of(content[: len(content) * 3 // 4], keep_open_s=5))
    before = signal.signal(number, terminate)
    try:
        threading.Timer(0.5, signal.raise_signal, [number]).start()
        with pytest.raises(Terminated, match=number.name):
            list(source)
    finally:
        signal.signal(number, before)
    assert source.decode_errors == 0


def test_a_pipe_that_cannot_be_read_on_is_damaged(
    tmp_path: Path, pipe_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "in.ts", b_frames=0, size=(320, 240), options={"crf": "1"})
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


def test_an_audio_track_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(3)]
        for number, stream in enumerate(streams):
            samples = np.full((1, 1600), 1000 * (number + 1), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(stream.encode(frame))
    for number in range(3):
        samples = all_samples(AudioSource(Input(path, audio_track=number)))
        assert np.allclose(samples, 1000 * (number + 1) / 32768, atol=1e-4)
    with pytest.raises(MediaError, match="no audio track 3; it has 3, counted from 0"):
        AudioSource(Input(path, audio_track=3))


def test_transparency_is_kept_where_the_encoder_has_it(tmp_path: Path) -> None:
    clip = write_clip(
        tmp_path / "in.webm", codec="libvpx-vp9", pix_fmt="yuva420p", b_frames=0, count=5
    )
    with VideoSource(clip) as source:
        assert source.info.pix_fmt == "yuva420p"
        frames = list(source)
        with VideoSink(tmp_path / "out.webm", source.info) as sink:
            for frame in frames:
                sink.write(frame)
        assert sink.notes == []
        with VideoSink(tmp_path / "out.mp4", source.info) as sink:
            sink.write(frames[0])
        assert "the transparency was left out, which libx264 has not" in sink.notes[0]
    with VideoSource(tmp_path / "out.webm") as result:
        for new, old in zip(result, frames, strict=True):
            alpha, wanted = planes(new.picture)[3], planes(old.picture)[3]
            assert wanted.std() > 1
            assert np.abs(alpha.astype(int) - wanted).mean() < 4
    with VideoSource(tmp_path / "out.mp4") as result:
        assert result.info.pix_fmt == "yuv420p"


@pytest.mark.parametrize("name", ["in.gif", "in.mkv"])
def test_what_could_be_transparent_and_is_not_leaves_nothing_out(tmp_path: Path, name: str) -> None:
    if name == "in.gif":
        write_gif(tmp_path / name, 3)
    else:
        image = picture(0, 64, 48, "yuva420p")
        planes(image)[3][:] = 255
        with av.open(str(tmp_path / name), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
            container.mux([*stream.encode(image), *stream.encode(None)])
    with VideoSource(tmp_path / name) as source:
        assert has_alpha(source.info.pix_fmt)  # as every GIF might be
        with VideoSink(tmp_path / "out.mp4", source.info) as sink:
            for frame in source:
                sink.write(frame)
        assert sink.notes == []


def moving_bar(moment: int) -> np.ndarray:
    """(48, 64) luma with a bar that moves by 4 pixels at each moment."""
    level = np.full((48, 64), 60, np.uint8)
    level[:, 4 + 4 * moment : 16 + 4 * moment] = 180
    return level


def interlaced_frames(whole: int, count: int) -> list[VideoFrame]:
    """Frames of which the first so many are whole, the others woven of two moments."""
    frames = []
    for index in range(count):
        image = picture(index, 64, 48, "yuv420p")
        luma = planes(image)[0]
        luma[:] = moving_bar(index)
        if index >= whole:
            luma[1::2] = moving_bar(index + 1)[1::2]
            image = declared_interlaced(image)
        image.colorspace, image.color_range = 6, 1
        frames.append(replace(as_frame(image), index=index, pts=2 * index, duration=2))
    return frames


def combing(frame: VideoFrame) -> float:
    """How much more a line differs from its neighbour than from the one after that."""
    luma = planes(frame.picture)[0].astype(float)
    return float(np.abs(luma[:-2] - luma[1:-1]).mean() - np.abs(luma[:-2] - luma[2:]).mean())


@pytest.mark.parametrize("whole", [0, 1, 3, 9, 10])
def test_interlaced_frames_are_made_whole_one_for_each(whole: int) -> None:
    given = interlaced_frames(whole, 10)
    found = list(deinterlaced(iter(given)))
    assert [(f.index, f.pts, f.duration) for f in found] == [(i, 2 * i, 2) for i in range(10)]
    for frame, before in zip(found, given, strict=True):
        assert (frame.picture.colorspace, frame.picture.color_range) == (6, 1)
        if frame.index < whole:
            assert same_planes(frame, before)
        else:
            assert combing(before) > 5
            assert combing(frame) < 1


def test_an_interlaced_clip(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"flags": "+ildct+ilme"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in interlaced_frames(0, 10):
            frame.picture.pts = frame.index
            container.mux(stream.encode(frame.picture))
        container.mux(stream.encode(None))
    with VideoSource(path) as source:
        frames = list(source)
        assert source.interlaced
    assert [frame.time_s for frame in frames] == raw_times(path)
    assert max(map(combing, frames)) < 1
    with VideoSource(write_clip(tmp_path / "whole.mp4", count=3)) as source:
        assert list(source)
        assert not source.interlaced


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".ts", ".flv"])
def test_a_turned_video_stays_turned(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    clip = write_clip(tmp_path / "in.mov", codec="prores_ks", pix_fmt="yuv444p10le", size=size,
                      count=3, b_frames=0, rotation=90)  # fmt: skip
    with VideoSource(clip) as source:
        assert source.info.rotation_deg == 90
        first = next(iter(source))
        assert (first.width, first.height) == size[::-1]
        out = copy_through(source, tmp_path / f"out{suffix}")
    with VideoSource(out) as result:
        shown = next(iter(result))
        said = result.info.rotation_deg
    assert said == (0 if suffix in (".ts", ".flv") else 90)
    even = tuple(side + side % 2 for side in size[::-1])
    assert (shown.width, shown.height) in (size[::-1], even)
    # A phone turns by rot90 against the clock; the frame says so itself, however it is stored.
    rgb = first.rgb()
    found = shown.rgb()[: rgb.shape[0], : rgb.shape[1]]
    assert np.abs(found.astype(int) - rgb).mean() < 6


def test_a_picture_turned_four_times_is_itself() -> None:
    image = picture(0, 63, 47, "yuv420p", seed=3)
    turned = image
    for _ in range(4):
        turned = upright(turned, 1)
    assert same_planes(as_frame(turned), as_frame(image))


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
    tmp_path: Path, device_of: Callable[..., VideoSource], pipe_of: Callable[..., Path]
) -> None:
    clip = write_clip(tmp_path / "in.ts", b_frames=0)
    source = device_of(pipe_of(clip.read_bytes()), 20)  # what is read but once can be stopped
    threading.Timer(0.3, source.stop).start()
    start = time.monotonic()
    assert 10 < len(list(source)) <= 20
    assert time.monotonic() - start < 2


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
    end = time.monotonic() + 5
    while newest.dropped < 12 - kept and time.monotonic() < end:
        time.sleep(0.001)
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


def test_a_reader_is_not_kept_waiting_by_another() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[int]:
        yield from (1, 2, 3)
        assert go_on.wait(10)
        yield 4

    shared = FanOut(slow(), (0, 1), lambda item: (0, 1) if item != 2 else (0,))
    results: list[list[int]] = []
    first = threading.Thread(target=lambda: results.append(list(shared.read(0))))
    first.start()
    found = [shared.take(1), shared.take(1)]  # while the first waits for the fourth
    assert found == [1, 3]
    go_on.set()
    assert list(shared.read(1)) == [4]
    first.join(5)
    assert results == [[1, 2, 3, 4]]


def test_who_waits_for_a_reader_gets_what_that_one_read() -> None:
    for _ in range(10):
        begin, go_on = threading.Event(), threading.Event()

        def source(begin: threading.Event, go_on: threading.Event) -> Iterator[int]:
            assert begin.wait(10)
            yield 1
            assert go_on.wait(10)
            yield 2

        shared = FanOut(source(begin, go_on), (0, 1), lambda item: (1,) if item == 1 else (0,))
        threads = [threading.Thread(target=shared.take, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
            time.sleep(0.02)  # the first reads, the second waits for it
        begin.set()
        threads[1].join(5)
        assert not threads[1].is_alive()
        go_on.set()
        threads[0].join(5)


def test_an_interrupted_reader_holds_nobody_up() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for after_us in range(200, 1200, 5):
            shared = FanOut(iter(range(10_000)), (0, 1), lambda _: (0,))
            try:
                signal.setitimer(signal.ITIMER_REAL, after_us / 1e6)
                while True:
                    shared.take(0)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
            other = threading.Thread(target=shared.take, args=(1,), daemon=True)
            other.start()
            other.join(10)
            assert not other.is_alive()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "take 1.mp4", count=3).rename("take:1.mp4")
    write_wav(tmp_path / "ton.wav", tone(16000, 0.6)).rename("rtmp:ton.wav")
    with VideoSource("take:1.mp4") as source:
        assert len(list(source)) == 3
        with VideoSink("out:1.mp4", source.info, encoding=Encoding(crf=30)) as sink:
            for frame in source:
                sink.write(frame)
    assert Path("out:1.mp4").is_file()
    assert AudioSource("rtmp:ton.wav").sample_rate_hz == 16000
