"""Frames: planes stay untouched outside the mask, colours follow matrix and range."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import as_frame, picture, same_planes, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.media.videoframe import WORKING_FORMATS, copy_picture, planes


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
    turns = data.draw(st.integers(0, 3))  # the rectangle is of the upright picture
    size = (height, width) if turns % 2 else (width, height)
    frame = replace(as_frame(picture(0, *size, pix_fmt, seed=1)), turns=turns)
    before = [plane.copy() for plane in planes(frame.picture)]
    result = frame.with_rectangle(x, y, rng.integers(0, 256, (*part, 3), dtype=np.uint8), mask)
    assert all(map(np.array_equal, before, planes(frame.picture)))  # the source is not written to
    allowed = np.zeros((height, width), bool)
    allowed[y : y + part[0], x : x + part[1]] = mask > 0
    allowed = np.rot90(allowed, -turns)
    height, width = allowed.shape
    allowed = np.pad(allowed, ((0, height % 2), (0, width % 2)))
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
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rgb_of_a_rectangle(pix_fmt: str, size: tuple[int, int], turns: int) -> None:
    width, height = size
    image = picture(0, *(size[::-1] if turns % 2 else size), pix_fmt, seed=2)
    image.colorspace, image.color_range = 1, 1
    frame = replace(as_frame(image), turns=turns)
    whole = frame.rgb()
    assert whole.shape == (height, width, 3)
    assert np.array_equal(np.rot90(as_frame(image).rgb(), turns), whole)
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
        ("yuva420p", "ffv1", "yuva420p"),
        ("yuv411p", "ffv1", "yuv422p"),
        ("yuv420p12le", "ffv1", "yuv420p10le"),
        ("bgr0", "ffv1", "yuv444p"),
        ("gbrp10le", "ffv1", "yuv444p10le"),
        ("rgb24", "png", "yuv444p"),
        ("rgba", "png", "yuva444p"),
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
    with VideoSink(tmp_path / "out.mkv", info, encoding=Encoding(video_codec="ffv1")) as sink:
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
