"""Features over time: as a stream, for a whole clip at once, and as the window at a presentation
time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.audio.config import US_PER_FEATURE, AudioConfig
from dithead.errors import ConfigError, StreamError
from dithead.hosttodevice import to_device


class ChunkEncoder(Protocol):
    """Encodes one chunk: an :class:`~dithead.audio.AudioEncoder`, or its exported graph."""

    config: AudioConfig

    @property
    def device(self) -> torch.device:
        """Where chunks must be."""

    def __call__(self, chunk: Tensor) -> Tensor:
        """Chunk (B, chunk_samples) -> features of its hop (B, hop_features, F)."""


Samples = Tensor | np.ndarray[Any, Any]


def sample_window(
    features: Tensor, first_index: Tensor, time_us: Tensor, config: AudioConfig
) -> Tensor:
    """Sample the window at a time by linear interpolation (time convention: dithead.audio).

    Args:
        features: (N, F) float32, consecutive features that cover the window; the
            ``config.block_features`` ones from ``config.block_start(time_us)`` on do.
        first_index: () int64, index of ``features[0]``.
        time_us: (...) int64, any number of times in microseconds.

    Returns:
        (..., window_frames, features_per_frame * F) float32.
    """
    frames, parts = config.window_frames, config.features_per_frame
    device = features.device
    frame_ms = (torch.arange(frames, device=device) - frames // 2) * config.window_spacing_ms
    frame_us = (frame_ms - config.window_shift_ms) * 1000
    part_us = torch.arange(parts, device=device) * US_PER_FEATURE
    # Centre of each part of each frame, less half a feature: where feature centres are integers.
    offset_us = frame_us[:, None] + part_us - parts * US_PER_FEATURE // 2  # (frames, parts)
    position_us = (time_us - first_index * US_PER_FEATURE)[..., None, None] + offset_us
    index = torch.div(position_us, US_PER_FEATURE, rounding_mode="floor")  # (..., frames, parts)
    weight = ((position_us - index * US_PER_FEATURE) / US_PER_FEATURE).float()[..., None]
    low = features[index]  # (..., frames, parts, F)
    # On the last feature itself, the weight of the one after it is zero.
    high = features[(index + 1).clamp(max=features.shape[0] - 1)]
    return (low + (high - low) * weight).flatten(-2)


class AudioWindow(nn.Module):
    """``audio_window``: :func:`sample_window` as a module."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Tensor, first_index: Tensor, time_us: Tensor) -> Tensor:
        """features (block_features, F), first_index and time_us () int64 -> window
        (window_frames, features_per_frame * F)."""
        return sample_window(features, first_index, time_us, self.config)


def _to_microseconds(time_s: float) -> int:
    """A time in whole microseconds, rounded to the nearest.

    Raises:
        StreamError: the time is not finite.
    """
    if not math.isfinite(time_s):
        raise StreamError(f"expected a finite time in seconds, found {time_s}")
    return round(time_s * 1_000_000)


def _check_samples(samples: Samples) -> Tensor:
    """Samples as a 1-D float32 tensor on the CPU.

    Raises:
        StreamError: another shape or type.
    """
    tensor = torch.from_numpy(samples) if isinstance(samples, np.ndarray) else samples
    if not isinstance(tensor, Tensor) or tensor.dim() != 1 or tensor.dtype != torch.float32:
        found = (
            f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor)
        )
        raise StreamError(f"expected 1-D float32 samples in [-1, 1], 16 kHz mono, found {found}")
    return tensor.detach().cpu()


def _encode_chunks(encoder: ChunkEncoder, chunks: Tensor) -> Tensor:
    """Run the encoder without gradients: (B, chunk_samples) -> (B, hop_features, F)."""
    # A copy, so that memory alignment cannot make kernels round differently.
    with torch.no_grad():
        return encoder(to_device(chunks, encoder.device))


def _sample_from_hops(
    config: AudioConfig, hop_features: Callable[[int], Tensor], time_us: int
) -> Tensor:
    """Gather the block of hops' features that a window needs, and sample it."""
    first, count = config.block_start(time_us), config.block_features
    per_hop = config.hop_features
    hops = range(first // per_hop, (first + count - 1) // per_hop + 1)
    rows = torch.cat([hop_features(hop) for hop in hops])
    skipped = first - hops.start * per_hop
    return sample_window(
        rows[skipped : skipped + count],
        torch.full((), first, device=rows.device),
        torch.full((), time_us, device=rows.device),
        config,
    )


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """The features of a whole clip, with a margin on both sides where chunks still reach sound."""

    config: AudioConfig
    """The grid and window they belong to."""
    values: Tensor
    """(N, F) float32; N is a multiple of ``config.hop_features``."""
    first_index: int
    """Index of ``values[0]``: zero or negative."""
    length: int
    """Number of features that cover the clip itself, the last one perhaps in part."""
    silence: Tensor
    """(hop_features, F) float32, features of a hop of silence, used beyond ``values``."""

    @property
    def clip(self) -> Tensor:
        """(length, F) float32: features 0 to length - 1, without the margins."""
        return self.values[-self.first_index :][: self.length]

    def window(self, time_s: float) -> Tensor:
        """Window at any time: (window_frames, features_per_frame * F) float32."""
        return _sample_from_hops(self.config, self._hop, _to_microseconds(time_s))

    def _hop(self, hop: int) -> Tensor:
        per_hop = self.config.hop_features
        start = hop * per_hop - self.first_index
        if 0 <= start < self.values.shape[0]:
            return self.values[start : start + per_hop]
        return self.silence


def encode_audio(encoder: ChunkEncoder, samples: Samples, batch: int = 1) -> AudioFeatures:
    """Encode a whole clip on the grid that :class:`AudioFeatureStream` uses.

    Args:
        samples: (S,) float32 in [-1, 1], 16 kHz mono; may be empty.
        batch: number of chunks encoded at once. With 1 the features equal the stream's bit for bit;
            a larger number is faster and may differ by float rounding.

    Raises:
        ConfigError: ``batch`` is below 1.
        StreamError: the samples have another shape or type.
    """
    if batch < 1:
        raise ConfigError(f"batch: expected at least 1, found {batch}")
    config = encoder.config
    samples = _check_samples(samples)
    length = samples.numel()
    end_hop = _end_hop(config, length)
    before = config.left_context_samples - config.first_hop * config.hop_samples
    after = end_hop * config.hop_samples + config.right_context_samples - length
    chunks = F.pad(samples, (before, after)).unfold(0, config.chunk_samples, config.hop_samples)
    encoded = [
        _encode_chunks(encoder, chunks[i : i + batch]) for i in range(0, chunks.shape[0], batch)
    ]
    return AudioFeatures(
        config=config,
        values=torch.cat(encoded).flatten(0, 1),
        first_index=config.first_hop * config.hop_features,
        length=math.ceil(length * config.feature_rate_hz / config.sample_rate_hz),
        silence=_encode_chunks(encoder, torch.zeros(1, config.chunk_samples))[0],
    )


def _end_hop(config: AudioConfig, length: int) -> int:
    """The hop after the last one whose chunk reaches one of the first ``length`` samples."""
    reached = math.ceil((length + config.left_context_samples) / config.hop_samples)
    return max(reached, config.first_hop + 1)


@dataclass(slots=True)
class AudioStreamState:
    """A stream's memory of its speaker."""

    pending: Tensor
    """(S,) float32, samples from the start of the next hop's chunk on."""
    next_hop: int
    """Number of the hop to encode next."""
    received: int = 0
    """Samples pushed so far."""
    features: dict[int, Tensor] = field(default_factory=dict)
    """(hop_features, F) float32 by hop, for the hops that a later window may need."""
    last_time_us: int | None = None
    """Time of the latest window."""
    finished: bool = False
    """Whether the sound has ended."""

    @classmethod
    def fresh(cls, config: AudioConfig) -> AudioStreamState:
        """The state before any sound: silence."""
        before = config.left_context_samples - config.first_hop * config.hop_samples
        return cls(pending=torch.zeros(before), next_hop=config.first_hop)


class AudioFeatureStream:
    """Turns sound pushed in pieces of any size into windows at presentation times.

    The features do not depend on the sizes of the pieces. Memory is bounded by the sound pushed
    since the time of the latest window, as features before it are dropped. Single-threaded.

    Args:
        encoder: the weights; may be shared by streams.
    """

    def __init__(self, encoder: ChunkEncoder) -> None:
        self.encoder = encoder
        self.config = encoder.config
        self.state = AudioStreamState.fresh(self.config)
        self._silence: Tensor | None = None

    def reset(self) -> None:
        """Forget the speaker: the stream is then like a new one."""
        self.state = AudioStreamState.fresh(self.config)

    @property
    def available_s(self) -> float:
        """The latest time whose window can be sampled; infinite once the sound has finished."""
        return math.inf if self.state.finished else self._available_us / 1_000_000

    @property
    def _available_us(self) -> int:
        config = self.config
        encoded = self.state.next_hop * config.hop_features
        end_us = (encoded - config.block_features + 1) * US_PER_FEATURE
        shift_us = 1000 * config.window_shift_ms
        return end_us + shift_us + config.window_half_span_us + US_PER_FEATURE // 2 - 1

    def push(self, samples: Samples) -> None:
        """Take in sound and encode every hop that it completes.

        Args:
            samples: (S,) float32 in [-1, 1], 16 kHz mono; they are copied, and may be empty.

        Raises:
            StreamError: the samples have another shape or type, or the sound has finished.
        """
        if self.state.finished:
            raise StreamError("push after finish: call reset() before a new sound")
        samples = _check_samples(samples)
        self.state.received += samples.numel()
        self._take(samples)

    def finish(self) -> None:
        """Declare the sound ended: silence follows. A second call does nothing."""
        if self.state.finished:
            return
        config = self.config
        end_hop = _end_hop(config, self.state.received)
        end = end_hop * config.hop_samples + config.right_context_samples
        self._take(torch.zeros(end - self.state.received))
        self.state.finished = True

    def go_back(
        self,
        received: int,
        before: Callable[[int, int], Tensor],
        features: dict[int, Tensor],
        last_time_us: int | None,
    ) -> None:
        """Return to a state in which fewer samples had been pushed; others may follow then.

        Args:
            received: number of samples that still count; those after them are forgotten.
            before: returns the ``count`` samples before number ``end``, with zeros before the
                first: (count,) float32 for (end, count).
            features, last_time_us: from ``state``, at the time when the latest window that still
                counts was sampled.
        """
        config = self.config
        reach = config.chunk_samples - config.left_context_samples  # of a hop's chunk, from there
        next_hop = max(config.first_hop, (received - reach) // config.hop_samples + 1)
        start = next_hop * config.hop_samples - config.left_context_samples
        self.state = AudioStreamState(
            pending=before(received, received - start),
            next_hop=next_hop,
            received=received,
            features={hop: rows for hop, rows in features.items() if hop < next_hop},
            last_time_us=last_time_us,
        )

    def window(self, time_s: float) -> Tensor:
        """Sample the window at a presentation time; see the time convention in dithead.audio.

        Args:
            time_s: not before the previous window's time, and at most ``available_s``.

        Returns:
            (window_frames, features_per_frame * F) float32, on the encoder's device.

        Raises:
            StreamError: the time is too early, too late or not finite.
        """
        state = self.state
        time_us = _to_microseconds(time_s)
        if state.last_time_us is not None and time_us < state.last_time_us:
            raise StreamError(
                f"window at {time_s} s after one at {state.last_time_us / 1e6} s: "
                "times must not decrease; call reset() to start again"
            )
        if not state.finished and time_us > self._available_us:
            raise StreamError(
                f"window at {time_s} s, but sound so far allows {self.available_s} s: "
                "push more samples or call finish()"
            )
        state.last_time_us = time_us
        first_needed = self.config.block_start(time_us) // self.config.hop_features
        for hop in [hop for hop in state.features if hop < first_needed]:
            del state.features[hop]
        return _sample_from_hops(self.config, self._hop, time_us)

    def _hop(self, hop: int) -> Tensor:
        if hop in self.state.features:
            return self.state.features[hop]
        assert hop < self.config.first_hop or hop >= self.state.next_hop, "a needed hop was dropped"
        return self._silent_hop()

    def _silent_hop(self) -> Tensor:
        if self._silence is None:
            silence = torch.zeros(1, self.config.chunk_samples)
            self._silence = _encode_chunks(self.encoder, silence)[0]
        return self._silence

    def _take(self, samples: Tensor) -> None:
        state, config = self.state, self.config
        pending = torch.cat([state.pending, samples])
        start = 0
        while pending.numel() - start >= config.chunk_samples:
            chunk = pending[start : start + config.chunk_samples]
            silent = not chunk.any()  # then there is nothing to compute: idle streams cost little
            encoded = self._silent_hop() if silent else _encode_chunks(self.encoder, chunk[None])[0]
            state.features[state.next_hop] = encoded
            state.next_hop += 1
            start += config.hop_samples
        state.pending = pending[start:].clone()
