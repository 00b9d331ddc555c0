"""Media in and out: time stamps, untouched planes, audio that ends with the video, bad input."""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dithead.errors import ConfigError, MediaError
from dithead.runtime import extend as extend_module
from dithead.runtime.extend import EXTEND_MODES, ExtendMode, extend_frames
from dithead.runtime.frame import WORKING_FORMATS, VideoFrame, copy_picture, planes
from dithead.runtime.media import AudioSource, VideoSource
from dithead.runtime.mux import DISCLOSURE, VideoSink

STATM = Path("/proc/self/statm")

Times = tuple[list[int], Fraction]

# Presentation times in ticks and the tick in seconds. The variable rate has 25, 40, 10 and 50 fps.
RATES: dict[str, tuple[Fraction, Times]] = {
    "25": (Fraction(25), (list(range(40)), Fraction(1, 25))),
    "29.97": (Fraction(30000, 1001), ([1001 * i for i in range(40)], Fraction(1, 30000))),
    "50": (Fraction(50), ([256 * i for i in range(40)], Fraction(1, 12800))),
    "variable": (
        Fraction(25),
        (list(itertools.accumulate([0, *[40, 25, 100, 20] * 8])), Fraction(1, 1000)),
    ),
    "late": (Fraction(25), ([250 + 40 * i for i in range(20)], Fraction(1, 1000))),
}


def picture(index: int, width: int, height: int, pix_fmt: str, seed: int | None = None) -> Any:
    """A gradient that moves with the index, or noise, at levels that any RGB conversion keeps."""
    result = av.VideoFrame(width, height, pix_fmt)
    shift = result.format.components[0].bits - 8
    rng = np.random.default_rng(seed)
    for number, plane in enumerate(planes(result)):
        rows, columns = np.indices(plane.shape)
        level = 60 + (rows + 3 * columns + 5 * index) % 120 if number == 0 else 118 + rows % 20
        if seed is not None:
            low, high = (60, 180) if number == 0 else (108, 148)
            level = rng.integers(low, high, plane.shape)
        plane[:] = (level << shift) + (rng.integers(0, 1 << shift) if shift else 0)
    return result


def tone(rate_hz: int, seconds: float) -> np.ndarray:
    """Short bursts of 900 Hz, one every half second from 0.25 s on: (S,) float32."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    bursts = [
        np.exp(-(((time_s - at) / 0.0008) ** 2)) * np.cos(2 * np.pi * 900 * (time_s - at))
        for at in np.arange(0.25, seconds, 0.5)
    ]
    return (0.8 * np.sum(bursts, axis=0)).astype(np.float32)


def write_clip(
    path: Path,
    *,
    rate: str = "25",
    count: int | None = None,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_rate_hz: int = 44100,
    sound_start_s: Fraction = Fraction(0),
    **stream_properties: Any,
) -> Path:
    """Write a test clip by PyAV alone, so that nothing under test takes part."""
    average, (times, time_base) = RATES[rate]
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        video: Any = container.add_stream(codec, rate=average, options=options or {})
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.time_base = video.codec_context.time_base = time_base
        video.codec_context.max_b_frames = b_frames
        rotation = stream_properties.pop("rotation", 0)
        for name, value in stream_properties.items():
            setattr(video.codec_context, name, value)
        if rotation:
            video.set_display_rotation(rotation)
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("aac", rate=sound_rate_hz, layout="mono")
        container.start_encoding()
        for index, pts in enumerate(times[:count]):
            frame = picture(index, *size, pix_fmt)
            frame.pts, frame.time_base = pts, time_base
            following = times[index + 1] if index + 1 < len(times) else pts + times[1] - times[0]
            frame.duration = following - pts
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            frame.sample_rate, frame.time_base = sound_rate_hz, Fraction(1, sound_rate_hz)
            frame.pts = round(sound_start_s * sound_rate_hz)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def write_wav(path: Path, sound: np.ndarray, rate_hz: int = 16000, layout: str = "mono") -> Path:
    """Write (S,) float32 as 16-bit PCM, the same on each channel."""
    channels = av.AudioLayout(layout).nb_channels
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=rate_hz, layout=layout)
        container.start_encoding()
        if len(sound):
            packed = np.repeat((sound * 32767).astype(np.int16), channels)[None]
            frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def raw_times(path: Path) -> list[Fraction]:
    """Presentation times in seconds as PyAV alone decodes them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def copy_through(source: VideoSource, path: Path, **options: Any) -> Path:
    with VideoSink(path, source.info, preset="ultrafast", **options) as sink:
        for frame in source:
            sink.write(frame)
    return path


def same_planes(a: VideoFrame, b: VideoFrame) -> bool:
    pairs = zip(planes(a.picture), planes(b.picture), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def as_frame(image: Any) -> VideoFrame:
    return VideoFrame(index=0, pts=0, time_base=Fraction(1, 25), duration=1, picture=image)


def all_samples(source: AudioSource) -> np.ndarray:
    return np.concatenate([frame.to_ndarray() for frame in source.original()], axis=1)


def lag_s(found: np.ndarray, wanted: np.ndarray, rate_hz: int) -> float:
    """By how much one sound comes after another, from their cross-correlation within 0.2 s."""
    length = 1 << 18
    spectrum = np.fft.rfft(found, length) * np.conj(np.fft.rfft(wanted, length))
    near = round(0.2 * rate_hz)
    correlation = np.roll(np.fft.irfft(spectrum, length), near)[: 2 * near]
    return (int(np.argmax(correlation)) - near) / rate_hz


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


@pytest.mark.parametrize(
    ("given_pts", "expected"),
    [
        ([100, 140, 180], [0, 40, 80]),  # counted from the start
        ([100, 140, 140, 180], [0, 40, 41, 80]),  # repeated
        ([100, 140, 130, 180], [0, 40, 41, 80]),  # in the wrong order
        ([None, None, None], [0, 40, 80]),
        ([100, None, 180], [0, 40, 80]),
        ([5100, 5140, 100, 140], [5000, 5040, 5080, 5120]),  # the clock was set back
        ([60, 100], [0, 40]),  # before the start
    ],
)
def test_times_always_increase(given_pts: list[int | None], expected: list[int]) -> None:
    from dithead.runtime.media import _Clock

    clock = _Clock(start=100, period=Fraction(40), time_base=Fraction(1, 1000))
    assert [clock.stamp(pts, None) for pts in given_pts] == expected


@pytest.mark.parametrize("pix_fmt", WORKING_FORMATS)
@settings(max_examples=25)
@given(data=st.data())
def test_planes_outside_the_mask_are_bit_identical(pix_fmt: str, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(2, 41)), data.draw(st.integers(2, 33))
    x = data.draw(st.integers(0, (width - 1) // 2)) * 2
    y = data.draw(st.integers(0, (height - 1) // 2)) * 2
    ends = [
        data.draw(st.sampled_from([*range(start + 2, size, 2), size]))
        for start, size in ((x, width), (y, height))
    ]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    part = (ends[1] - y, ends[0] - x)
    mask = rng.random(part) * (rng.random(part) < data.draw(st.sampled_from([0, 0.05, 0.5, 1])))
    dtype = data.draw(st.sampled_from([np.float32, np.uint8, np.bool_]))
    mask = mask.astype(np.float32) if dtype is np.float32 else (mask > 0).astype(dtype)
    frame = as_frame(picture(0, width, height, pix_fmt, seed=1))
    before = [plane.copy() for plane in planes(frame.picture)]
    result = frame.with_rectangle(x, y, rng.integers(0, 256, (*part, 3), dtype=np.uint8), mask)
    assert all(map(np.array_equal, before, planes(frame.picture)))  # the source is not written to
    allowed = np.zeros((height + height % 2, width + width % 2), bool)
    allowed[y : y + part[0], x : x + part[1]] = mask > 0
    for plane, old in zip(planes(result.picture), before, strict=True):
        rows, columns = plane.shape
        step_y, step_x = -(-height // rows), -(-width // columns)
        kept = ~np.array(
            [
                [
                    allowed[r * step_y : (r + 1) * step_y, c * step_x : (c + 1) * step_x].any()
                    for c in range(columns)
                ]
                for r in range(rows)
            ]
        )
        assert np.array_equal(plane[kept], old[kept])


@pytest.mark.parametrize("pix_fmt", WORKING_FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_rgb_of_a_rectangle(pix_fmt: str, size: tuple[int, int]) -> None:
    width, height = size
    image = picture(0, width, height, pix_fmt, seed=2)
    image.colorspace, image.color_range = 1, 1
    frame = as_frame(image)
    whole = frame.rgb()
    assert whole.shape == (height, width, 3)
    assert np.array_equal(frame.rectangle_rgb(10, 6, 32, 24), whole[6:30, 10:42])
    edge = frame.rectangle_rgb(40, 20, width - 40, height - 20)
    assert np.array_equal(edge, whole[20:, 40:])
    # An unchanged rectangle comes back as it was: to 1 level of 8 bits.
    back = frame.with_rectangle(0, 0, whole, np.ones((height, width), np.float32))
    tolerance = 1 << (image.format.components[0].bits - 8)
    for new, old in zip(planes(back.picture), planes(image), strict=True):
        assert np.abs(new.astype(int) - old).max() <= tolerance


@pytest.mark.parametrize(
    ("colorspace", "size", "kr", "kb"),
    [
        (1, (64, 48), 0.2126, 0.0722),
        (5, (64, 48), 0.299, 0.114),
        (6, (64, 48), 0.299, 0.114),
        (9, (64, 48), 0.2627, 0.0593),
        (2, (64, 48), 0.299, 0.114),  # not said: by size
        (2, (1280, 720), 0.2126, 0.0722),
    ],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p"])
def test_rgb_follows_the_matrix_and_range(
    colorspace: int, size: tuple[int, int], kr: float, kb: float, pix_fmt: str
) -> None:
    image = av.VideoFrame(*size, pix_fmt)
    levels = (110, 105, 160)
    for plane, level in zip(planes(image), levels, strict=True):
        plane[:] = level
    image.colorspace = colorspace
    full = pix_fmt == "yuvj420p"
    y = levels[0] / 255 if full else (levels[0] - 16) / 219
    u, v = ((level - 128) / (255 if full else 224) for level in levels[1:])
    red, blue = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    expected = np.array([red, green, blue]) * 255
    found = as_frame(image).rectangle_rgb(0, 0, 2, 2)
    assert np.abs(found - expected).max() <= 1  # levels of 255: the conversion's rounding


def test_misplaced_rectangles_are_refused() -> None:
    frame = as_frame(picture(0, 33, 20, "yuv420p"))
    for rectangle in [(1, 0, 4, 4), (0, 0, 5, 4), (0, 0, 0, 4), (32, 0, 4, 4), (-2, 0, 4, 4)]:
        with pytest.raises(ValueError, match="even corners"):
            frame.rectangle_rgb(*rectangle)
    mask = np.ones((4, 4), np.float32)
    with pytest.raises(ValueError, match="uint8"):
        frame.with_rectangle(0, 0, np.zeros((4, 4, 3), np.float32), mask)
    with pytest.raises(ValueError, match=r"\(4, 4, 3\)"):
        frame.with_rectangle(0, 0, np.zeros((4, 6, 3), np.uint8), mask)


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "expected"),
    [
        ("nv12", "rawvideo", "yuv420p"),
        ("yuyv422", "rawvideo", "yuv422p"),
        ("gray", "ffv1", "yuv420p"),
        ("gray10le", "ffv1", "yuv420p10le"),
        ("yuva420p", "ffv1", "yuv420p"),
        ("yuv411p", "ffv1", "yuv422p"),
        ("yuv420p12le", "ffv1", "yuv420p10le"),
        ("bgr0", "ffv1", "yuv444p"),
        ("gbrp10le", "ffv1", "yuv444p10le"),
        ("rgb24", "png", "yuv444p"),
        ("pal8", "png", "yuv444p"),
    ],
)
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_other_pixel_formats_become_the_nearest(
    tmp_path: Path, pix_fmt: str, codec: str, expected: str, size: tuple[int, int]
) -> None:
    path = tmp_path / "in.nut"
    shades = np.tile(np.linspace(20, 230, size[0]).astype(np.uint8)[None, :, None], (size[1], 1, 3))
    grey = av.VideoFrame.from_ndarray(shades, "rgb24")
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if pix_fmt == "pal8":
            image = av.VideoFrame.from_ndarray(
                (shades[..., 0], np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 4))), "pal8"
            )
        else:
            image = grey.reformat(format=pix_fmt)
        image.pts, image.time_base = 0, Fraction(1, 25)
        container.mux([*stream.encode(image), *stream.encode(None)])
    with VideoSource(path) as source:
        (frame,) = source
        assert source.info.source_pix_fmt == pix_fmt
        assert source.info.pix_fmt == frame.picture.format.name == expected
    if not pix_fmt.startswith("gray"):  # FFmpeg's own conversion to grey stretches the range
        assert np.abs(frame.rgb().astype(int) - shades).max() <= 3  # levels: two roundings


def test_grey_levels_are_kept(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        image = picture(0, 64, 48, "gray")
        container.mux([*stream.encode(image), *stream.encode(None)])
    with VideoSource(tmp_path / "in.mkv") as source:
        (frame,) = source
    luma, *chroma = planes(frame.picture)
    assert np.array_equal(luma, planes(image)[0])
    assert all((plane == 128).all() for plane in chroma)


@pytest.mark.parametrize("pix_fmt", WORKING_FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_planes_reach_the_encoder_untouched(
    tmp_path: Path, pix_fmt: str, size: tuple[int, int]
) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=2)) as source:
        info = dataclasses.replace(
            source.info, pix_fmt=pix_fmt, width=size[0], height=size[1], average_rate=Fraction(25)
        )
    frames = [dataclasses.replace(as_frame(picture(i, *size, pix_fmt)), pts=i) for i in range(3)]
    plain = pix_fmt.replace("yuvj", "yuv")
    with VideoSink(tmp_path / "out.mkv", info, codec="ffv1") as sink:
        for frame in frames:
            sink.write(frame)
    with VideoSource(tmp_path / "out.mkv") as result:
        copies = list(result)
        assert result.info.pix_fmt == plain
    for copy, frame in zip(copies, frames, strict=True):
        for new, old in zip(planes(copy.picture), planes(frame.picture), strict=True):
            assert np.array_equal(new[: old.shape[0], : old.shape[1]], old)
        # An odd size grows by a repeated column and row, no more.
        assert copy.width - size[0] in (0, 1) and copy.height - size[1] in (0, 1)
        assert same_planes(copy, as_frame(copy_picture(frame.picture, copy.width, copy.height)))


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


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".webm"])
def test_output_says_that_it_is_synthetic(tmp_path: Path, suffix: str) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=3)) as source:
        out = copy_through(source, tmp_path / f"out{suffix}")
    with av.open(str(out)) as container:
        tags = {name.lower(): value for name, value in container.metadata.items()}
    assert DISCLOSURE.items() <= tags.items()


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
    sound = write_wav(folder / "sound.wav", tone(16000, 0.5))
    silent = write_clip(folder / "silent.mkv", count=2)
    avi = bytearray(write_clip(folder / "whole.avi", codec="mpeg4", b_frames=0).read_bytes())
    start, end = avi.index(b"movi"), avi.index(b"idx1")
    avi[start + 40 : end] = bytes(end - start - 40)
    (folder / "damaged.avi").write_bytes(avi)
    for kind in (VideoSource, AudioSource):
        yield kind, folder / "missing.mp4", "no such file"
        yield kind, folder, "a folder"
        yield kind, folder / "empty.mp4", "not a readable media file"
        yield kind, folder / "text.mp4", "not a readable media file"
        yield kind, folder / "no_index.mp4", "not a readable media file"
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
    for path, options, reason in [
        (tmp_path / "missing" / "out.mp4", {}, "does not exist"),
        (tmp_path / "file" / "out.mp4", {}, "does not exist"),
        (tmp_path / "folder.mp4", {}, "is a folder"),
        (tmp_path / "out.xyz", {}, "unknown extension '.xyz'; expected .mp4"),
        (tmp_path / "out", {}, "unknown extension"),
        (tmp_path / "out.mp4", {"codec": "nonsense"}, "nonsense"),
        (tmp_path / "out.mp4", {"preset": "nonsense"}, "libx264"),
        (tmp_path / "out.webm", {"codec": "libx264"}, "libx264"),
    ]:
        with pytest.raises(MediaError, match=reason):
            VideoSink(path, info, **options)
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


@pytest.mark.skipif(not STATM.exists(), reason="reads the resident size from /proc")
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Reads, converts and writes 2000 frames; one that is not given back costs 150 KB."""
    clip = write_clip(tmp_path / "in.mp4", size=(352, 288), sound=tone(44100, 1.6))
    mask = np.ones((64, 64), np.uint8)
    resident_bytes = []
    with (
        VideoSource(clip) as source,
        VideoSink(
            tmp_path / "out.mp4", source.info, audio=AudioSource(clip), preset="ultrafast"
        ) as sink,
    ):
        for frame in extend_frames(source, "pingpong", 80):
            rgb = frame.rectangle_rgb(64, 64, 64, 64)
            sink.write(frame.with_rectangle(64, 64, rgb, mask))
            if frame.index in (500, 1999):
                pages = int(STATM.read_text().split()[1])
                resident_bytes.append(pages * resource.getpagesize())
    assert resident_bytes[1] - resident_bytes[0] < 8 << 20  # 1500 lost frames would be 220 MiB
