"""What is known of a video before all its frames are read."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer

from dithead.errors import MediaError
from dithead.runtime.media.decoder import MediaDecoder
from dithead.runtime.media.hdr import Hdr, hdr_of
from dithead.runtime.media.sidedata import orientation, side_data
from dithead.runtime.media.videoframe import convert_picture, working_format

# FFmpeg's formats that hold one picture: what it decodes of a damaged one is also held.
_PICTURES = ("_pipe", "image2")
_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
_STILL_RATE = Fraction(25)  # frames per second of a picture that is held, as FFmpeg shows pictures


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What is known of a video stream before all its frames are read.

    Attributes:
        width: pixels, as stored.
        height: pixels, as stored.
        average_rate: frames per second; the mean of a variable rate.
        time_base: seconds in one tick of the presentation times.
        pix_fmt: the frames' pixel format, one of `WORKING_FORMATS`.
        source_pix_fmt: the file's own pixel format.
        color_range: FFmpeg's number (0 not stated, 1 limited, 2 full); the next three are FFmpeg's
            numbers, too.
        colorspace: the colour matrix.
        color_primaries: the primaries.
        color_trc: the transfer function.
        sample_aspect_ratio: a pixel's width over its height, if the file states it.
        rotation_deg: counter-clockwise turn that a player gives the picture, a multiple of 90.
        mirrored: whether the file's pictures are stored mirrored; the frames are swapped back as
            they are read.
        start_s: the container's time that counts as zero.
        duration_s: length stated by the file, if any.
        frame_count: number of frames stated by the file, if any.
        still: whether it is a single picture, whatever kind of file holds it.
        hdr: its HDR data, if any.
    """

    width: int
    height: int
    average_rate: Fraction
    time_base: Fraction
    pix_fmt: str
    source_pix_fmt: str
    color_range: int
    colorspace: int
    color_primaries: int
    color_trc: int
    sample_aspect_ratio: Fraction | None
    rotation_deg: int
    start_s: Fraction
    duration_s: Fraction | None
    frame_count: int | None
    still: bool
    mirrored: bool = False
    hdr: Hdr | None = None


def video_info(track: MediaDecoder, first: av.VideoFrame, alone: bool) -> VideoInfo:
    """Describe a video by its container and its first frame.

    Args:
        track: the video, opened.
        first: its first decoded frame.
        alone: whether no frame comes after that; never true for an input that can be read only
            once.

    Raises:
        MediaError: a frame rate was given, and the video has its own.
    """
    stream = track.stream
    rate = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
    pix_fmt = working_format(first.format.name)
    working = convert_picture(first, pix_fmt, first.width, first.height)
    container = track.demuxer.container
    found = side_data(first)
    mirrored, rotation_deg = orientation(found)
    info = VideoInfo(
        width=first.width,
        height=first.height,
        average_rate=rate,
        time_base=stream.time_base,
        pix_fmt=pix_fmt,
        source_pix_fmt=first.format.name,
        color_range=working.color_range,
        colorspace=working.colorspace,
        color_primaries=working.color_primaries,
        color_trc=working.color_trc,
        sample_aspect_ratio=stream.sample_aspect_ratio or None,
        rotation_deg=rotation_deg,
        start_s=track.start_s,
        duration_s=_duration_s(stream, container),
        frame_count=stream.frames or None,
        still=False,
        mirrored=mirrored,
        hdr=hdr_of(found),
    )
    given = track.demuxer.given
    # In a damaged video, this may be the only frame that decodes.
    intact = not track.errors or container.format.name.endswith(_PICTURES)
    if alone and intact and not given.pattern:
        return _held(info, given.fps or _STILL_RATE)
    if given.fps is not None and stream.average_rate not in (None, given.fps):
        raise MediaError(
            f"{given}: has a frame rate of its own, {float(rate):g}; a rate can be given for "
            "pictures, and for what a device offers"
        )
    return info


def _duration_s(stream: Any, container: InputContainer) -> Fraction | None:
    """The length that a file states for its picture, or else for the longest of its tracks."""
    if stream.duration:
        return Fraction(stream.duration * stream.time_base)
    said = _DURATION.fullmatch(stream.metadata.get("DURATION", ""))  # as Matroska writes it
    if said is not None:
        hours, minutes, seconds = said.groups()
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    return Fraction(container.duration, 1_000_000) if container.duration else None


def _held(info: VideoInfo, rate: Fraction) -> VideoInfo:
    """A single picture, to be held: the rate and length that its container states mean nothing."""
    return replace(
        info,
        average_rate=rate,
        time_base=1 / rate,
        start_s=Fraction(0),
        duration_s=None,
        frame_count=None,
        still=True,
    )
