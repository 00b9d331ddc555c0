"""Writes the result: video with the input's own times, and audio that ends with the last frame.

A file is written under a hidden temporary name beside its final one and renamed when complete, so
an interrupted run leaves nothing behind. A pipe or a server gets everything at once.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.format import VideoFormat
from av.video.frame import PictureType
from av.video.stream import VideoStream

from dithead.command import terminate
from dithead.errors import ConfigError, MediaError
from dithead.runtime.media.inputs import shortened
from dithead.runtime.media.otherstreams import OtherTracks
from dithead.runtime.media.outputs import ENCODERS, Encoding, Output, as_output, encoder_format
from dithead.runtime.media.pipes import WritePipe
from dithead.runtime.media.soundtrack import Soundtrack
from dithead.runtime.media.sources import AudioSource
from dithead.runtime.media.tags import DISCLOSURE, OF_RANDOM_WEIGHTS, Tags
from dithead.runtime.media.videoframe import (
    VideoFrame,
    convert_picture,
    copy_picture,
    has_alpha,
    has_transparency,
    upright,
)
from dithead.runtime.media.videoinfo import VideoInfo

_SERVICE = {"service_name": "AI-generated video", "service_provider": "DiT-Head"}

_ROTATING = {"mp4", "mov", "matroska", "webm"}  # they tell players to turn the picture

_TAGGED = {"mp4", "mov"}

# For MP4 and MOV: tags of any name, not only those of a fixed list; and the index in front, to play
# while loading, or, if the start cannot be rewritten later, in fragments.
_TAGS, _INDEX_FIRST = "+use_metadata_tags", "+faststart"
_PIECES = "+frag_keyframe+delay_moov+default_base_moof"
_STREAMED = {"flush_packets": "1"}
_PIECE_US = 500_000
_KEY_FRAME_S = 2  # a viewer who joins a stream waits at most this long for a key frame
_CLUSTERS, _CLUSTER_MS = {"matroska", "webm"}, 100  # Matroska's pieces
_ABORT_S = 1.0  # how long to wait for a write in progress


class VideoSink:
    """Encodes frames, and an audio track beside them, into one file or stream.

    A frame keeps its presentation time; there are no B-frames, so the times need no edit list. MP4
    and MOV hold the times and the last frame's duration exactly; Matroska, WebM and FLV round times
    to milliseconds, MPEG-TS to its 90 kHz. Where chroma is subsampled, an odd width or height grows
    by one repeated column or row, as encoders require. Rotation is passed on as metadata, or
    applied to the picture if the container cannot store it. Transparency is kept if the encoder
    supports it. Used as a context manager, it calls `close` at the end, and `abort` after an
    exception. For one thread at a time.

    Args:
        to: the file to write (.mp4, .m4v, .mov, .mkv, .webm, .ts, .flv), "-" or a URL; see
            :class:`Output`.
        like: the source's properties, which the output adopts.
        audio: the track to encode, with its own channels and its own rate or a higher one that the
            encoder accepts, from time zero to the end of the last frame: cut there, or padded with
            silence. None for no track.
        encoding: the container and the encoder.
        interpolate: output frames for one input frame; makes the time base finer.
        tags: tags of the output, besides the note that it is generated; None for none.
        tracks: what to add besides picture and sound; None for nothing.
        random_weights: whether the model that made the pictures was never trained, which the file
            then says.

    Attributes:
        time_base: seconds in one tick of the encoder's clock.
        frames_written: number of frames so far.
        notes: what the user should know about the encoding.

    Raises:
        MediaError: the folder is missing or not writable, the extension is unknown, the server
            cannot be reached or the encoder refuses the pictures, all before any work; `write` and
            `close` raise it, too.
        ConfigError: the encoder has no such option, or refuses its value.
    """

    def __init__(
        self,
        to: str | os.PathLike[str] | Output,
        like: VideoInfo,
        *,
        audio: AudioSource | None = None,
        encoding: Encoding | None = None,
        interpolate: int = 1,
        tags: Tags | None = None,
        tracks: OtherTracks | None = None,
        random_weights: bool = False,
    ) -> None:
        self.to = as_output(to)
        self._tags, self._tracks = tags, tracks
        self.time_base = like.time_base / interpolate
        self.frames_written = 0
        self.notes: list[str] = []
        self._closed = False
        self._writing = threading.Lock()  # held while the container is in use
        self._pipe: WritePipe | None = None
        self._last: VideoFrame | None = None
        self._opaque_codec = ""  # the encoder's name, until lost transparency is reported
        encoding = encoding or Encoding()
        muxer = self._muxer = self.to.muxer(encoding)
        codec, audio_codec = encoding.codec(muxer), ENCODERS[muxer][1]
        options = encoding.options(codec, self.to.streamed)
        if like.hdr is not None:
            options = like.hdr.options(codec, options)
            if (note := like.hdr.note(codec)) is not None:
                self.notes.append(note)
        self._turns = 0 if muxer in _ROTATING else like.rotation_deg // 90 % 4
        self._final: Path | None = None
        target: Any = self.to.text
        if target == "-":
            sys.stdout.flush()
            target = self._pipe = WritePipe(sys.stdout.fileno())
        if not self.to.streamed:
            self._final = Path(self.to.text)
            self._temporary = _temporary_name(self._final)
            # Runs when this object is dropped and at exit, if nobody called close or abort.
            self._remove_temporary = weakref.finalize(self, self._temporary.unlink, missing_ok=True)
            target = str(self._temporary.absolute())
        refused = f"{self.to}: cannot encode {like.pix_fmt} with {codec}"
        if codec.endswith("_nvenc"):
            refused += ", which needs an NVIDIA GPU with NVENC and its driver"
        if self.to.live:
            refused = f"{self.to}: cannot be reached, or takes no {codec}"
        asked = [f"{name} {value}" for name, value in encoding.asked().items()]
        # Everything that follows is undone if it is interrupted, at any line.
        try:
            if self._final is not None:
                _create(self._temporary, self._final)
            with _reported(f"{self.to}: cannot be written to"):
                self._container = av.open(
                    target,
                    "w",
                    format=muxer,
                    container_options=_muxer_options(muxer, self.to.streamed),
                )
            with _reported(refused, asked):
                self._video = _add_video(
                    self._container,
                    _turned(like, self._turns),
                    codec,
                    options,
                    interpolate,
                    encoder_format(codec, like, encoding.pix_fmt),
                )
                if encoding.bitrate_bps is not None:
                    self._video.bit_rate = encoding.bitrate_bps
                if self.to.streamed:
                    self._video.gop_size = max(1, round(_KEY_FRAME_S * like.average_rate))
                self._audio = (
                    None if audio is None else Soundtrack(self._container, audio, audio_codec)
                )
                if tags is not None:
                    tags.write(self._container, self._video, muxer)
                    if self.to.streamed:
                        tags.write_chapters(self._container, muxer, None)
                # MPEG-TS has room only for the name of the service.
                said = dict(_SERVICE if muxer == "mpegts" else DISCLOSURE)
                if random_weights:
                    said["service_name" if muxer == "mpegts" else "comment"] += OF_RANDOM_WEIGHTS
                self._container.metadata.update(said)
                if tracks is not None:
                    tracks.add_to(self._container, muxer, self.to.streamed)
                # Opens the encoders and writes the header, so errors show now.
                with _killable() if self.to.live else nullcontext(), _priorities_kept():
                    self._container.start_encoding()
            self._opaque_codec = "" if has_alpha(self._video.format.name) else codec
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: VideoFrame) -> None:
        """Encode a frame, and the audio up to its time.

        Raises:
            ValueError: the frame is not later than the one before.
        """
        if self._last is not None and frame.time_s <= self._last.time_s:
            raise ValueError(f"frame {frame.index} at {float(frame.time_s):.3f} s is out of order")
        picture, width, height = frame.picture, self._video.width, self._video.height
        if self._opaque_codec and has_transparency(picture):
            self.notes.append(
                f"the transparency was left out, which {self._opaque_codec} has not; "
                "a .webm keeps it"
            )
            self._opaque_codec = ""
        if self._turns:
            picture = upright(picture, self._turns)
        if (picture.width, picture.height) != (width, height):
            picture = copy_picture(picture, width, height)
        picture = convert_picture(picture, self._video.format.name, width, height)
        picture.pts = round(frame.time_s / self.time_base)
        picture.time_base = self.time_base
        picture.duration = round((frame.end_s - frame.time_s) / self.time_base)
        # Otherwise the decoder's frame type would force the encoder's.
        picture.pict_type = PictureType.NONE
        with self._at_work(f"{self.to}: cannot write frame {frame.index}"):
            self._container.mux(self._video.encode(picture))
            if self._audio is not None:
                self._audio.advance(frame.time_s)
            if self._tracks is not None:
                self._tracks.advance(self._container, frame.time_s)
        self.frames_written += 1
        self._last = frame

    @contextmanager
    def _at_work(self, failed: str) -> Iterator[None]:
        """Use the container; its errors are reported with those words."""
        with self._writing, _reported(failed):
            try:
                yield
            finally:
                if self._pipe is not None:
                    self._pipe.raise_interrupt()

    def close(self) -> None:
        """Finish the tracks and give a file its name. Without frames, raises an error and leaves no
        file."""
        if self._closed:
            return
        try:
            if self._last is None:
                raise MediaError(f"{self.to}: not written, as there was no frame to write")
            with self._at_work(f"{self.to}: cannot be finished"):
                self._container.mux(self._video.encode(None))
                if self._audio is not None:
                    self._audio.finish(self._last.end_s, self._last.end_s - self._last.time_s)
                if self._tracks is not None:
                    self._tracks.finish(self._container, self._last.end_s)
                if self._tags is not None and not self.to.streamed:
                    self._tags.write_chapters(self._container, self._muxer, self._last.end_s)
                self._container.close()
                if self._final is not None:
                    os.replace(self._temporary, self._final)
        except BaseException:
            self.abort()
            raise
        self._closed = True
        if self._final is not None:
            self._remove_temporary.detach()

    @property
    def left_out(self) -> list[str]:
        """Names of what did not fit besides picture and sound; complete at the end."""
        tags = [] if self._tags is None else self._tags.left_out(self._muxer)
        return tags + ([] if self._tracks is None else self._tracks.left_out)

    def stop(self) -> None:
        """End a wait for the reader of standard output, from any thread."""
        if self._pipe is not None:
            self._pipe.stopped = True

    def abort(self) -> None:
        """Stop and leave no file. Does nothing after `close`."""
        if self._closed:
            return
        self._closed = True
        self.stop()
        # The file is removed first: then the muxer does not stop to move its index to the front.
        if self._final is not None:
            with suppress(OSError):
                self._remove_temporary()
        # If a server accepts nothing any more, the thread that waits for it is left alone.
        if hasattr(self, "_container") and self._writing.acquire(timeout=_ABORT_S):
            try:
                with suppress(av.FFmpegError, OSError):
                    self._container.close()
            finally:
                self._writing.release()
        if self._final is not None:  # where an open file cannot be removed
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)


@contextmanager
def _killable() -> Iterator[None]:
    """Let Ctrl-C end the process at once, and the signals that the commands treat the same way:
    PyAV waits for a server's answer in a call during which no Python handler can run. An
    application's own handlers stay."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = (signal.default_int_handler, terminate)
    numbers = [number for number in signal.valid_signals() if signal.getsignal(number) in ours]
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _priorities_kept() -> Iterator[None]:
    """Undo what SVT-AV1 does when root opens it: its threads, the one that opens it and all that
    this one starts would become real-time threads and keep the cores from all others."""
    if sys.platform != "linux":
        yield
        return
    before = dict(_policies())
    try:
        yield
    finally:
        for number, policy in _policies():
            if before.get(number, os.SCHED_OTHER) == os.SCHED_OTHER != policy:
                with suppress(OSError):  # the thread may have ended by now
                    os.sched_setscheduler(number, os.SCHED_OTHER, os.sched_param(0))


def _policies() -> Iterator[tuple[int, int]]:
    """The process's threads, as Linux numbers them, and how each is scheduled."""
    for name in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has just ended
            yield int(name), os.sched_getscheduler(int(name))


@contextmanager
def _reported(message: str, asked: Sequence[str] = ()) -> Iterator[None]:
    """Turn errors of FFmpeg or the system into a `MediaError`, or, if FFmpeg blames an option that
    was given, into a `ConfigError`."""
    try:
        yield
    except av.error.ProtocolNotFoundError as error:
        raise MediaError(f"{message}: this FFmpeg was built without that protocol") from error
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if asked and isinstance(error, av.error.ArgumentError):
            raise ConfigError(f"{message} with {', '.join(asked)}: {reason}") from error
        raise MediaError(f"{message}: {reason}") from error


def _temporary_name(final: Path) -> Path:
    """The hidden file beside the final one, which it will be renamed to."""
    try:
        final.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # the folder is checked below
    except (OSError, ValueError) as error:  # a name that is too long, or contains a zero
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{shortened(str(final))}: cannot be the output: {reason}") from error
    if final.is_dir():
        raise MediaError(f"{final}: is a folder; expected the name of a file")
    if not final.parent.is_dir():
        raise MediaError(
            f"{final}: the folder {final.parent} does not exist",
            hint="make it first",
        )
    return final.with_name(f".dithead-{secrets.token_hex(8)}{final.suffix}")


def _create(temporary: Path, final: Path) -> None:
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise MediaError(f"{final}: cannot write in {final.parent}: {error.strerror}") from error


def _add_video(
    container: OutputContainer,
    like: VideoInfo,
    codec: str,
    options: dict[str, str],
    interpolate: int,
    pix_fmt: str,
) -> VideoStream:
    # A variable rate's mean may be a fraction with numbers too large for FFmpeg.
    rate = (like.average_rate * interpolate).limit_denominator(100_100)
    stream = container.add_stream(codec, rate=rate, options=options)
    assert isinstance(stream, VideoStream)
    stream.time_base = like.time_base / interpolate
    stream.codec_context.time_base = like.time_base / interpolate
    # The smallest picture of the format with whole chroma samples gives the step.
    chroma = VideoFormat(pix_fmt, 2, 2)
    stream.width = like.width + like.width % (2 // chroma.chroma_width())
    stream.height = like.height + like.height % (2 // chroma.chroma_height())
    stream.pix_fmt = pix_fmt
    stream.color_range = like.color_range
    stream.colorspace = like.colorspace
    stream.color_primaries = like.color_primaries
    stream.color_trc = like.color_trc
    stream.max_b_frames = 0
    if stream.codec_context.codec.canonical_name == "hevc" and container.format.name in _TAGGED:
        stream.codec_context.codec_tag = "hvc1"  # the one that Apple's players accept
    # Use the frames' own durations: otherwise the encoder ends the last one by the mean rate.
    stream.codec_context.flags |= Flags.frame_duration
    if like.sample_aspect_ratio:
        stream.sample_aspect_ratio = like.sample_aspect_ratio
    if like.rotation_deg:
        stream.set_display_rotation(like.rotation_deg)
    return stream


def _muxer_options(muxer: str, streamed: bool) -> dict[str, str]:
    options = dict(_STREAMED) if streamed else {}
    if streamed and muxer in _CLUSTERS:
        options["cluster_time_limit"] = str(_CLUSTER_MS)
    if muxer in _TAGGED:
        options["movflags"] = _TAGS + (_PIECES if streamed else _INDEX_FIRST)
        if streamed:
            options["frag_duration"] = str(_PIECE_US)
    return options


def _turned(like: VideoInfo, turns: int) -> VideoInfo:
    """The properties of a video whose pictures were turned upright by so many quarter turns."""
    if turns % 2 == 0:
        return replace(like, rotation_deg=0) if turns else like
    aspect = like.sample_aspect_ratio
    return replace(
        like,
        width=like.height,
        height=like.width,
        sample_aspect_ratio=1 / aspect if aspect else None,
        rotation_deg=0,
    )
