"""Writing the result: video with the input's own times, audio that ends with the last frame.

The file is written under a hidden temporary name beside its final one and renamed when complete, so
an interrupted run leaves nothing behind.
"""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.codec import Codec, find_best_pix_fmt_of_list
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.format import VideoFormat
from av.video.frame import PictureType
from av.video.stream import VideoStream

from dithead.errors import MediaError
from dithead.runtime.frame import VideoFrame, convert_picture, copy_picture
from dithead.runtime.media import AudioSource, VideoInfo, audio_frame

#: What every file says about itself; Matroska turns the names to upper case.
DISCLOSURE = {
    "comment": "AI-generated: mouth region synthesised by DiT-Head",
    "synthetic_media": "yes",
}

_AUDIO_BITS_PER_S = 192_000
_AUDIO_BITS_PER_SAMPLE_MAX = 6  # AAC's limit, for each channel
# Below this, a block of AAC (1024 samples) outlasts a video frame.
_AUDIO_RATE_MIN_HZ = 32_000
_RESAMPLER_SLACK_S = Fraction(1, 1000)


@dataclass(frozen=True, slots=True)
class _FileType:
    """FFmpeg's muxer and encoders for a file name extension."""

    muxer: str
    video_codec: str
    audio_codec: str


_FILE_TYPES = {
    ".mp4": _FileType("mp4", "libx264", "aac"),
    ".m4v": _FileType("mp4", "libx264", "aac"),
    ".mov": _FileType("mov", "libx264", "aac"),
    ".mkv": _FileType("matroska", "libx264", "libopus"),
    ".webm": _FileType("webm", "libvpx-vp9", "libopus"),
}

# For MP4 and MOV: the index in front, to play while loading; tags of any name, not a fixed list.
_MUXER_OPTIONS = {"movflags": "+faststart+use_metadata_tags"}


class VideoSink:
    """Encodes frames, and an audio track beside them, into one file.

    A frame keeps its presentation time; there are no B-frames, so the times need no edit list. MP4
    and MOV hold the times and the last frame's duration exactly, Matroska and WebM round times to
    milliseconds. Where chroma is subsampled, an odd width or height grows by one repeated column or
    row, as encoders ask. Used as a context manager, it calls `close` at the end and `abort` if
    anything was raised. For one thread at a time.

    Args:
        path: the file to write: .mp4, .m4v, .mov, .mkv or .webm.
        like: the source's properties, which the output takes over.
        audio: the track to encode, at its own channels and at its own rate or a higher one that
            the encoder takes, from time zero to the end of the last frame: cut there, or padded
            with silence. None for no track.
        codec: FFmpeg's name of the video encoder; None for the usual one.
        crf: constant quality, lower is better; for libx264 0 (lossless) to 51.
        preset: speed of libx264 and libx265.
        interpolate: output frames for one input frame; makes the time base finer.

    Attributes:
        time_base: seconds in one tick of the encoder's clock.
        frames_written: number of frames so far.

    Raises:
        MediaError: the folder is missing or not writable, the extension is unknown or the encoder
            refuses, all before any work; `write` and `close` raise it too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        like: VideoInfo,
        *,
        audio: AudioSource | None = None,
        codec: str | None = None,
        crf: int = 18,
        preset: str = "veryfast",
        interpolate: int = 1,
    ) -> None:
        self.path = Path(path)
        self.time_base = like.time_base / interpolate
        self.frames_written = 0
        self._closed = False
        self._last: VideoFrame | None = None
        file_type = _FILE_TYPES.get(self.path.suffix.lower())
        if file_type is None:
            known = ", ".join(_FILE_TYPES)
            raise MediaError(f"{path}: unknown extension {self.path.suffix!r}; expected {known}")
        temporary = _create_temporary(self.path)
        # Runs when this object is dropped and at exit, should nobody call close or abort.
        self._remove_temporary = weakref.finalize(self, temporary.unlink, missing_ok=True)
        self._temporary = temporary
        self._container = av.open(
            str(temporary.absolute()),
            "w",
            format=file_type.muxer,
            container_options=_MUXER_OPTIONS if file_type.muxer in ("mp4", "mov") else {},
        )
        self._container.metadata.update(DISCLOSURE)
        codec = codec or file_type.video_codec
        try:
            with _reported(f"{path}: cannot encode {like.pix_fmt} with {codec}"):
                options = _encoder_options(codec, crf, preset)
                self._video = _add_video(self._container, like, codec, options, interpolate)
                self._audio = (
                    None
                    if audio is None
                    else _AudioTrack(self._container, audio, file_type.audio_codec)
                )
                # Opens the encoders and writes the header: what they refuse shows now.
                self._container.start_encoding()
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
        if (picture.width, picture.height) != (width, height):
            picture = copy_picture(picture, width, height)
        picture = convert_picture(picture, self._video.format.name, width, height)
        picture.pts = round(frame.time_s / self.time_base)
        picture.time_base = self.time_base
        picture.duration = round((frame.end_s - frame.time_s) / self.time_base)
        # The decoder's frame type would force the encoder's.
        picture.pict_type = PictureType.NONE
        with _reported(f"{self.path}: cannot write frame {frame.index}"):
            self._container.mux(self._video.encode(picture))
            if self._audio is not None:
                self._audio.advance(frame.time_s)
        self.frames_written += 1
        self._last = frame

    def close(self) -> None:
        """Finish the tracks and give the file its name. Without frames, raises and leaves none."""
        if self._closed:
            return
        try:
            if self._last is None:
                raise MediaError(f"{self.path}: not written, as there was no frame to write")
            with _reported(f"{self.path}: cannot finish the file"):
                self._container.mux(self._video.encode(None))
                if self._audio is not None:
                    self._audio.finish(self._last.end_s, self._last.end_s - self._last.time_s)
                self._container.close()
                os.replace(self._temporary, self.path)
        except BaseException:
            self.abort()
            raise
        self._closed = True
        self._remove_temporary.detach()

    def abort(self) -> None:
        """Stop and leave no file. Harmless after `close`."""
        if self._closed:
            return
        self._closed = True
        # The file goes first: the muxer then does not stop to move its index to the front.
        self._remove_temporary()
        with suppress(av.FFmpegError, OSError):
            self._container.close()


class _AudioTrack:
    """Encodes an audio source beside the video, no further than it is told to."""

    def __init__(self, container: OutputContainer, source: AudioSource, codec: str) -> None:
        self._container = container
        self._source = source
        self._frames = source.original()
        self._held = np.zeros((source.channels, 0), np.float32)
        self._position = 0  # samples encoded
        encoder = Codec(codec, "w")
        rate_hz = _encoder_rate_hz(encoder, source.sample_rate_hz)
        layout = _encoder_layout(codec, rate_hz, source.layout)
        channels = av.AudioLayout(layout).nb_channels
        bits_per_s = min(_AUDIO_BITS_PER_S, _AUDIO_BITS_PER_SAMPLE_MAX * rate_hz * channels)
        stream = container.add_stream(codec, rate=rate_hz, layout=layout, bit_rate=bits_per_s)
        assert isinstance(stream, AudioStream)
        self._stream = stream

    def advance(self, until_s: Fraction) -> None:
        """Encode what comes before a time in seconds; silence where the source has ended."""
        rate, layout = self._source.sample_rate_hz, self._source.layout
        until = round(until_s * rate)
        while self._position < until:
            wanted = until - self._position
            if self._held.shape[1] == 0:
                frame = next(self._frames, None)
                silence = np.zeros((self._source.channels, min(rate, wanted)), np.float32)
                self._held = (
                    silence if frame is None else np.asarray(frame.to_ndarray(), np.float32)
                )
            samples, self._held = self._held[:, :wanted], self._held[:, wanted:]
            frame = audio_frame(samples, self._position, rate, layout)
            self._container.mux(self._stream.encode(frame))
            self._position += samples.shape[1]

    def finish(self, end_s: Fraction, tolerance_s: Fraction) -> None:
        """Encode up to a time and empty the encoder.

        AAC comes in blocks, and some readers play the padding of the last one: where that would
        outlast the end by more than the tolerance, the last block is left out.
        """
        codec = self._stream.codec_context
        block_s = Fraction(codec.frame_size, codec.sample_rate)
        blocks = end_s / block_s
        if codec.name == "aac" and (ceil(blocks) - blocks) * block_s > tolerance_s:
            end_s = floor(blocks) * block_s - _RESAMPLER_SLACK_S
        self.advance(end_s)
        self._container.mux(self._stream.encode(None))


@contextmanager
def _reported(message: str) -> Iterator[None]:
    """Turn what FFmpeg or the system refuses into a `MediaError`."""
    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{message}: {reason}") from error


def _create_temporary(final: Path) -> Path:
    """Create the hidden file beside the final one that will be renamed to it."""
    if final.is_dir():
        raise MediaError(f"{final}: is a folder; expected the name of a file")
    if not final.parent.is_dir():
        raise MediaError(f"{final}: the folder {final.parent} does not exist; make it first")
    temporary = final.with_name(f".dithead-{secrets.token_hex(4)}{final.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise MediaError(f"{final}: cannot write in {final.parent}: {error.strerror}") from error
    return temporary


def _add_video(
    container: OutputContainer,
    like: VideoInfo,
    codec: str,
    options: dict[str, str],
    interpolate: int,
) -> VideoStream:
    supported = [pix_fmt.name for pix_fmt in Codec(codec, "w").video_formats or []]
    pix_fmt = like.pix_fmt
    if supported and pix_fmt not in supported:
        best, _ = find_best_pix_fmt_of_list(supported, pix_fmt)
        pix_fmt = best.name if best is not None else supported[0]
    # A variable rate's mean may be a fraction of numbers that FFmpeg cannot hold.
    rate = (like.average_rate * interpolate).limit_denominator(100_100)
    stream = container.add_stream(codec, rate=rate, options=options)
    assert isinstance(stream, VideoStream)
    stream.time_base = like.time_base / interpolate
    stream.codec_context.time_base = like.time_base / interpolate
    # The smallest picture of the format with whole chroma samples tells the step.
    chroma = VideoFormat(pix_fmt, 2, 2)
    stream.width = like.width + like.width % (2 // chroma.chroma_width())
    stream.height = like.height + like.height % (2 // chroma.chroma_height())
    stream.pix_fmt = pix_fmt
    stream.color_range = like.color_range
    stream.colorspace = like.colorspace
    stream.color_primaries = like.color_primaries
    stream.color_trc = like.color_trc
    stream.max_b_frames = 0
    # Take the frames' own durations: without this, the encoder ends the last one by the mean rate.
    stream.codec_context.flags |= Flags.frame_duration
    if like.sample_aspect_ratio:
        stream.sample_aspect_ratio = like.sample_aspect_ratio
    if like.rotation_deg:
        stream.set_display_rotation(like.rotation_deg)
    return stream


def _encoder_options(codec: str, crf: int, preset: str) -> dict[str, str]:
    if codec in ("libx264", "libx265"):
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        return {"crf": str(crf), "preset": preset, **quiet}
    if codec.startswith("libvpx"):
        return {"crf": str(crf), "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
    if codec.endswith("_nvenc"):
        return {"rc": "vbr", "cq": str(crf)}
    return {}


def _encoder_rate_hz(encoder: Codec, rate_hz: int) -> int:
    """The track's own rate, or one above that the encoder takes: a multiple if there is one."""
    supported = encoder.audio_rates or [max(rate_hz, _AUDIO_RATE_MIN_HZ)]
    above = [rate for rate in supported if rate >= max(rate_hz, _AUDIO_RATE_MIN_HZ)]
    return min(above, key=lambda rate: (rate % rate_hz != 0, rate), default=max(supported))


def _encoder_layout(codec: str, rate_hz: int, layout: str) -> str:
    """The track's channel layout if the encoder takes it, else stereo."""
    trial = av.CodecContext.create(codec, "w")
    assert isinstance(trial, av.AudioCodecContext)
    formats = trial.codec.audio_formats
    trial.sample_rate, trial.layout = rate_hz, layout
    if formats:
        trial.format = formats[0]
    try:
        trial.open()
    except (av.FFmpegError, ValueError):
        return "stereo"
    return layout
