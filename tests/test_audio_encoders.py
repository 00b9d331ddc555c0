"""The encoders of speech: what they are given, and what they make of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from speech import CONFIG, voiced

from dithead import checkpoint
from dithead.audio import (
    AudioConfig,
    AudioEncoder,
    LogMel,
    load_audio_encoder,
    normalise_loudness,
)
from dithead.audio.encoder import TARGET_RMS
from dithead.audio.whisper import WhisperBody
from dithead.errors import CheckpointError

DATA = Path(__file__).parent / "data"


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
