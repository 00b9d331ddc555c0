"""Where media come from: files, pipes, numbered pictures, cameras, the network; opened once or as
often as needed."""

from __future__ import annotations

import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition, Stream

from dithead.errors import ConfigError, MediaError
from dithead.runtime.media import rawsound
from dithead.runtime.media.damage import damage
from dithead.runtime.media.fanout import FanOut
from dithead.runtime.media.pipes import ReadPipe

Kind = Literal["video", "audio"]

#: FFmpeg's devices and protocols that give frames at their own pace, whether read or not.
_LIVE_FORMATS = {"v4l2", "video4linux2", "x11grab", "kmsgrab", "fbdev", "avfoundation", "dshow"}
_LIVE_FORMATS |= {"gdigrab", "alsa", "pulse", "oss", "jack", "sndio"}
_LIVE_SCHEMES = {"rtmp", "rtmps", "rtsp", "rtsps", "rtp", "srt", "udp", "rist", "whip"}

_SILENT_S = 10.0  # a network source or a device that gives nothing for this long has ended
_AGAIN_S = 0.002  # delay before a device without data is asked again
_OPENING_S = 60.0  # and how long it may take to begin
_APART_BYTES = 256 << 20  # packets of one track held while another's are looked for
_OTHERS = -1  # stands for all tracks that nobody reads individually
_NAME_MAX = 1000  # characters of a name in a message; paths may be longer
_NUMBER = re.compile(r"%0?(\d*)d")


@dataclass(frozen=True)
class Input:
    """A source of media and how to open it.

    Attributes:
        source: a file, a URL, a pattern of numbered pictures ("frames/%04d.png"), the name of a
            device (with its ``format``), or "-" for standard input.
        format: FFmpeg's name of the format or device ("v4l2", "mpegts"); None detects it.
        fps: frames per second of numbered pictures, of a still or of a device; None takes FFmpeg's
            25, or the device's own.
        options: options of FFmpeg's demuxer or protocol, such as ``rtsp_transport``, passed on
            unchecked. Raw sound ("s16le") needs ``rate`` in Hz and ``channels``.
        audio_track: number of the audio track to use, from 0.

    Raises:
        ConfigError: FFmpeg knows no such format, the rate is not above 0, or the track's number is
            negative.
    """

    source: str | os.PathLike[str]
    format: str | None = None
    fps: Fraction | None = None
    options: tuple[tuple[str, str], ...] = ()
    audio_track: int = 0

    def __post_init__(self) -> None:
        if self.format is not None and not any(
            self.format in name.split(",") for name in av.formats_available
        ):
            raise ConfigError(f"FFmpeg knows no format {self.format!r}; see ffmpeg -formats")
        if self.fps is not None and self.fps <= 0:
            raise ConfigError(f"the frame rate must be above 0, not {self.fps}")
        if self.audio_track < 0:
            raise ConfigError(f"audio tracks count from 0; found {self.audio_track}")

    def __str__(self) -> str:
        return "standard input" if self.text == "-" else shortened(self.text)

    @property
    def text(self) -> str:
        """The source as text."""
        return os.fspath(self.source)

    @property
    def scheme(self) -> str:
        """The URL's scheme; empty for a file, "-" or a device."""
        head, found, _ = self.text.partition("://")
        return head.lower() if found else ""

    @property
    def live(self) -> bool:
        """Whether it gives frames at its own pace."""
        return self.scheme in _LIVE_SCHEMES or self.format in _LIVE_FORMATS

    @property
    def once(self) -> bool:
        """Whether it can be read only once, from front to back: a pipe or a live source."""
        return self.live or self.text == "-" or self._is_pipe

    @property
    def pattern(self) -> bool:
        """Whether it stands for numbered pictures."""
        return not self.scheme and _NUMBER.search(self.text) is not None

    @property
    def _is_pipe(self) -> bool:
        try:
            mode = os.stat(self.text).st_mode
        except (OSError, ValueError):
            return False
        return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)

    @property
    def damage(self) -> str | None:
        """What is missing from a file, in words, if its container tells."""
        special = self.once or self.scheme or self.pattern or self.format in _LIVE_FORMATS
        return None if special else damage(self.text)

    def same_file(self, path: Path) -> bool:
        """Whether it reads this same file."""
        try:
            return path.samefile(self.text)
        except (OSError, ValueError):
            return False


def as_input(given: str | os.PathLike[str] | Input) -> Input:
    """An input from a path or URL; an Input is returned as it is."""
    return given if isinstance(given, Input) else Input(given)


class Demuxer:
    """An opened input: gives each of its tracks its packets, from any thread.

    If one track is read ahead of another, the other's packets wait, so both can come from one pass
    over a pipe.

    Args:
        given: what to open.
        kinds: the tracks that will be read; the others are skipped.

    Attributes:
        errors: places after which the input could not be read on.

    Raises:
        MediaError: it is missing, is not media, or has none of the tracks.
    """

    def __init__(self, given: Input, kinds: Sequence[Kind]) -> None:
        self.given = given
        self.errors = 0
        self._kinds = tuple(kinds)
        self._pipe: ReadPipe | None = None
        self.container = self._open()
        try:
            self._streams = {kind: self._stream(kind) for kind in kinds}
        except BaseException:
            self.container.close()
            raise
        self._read = list(self._streams.values())
        for other in self.container.streams:
            if other not in self._read:
                other.discard = Discard.all
        self.start_s = _start_s(self.container)
        self._held_bytes = 0
        self._counting = threading.Lock()
        self._stopped = threading.Event()
        self._packets = self._shared()

    @property
    def cause(self) -> str:
        """Why nothing can be decoded, if known: begins with a semicolon, or is empty."""
        if self._pipe is not None:
            return "" if self._pipe.taken else "; nothing came"
        missing = self.given.damage
        return "" if missing is None else f"; the file {missing}"

    @property
    def hint(self) -> str | None:
        """What may help if nothing can be decoded."""
        if self._pipe is None or not self._pipe.taken:
            return None
        return "an MP4 or MOV in a pipe must have its index in front (+faststart)"

    def stream(self, kind: Kind) -> Any:
        """PyAV's stream of a track."""
        return self._streams[kind]

    def next_packet(self, index: int) -> Packet[Stream] | None:
        """The next packet of a stream, None at the end.

        Raises:
            MediaError: too much of another track comes before it.
        """
        packet = self._packets.take(index)
        if packet is not None:
            with self._counting:
                self._held_bytes -= packet.size
        return packet

    def read_also(self, streams: Sequence[Any]) -> None:
        """Read other audio tracks and subtitles in the same pass, for `other_packet`; call it
        before any packet is taken."""
        for stream in streams:
            if stream.type in ("audio", "subtitle"):
                stream.discard = Discard.default
                self._read.append(stream)

    def other_packet(self) -> Packet[Stream] | None:
        """A packet of another track, if one was met so far."""
        packet = self._packets.waiting(_OTHERS)
        if packet is not None:
            with self._counting:
                self._held_bytes -= packet.size
        return packet

    def seek(self, pts: int, stream: Any) -> None:
        """Go to the key frame at or before a time of a stream."""
        self.container.seek(pts, stream=stream)
        self._held_bytes = 0
        self._packets = self._shared()

    def _shared(self) -> FanOut[Packet[Stream]]:
        numbers = {stream.index for stream in self._streams.values()}

        def meant_for(packet: Packet[Stream]) -> tuple[int]:
            index = packet.stream_index
            return (index if index in numbers else _OTHERS,)

        return FanOut(self._demuxed(), (*numbers, _OTHERS), meant_for)

    def _demuxed(self) -> Iterator[Packet[Stream]]:
        packets, asked_s = self._packets_of_all(), time.monotonic()
        while True:
            packet = None
            try:
                packet = next(packets, None)
            except av.FFmpegError as error:
                # A device without a frame yet reports that instead of waiting, as those of macOS
                # do.
                if isinstance(error, av.BlockingIOError) and self._wait_for_more(asked_s):
                    packets = self._packets_of_all()
                    continue
                # The rest cannot be read; a server that leaves is not damage.
                self.errors += not self.given.live
            if self._pipe is not None:
                self._pipe.raise_interrupt()
                self.errors += packet is None and self._pipe.error is not None
            if packet is None:
                return
            if not packet.size and packet.dts is None:  # FFmpeg's sign of the end
                continue
            with self._counting:
                self._held_bytes += packet.size
            if self._held_bytes > _APART_BYTES:
                raise MediaError(
                    f"{self.given}: picture and sound lie too far apart to be read in one pass",
                    hint="write it to a file and give that",
                )
            yield packet
            asked_s = time.monotonic()

    def _wait_for_more(self, asked_s: float) -> bool:
        """Wait a moment; returns whether to repeat a request that was first made at a time."""
        return not self._stopped.wait(_AGAIN_S) and time.monotonic() - asked_s < _SILENT_S

    def _packets_of_all(self) -> Iterator[Packet[Stream]]:
        """The tracks' packets from here on; after an error it gives none."""
        return self.container.demux(self._read)

    def stop(self) -> None:
        """End it early, from any thread: threads that wait for a pipe, or for a device without
        data, go on as if at its end."""
        self._stopped.set()
        if self._pipe is not None:
            self._pipe.stopped = True

    def close(self) -> None:
        """Close the input; one that can be read only once closes when its last reader lets go."""
        self.stop()
        if not self.given.once:
            self.container.close()

    def _open(self) -> InputContainer:
        given = self.given
        options = dict(given.options)
        if given.fps is not None:
            options["framerate"] = str(given.fps)
        hears = "audio" in self._kinds
        if rawsound.is_raw(given.format):
            options = rawsound.raw_options(str(given), options)
        elif hears and given.format is None and rawsound.named_raw(given.text):
            raise ConfigError(f"{given}: a file of that name has no header: {rawsound.HOW}")
        target: Any = given.text
        if given.text == "-":
            target = self._pipe = ReadPipe(sys.stdin.buffer)
        elif given._is_pipe and given.format not in _LIVE_FORMATS:
            try:
                file = open(given.text, "rb", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise MediaError(f"{given}: cannot be opened: {error.strerror}") from error
            target = self._pipe = ReadPipe(file)
        elif not given.scheme and given.format not in _LIVE_FORMATS | {"lavfi"}:
            # Absolute, so that FFmpeg never takes the part before a colon for a protocol.
            target = os.path.abspath(given.text)
            if given.pattern and not os.path.exists(target):
                options.setdefault("start_number", str(_first_number(given)))
            elif (unreachable := _unreachable(target)) is not None:
                raise MediaError(f"{given}: {unreachable}")
            elif os.path.isdir(target):
                raise MediaError(
                    f"{given}: a folder; expected a media file, or a pattern of numbered pictures "
                    "such as frames/%04d.png"
                )
        timeout = (_OPENING_S, _SILENT_S) if given.live and given.scheme else None
        try:
            container = av.open(
                target,
                "r",
                format=given.format,
                options=options,
                metadata_errors="replace",
                timeout=timeout,
            )
        except av.error.ProtocolNotFoundError as error:
            raise MediaError(f"{given}: this FFmpeg was built without that protocol") from error
        except (av.FFmpegError, OSError, ValueError) as error:
            if self._pipe is not None:
                self._pipe.raise_interrupt()
                error = self._pipe.error or error
            reason = getattr(error, "strerror", None) or error
            if (missing := given.damage) is not None:
                raise MediaError(f"{given}: the file {missing}") from error
            hint = self.hint or (rawsound.HOW if self._kinds == ("audio",) else None)
            raise MediaError(
                f"{given}: not a readable media file ({reason}){self.cause}", hint=hint
            ) from error
        if given.format is None and rawsound.is_raw(container.format.name):  # detected by its name
            container.close()
            rawsound.raw_options(str(given), {})
        opened: InputContainer = container
        return opened

    def _stream(self, kind: Kind) -> Any:
        found = _streams(self.container, kind)
        number = self.given.audio_track if kind == "audio" else 0
        if not found:
            missing = self.given.damage
            hint = "" if missing is None else f"; the file {missing}"
            raise MediaError(f"{self.given}: no {kind} track; expected a file with {kind}{hint}")
        if number >= len(found):
            raise MediaError(
                f"{self.given}: no audio track {number}; it has {len(found)}, counted from 0"
            )
        stream = found[number]
        if kind == "video" and stream.frames == 1:  # an animated picture's cover: take what moves
            stream = next((other for other in found if other.frames > 1), stream)
            if stream.frames == 1 and any(s.disposition & Disposition.dependent for s in found):
                raise MediaError(
                    f"{self.given}: a picture in tiles, which cannot be joined here: convert "
                    "it first, such as to PNG or JPEG"
                )
        if stream.codec_context is None:
            raise MediaError(
                f"{self.given}: this FFmpeg cannot decode its {kind} "
                f"({self.container.format.long_name}): convert it first"
            )
        return stream


def shortened(name: str) -> str:
    """A name for a message; a very long one is shortened to both ends."""
    return name if len(name) <= _NAME_MAX else f"{name[:100]}...{name[-100:]}"


def _unreachable(path: str) -> str | None:
    """Why there is no such file, in words; None if there is one."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError) as error:  # no permission for a folder, or a name that is too long
        return f"cannot be opened: {getattr(error, 'strerror', None) or error}"
    return None


def _first_number(given: Input) -> int:
    """The lowest number for which a pattern's picture exists."""
    folder, name = os.path.split(os.path.abspath(given.text))
    match = _NUMBER.search(name)
    if match is None:
        raise MediaError(f"{given}: the number of a picture belongs in its name, not its folder")
    digits = match[1] or "1"
    wanted = re.compile(
        re.escape(name[: match.start()]) + rf"(\d{{{digits},}})" + re.escape(name[match.end() :])
    )
    names = os.listdir(folder) if os.path.isdir(folder) else []
    numbers = [int(m[1]) for m in map(wanted.fullmatch, names) if m is not None]
    if not numbers:
        raise MediaError(f"{given}: no picture of that pattern")
    numbers = sorted(set(numbers))
    for before, after in pairwise(numbers):
        if after != before + 1:  # FFmpeg would end there silently
            raise MediaError(
                f"{given}: there is no number {before + 1}, and {numbers[-1]} is the last",
                hint="number the pictures without gaps",
            )
    return numbers[0]


def _streams(container: InputContainer, kind: Kind) -> list[Any]:
    """The streams of a kind; the cover picture of a song is not a video."""
    return [
        stream
        for stream in container.streams
        if stream.type == kind and not stream.disposition & Disposition.attached_pic
    ]


def _start_s(container: InputContainer) -> Fraction:
    """The container's time that counts as zero, in seconds: its start, without an audio lead-in."""
    start_s = Fraction(container.start_time or 0, 1_000_000)
    video = next(iter(_streams(container, "video")), None)
    if video is not None and video.start_time is not None:
        video_s: Fraction = video.start_time * video.time_base
        # Equal within the microsecond that containers round to: take the exact one.
        if start_s < 0 or abs(video_s - start_s) <= Fraction(1, 1_000_000):
            return video_s if start_s >= 0 else min(video_s, Fraction(0))
    return max(start_s, Fraction(0))
