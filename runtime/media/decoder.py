"""Decodes one track of an input; shared by the video and the audio side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av

from dithead.runtime.media.inputs import Demuxer, Input, Kind


class MediaDecoder:
    """One pass over one track: its frames as decoded; damage is skipped and counted.

    Args:
        given: the input; this track opens and closes it, unless it is already open: then it is
            shared, and closed by whoever opened it.
    """

    def __init__(self, given: Input | Demuxer, kind: Kind) -> None:
        self._own = isinstance(given, Input)
        self.demuxer = Demuxer(given, [kind]) if isinstance(given, Input) else given
        self.stream = self.demuxer.stream(kind)
        self.start_s = self.demuxer.start_s
        self._decoder = _decoder(self.stream)
        self._errors = 0

    @property
    def errors(self) -> int:
        """Number of damaged packets and frames so far; a damaged end counts, too."""
        return self._errors + self.demuxer.errors

    def __iter__(self) -> Iterator[Any]:
        # PyAV's default, threads within a frame, is kept on purpose: threads across frames lose
        # good frames at a damaged end, and hold several frames back.
        while True:
            packet = self.demuxer.next_packet(self.stream.index)
            try:
                frames = self._decoder.decode(packet)
            except av.FFmpegError:
                self._errors += 1
                frames = []
            for frame in frames:
                self._errors += frame.is_corrupt
                yield frame
            if packet is None:
                return

    def seek(self, pts: int) -> None:
        """Go to the key frame at or before a time, in the stream's ticks."""
        self.demuxer.seek(pts, self.stream)
        self._decoder.flush_buffers()

    def close(self) -> None:
        if self._own:
            self.demuxer.close()


def _decoder(stream: Any) -> Any:
    """The decoder for a stream; FFmpeg's own decoders of VP8 and VP9 drop the transparency."""
    codec = stream.codec_context
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(codec.name)
    if name is None or stream.metadata.get("alpha_mode", stream.metadata.get("ALPHA_MODE")) != "1":
        return codec
    decoder = av.CodecContext.create(name, "r")
    decoder.extradata = codec.extradata
    return decoder
