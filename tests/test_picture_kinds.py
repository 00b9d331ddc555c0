"""Video whose pictures are transparent, interlaced or turned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import (
    as_frame,
    copy_through,
    declared_interlaced,
    picture,
    raw_times,
    same_planes,
    write_clip,
    write_gif,
)

from dithead.runtime.media.deinterlace import deinterlaced
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.media.videoframe import VideoFrame, has_alpha, planes, upright


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
