"""Text subtitles, converted from one container's format to another's."""

from __future__ import annotations

from typing import Any

from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream

_TEXT = {"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text"}
# The text format of each muxer, which its players know.
_SPELT = {"mp4": "mov_text", "mov": "mov_text", "matroska": "srt", "webm": "webvtt"}
_NATIVE = {
    "mp4": {"mov_text"},
    "mov": {"mov_text"},
    "matroska": {"subrip", "ass", "ssa", "webvtt"},
    "webm": {"webvtt"},
}


def spelling(muxer: str, codec: str) -> str | None:
    """FFmpeg's encoder for subtitles of a codec in a container; None if they are not text, or the
    container accepts none."""
    return _SPELT.get(muxer) if codec in _TEXT else None


def native(muxer: str, codec: str) -> bool:
    """Whether a container holds text subtitles of a codec as they are."""
    return codec in _NATIVE.get(muxer, ())


class Respelt:
    """A stream of subtitles that are decoded and encoded again.

    Args:
        container: where to; its header is not written yet.
        source: the input's stream.
        encoder: from :func:`spelling`.
    """

    def __init__(self, container: OutputContainer, source: Any, encoder: str) -> None:
        self._decoder: Any = source.codec_context
        self._decoder.open(strict=False)
        added: Any = container.add_stream(encoder)
        self.stream = added
        self.stream.time_base = source.time_base
        self.stream.codec_context.time_base = source.time_base
        self.stream.codec_context.subtitle_header = self._decoder.subtitle_header

    def packet(self, given: Packet[Stream]) -> Packet[Stream] | None:
        """A packet's text in the new format, at its own time; None if it has none."""
        words = self._decoder.decode2(given)
        if words is None or not len(words):
            return None
        packet: Packet[Stream] = self.stream.codec_context.encode_subtitle(words)
        packet.time_base = given.time_base
        packet.pts = packet.dts = given.pts
        packet.duration = given.duration
        return packet
