"""Extends a video past its end, for an audio track that is longer."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import takewhile
from typing import Literal, get_args

from dithead.errors import ConfigError
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.media.videoframe import VideoFrame, planes

ExtendMode = Literal["trim", "loop", "pingpong", "freeze"]
EXTEND_MODES: tuple[ExtendMode, ...] = get_args(ExtendMode)

# How many decoded pictures one stretch of a video played backwards may hold: 43 frames at 1080p.
_BACKWARD_BYTES = 128 << 20
_BACKWARD_FRAMES_MAX = 64


def extend_frames(
    source: VideoSource, mode: ExtendMode, until_s: Fraction | float | None = None
) -> Iterator[VideoFrame]:
    """Yield the frames that start before a time, going on past the video's end if requested.

    The timeline continues exactly where the clip ends. `trim` stops with the video; `loop` decodes
    the file again; `pingpong` plays it backwards and forwards in turn, each picture for its own
    duration, and does not repeat the picture at a turn; `freeze` repeats the last frame at the
    average rate. Backwards, the clip is decoded in short stretches from the last to the first, each
    reached by seeking, so memory is bounded by one stretch.

    Args:
        source: the video, read from its first frame.
        mode: one of `EXTEND_MODES`.
        until_s: end of the output in seconds; None leaves it to the caller.

    Raises:
        ConfigError: the mode is unknown.
    """
    if mode not in EXTEND_MODES:
        raise ConfigError(f"unknown mode {mode!r} to extend; expected {', '.join(EXTEND_MODES)}")
    continuations = {"trim": _clip, "loop": _loop, "pingpong": _pingpong, "freeze": _freeze}
    return _until(continuations[mode](source), None if until_s is None else Fraction(until_s))


def _until(frames: Iterator[VideoFrame], until_s: Fraction | None) -> Iterator[VideoFrame]:
    for index, frame in enumerate(frames):
        if until_s is not None and frame.time_s >= until_s:
            return
        yield replace(frame, index=index)


def _clip(source: VideoSource) -> Iterator[VideoFrame]:
    yield from source


def _loop(source: VideoSource) -> Iterator[VideoFrame]:
    end: int | None = None
    while True:
        shift: int | None = None
        for frame in source:
            if shift is None:
                shift = 0 if end is None else end - frame.pts
            shown = replace(frame, pts=frame.pts + shift)
            end = shown.pts + shown.duration
            yield shown


def _freeze(source: VideoSource) -> Iterator[VideoFrame]:
    last = None
    for last in source:
        yield last
    assert last is not None
    start = last.pts + last.duration
    period = 1 / (source.info.average_rate * last.time_base)
    count = 0
    while True:
        pts, after = start + round(count * period), start + round((count + 1) * period)
        yield replace(last, pts=pts, duration=after - pts)
        count += 1


def _pingpong(source: VideoSource) -> Iterator[VideoFrame]:
    stretches = array("q")  # times of the clip's frames 0, n, 2n, ..., in ticks
    end: int | None = None  # on the output's timeline
    while True:
        count = clip_end = shift = 0
        held_max = 1
        for frame in source:
            if count == 0:
                shift = 0 if end is None else end - frame.pts
                stretches = array("q")
                picture_bytes = sum(plane.nbytes for plane in planes(frame.picture))
                held_max = max(1, min(_BACKWARD_FRAMES_MAX, _BACKWARD_BYTES // picture_bytes))
            if count % held_max == 0:
                stretches.append(frame.pts)
            count += 1
            clip_end = frame.pts + frame.duration
            end = clip_end + shift
            yield replace(frame, pts=frame.pts + shift)
        assert end is not None
        for frame in _backwards(source, stretches, held_max, count, clip_end):
            yield replace(frame, pts=end)
            end += frame.duration


def _backwards(
    source: VideoSource, stretches: Sequence[int], held_max: int, count: int, clip_end: int
) -> Iterator[VideoFrame]:
    """Yield a clip's frames from back to front, without the first and the last.

    Args:
        source: the clip.
        stretches: times of its frames 0, n, 2n, ..., in ticks.
        held_max: n, the number of frames to hold at a time.
        count: number of its frames.
        clip_end: end of its last frame, in ticks.
    """
    following = clip_end
    for number in reversed(range(len(stretches))):
        first = number * held_max
        held = _stretch(source, stretches[number], following, min(held_max, count - first))
        while held:
            frame = held.pop()
            duration, following = following - frame.pts, frame.pts
            if 0 < first + len(held) < count - 1:
                yield replace(frame, duration=duration)


def _stretch(source: VideoSource, start: int, stop: int, expected: int) -> list[VideoFrame]:
    """Read the frames from one time up to another, in ticks, and check that seeking lost none."""
    frames = list(takewhile(lambda frame: frame.pts < stop, source.frames_from(start)))
    if source.seekable and (len(frames) != expected or frames[0].pts != start):
        source.seekable = False
        frames = list(takewhile(lambda frame: frame.pts < stop, source.frames_from(start)))
    return frames
