"""Speech features of sound that comes in pieces are those of the whole sound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech import CONFIG, PowerEncoder, voiced
from torch import Tensor

from dithead.audio import (
    AudioConfig,
    AudioEncoder,
    AudioFeatureStream,
    encode_audio,
)
from dithead.config import preset
from dithead.errors import ConfigError, StreamError


@pytest.mark.parametrize(
    "config", [CONFIG, preset("tiny").audio, AudioConfig(hop_ms=60, window_shift_ms=33)]
)
def test_no_frame_waits_longer_than_the_configuration_says(config: AudioConfig) -> None:
    stream = AudioFeatureStream(PowerEncoder(config))
    waits = []
    for end in range(160, 32_000, 160):  # 10 ms at a time
        stream.push(torch.zeros(160))
        waits.append(end / 16 - 1000 * stream.available_s)
    assert max(waits[100:]) == pytest.approx(config.longest_wait_ms, abs=10)
    assert max(waits[100:]) <= config.longest_wait_ms


def test_a_live_frame_waits_for_at_most_400_ms_of_sound() -> None:
    assert preset("tiny").audio.longest_wait_ms <= 400
    assert AudioConfig().longest_wait_ms == 740


def stream_windows(
    encoder: AudioEncoder, pieces: list[Tensor], times_s: list[float]
) -> list[Tensor]:
    """Push pieces and sample each window as soon as it is available."""
    stream = AudioFeatureStream(encoder)
    windows: list[Tensor] = []

    def sample() -> None:
        while len(windows) < len(times_s) and times_s[len(windows)] <= stream.available_s:
            windows.append(stream.window(times_s[len(windows)]))

    for piece in pieces:
        stream.push(piece)
        sample()
    stream.finish()
    sample()
    return windows


def cut(sound: Tensor, sizes: list[int]) -> list[Tensor]:
    """Cut a sound into pieces of these sizes, the last taking the rest."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(sound[start : start + size])
        start += size
    return [*pieces, sound[start:]]


@given(
    length=st.integers(0, 50_000),
    sizes=st.lists(st.integers(0, 9000), max_size=12),
    rate=st.sampled_from([23.976, 25.0, 29.97, 60.0]),
    grid=st.sampled_from([(320, 1480, 200), (160, 100, 0), (80, 0, 340), (40, 20, 100)]),
    shift=st.sampled_from([0, 80]),
)
@settings(max_examples=40, deadline=None)
def test_stream_equals_offline(
    length: int, sizes: list[int], rate: float, grid: tuple[int, int, int], shift: int
) -> None:
    hop, left, right = grid
    config = AudioConfig(
        hop_ms=hop, left_context_ms=left, right_context_ms=right, window_shift_ms=shift
    )
    encoder = PowerEncoder(config)
    sound = voiced(length / 16_000, seed=length)
    times_s = [-1.0, *(i / rate for i in range(int((length / 16_000 + 1) * rate))), 90.0]
    offline = encode_audio(encoder, sound)
    windows = stream_windows(encoder, cut(sound, sizes), times_s)
    assert len(windows) == len(times_s)
    for time_s, window in zip(times_s, windows, strict=True):
        assert torch.equal(window, offline.window(time_s)), time_s


@given(sizes=st.lists(st.integers(0, 16_000), max_size=6))
@settings(max_examples=4, deadline=None)
def test_whisper_stream_equals_offline(whisper: AudioEncoder, sizes: list[int]) -> None:
    sound = voiced(1.3)
    times_s = [i / 25 for i in range(40)]
    offline = encode_audio(whisper, sound)
    windows = stream_windows(whisper, cut(sound, sizes), times_s)
    for time_s, window in zip(times_s, windows, strict=True):
        assert torch.equal(window, offline.window(time_s))


def test_offline_features_are_the_encoders(whisper: AudioEncoder) -> None:
    """Feature j comes from the chunk that starts 1.48 s before its hop."""
    sound = voiced(3.0)
    features = encode_audio(whisper, sound)
    assert features.clip.shape == (150, 384)
    hop = 5
    start = hop * 5120 - 23_680
    expected = whisper(sound[None, start : start + 32_000])[0]
    assert torch.equal(features.clip[80:96], expected)


def test_batches_change_rounding_only(whisper: AudioEncoder) -> None:
    sound = voiced(1.0)
    one, many = encode_audio(whisper, sound), encode_audio(whisper, sound, batch=4)
    torch.testing.assert_close(many.values, one.values, rtol=1e-4, atol=1e-4)  # float32
    with pytest.raises(ConfigError, match="batch"):
        encode_audio(whisper, sound, batch=0)


def test_sound_after_the_right_context_changes_nothing_earlier(whisper: AudioEncoder) -> None:
    sound = voiced(2.0)
    end = 2 * 5120 + 3200  # hops 0 and 1 and their right context
    changed = sound.clone()
    changed[end:] = voiced(2.0, seed=9)[end:]
    a, b = (encode_audio(whisper, x).clip for x in (sound, changed))
    assert torch.equal(a[:32], b[:32])
    assert (a[32:48] - b[32:48]).abs().max() > 1e-3
    changed[end - 1] += 0.5  # the last sample of the right context does count
    assert not torch.equal(a[16:32], encode_audio(whisper, changed).clip[16:32])


def test_margins_are_silence() -> None:
    encoder = PowerEncoder(CONFIG)
    features = encode_audio(encoder, voiced(0.5))
    silent = encode_audio(encoder, torch.zeros(0))
    assert silent.clip.shape == (0, 384)
    assert torch.equal(features.window(-5.0), silent.window(0.0))
    assert torch.equal(features.window(60.0), silent.window(0.0))
    assert not torch.equal(features.window(0.2), silent.window(0.0))


def test_silence_is_encoded_once() -> None:
    encoded: list[int] = []

    class Counting(PowerEncoder):
        def encode(self, samples: torch.Tensor) -> torch.Tensor:
            encoded.append(len(samples))
            return super().encode(samples)

    encoder = Counting(CONFIG)
    sound = torch.cat([torch.zeros(640_000), voiced(0.5), torch.zeros(640_000)])
    whole = encode_audio(encoder, sound)
    encoded.clear()
    stream = AudioFeatureStream(encoder)
    for number in range(0, len(sound), 16_000):
        stream.push(sound[number : number + 16_000])
        time_s = min(number / 16_000, stream.available_s)
        assert torch.equal(stream.window(time_s), whole.window(time_s))
    stream.finish()
    assert sum(encoded) < 10


def test_bad_samples_do_not_spread(whisper: AudioEncoder) -> None:
    sound = voiced(0.5) * 40.0  # clips
    sound[1000], sound[2000] = torch.nan, torch.inf
    assert encode_audio(whisper, sound).values.isfinite().all()


def test_reset_equals_fresh() -> None:
    encoder = PowerEncoder(CONFIG)
    stream = AudioFeatureStream(encoder)
    stream.push(voiced(1.0, seed=1))
    stream.window(0.3)
    stream.finish()
    stream.reset()
    assert stream.available_s == AudioFeatureStream(encoder).available_s
    stream.push(voiced(1.0, seed=2))
    assert torch.equal(stream.window(0.1), encode_audio(encoder, voiced(1.0, seed=2)).window(0.1))


def test_stream_takes_arrays_and_keeps_no_reference() -> None:
    encoder = PowerEncoder(CONFIG)
    samples = voiced(0.9).numpy().copy()
    expected = encode_audio(encoder, samples).window(0.2)
    stream = AudioFeatureStream(encoder)
    stream.push(samples)
    samples[:] = 0.0
    stream.finish()
    assert torch.equal(stream.window(0.2), expected)


def test_stream_memory_is_bounded() -> None:
    stream = AudioFeatureStream(PowerEncoder(CONFIG))
    frame = 0
    for _ in range(1500):  # 30 s
        stream.push(voiced(0.02))
        while frame / 25 <= stream.available_s:
            stream.window(frame / 25)
            frame += 1
        assert stream.state.pending.numel() < CONFIG.chunk_samples
        assert stream.state.pending.untyped_storage().nbytes() < 4 * CONFIG.chunk_samples
        assert len(stream.state.features) <= 4
    assert frame > 730


def test_available_time_is_exact() -> None:
    stream = AudioFeatureStream(PowerEncoder(CONFIG))
    stream.push(voiced(1.0))
    available_s = stream.available_s
    with pytest.raises(StreamError, match="push more samples"):
        stream.window(available_s + 1e-6)
    stream.window(available_s)
    # Hop 1 and its right context are in, hop 2's are not: features 0 to 31.
    assert CONFIG.block_start(round(available_s * 1e6)) + CONFIG.block_features == 32


@pytest.mark.parametrize(
    "samples",
    [
        torch.zeros(2, 100),
        torch.zeros(100, dtype=torch.int16),
        np.zeros(100, dtype=np.float64),
        [0.0, 1.0],
    ],
)
def test_stream_refuses_samples(samples: object) -> None:
    with pytest.raises(StreamError, match="1-D float32"):
        AudioFeatureStream(PowerEncoder(CONFIG)).push(samples)  # type: ignore[arg-type]


def test_stream_refuses_misuse() -> None:
    stream = AudioFeatureStream(PowerEncoder(CONFIG))
    stream.push(voiced(1.0))
    stream.window(0.3)
    with pytest.raises(StreamError, match="must not decrease"):
        stream.window(0.2)
    with pytest.raises(StreamError, match="finite"):
        stream.window(float("nan"))
    stream.finish()
    stream.finish()
    with pytest.raises(StreamError, match="finish"):
        stream.push(voiced(0.1))
