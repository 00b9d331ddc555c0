"""Media in and out: time stamps, audio that ends with the video, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import av
import numpy as np
import pytest
from clips import (
    RATES,
    all_samples,
    copy_through,
    lag_s,
    raw_times,
    same_planes,
    tone,
    write_clip,
    write_wav,
)

from dithead.errors import ConfigError, MediaError
from dithead.runtime.media import extend as extend_module
from dithead.runtime.media import sink as mux
from dithead.runtime.media.extend import EXTEND_MODES, ExtendMode, extend_frames
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource

STATUS = Path("/proc/self/status")


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_output_keeps_count_order_times_and_duration(
    tmp_path: Path, rate: str, suffix: str
) -> None:
    clip = write_clip(tmp_path / "in.mp4", rate=rate)
    with VideoSource(clip) as source:
        frames = list(source)
        out = copy_through(source, tmp_path / f"out{suffix}", crf=0)
    first = raw_times(clip)[0]
    assert [frame.time_s for frame in frames] == [time - first for time in raw_times(clip)]
    assert [frame.index for frame in frames] == list(range(len(RATES[rate][1][0])))
    tolerance_s = Fraction(1, 2000) if suffix == ".mkv" else 0
    written = raw_times(out)
    assert len(written) == len(frames)
    assert all(abs(a - b.time_s) <= tolerance_s for a, b in zip(written, frames, strict=True))
    with VideoSource(out) as result:
        copies = list(result)
    assert abs(copies[-1].end_s - frames[-1].end_s) <= 2 * tolerance_s
    assert all(map(same_planes, copies, frames))  # crf 0 is lossless, so also the order


def test_webm_keeps_times_to_a_millisecond_and_takes_ten_bits(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", rate="29.97", count=10, pix_fmt="yuv420p10le")
    with VideoSource(clip) as source:
        assert source.info.pix_fmt == "yuv420p10le"
        out = copy_through(source, tmp_path / "out.webm")
    wanted = [Fraction(1001 * i, 30000) for i in range(10)]
    assert max(abs(a - b) for a, b in zip(raw_times(out), wanted, strict=True)) <= Fraction(1, 2000)


def test_interpolated_frames_fall_between_the_ticks_of_the_source(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", rate="29.97", count=6)) as source:
        frames = list(source)
        with VideoSink(tmp_path / "out.mp4", source.info, interpolate=2) as sink:
            for frame in frames:
                sink.write(dataclasses.replace(frame, duration=frame.duration // 2))
                middle = 2 * frame.pts + frame.duration
                sink.write(dataclasses.replace(frame, pts=middle, time_base=sink.time_base))
    assert raw_times(tmp_path / "out.mp4") == [Fraction(1001 * i, 60000) for i in range(12)]


def test_missing_times_follow_from_the_rate(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.h264", b_frames=0)  # a bare stream carries no times
    with VideoSource(clip) as source:
        assert [frame.time_s for frame in source] == [Fraction(i, 25) for i in range(40)]
        assert not source.seekable


@pytest.mark.parametrize("name", ["in.mkv", "in.mp4"])
def test_a_longer_sound_makes_no_longer_picture(tmp_path: Path, name: str) -> None:
    with VideoSource(write_clip(tmp_path / name, sound=tone(44100, 3.0))) as source:
        assert float(source.info.duration_s or 0) == pytest.approx(1.6, abs=0.002)


@pytest.mark.parametrize("size", [(63, 47), (64, 48)])
def test_odd_sizes_survive_the_usual_encoder(tmp_path: Path, size: tuple[int, int]) -> None:
    clip = write_clip(tmp_path / "in.mkv", codec="ffv1", size=size, count=5)
    with VideoSource(clip) as source:
        assert (source.info.width, source.info.height) == size
        out = copy_through(source, tmp_path / "out.mp4")
    assert raw_times(out) == raw_times(clip)
    with VideoSource(out) as result:
        assert (result.info.width, result.info.height) == (64, 48)


def test_output_takes_over_colour_shape_and_rotation(tmp_path: Path) -> None:
    tags = {"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": 14}
    clip = write_clip(
        tmp_path / "in.mp4", count=3, sample_aspect_ratio=Fraction(4, 3), rotation=90, **tags
    )
    with VideoSource(clip) as source:
        wanted = source.info
        out = copy_through(source, tmp_path / "out.mp4")
    with VideoSource(out) as result:
        found = result.info
    assert {name: getattr(wanted, name) for name in tags} == tags
    for name in [*tags, "sample_aspect_ratio", "rotation_deg", "pix_fmt", "average_rate"]:
        assert getattr(found, name) == getattr(wanted, name), name
    assert (found.sample_aspect_ratio, found.rotation_deg) == (Fraction(4, 3), 90)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
def test_speech_is_mono_16_khz_in_place(tmp_path: Path, rate_hz: int, layout: str) -> None:
    source = AudioSource(write_wav(tmp_path / "in.wav", tone(rate_hz, 2.3), rate_hz, layout))
    assert (source.sample_rate_hz, source.layout) == (rate_hz, layout)
    blocks = list(source.blocks(4000))
    assert {len(block) for block in blocks[:-1]} == {4000} and 0 < len(blocks[-1]) <= 4000
    speech = np.concatenate(blocks)
    assert speech.dtype == np.float32
    assert abs(len(speech) - 2.3 * 16000) <= 1
    assert abs(source.duration_s - Fraction(23, 10)) <= Fraction(1, rate_hz)
    assert abs(lag_s(speech, tone(16000, 2.3), 16000)) <= 1 / 16000
    if rate_hz >= 16000:
        assert 0.7 < np.abs(speech).max() < 0.85  # averaged: the bursts' peak is 0.8


def test_a_late_track_is_preceded_by_silence(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mkv", sound=tone(44100, 1), sound_start_s=Fraction(1, 2))
    source = AudioSource(clip)
    samples = all_samples(source)[0]
    assert np.abs(samples[: round(0.45 * 44100)]).max() == 0
    expected = np.concatenate([np.zeros(22050, np.float32), tone(44100, 1)])
    assert abs(lag_s(samples, expected, 44100)) < 0.002
    assert abs(float(source.duration_s) - 1.5) < 0.03  # an AAC block


def test_a_late_video_keeps_its_place_beside_its_own_audio(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in.mp4", rate="late", sound=tone(44100, 1.2))
    with VideoSource(clip) as source:
        out = copy_through(source, tmp_path / "out.mp4", audio=AudioSource(clip))
    assert raw_times(out) == raw_times(clip)
    assert raw_times(out)[0] == Fraction(1, 4)
    found = all_samples(AudioSource(out))[0]
    assert abs(lag_s(found, tone(44100, 1.2), 44100)) < 0.002


def test_times_count_from_the_start_of_the_container(tmp_path: Path) -> None:
    clip = write_clip(
        tmp_path / "in.ts", rate="late", sound=tone(44100, 1), sound_start_s=Fraction(1, 2)
    )
    with VideoSource(clip) as source:
        assert source.info.start_s > Fraction(1, 5)
        assert next(iter(source)).pts == 0
    samples = all_samples(AudioSource(clip))[0]
    expected = np.concatenate([np.zeros(44100 // 4, np.float32), tone(44100, 1)])
    # The encoder's run-in (1024 samples) cannot be told from sound in this container.
    assert abs(lag_s(samples, expected, 44100)) < 0.002 + 1024 / 44100


def test_sound_that_encoders_refuse_becomes_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.wav"), "w") as container:
        stream: Any = container.add_stream("pcm_f32le", rate=16000, layout="mono")
        broken = np.full((1, 1600), np.nan, np.float32)
        broken[0, ::2] = np.inf
        frame = av.AudioFrame.from_ndarray(broken, "flt", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert np.isfinite(np.concatenate(list(AudioSource(tmp_path / "in.wav")))).all()


@pytest.mark.parametrize("rate", ["25", "29.97", "50", "variable"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(("rate_hz", "layout"), [(16000, "mono"), (44100, "stereo")])
@pytest.mark.parametrize("seconds", [5.0, 0.6])
def test_output_audio_is_in_place_and_ends_with_the_last_frame(
    tmp_path: Path, rate: str, suffix: str, rate_hz: int, layout: str, seconds: float
) -> None:
    sound = tone(rate_hz, seconds)
    audio = AudioSource(write_wav(tmp_path / "in.wav", sound, rate_hz, layout))
    with VideoSource(write_clip(tmp_path / "in.mp4", rate=rate)) as source:
        out = copy_through(source, tmp_path / f"out{suffix}", audio=audio)
    with VideoSource(out) as result:
        last = list(result)[-1]
    track = AudioSource(out)
    assert track.layout == layout
    assert track.sample_rate_hz >= rate_hz
    assert abs(track.duration_s - last.end_s) <= last.end_s - last.time_s
    with av.open(str(out)) as container:
        stream = container.streams.audio[0]
        if stream.duration:  # what the container says, where it says it
            claimed_s = stream.duration * stream.time_base
            assert abs(claimed_s - last.end_s) <= last.end_s - last.time_s
    found = all_samples(track)[0]
    wanted = tone(track.sample_rate_hz, seconds)[: len(found)]
    assert abs(lag_s(found, wanted, track.sample_rate_hz)) < 0.002
    silent_from = round((seconds + 0.05) * track.sample_rate_hz)
    assert np.abs(found[silent_from:]).max(initial=0) < 1e-3  # AAC's noise floor


@pytest.mark.parametrize("mode", EXTEND_MODES)
@pytest.mark.parametrize("rate", ["29.97", "variable"])
@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.h264"])
def test_extended_video_continues_at_the_clips_end(
    tmp_path: Path, mode: ExtendMode, rate: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extend_module, "_BACKWARD_FRAMES_MAX", 7)
    clip = write_clip(tmp_path / name, rate=rate, options={"g": "10"})
    with VideoSource(clip) as source:
        once = list(source)
        end_s = once[-1].end_s
        extended = list(extend_frames(source, mode, 3 * end_s + Fraction(1, 7)))
    order = {
        "trim": range(len(once)),
        "loop": itertools.cycle(range(len(once))),
        "pingpong": itertools.cycle([*range(len(once)), *range(len(once) - 2, 0, -1)]),
        "freeze": itertools.chain(range(len(once)), itertools.repeat(len(once) - 1)),
    }[mode]
    assert [frame.index for frame in extended] == list(range(len(extended)))
    assert all(same_planes(frame, once[number]) for frame, number in zip(extended, order))  # noqa: B905
    assert [frame.time_s for frame in extended[: len(once)]] == [frame.time_s for frame in once]
    assert all(a.time_s < b.time_s for a, b in itertools.pairwise(extended))
    if mode == "trim":
        assert len(extended) == len(once)
        return
    assert extended[len(once)].time_s == end_s
    short_s = 3 * end_s + Fraction(1, 7) - extended[-1].time_s
    assert 0 < short_s <= Fraction(1, 10)  # the longest frame
    if mode == "loop":
        again = extended[len(once) : 2 * len(once)]
        assert [frame.time_s - end_s for frame in again] == [frame.time_s for frame in once]
    if mode == "pingpong" and name == "in.mp4":  # each picture for as long as forwards
        back = extended[len(once) : 2 * len(once) - 2]
        gaps_s = [b.time_s - a.time_s for a, b in itertools.pairwise(once)]
        assert [frame.end_s - frame.time_s for frame in back] == gaps_s[:0:-1]


def test_all_modes_stop_where_the_audio_is_shorter(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4")) as source:
        for mode in EXTEND_MODES:
            # A frame that has begun is kept: less than a frame is not trimmed.
            frames = list(extend_frames(source, mode, Fraction(1, 2)))
            assert [frame.time_s for frame in frames] == [Fraction(i, 25) for i in range(13)]
        with pytest.raises(ConfigError, match="pingpong"):
            extend_frames(source, "bounce", 1)  # type: ignore[arg-type]


def test_one_frame_can_be_extended(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=1)) as source:
        for mode in ("loop", "pingpong", "freeze"):
            times = [frame.time_s for frame in extend_frames(source, mode, Fraction(1, 5))]
            assert times == [Fraction(i, 25) for i in range(5)]


def bad_inputs(folder: Path) -> Iterator[tuple[type, Path, str]]:
    """What cannot be read, by which class, and what its message says."""
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video " * 100)
    whole = write_clip(folder / "whole.mp4").read_bytes()
    (folder / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    start = whole.index(b"mdat") - 4
    unfinished = whole[:start] + bytes(4) + whole[start + 4 : len(whole) // 2]  # as while recording
    (folder / "unfinished.mp4").write_bytes(unfinished)
    for name in ("head.mkv", "head.avi"):
        clip = write_clip(folder / name, codec="mpeg4", b_frames=0)
        clip.write_bytes(clip.read_bytes()[:90])
    sound = write_wav(folder / "sound.wav", tone(16000, 0.5))
    silent = write_clip(folder / "silent.mkv", count=2)
    avi = bytearray(write_clip(folder / "whole.avi", codec="mpeg4", b_frames=0).read_bytes())
    start, end = avi.index(b"movi"), avi.index(b"idx1")
    avi[start + 40 : end] = bytes(end - start - 40)
    (folder / "damaged.avi").write_bytes(avi)
    for kind in (VideoSource, AudioSource):
        yield kind, folder / "missing.mp4", "no such file"
        yield kind, folder, "a folder"
        yield kind, folder / f"{'x' * 300}.mp4", "cannot be opened: File name too long"
        yield kind, folder / "empty.mp4", "the file is empty"
        yield kind, folder / "text.mp4", "not a readable media file"
        yield kind, folder / "no_index.mp4", "truncated: .* bytes are missing .* its index"
        yield kind, folder / "unfinished.mp4", "the file has no index"
        yield kind, folder / "head.mkv", "the file is truncated: .* bytes are missing at its end"
        yield kind, folder / "head.avi", "the file is truncated: .* bytes are missing at its end"
    yield VideoSource, sound, "no video track"
    yield VideoSource, folder / "damaged.avi", "not one frame"
    yield AudioSource, silent, "no audio track"
    yield AudioSource, write_wav(folder / "none.wav", np.zeros(0, np.float32)), "no samples"
    with wave.open(str(folder / "nine.wav"), "wb") as nine:
        nine.setparams((9, 2, 16000, 0, "NONE", ""))
        nine.writeframes(bytes(18 * 1600))
    yield AudioSource, folder / "nine.wav", "9 audio channels in no usual layout"


def test_bad_input_gives_one_clear_line(tmp_path: Path) -> None:
    for kind, path, reason in bad_inputs(tmp_path):
        with pytest.raises(MediaError, match=reason) as caught:
            kind(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["in.mp4", "in.mkv", "in.ts"])
def test_a_damaged_tail_keeps_what_decodes(tmp_path: Path, name: str) -> None:
    index_first = {"movflags": "faststart"} if name == "in.mp4" else None
    clip = write_clip(tmp_path / name, size=(352, 288), container_options=index_first)
    data = bytearray(clip.read_bytes())
    middle = 2 * len(data) // 3
    clip.write_bytes(data[:middle])
    with VideoSource(clip) as source:
        kept = list(source)
        assert 10 < len(kept) < 40
    data[middle:] = np.random.default_rng(0).bytes(len(data) - middle)
    clip.write_bytes(data)
    with VideoSource(clip) as source:
        assert 10 < len(list(source)) < 40
        # The other containers' readers skip what they do not understand without a word.
        assert source.decode_errors > 0 or name != "in.mp4"


def test_bad_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    with VideoSource(write_clip(tmp_path / "in.mp4", count=2)) as source:
        info = source.info
    before = sorted(tmp_path.iterdir())
    for target, encoding, reason in [
        (tmp_path / "missing" / "out.mp4", {}, "does not exist"),
        (tmp_path / "file" / "out.mp4", {}, "does not exist"),
        (tmp_path / "folder.mp4", {}, "is a folder"),
        (tmp_path / "out.xyz", {}, "unknown extension '.xyz'; expected .mp4"),
        (tmp_path / "out", {}, "unknown extension"),
        ("gopher://host/clip", {}, "unknown URL scheme 'gopher'; expected rtmp"),
        (tmp_path / "out.mp4", {"container": "avi"}, "unknown container 'avi'; expected one of"),
        (tmp_path / "out.mp4", {"video_codec": "nonsense"}, "no video encoder 'nonsense'"),
        (tmp_path / "out.mp4", {"video_codec": "aac"}, "no video encoder 'aac'"),
        (tmp_path / "out.mp4", {"preset": "nonsense"}, "libx264"),
        (tmp_path / "out.mp4", {"crf": 20, "bitrate_bps": 10**6}, "exclude each other"),
        (tmp_path / "out.mp4", {"crf": -1}, "crf must be at least 0"),
        (tmp_path / "out.mp4", {"crf": 52}, "libx264 takes a crf from 0 to 51, not 52"),
        (tmp_path / "out.mp4", {"crf": 52, "video_codec": "libx265"}, "libx265 takes a crf from"),
        (tmp_path / "out.mp4", {"crf": 64, "video_codec": "libsvtav1"}, "from 0 to 63, not 64"),
        (tmp_path / "out.webm", {"crf": 64}, "libvpx-vp9 takes a crf from 0 to 63, not 64"),
        (tmp_path / f"{'x' * 300}.mp4", {}, "cannot be the output: File name too long"),
        (tmp_path / ("x" * 300) / "out.mp4", {}, "cannot be the output: File name too long"),
        (tmp_path / f"{'x' * 5000}.mp4", {}, r"x\.\.\.x.*: cannot be the output: File name too"),
        (f"{tmp_path}/a\0b.mp4", {}, "cannot be the output: .*null"),
        (tmp_path / "out.mp4", {"bitrate_bps": 0}, "bit rate must be above 0"),
        (tmp_path / "out.mp4", {"bitrate_bps": 10**30}, "bit rate must be above 0 and at most"),
        (tmp_path / "out.mp4", {"pix_fmt": "nonsense"}, "unknown pixel format"),
        (tmp_path / "out.mp4", {"pix_fmt": "gbrp16le"}, "libx264 takes no gbrp16le; it takes"),
        (tmp_path / "out.mov", {"video_codec": "prores_ks", "crf": 3}, "prores_ks takes no crf"),
        (tmp_path / "out.webm", {"preset": "slow"}, "libvpx-vp9 takes no preset"),
        (tmp_path / "out.webm", {"video_codec": "libx264"}, "libx264"),
    ]:
        with pytest.raises((ConfigError, MediaError), match=reason) as caught:
            VideoSink(target, info, encoding=Encoding(**encoding))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1200
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=2)) as source:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(MediaError, match="cannot write in"):
            VideoSink(tmp_path / "locked" / "out.mp4", source.info)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MediaError])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_interrupted_writer_leaves_nothing(
    tmp_path: Path, error: type[BaseException], suffix: str
) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4")) as source:
        before = sorted(tmp_path.iterdir())
        with (
            pytest.raises(error),
            VideoSink(tmp_path / f"out{suffix}", source.info) as sink,
        ):
            for frame in source:
                sink.write(frame)
                hidden = set(tmp_path.iterdir()) - set(before)
                assert [path.name[0] for path in hidden] == ["."]
                if frame.index == 30:
                    raise error
    assert sorted(tmp_path.iterdir()) == before


@contextmanager
def interrupted(at: int) -> Iterator[None]:
    """Ctrl-C when the writer's module is about to run its so-manieth line."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != mux.__file__:
            return None
        if event == "line":
            lines += 1
            if lines == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_writer_interrupted_at_any_line_leaves_a_whole_file_or_none(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=1)) as source:
        info, frame = source.info, next(iter(source))
    folder, done, line = tmp_path / "out", False, 0
    folder.mkdir()
    while not done:
        line += 1
        sink = None
        try:
            with interrupted(line):
                sink = VideoSink(folder / "out.mp4", info)
                sink.write(frame)
                sink.close()
                done = True
        except KeyboardInterrupt:
            if sink is not None:
                sink.abort()
            for left in folder.iterdir():  # while the error is still there, and all it holds
                assert left.name == "out.mp4", line
                assert len(raw_times(left)) == 1
                left.unlink()
    assert line > 50


def test_an_earlier_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("earlier")
    with VideoSource(write_clip(tmp_path / "in.mp4", count=3)) as source:
        sink = VideoSink(out, source.info)
        for frame in source:
            sink.write(frame)
        with pytest.raises(ValueError, match="out of order"):
            sink.write(frame)
        assert out.read_text() == "earlier"
        sink.close()
        sink.close()
        sink.abort()
    assert len(raw_times(out)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask


def test_no_frames_no_file(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=3)) as source:
        info = source.info
    with pytest.raises(MediaError, match="no frame"), VideoSink(tmp_path / "out.mp4", info):
        pass
    sink = VideoSink(tmp_path / "out.mp4", info)  # dropped without a word
    del sink
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.skipif(not STATUS.exists(), reason="reads the resident size from /proc")
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Reads, converts and writes 2000 frames; one that is not given back costs 150 KB."""
    clip = write_clip(tmp_path / "in.mp4", size=(352, 288), sound=tone(44100, 1.6))
    mask = np.ones((64, 64), np.uint8)
    resident_kb = []
    with (
        VideoSource(clip) as source,
        VideoSink(
            tmp_path / "out.mp4",
            source.info,
            audio=AudioSource(clip),
            encoding=Encoding(preset="ultrafast"),
        ) as sink,
    ):
        for frame in extend_frames(source, "pingpong", 80):
            rgb = frame.rectangle_rgb(64, 64, 64, 64)
            sink.write(frame.with_rectangle(64, 64, rgb, mask))
            if frame.index in (500, 1999):
                resident_kb.append(int(STATUS.read_text().split("RssAnon:")[1].split()[0]))
    assert resident_kb[1] - resident_kb[0] < 8 << 10  # 1500 lost frames would be 220 MiB
