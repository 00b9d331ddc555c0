"""Speech features: the grid of chunks, and the window of features round a time."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech import CONFIG

from dithead.audio import (
    AUDIO_PRESETS,
    AudioConfig,
    sample_window,
)
from dithead.errors import ConfigError


def test_default_grid_is_two_seconds_and_sixteen_features() -> None:
    assert (CONFIG.chunk_samples, CONFIG.chunk_features, CONFIG.hop_features) == (32_000, 100, 16)
    assert (CONFIG.feature_dim, CONFIG.window_shape) == (384, (11, 768))
    assert AudioConfig(layers=(1, -1)).feature_dim == 768
    assert AUDIO_PRESETS["wav2vec2-xlsr-english"].window_shape == (11, 33)  # 363 numbers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "hubert"),
        ("sample_rate_hz", 44_100),
        ("feature_rate_hz", 25),
        ("hop_ms", 0),
        ("hop_ms", 330),
        ("hop_ms", 320.0),
        ("left_context_ms", -20),
        ("right_context_ms", 50),
        ("left_context_ms", 40_000),
        ("window_frames", 10),
        ("window_frames", -1),
        ("window_spacing_ms", 0),
        ("features_per_frame", 0),
        ("layers", ()),
        ("layers", (5,)),
        ("layers", (-1, 4)),
        ("feature_dim", 33),
    ],
)
def test_config_refuses(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        AudioConfig(**{field: value})  # type: ignore[arg-type]


def test_config_refuses_hidden_layers_of_wav2vec2() -> None:
    with pytest.raises(ConfigError, match="layers"):
        AudioConfig(encoder="wav2vec2-xlsr-english", layers=(2,))


def test_config_travels_as_json() -> None:
    config = AudioConfig(layers=(2, -1), hop_ms=160)
    assert AudioConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_window_at_a_feature_boundary_is_two_whole_features() -> None:
    features = torch.arange(40.0)[:, None].repeat(1, 3)
    config = AudioConfig(window_frames=3)
    # t = 0.4 s: feature 20 starts here, so the middle frame is features 19 and 20.
    window = sample_window(features, torch.tensor(0), torch.tensor(400_000), config)
    assert window.tolist() == [
        [17.0] * 3 + [18.0] * 3,
        [19.0] * 3 + [20.0] * 3,
        [21] * 3 + [22] * 3,
    ]


def test_window_between_features_is_interpolated() -> None:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(60, 5, generator=generator)
    time_s = 0.5123
    window = sample_window(features, torch.tensor(2), torch.tensor(round(time_s * 1e6)), CONFIG)
    assert window.shape == (11, 10)
    for k in range(11):
        for part in range(2):
            centre_s = time_s + (k - 5) * 0.040 + (part - 0.5) * 0.020
            position = centre_s / 0.020 - 0.5 - 2
            low = int(np.floor(position))
            weight = position - low
            expected = features[low] * (1 - weight) + features[low + 1] * weight
            found = window[k, part * 5 : part * 5 + 5]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_feature_a_frame_is_centred_on_the_time() -> None:
    features = torch.arange(50.0)[:, None]
    config = AudioConfig(window_frames=1, features_per_frame=1)
    # Feature 20 is centred at 410 ms.
    for time_us, expected in ((410_000, 20.0), (415_000, 20.25), (400_000, 19.5)):
        window = sample_window(features, torch.tensor(0), torch.tensor(time_us), config)
        assert window.item() == pytest.approx(expected)


def test_windows_at_many_times_equal_one_by_one() -> None:
    features = torch.randn(80, 4, generator=torch.Generator().manual_seed(5))
    times = torch.tensor([400_000, 433_367, 466_733, 500_100])
    together = sample_window(features, torch.tensor(0), times, CONFIG)
    for time, window in zip(times, together, strict=True):
        assert torch.equal(sample_window(features, torch.tensor(0), time, CONFIG), window)


@given(
    time_us=st.integers(-(10**6), 10**10),
    frames=st.sampled_from([1, 3, 11]),
    shift_ms=st.sampled_from([0, 7, 80]),
)
@settings(max_examples=100, deadline=None)
def test_block_covers_the_window_exactly(time_us: int, frames: int, shift_ms: int) -> None:
    """Features outside the block are not needed, and a longer block changes nothing."""
    config = AudioConfig(window_frames=frames, window_shift_ms=shift_ms)
    start, count = config.block_start(time_us), config.block_features
    features = torch.randn(count + 6, 2, generator=torch.Generator().manual_seed(6))
    block = features[3 : 3 + count]
    time = torch.tensor(time_us)
    longer = sample_window(features, torch.tensor(start - 3), time, config)
    assert torch.equal(sample_window(block, torch.tensor(start), time, config), longer)


def test_a_shifted_window_is_that_of_an_earlier_time() -> None:
    features = torch.randn(80, 4, generator=torch.Generator().manual_seed(5))
    shifted = dataclasses.replace(CONFIG, window_shift_ms=80)
    time = torch.tensor(600_003)
    earlier = sample_window(features, torch.tensor(0), time - 80_000, CONFIG)
    assert torch.equal(sample_window(features, torch.tensor(0), time, shifted), earlier)
