"""Where the result goes, and how it is encoded; :mod:`dithead.runtime.media.sink` writes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from av.codec.codec import Codec, find_best_pix_fmt_of_list
from av.video.format import VideoFormat

from dithead.errors import ConfigError, MediaError
from dithead.runtime.media.inputs import shortened
from dithead.runtime.media.videoframe import has_alpha
from dithead.runtime.media.videoinfo import VideoInfo

# FFmpeg's muxers that are known to keep these promises, and their usual encoders.
ENCODERS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "matroska": ("libx264", "libopus"),
    "webm": ("libvpx-vp9", "libopus"),
    "mpegts": ("libx264", "aac"),
    "flv": ("libx264", "aac"),
    "rtsp": ("libx264", "aac"),
}
_EXTENSIONS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".flv": "flv",
}
_SCHEMES = {
    "rtmp": "flv",
    "rtmps": "flv",
    "srt": "mpegts",
    "udp": "mpegts",
    "rtsp": "rtsp",
    "rtsps": "rtsp",
}
_BITS_PER_S_MAX = 10**12
# The worst quality that each encoder knows. x264 and x265 silently clamp larger values to this; the
# others would refuse them with an unhelpful error number.
_CRF_MAX = {"libx264": 51, "libx265": 51, "libsvtav1": 63, "libvpx": 63, "libvpx-vp9": 63}
_CRF_MAX |= {"h264_nvenc": 51, "hevc_nvenc": 51, "av1_nvenc": 63}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How the output is encoded.

    Attributes:
        container: FFmpeg's name of the muxer (mp4, mov, matroska, webm, mpegts, flv, rtsp); None
            takes the file extension's or the URL's, and Matroska for standard output.
        video_codec: FFmpeg's name of the video encoder, such as libx265 or h264_nvenc; None takes
            the container's usual one. It is never replaced by another.
        crf: constant quality, lower is better (libx264: 0, lossless, to 51; NVENC: ``cq``), within
            the encoder's range; None takes 18 if there is no bit rate.
        bitrate_bps: bits per second on average, instead of constant quality.
        preset: the encoder's trade of speed for size, such as "slow" (x264, x265) or "p4" (NVENC).
        pix_fmt: the encoder's pixel format, such as yuv420p; None keeps the input's, or the nearest
            that the encoder has, and for RGB takes 4:2:0, which everything plays.

    Raises:
        ConfigError: an unknown container or pixel format, an encoder that this FFmpeg lacks, or
            both a quality and a bit rate.
    """

    container: str | None = None
    video_codec: str | None = None
    crf: int | None = None
    bitrate_bps: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None

    def __post_init__(self) -> None:
        if self.container is not None and self.container not in ENCODERS:
            raise ConfigError(
                f"unknown container {self.container!r}; expected one of {', '.join(ENCODERS)}"
            )
        if self.crf is not None and self.bitrate_bps is not None:
            raise ConfigError(
                "a quality (crf) and a bit rate exclude each other",
                hint="give one",
            )
        if self.crf is not None and self.crf < 0:
            raise ConfigError(f"crf must be at least 0, not {self.crf}")
        if self.bitrate_bps is not None and not 1 <= self.bitrate_bps <= _BITS_PER_S_MAX:
            raise ConfigError(
                f"the bit rate must be above 0 and at most {_BITS_PER_S_MAX // 10**9} Gbit/s, not "
                f"{self.bitrate_bps}"
            )
        if self.pix_fmt is not None:
            try:
                VideoFormat(self.pix_fmt)
            except ValueError:
                raise ConfigError(f"unknown pixel format {self.pix_fmt!r}") from None
        if self.video_codec is not None:
            try:
                known = Codec(self.video_codec, "w").type == "video"
            except ValueError:
                known = False
            if not known:
                raise ConfigError(
                    f"this FFmpeg has no video encoder {self.video_codec!r}",
                    hint="dithead-doctor lists those that matter here",
                )

    def asked(self) -> dict[str, object]:
        """What was requested of the encoder, by the names of the command's options."""
        given = {
            "crf": self.crf,
            "bitrate": self.bitrate_bps,
            "preset": self.preset,
            "pix-fmt": self.pix_fmt,
        }
        return {name: value for name, value in given.items() if value is not None}

    def codec(self, muxer: str) -> str:
        """FFmpeg's name of the video encoder for a muxer."""
        return self.video_codec or ENCODERS[muxer][0]

    def options(self, codec: str, streamed: bool) -> dict[str, str]:
        """FFmpeg's options for an encoder.

        Raises:
            ConfigError: it has no such quality or preset.
        """
        options: dict[str, str] = {}
        most = _CRF_MAX.get(codec)
        if self.crf is not None and most is not None and self.crf > most:
            raise ConfigError(f"{codec} takes a crf from 0 to {most}, not {self.crf}")
        if self.bitrate_bps is None:
            quality = str(18 if self.crf is None else self.crf)
            if codec in ("libx264", "libx265", "libsvtav1"):
                options = {"crf": quality}
            elif codec.startswith("libvpx"):
                options = {"crf": quality, "b": "0"}
            elif codec.endswith("_nvenc"):
                options = {"rc": "vbr", "cq": quality, "b": "0"}
            elif self.crf is not None:
                raise ConfigError(
                    f"{codec} takes no crf",
                    hint="give a bit rate, or neither",
                )
        if codec in ("libx264", "libx265"):
            options["preset"] = self.preset or "veryfast"
        elif self.preset is not None:
            if codec != "libsvtav1" and not codec.endswith(("_nvenc", "_qsv", "_amf")):
                raise ConfigError(f"{codec} takes no preset")
            options["preset"] = self.preset
        if codec.startswith("libvpx"):
            options |= {"deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
        if codec == "libx265":
            options["x265-params"] = "log-level=none"
        if streamed and codec in ("libx264", "libx265"):
            options["tune"] = "zerolatency"
        return options


@dataclass(frozen=True, slots=True)
class Output:
    """Where the result goes: a file, ``-`` for standard output, or a URL (RTMP, RTSP, SRT, UDP)."""

    target: str | os.PathLike[str]

    def __str__(self) -> str:
        return "standard output" if self.text == "-" else shortened(self.text)

    @property
    def text(self) -> str:
        """The target as text."""
        return os.fspath(self.target)

    @property
    def streamed(self) -> bool:
        """Whether it is sent as it is made, with no way back."""
        return self.text == "-" or self.live

    @property
    def live(self) -> bool:
        """Whether it goes to a server."""
        return "://" in self.text

    def muxer(self, encoding: Encoding) -> str:
        """FFmpeg's muxer for it."""
        if encoding.container is not None:
            return encoding.container
        if self.text == "-":
            return "matroska"
        known = _SCHEMES if self.live else _EXTENSIONS
        key = self.text.partition("://")[0] if self.live else Path(self.text).suffix.lower()
        if key not in known:
            what = "URL scheme" if self.live else "extension"
            raise MediaError(f"{self}: unknown {what} {key!r}; expected {', '.join(known)}")
        return known[key]


def as_output(given: str | os.PathLike[str] | Output) -> Output:
    """An output from a path or URL; an Output is returned as it is."""
    return given if isinstance(given, Output) else Output(given)


def encoder_format(codec: str, like: VideoInfo, wanted: str | None) -> str:
    """The pixel format passed to an encoder."""
    supported = [pix_fmt.name for pix_fmt in Codec(codec, "w").video_formats or []]
    if wanted is not None:
        if supported and wanted not in supported:
            raise ConfigError(f"{codec} takes no {wanted}; it takes {', '.join(supported)}")
        return wanted
    pix_fmt = like.pix_fmt
    source = VideoFormat(like.source_pix_fmt)
    if source.is_rgb or source.has_palette:
        pix_fmt = pix_fmt.replace("444", "420")
    if supported and pix_fmt not in supported:
        best, _ = find_best_pix_fmt_of_list(supported, pix_fmt, has_alpha(pix_fmt))
        pix_fmt = best.name if best is not None else supported[0]
    return pix_fmt
