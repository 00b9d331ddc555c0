"""Copies everything in an input besides its picture and its first sound to the output."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream

from dithead.runtime.media.inputs import Demuxer, Input
from dithead.runtime.media.subtitles import Respelt, native, spelling
from dithead.runtime.media.tags import labels, labels_for

# FLV's players know one audio track; an RTSP server gets what it expects.
_ALONE = {"flv", "rtsp"}
# MPEG-TS accepts anything; this is what its receivers know.
_MPEGTS = {"aac", "mp2", "mp3", "ac3", "eac3", "dts", "opus", "dvb_subtitle", "dvb_teletext"}
_PICTURES = {"mjpeg": "jpeg", "png": "png"}
# A muxer's error for a single packet, as opposed to one that stops it altogether.
_REFUSED = (av.error.ArgumentError, av.error.InvalidDataError, av.error.PatchWelcomeError)
# How long subtitles wait for their end, which may be the output's.
_HELD_S = 5
# A file's tracks are hardly ever further apart than this.
_APART_S = 10


def other_streams(
    container: InputContainer, picture: Any, spoken: int | None
) -> list[tuple[str, Any]]:
    """An input's streams without its picture, its first sound, which the speech replaces, and the
    sound that is the speech; each with a name for messages.

    Args:
        container: the input, opened.
        picture: the stream that is decoded.
        spoken: number of the audio track that the speech comes from, if it is one of these.
    """
    found, counts = [], {"audio": 0, "video": 0, "subtitle": 0}
    for stream in container.streams:
        kind = stream.type
        counts[kind] = counts.get(kind, 0) + 1
        if stream is picture or (kind == "audio" and counts[kind] - 1 in (0, spoken)):
            continue
        if kind == "data" and stream.frames and stream.frames == len(container.chapters()):
            continue  # the chapters, as MP4 stores them
        name = f"{kind} track {counts[kind]}"
        if stream.disposition & Disposition.attached_pic:
            name = "the cover picture"
        elif kind == "attachment":
            name = f"the attachment {stream.metadata.get('filename', counts[kind])}"
        said = labels(stream.metadata)
        details = [said[key] for key in ("language", "title") if key in said]
        if kind in ("audio", "subtitle") and stream.codec_context is not None:
            details.insert(0, stream.codec_context.codec.canonical_name)
        found.append((f"{name} ({', '.join(details)})" if details else name, stream))
    return found


@dataclass(slots=True)
class _Carried:
    """A track being copied."""

    name: str
    stream: Any  # the output's; None for the picture, which only shows how far to read
    respelt: Respelt | None
    waits: bool  # whether each packet waits for its end
    shift: int  # ticks from the input's time to the output's
    last: int | None = None  # the latest packet's decoding time, in the output's ticks
    end: int = 0  # and its end
    waiting: list[Packet[Stream]] = field(default_factory=list)
    refused: int = 0


class OtherTracks:
    """Copies an input's other audio tracks, subtitles, attachments and cover.

    They are copied packet by packet where the output's container accepts them; text subtitles are
    rewritten where it accepts text. The input is read no further than the output has come. Use it
    as a context manager.

    Args:
        given: the input, to be opened once more; or, if it can be read only once, the opened input
            with its other tracks: only packets met on the way to the picture are copied.
        picture: index of the stream that is decoded elsewhere.
        spoken: as for :func:`other_streams`.

    Attributes:
        left_out: names of what is not copied; complete when the output is finished.
    """

    def __init__(self, given: Input | Demuxer, picture: int, spoken: int | None = None) -> None:
        self.left_out: list[str] = []
        self._shared = isinstance(given, Demuxer)
        self._demuxer = given if isinstance(given, Demuxer) else Demuxer(given, [])
        self._picture = self._demuxer.container.streams[picture]
        self._others = other_streams(self._demuxer.container, self._picture, spoken)
        self._carried: dict[int, _Carried] = {}
        self._packets: Iterator[Packet[Stream]] = iter(())
        self._coming: Packet[Stream] | None = None

    def __enter__(self) -> OtherTracks:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the input, unless somebody else owns it."""
        if not self._shared:
            self._demuxer.close()

    def add_to(self, container: OutputContainer, muxer: str, streamed: bool) -> None:
        """Make streams in a container, before its header is written.

        Args:
            container: the output.
            muxer: FFmpeg's name of its muxer.
            streamed: whether it is sent as it is made.
        """
        for name, stream in self._others:
            if stream.disposition & Disposition.attached_pic:
                added = self._add_cover(container, muxer, stream)
            elif stream.type == "attachment":
                added = muxer == "matroska"
                if added:
                    container.add_stream_from_template(stream)
            else:
                added = self._add(container, muxer, stream, name, streamed)
            if not added:
                self.left_out.append(name)
        if self._carried and not self._shared:
            shift = self._shift(self._picture)
            self._carried[self._picture.index] = _Carried("", None, None, False, shift)
            wanted = [self._picture, *(s for _, s in self._others if s.index in self._carried)]
            for stream in wanted:
                stream.discard = Discard.default
            self._packets = self._demuxer.container.demux(wanted)

    def advance(
        self, container: OutputContainer, until_s: Fraction, end_s: Fraction | None = None
    ) -> None:
        """Write what starts before a time, in seconds; ``end_s`` is the output's end, once known:
        subtitles end with it."""
        while (packet := self._peek()) is not None:
            carried = self._carried[packet.stream_index]
            start_s = _start_s(packet)
            read_s = until_s if end_s is None or carried.stream is not None else end_s + _APART_S
            if start_s >= read_s and (end_s is None or carried.stream is None):
                break
            self._coming = None
            if carried.stream is not None and start_s < until_s:
                carried.waiting.append(packet)
                if not carried.waits:
                    self._write(container, carried, end_s)
        for carried in self._carried.values():
            while carried.waiting and (
                end_s is not None
                or _end_s(carried.waiting[0]) <= until_s
                or _start_s(carried.waiting[0]) + _HELD_S <= until_s
            ):
                self._write(container, carried, end_s)

    def finish(self, container: OutputContainer, end_s: Fraction) -> None:
        """Write the rest of what starts before the output's end."""
        self.advance(container, end_s, end_s)
        for carried in self._carried.values():
            if carried.refused:
                self.left_out.append(f"{carried.refused} pieces of {carried.name}")

    def _add(
        self, container: OutputContainer, muxer: str, stream: Any, name: str, streamed: bool
    ) -> bool:
        """Whether the container accepts a track."""
        if muxer in _ALONE or stream.type not in ("audio", "subtitle"):
            return False
        if stream.codec_context is None:
            return False
        codec = stream.codec_context.codec.canonical_name
        encoder = spelling(muxer, codec) if stream.type == "subtitle" else None
        respelt = None
        if encoder is not None and not native(muxer, codec):
            try:
                respelt = Respelt(container, stream, encoder)
            except (av.FFmpegError, ValueError):  # this FFmpeg cannot read or write them
                return False
            made = respelt.stream
        elif _takes(muxer, stream, codec):
            made = container.add_stream_from_template(stream, opaque=True)
        else:
            return False
        made.metadata.update(labels_for(muxer, labels(stream.metadata)))
        # Among the audio tracks, players choose the new speech.
        unset = Disposition.default if stream.type == "audio" else Disposition(0)
        made.disposition = stream.disposition & ~unset
        waits = stream.type == "subtitle" and not streamed
        shift = self._shift(stream)
        self._carried[stream.index] = _Carried(name, made, respelt, waits, shift)
        return True

    def _shift(self, stream: Any) -> int:
        time_base: Fraction = stream.time_base
        return -round(self._demuxer.start_s / time_base)

    def _add_cover(self, container: OutputContainer, muxer: str, stream: Any) -> bool:
        """Matroska's covers are attachments; in MP4 the tags that say that the video is generated
        leave no room for one."""
        kind = _PICTURES.get(stream.codec_context.codec.canonical_name)
        if muxer != "matroska" or kind is None or self._shared:
            return False
        stream.discard = Discard.default
        packet = next(self._demuxer.container.demux(stream), None)
        if packet is None or not packet.size:
            return False
        container.add_attachment(f"cover.{kind}", f"image/{kind}", bytes(packet))
        return True

    def _peek(self) -> Packet[Stream] | None:
        """The next packet, shifted to the output's time; None at the end."""
        while self._coming is None:
            packet = self._next()
            if packet is None:
                return None
            carried = self._carried.get(packet.stream_index)
            if carried is not None and packet.size and _moved(carried, packet):
                self._coming = packet
        return self._coming

    def _next(self) -> Packet[Stream] | None:
        if self._shared:
            return self._demuxer.other_packet()
        try:
            return next(self._packets, None)
        except av.FFmpegError:  # the rest cannot be read; the picture's reader reports that
            self._packets = iter(())
            return None

    def _write(self, container: OutputContainer, carried: _Carried, end_s: Fraction | None) -> None:
        given = carried.waiting.pop(0)
        try:
            packet = given if carried.respelt is None else carried.respelt.packet(given)
            if packet is None:
                return
            if end_s is not None and carried.waits and _end_s(packet) > end_s:
                packet.duration = max(1, round((end_s - _start_s(packet)) / packet.time_base))
            packet.stream = carried.stream
            container.mux(packet)
        except _REFUSED:
            carried.refused += 1


def _moved(carried: _Carried, packet: Packet[Stream]) -> bool:
    """Shift a packet to the output's time; returns whether it belongs there."""
    dts = packet.pts if packet.dts is None else packet.dts
    if dts is None:
        return False
    now, last = dts + carried.shift, carried.last
    # Two subtitles may begin together.
    if last is not None and (now < last or (now == last and not carried.waits)):
        carried.shift += carried.end - now  # a clock that goes back: the pieces follow each other
        now = carried.end
    packet.pts = now if packet.pts is None else packet.pts + carried.shift
    packet.dts = now
    if packet.pts < 0 and carried.stream is not None:
        return False
    carried.last, carried.end = now, max(carried.end, now + max(1, packet.duration or 0))
    return True


def _start_s(packet: Packet[Stream]) -> Fraction:
    assert packet.pts is not None
    return packet.pts * packet.time_base


def _end_s(packet: Packet[Stream]) -> Fraction:
    return _start_s(packet) + (packet.duration or 0) * packet.time_base


def _takes(muxer: str, stream: Any, codec: str) -> bool:
    """Whether a container accepts a track as it is."""
    if muxer == "mpegts":
        return codec in _MPEGTS
    try:
        with av.open(io.BytesIO(), "w", format=muxer) as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True
