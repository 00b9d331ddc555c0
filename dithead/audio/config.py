"""The speech encoder, the grid of chunks it sees, and the audio window of one frame."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from dithead.errors import ConfigError

EncoderName = Literal["whisper-tiny.en", "whisper-base", "wav2vec2-xlsr-english"]
WHISPER, WHISPER_BASE = "whisper-tiny.en", "whisper-base"
WAV2VEC2 = "wav2vec2-xlsr-english"


class WhisperSizes(NamedTuple):
    """Sizes of one of Whisper's encoders (Radford et al., 2022, table 1)."""

    blocks: int
    width: int
    heads: int


WHISPERS: Mapping[str, WhisperSizes] = {
    WHISPER: WhisperSizes(4, 384, 6),
    WHISPER_BASE: WhisperSizes(6, 512, 8),
}
"""Of every Whisper encoder that can be chosen."""
WAV2VEC2_LOGITS = 33

US_PER_FEATURE = 20_000
SAMPLES_PER_FEATURE = 320


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """The speech encoder, the grid of chunks it sees, and the audio window of one frame.

    Raises:
        ConfigError: a field is out of range or does not fit the others.
    """

    encoder: EncoderName = "whisper-tiny.en"
    """Speech encoder. Whisper tiny.en ships with the package; Whisper base hears other languages,
    too."""
    layers: tuple[int, ...] = (-1,)
    """Whisper's hidden states to concatenate: 0 after convolutions and positions, i after block i,
    -1 or the last block's number after the final layer norm. wav2vec2 only gives its CTC logits:
    (-1,)."""
    sample_rate_hz: int = 16_000
    """Sample rate; the encoders support only 16 kHz."""
    hop_ms: int = 320
    """Sound described by one chunk's features; a multiple of 20 ms."""
    left_context_ms: int = 1480
    """Sound before the hop that the encoder sees; a multiple of 20 ms."""
    right_context_ms: int = 200
    """Sound after the hop that the encoder sees, which adds to latency; a multiple of 20 ms."""
    feature_rate_hz: int = 50
    """Features per second; the encoders give 50."""
    feature_dim: int = 0
    """Size of one feature. It follows from the encoder and its layers: 0 is replaced by the right
    number (384 per layer of Whisper tiny.en, 512 of base, 33 for wav2vec2), and any other wrong
    number is refused."""
    window_frames: int = 11
    """Frames of a window; odd, so that one is in the middle."""
    window_spacing_ms: int = 40
    """Time between the frames of a window."""
    window_shift_ms: int = 0
    """How far the middle of a window is before its frame's time: the wait for future sound is
    shorter by this much."""
    features_per_frame: int = 2
    """Consecutive features, 20 ms apart, concatenated in each frame of a window."""

    def __post_init__(self) -> None:
        # JSON has no tuples.
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.encoder not in get_args(EncoderName):
            raise ConfigError(
                f"audio.encoder: expected one of {get_args(EncoderName)}, found {self.encoder!r}"
            )
        for name, only in (("sample_rate_hz", 16_000), ("feature_rate_hz", 50)):
            if getattr(self, name) != only:
                raise ConfigError(f"audio.{name}: expected {only}, found {getattr(self, name)!r}")
        for name, least, step in (
            ("hop_ms", 20, 20),
            ("left_context_ms", 0, 20),
            ("right_context_ms", 0, 20),
            ("window_spacing_ms", 1, 1),
            ("features_per_frame", 1, 1),
            ("window_shift_ms", 0, 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least or value % step:
                raise ConfigError(
                    f"audio.{name}: expected an integer of at least {least}, "
                    f"a multiple of {step}, found {value!r}"
                )
        frames = self.window_frames
        if type(frames) is not int or frames < 1 or frames % 2 == 0:
            raise ConfigError(f"audio.window_frames: expected an odd integer, found {frames!r}")
        if not 40 <= self.chunk_ms <= 30_000:
            raise ConfigError(
                "audio: expected left_context_ms + hop_ms + right_context_ms from 40 to 30000, "
                f"found {self.chunk_ms}"
            )
        self._check_layers()
        whisper = WHISPERS.get(self.encoder)
        per_feature = WAV2VEC2_LOGITS if whisper is None else whisper.width
        feature_dim = per_feature * len(self.layers)
        if self.feature_dim not in (0, feature_dim):
            raise ConfigError(
                f"audio.feature_dim: expected {feature_dim} for {self.encoder} with layers "
                f"{self.layers} (or 0: found by itself), found {self.feature_dim!r}"
            )
        object.__setattr__(self, "feature_dim", feature_dim)

    def _check_layers(self) -> None:
        if self.encoder == WAV2VEC2:
            if self.layers != (-1,):
                raise ConfigError(f"audio.layers: expected (-1,) for wav2vec2, found {self.layers}")
            return
        blocks = WHISPERS[self.encoder].blocks
        valid = range(-1, blocks + 1)
        if not self.layers or any(type(i) is not int or i not in valid for i in self.layers):
            raise ConfigError(
                f"audio.layers: expected one or more of {list(valid)}, found {self.layers}"
            )
        if len({i % (blocks + 1) for i in self.layers}) != len(self.layers):
            raise ConfigError(f"audio.layers: expected no layer twice, found {self.layers}")

    @property
    def window_shape(self) -> tuple[int, int]:
        """Shape of a window: (window_frames, features_per_frame * feature_dim)."""
        return self.window_frames, self.features_per_frame * self.feature_dim

    @property
    def chunk_ms(self) -> int:
        """Sound that the encoder sees at once."""
        return self.left_context_ms + self.hop_ms + self.right_context_ms

    @property
    def chunk_samples(self) -> int:
        """Samples that the encoder sees at once."""
        return self.chunk_ms * self.sample_rate_hz // 1000

    @property
    def hop_samples(self) -> int:
        """Samples from one chunk to the next."""
        return self.hop_ms * self.sample_rate_hz // 1000

    @property
    def left_context_samples(self) -> int:
        """Samples of a chunk before its hop."""
        return self.left_context_ms * self.sample_rate_hz // 1000

    @property
    def right_context_samples(self) -> int:
        """Samples of a chunk after its hop."""
        return self.right_context_ms * self.sample_rate_hz // 1000

    @property
    def chunk_features(self) -> int:
        """Encoder positions of a chunk."""
        return self.chunk_samples // SAMPLES_PER_FEATURE

    @property
    def hop_features(self) -> int:
        """Features that one chunk yields."""
        return self.hop_samples // SAMPLES_PER_FEATURE

    @property
    def left_context_features(self) -> int:
        """Encoder positions of a chunk before its hop."""
        return self.left_context_samples // SAMPLES_PER_FEATURE

    @property
    def first_hop(self) -> int:
        """The first hop whose chunk reaches sound: negative, as right context looks ahead."""
        return -self.right_context_samples // self.hop_samples

    @property
    def window_half_span_us(self) -> int:
        """From a window's time to the centre of its last feature."""
        half_frames_us = (self.window_frames - 1) // 2 * self.window_spacing_ms * 1000
        return half_frames_us + (self.features_per_frame - 1) * US_PER_FEATURE // 2

    @property
    def longest_wait_ms(self) -> int:
        """Sound past a frame's time for which a live frame may have to wait."""
        ahead_ms = self.window_half_span_us // 1000 - self.window_shift_ms
        return self.hop_ms + self.right_context_ms + ahead_ms + US_PER_FEATURE // 2000

    @property
    def block_features(self) -> int:
        """Number of consecutive features from which a window at any time can be sampled."""
        return math.ceil(2 * self.window_half_span_us / US_PER_FEATURE) + 2

    def block_start(self, time_us: int) -> int:
        """Index of the first of the ``block_features`` features needed for the window at a time."""
        first_us = time_us - 1000 * self.window_shift_ms - self.window_half_span_us
        return (first_us - US_PER_FEATURE // 2) // US_PER_FEATURE


AUDIO_PRESETS: Mapping[str, AudioConfig] = {
    WHISPER: AudioConfig(),
    WHISPER_BASE: AudioConfig(encoder="whisper-base"),
    # The paper: 11 frames of 33 logits, 363 numbers in all. How 50 logits a second become one a
    # frame is assumed: the one at the frame's time, which at 25 fps is the mean of the frame's two.
    # The grid of chunks is assumed as well: the paper has whole files, a stream has not.
    WAV2VEC2: AudioConfig(encoder="wav2vec2-xlsr-english", features_per_frame=1),
}
