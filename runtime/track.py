"""One stream of a media file, opened and decoded; shared by the video and the audio side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal

import av
from av.container import InputContainer
from av.stream import Discard, Disposition

from dithead.errors import MediaError


class Track:
    """One pass over one stream of a file: its frames as decoded, damage skipped and counted."""

    def __init__(self, path: str | os.PathLike[str], kind: Literal["video", "audio"]) -> None:
        self.errors = 0
        self.container = open_input(path)
        stream = _first_stream(self.container, kind)
        if stream is None or stream.codec_context is None:
            self.container.close()
            found = f"no {kind} track" if stream is None else f"{kind} of an unknown codec"
            raise MediaError(f"{path}: {found}; expected a file with {kind}")
        for other in self.container.streams:
            if other is not stream:
                other.discard = Discard.all
        self.stream = stream
        self.start_s = _start_s(self.container)

    def __iter__(self) -> Iterator[Any]:
        # PyAV's default, threads within a frame, is kept on purpose: threads across frames drop
        # good frames at a damaged end, and hold several frames back.
        packets = self.container.demux(self.stream)
        ended = False
        while not ended:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:  # the rest cannot be read: empty the decoder and stop
                self.errors += 1
                ended, packet = True, None
            try:
                frames = self.stream.decode(packet)
            except av.FFmpegError:
                self.errors += 1
                continue
            for frame in frames:
                self.errors += frame.is_corrupt
                yield frame

    def close(self) -> None:
        self.container.close()


def open_input(path: str | os.PathLike[str]) -> InputContainer:
    """Open a file or URL for reading, or raise a `MediaError` that says why not."""
    text = os.fspath(path)
    if "://" not in text:
        # Absolute, so that FFmpeg never takes the part before a colon for a protocol.
        text = os.path.abspath(text)
        if not os.path.exists(text):
            raise MediaError(f"{path}: no such file")
        if os.path.isdir(text):
            raise MediaError(f"{path}: a folder; expected a media file")
    try:
        return av.open(text, "r", metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{path}: not a readable media file ({reason})") from error


def _first_stream(container: InputContainer, kind: Literal["video", "audio"]) -> Any:
    for stream in container.streams:
        # The cover picture of a song is not a video.
        if stream.type == kind and not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def _start_s(container: InputContainer) -> Fraction:
    """The container's time that counts as zero, in seconds: its start, but not an audio run-in."""
    start_s = Fraction(container.start_time or 0, 1_000_000)
    video = _first_stream(container, "video")
    if video is not None and video.start_time is not None:
        video_s = video.start_time * video.time_base
        # Equal to the microsecond that containers round to: take the exact one.
        if start_s < 0 or abs(video_s - start_s) <= Fraction(1, 1_000_000):
            return video_s if start_s >= 0 else min(video_s, Fraction(0))
    return max(start_s, Fraction(0))
