"""Speech features: the encoders, the grid of chunks, the stream and its windows."""

from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dithead import checkpoint
from dithead.audio import (
    AUDIO_PRESETS,
    AudioConfig,
    AudioEncoder,
    AudioFeatureStream,
    LogMel,
    Wav2Vec2Encoder,
    encode_audio,
    load_audio_encoder,
    load_wav2vec2,
    normalise_loudness,
    random_wav2vec2,
    sample_window,
)
from dithead.audio.encoder import TARGET_RMS
from dithead.audio.whisper import WhisperBody
from dithead.config import preset
from dithead.errors import BackendUnavailable, CheckpointError, ConfigError, StreamError
from dithead.train.convert.whisper import convert_whisper, read_ctranslate2

CONFIG = AudioConfig()
DATA = Path(__file__).parent / "data"


def voiced(seconds: float, seed: int = 0) -> Tensor:
    """A harmonic sound of gliding pitch and changing loudness, with a little noise: (S,)."""
    count = round(seconds * 16_000)
    time = torch.arange(count, dtype=torch.float64) / 16_000
    phase = 2 * torch.pi * (120 * time + 6 * torch.sin(5 * time + seed))
    sound = sum(torch.sin(k * phase) / k for k in range(1, 10))
    loudness = 0.1 * (0.55 + 0.45 * torch.sin(20 * time))
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sound * loudness + 0.003 * noise).float()


@pytest.fixture(scope="module")
def whisper() -> AudioEncoder:
    return load_audio_encoder(CONFIG)


class PowerEncoder(AudioEncoder):
    """A cheap stand-in whose features depend on a chunk's sound, positions and context."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(7)
        self.mix = torch.nn.Parameter(torch.randn(320, config.feature_dim, generator=generator))

    def encode(self, samples: Tensor) -> Tensor:
        parts = samples.unflatten(1, (-1, 320))  # (B, chunk_features, 320)
        context = parts.square().mean(dim=(1, 2), keepdim=True)
        return (parts @ self.mix + context)[:, self.hop]


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


def test_import_is_light() -> None:
    code = "import sys; from dithead.audio import AudioConfig, load_audio_encoder; "
    code += "load_audio_encoder(AudioConfig()); sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("level", "expected"), [(0.03, TARGET_RMS), (0.2, TARGET_RMS)])
def test_loudness_reaches_the_target(level: float, expected: float) -> None:
    noise = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(1)) * level
    assert normalise_loudness(noise).square().mean().sqrt().item() == pytest.approx(
        expected, rel=2e-2
    )


def test_loudness_gain_is_limited() -> None:
    quiet = torch.full((1, 32_000), 1e-3)
    torch.testing.assert_close(normalise_loudness(quiet), quiet * 4.0)
    loud = torch.ones(1, 32_000)
    torch.testing.assert_close(normalise_loudness(loud), loud * 0.25)


def test_bad_samples_count_as_silence_and_loud_ones_are_clipped() -> None:
    chunk = voiced(2.0)[None]
    bad, clean = chunk.clone(), chunk.clone()
    for position, value in ((100, torch.nan), (200, torch.inf), (300, -torch.inf)):
        bad[0, position], clean[0, position] = value, 0.0
    bad[0, 400], clean[0, 400] = 7.0, 1.0
    assert torch.equal(normalise_loudness(bad), normalise_loudness(clean))
    assert not torch.equal(normalise_loudness(bad), normalise_loudness(chunk))


def test_each_chunk_is_normalised_alone() -> None:
    a, b = voiced(2.0, 1), voiced(2.0, 2) * 0.1
    both = normalise_loudness(torch.stack([a, b]))
    torch.testing.assert_close(both[1:], normalise_loudness(b[None]))


def test_log_mel_equals_whispers_where_the_maxima_coincide() -> None:
    from transformers import WhisperFeatureExtractor

    sound = voiced(2.0)
    sound[20_000:] *= 1e-4
    extract = WhisperFeatureExtractor(chunk_length=2)
    log_mel = extract(sound.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    loudest = log_mel.max().item() * 4.0 - 4.0
    clamped = log_mel == log_mel.min()
    assert 0.01 < clamped.float().mean() < 0.9  # both branches of the clamp are met
    found = LogMel(maximum=loudest)(sound[None])
    torch.testing.assert_close(found, log_mel, rtol=0, atol=1e-4)  # float32


def test_log_mel_of_one_frame_does_not_depend_on_others() -> None:
    sound = voiced(2.0)[None]
    louder = sound.clone()
    louder[:, 20_000:] *= 20.0
    log_mel = LogMel()
    torch.testing.assert_close(
        log_mel(sound)[..., :120], log_mel(louder)[..., :120], rtol=0, atol=1e-6
    )


def test_log_mel_of_silence_is_the_floor() -> None:
    floor = (LogMel().maximum - 8.0 + 4.0) / 4.0
    assert torch.equal(LogMel()(torch.zeros(1, 3200)), torch.full((1, 80, 20), floor))


def test_packaged_encoder_gives_whispers_features(whisper: AudioEncoder) -> None:
    """The expected numbers come from another path: a float64 NumPy spectrogram and transformers'
    own forward over the original weights, which transcribe speech word for word."""
    n = np.arange(32_000)
    phase = 2 * np.pi * (110 * n / 16_000 + 30 / (2 * np.pi * 3) * np.sin(2 * np.pi * 3 * n / 16e3))
    sound = sum(np.sin(k * phase) / k for k in range(1, 12))
    sound = sound * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * n / 16_000))
    sound = (0.1 * sound / np.abs(sound).max()).astype(np.float32)
    found = whisper(torch.from_numpy(sound)[None])[0].numpy()
    expected = np.load(DATA / "whisper_features.npz")
    found = found[np.ix_(expected["index"], expected["channels"])]
    assert expected["features"].std() > 0.5
    np.testing.assert_allclose(found, expected["features"], rtol=0, atol=5e-4)  # float32


def test_whispers_body_equals_that_of_transformers() -> None:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Theirs

    theirs = Theirs(
        WhisperConfig(
            num_mel_bins=80,
            d_model=64,
            encoder_layers=3,
            encoder_attention_heads=4,
            encoder_ffn_dim=96,
            max_source_positions=100,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = theirs.state_dict()
    ours = WhisperBody(mels=80, width=64, depth=3, heads=4, hidden=96, length=100).eval()
    ours.positions = weights.pop("embed_positions.weight")
    ours.load_state_dict(weights)
    mel = torch.randn(2, 80, 200)
    with torch.no_grad():
        expected = theirs(mel, output_hidden_states=True).hidden_states
        found = ours(mel, range(4), slice(0, 100))
        some = [ours(mel, [layer], slice(30, 42))[0] for layer in range(4)]
    assert len(found) == len(expected) == 4
    assert expected[-1].std() > 0.1
    for state, part, wanted in zip(found, some, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(part, wanted[:, 30:42], rtol=1e-4, atol=1e-4)


def test_layers_choose_hidden_states(whisper: AudioEncoder) -> None:
    chunk = voiced(2.0)[None]
    last = whisper(chunk)
    every = load_audio_encoder(AudioConfig(layers=(0, 1, 2, 3, 4)))(chunk)
    assert last.shape == (1, 16, 384) and every.shape == (1, 16, 5 * 384)
    assert torch.equal(every[..., -384:], last)
    second = load_audio_encoder(AudioConfig(layers=(2,)))(chunk)
    torch.testing.assert_close(second, every[..., 768:1152], rtol=1e-4, atol=1e-4)
    for a, b in zip(every.split(384, -1)[:-1], every.split(384, -1)[1:], strict=True):
        assert (a - b).abs().mean() > 0.1


def test_encoder_stays_in_evaluation_mode(whisper: AudioEncoder) -> None:
    assert not whisper.train().training
    assert not any(p.requires_grad for p in whisper.parameters())


def test_silence_is_finite(whisper: AudioEncoder) -> None:
    assert whisper(torch.zeros(1, 32_000)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "hubert"}, "expected the encoder 'whisper-tiny.en', found 'hubert'"),
        ({"d_model": "384"}, "expected the d_model 384, found '384'"),
        ({"encoder_attention_heads": None}, "the encoder_attention_heads 6, found None"),
        ({"encoder_layers": 5}, "expected the encoder_layers 4, found 5"),
    ],
)
def test_whisper_refuses_another_checkpoint(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "other.safetensors"
    tensors, found = checkpoint.load(checkpoint.asset_path("whisper_tiny_en_encoder"))
    checkpoint.save(path, tensors, {**found, **change})
    with pytest.raises(CheckpointError, match=message):
        load_audio_encoder(CONFIG, path)


def save_tiny_wav2vec2(folder: Path, vocab_size: int = 33) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    torch.manual_seed(3)
    config = Wav2Vec2Config(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    Wav2Vec2ForCTC(config).save_pretrained(folder)


def test_wav2vec2_equals_its_own_pipeline(tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    save_tiny_wav2vec2(tmp_path)
    config = AUDIO_PRESETS["wav2vec2-xlsr-english"]
    chunk = voiced(2.0)[None]
    found = load_audio_encoder(config, tmp_path)(chunk)
    assert found.shape == (1, 16, 33)
    values = Wav2Vec2FeatureExtractor(do_normalize=True)(
        chunk[0].numpy(), sampling_rate=16_000, return_tensors="pt"
    ).input_values
    reference = Wav2Vec2ForCTC.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = reference(torch.nn.functional.pad(values, (40, 40))).logits
    assert expected.shape == (1, 100, 33)
    torch.testing.assert_close(found, expected[:, 74:90], rtol=1e-4, atol=1e-4)


def test_wav2vec2_weight_norm_folds_without_change(tmp_path: Path) -> None:
    save_tiny_wav2vec2(tmp_path)
    config = AUDIO_PRESETS["wav2vec2-xlsr-english"]
    folded, kept = (
        Wav2Vec2Encoder(config, load_wav2vec2(tmp_path), fold_weight_norm=f) for f in (True, False)
    )
    assert not any("parametrizations" in name for name in folded.state_dict())
    assert any("parametrizations" in name for name in kept.state_dict())
    chunk = voiced(2.0)[None]
    torch.testing.assert_close(folded(chunk), kept(chunk), rtol=1e-5, atol=1e-5)


def test_wav2vec2_missing_weights_say_where_to_get_them(tmp_path: Path) -> None:
    config = AUDIO_PRESETS["wav2vec2-xlsr-english"]
    save_tiny_wav2vec2(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for weights in (None, tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="jonatasgrosman/wav2vec2-large-xlsr-53-english"):
            load_audio_encoder(config, weights)


def test_wav2vec2_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    config = AUDIO_PRESETS["wav2vec2-xlsr-english"]
    for make in (
        lambda: load_audio_encoder(config, tmp_path),
        lambda: load_audio_encoder(config),
        random_wav2vec2,
    ):
        with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[wav2vec2\]'"):
            make()
    load_audio_encoder(AudioConfig())  # the packaged one needs nothing


def test_wav2vec2_damaged_or_other_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = AUDIO_PRESETS["wav2vec2-xlsr-english"]
    save_tiny_wav2vec2(tmp_path, vocab_size=20)
    with pytest.raises(CheckpointError, match="33 CTC logits, found 20"):
        load_audio_encoder(config, tmp_path)
    save_tiny_wav2vec2(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["lm_head.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_audio_encoder(config, tmp_path)
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot load"):
        load_audio_encoder(config, tmp_path)


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


def write_ctranslate2(path: Path, variables: dict[str, np.ndarray], version: int = 6) -> None:
    """Write CTranslate2's binary format, with one alias."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", version) + string("WhisperSpec")
    data += struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += string(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        dtype_id = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}[array.dtype.name]
        data += struct.pack("<BI", dtype_id, array.nbytes) + array.tobytes()
    path.write_bytes(data + struct.pack("<I", 1) + string("alias") + string(next(iter(variables))))


def encoder_variables() -> dict[str, np.ndarray]:
    """The packaged encoder as CTranslate2 variables, stacked as CTranslate2 stacks them."""
    tensors, _ = checkpoint.load(checkpoint.asset_path("whisper_tiny_en_encoder"))
    state = {name: tensor.half().numpy() for name, tensor in tensors.items()}
    variables = {"encoder/num_heads": np.array(6, dtype=np.int16)}

    def put(target: str, source: str, weight: str, bias: str) -> None:
        variables[f"encoder/{target}/{weight}"] = state[f"{source}.weight"]
        variables[f"encoder/{target}/{bias}"] = state[f"{source}.bias"]

    put("conv1", "conv1", "weight", "bias")
    put("conv2", "conv2", "weight", "bias")
    put("layer_norm", "layer_norm", "gamma", "beta")
    for i in range(4):
        target, source = f"layer_{i}", f"layers.{i}"
        attention = f"{source}.self_attn"
        stacked = f"encoder/{target}/self_attention/linear_0"
        variables[f"{stacked}/weight"] = np.concatenate(
            [state[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        )
        variables[f"{stacked}/bias"] = np.concatenate(
            [
                state[f"{attention}.q_proj.bias"],
                np.zeros(384, np.float16),
                state[f"{attention}.v_proj.bias"],
            ]
        )
        put(f"{target}/self_attention/linear_1", f"{attention}.out_proj", "weight", "bias")
        norm = f"{source}.self_attn_layer_norm"
        put(f"{target}/self_attention/layer_norm", norm, "gamma", "beta")
        put(f"{target}/ffn/linear_0", f"{source}.fc1", "weight", "bias")
        put(f"{target}/ffn/linear_1", f"{source}.fc2", "weight", "bias")
        put(f"{target}/ffn/layer_norm", f"{source}.final_layer_norm", "gamma", "beta")
    return variables


def test_conversion_splits_and_names_every_tensor(tmp_path: Path) -> None:
    source, out = tmp_path / "model.bin", tmp_path / "out.safetensors"
    write_ctranslate2(source, encoder_variables())
    assert np.array_equal(read_ctranslate2(source)["alias"], 6)
    convert_whisper(source, out)
    expected, expected_config = checkpoint.load(checkpoint.asset_path("whisper_tiny_en_encoder"))
    found, config = checkpoint.load(out)
    assert config == expected_config
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_conversion_refuses_damaged_sources(tmp_path: Path) -> None:
    source, out = tmp_path / "model.bin", tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="no file"):
        convert_whisper(source, out)
    variables = encoder_variables()
    write_ctranslate2(source, variables, version=3)
    with pytest.raises(CheckpointError, match="format version 6, found 3"):
        convert_whisper(source, out)
    write_ctranslate2(source, variables)
    whole = source.read_bytes()
    source.write_bytes(whole[:-100_000])
    with pytest.raises(CheckpointError, match="ends early"):
        convert_whisper(source, out)
    source.write_bytes(whole + b"x")
    with pytest.raises(CheckpointError, match="goes on"):
        convert_whisper(source, out)
    variables["encoder/layer_0/self_attention/linear_0/bias"][400] = 1.0
    write_ctranslate2(source, variables)
    with pytest.raises(CheckpointError, match="keys have a bias"):
        convert_whisper(source, out)
    del variables["encoder/conv2/bias"]
    write_ctranslate2(source, variables)
    with pytest.raises(CheckpointError, match="conv2/bias"):
        convert_whisper(source, out)
    assert not out.exists()
