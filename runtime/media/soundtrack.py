"""The given speech as the output's sound, which ends with the last frame."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import av
import numpy as np
from av.audio.stream import AudioStream
from av.codec.codec import Codec
from av.container import OutputContainer
from av.stream import Disposition

from dithead.runtime.media.sources import AudioSource, audio_frame
from dithead.runtime.media.tags import labels_for

_AUDIO_BITS_PER_S = 192_000
_AUDIO_BITS_PER_SAMPLE_MAX = 6  # AAC's limit, for each channel
# Below this, a block of AAC (1024 samples) outlasts a video frame.
_AUDIO_RATE_MIN_HZ = 32_000
_RESAMPLER_SLACK_S = Fraction(1, 1000)


class Soundtrack:
    """Encodes an audio source beside the video, only as far as it is told to.

    Args:
        container: where to; its header is not written yet.
        source: the sound.
        codec: FFmpeg's name of the encoder.
    """

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
        stream.metadata.update(labels_for(container.format.name, source.labels))
        stream.disposition = Disposition.default
        self._stream = stream

    def advance(self, until_s: Fraction) -> None:
        """Encode the sound before a time in seconds; silence if the source has ended."""
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
        """Encode up to a time and flush the encoder.

        AAC comes in blocks, and some readers play the padding of the last one: if that would exceed
        the end by more than the tolerance, the last block is left out.
        """
        codec = self._stream.codec_context
        block_s = Fraction(codec.frame_size, codec.sample_rate)
        blocks = end_s / block_s
        if codec.name == "aac" and (ceil(blocks) - blocks) * block_s > tolerance_s:
            end_s = floor(blocks) * block_s - _RESAMPLER_SLACK_S
        self.advance(end_s)
        self._container.mux(self._stream.encode(None))


def _encoder_rate_hz(encoder: Codec, rate_hz: int) -> int:
    """The track's own rate, or a higher one that the encoder accepts: a multiple if there is
    one."""
    supported = encoder.audio_rates or [max(rate_hz, _AUDIO_RATE_MIN_HZ)]
    above = [rate for rate in supported if rate >= max(rate_hz, _AUDIO_RATE_MIN_HZ)]
    return min(above, key=lambda rate: (rate % rate_hz != 0, rate), default=max(supported))


def _encoder_layout(codec: str, rate_hz: int, layout: str) -> str:
    """The track's channel layout if the encoder accepts it, otherwise stereo."""
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
