"""The speech encoder that a configuration names, with its weights."""

from __future__ import annotations

from pathlib import Path

from dithead import checkpoint
from dithead.audio.config import WAV2VEC2, AudioConfig
from dithead.audio.encoder import AudioEncoder, WhisperEncoder
from dithead.audio.wav2vec2 import ADVICE, Wav2Vec2Encoder, load_wav2vec2, require_transformers
from dithead.errors import CheckpointError


def load_audio_encoder(config: AudioConfig, weights: str | Path | None = None) -> AudioEncoder:
    """Make the encoder that a configuration names.

    Args:
        config: which encoder and which grid.
        weights: None for the packaged Whisper encoder; for wav2vec2 see
            :func:`dithead.audio.load_wav2vec2`.

    Raises:
        CheckpointError: the weights are missing or do not fit.
        BackendUnavailable: wav2vec2 is asked for, and transformers is not installed.
    """
    if config.encoder == WAV2VEC2:
        require_transformers()  # first: its error has the command that installs it
        if weights is None:
            raise CheckpointError(f"wav2vec2 does not ship with DiT-Head: {ADVICE}")
        return Wav2Vec2Encoder(config, load_wav2vec2(weights))
    if weights is not None and Path(weights).is_dir():
        raise CheckpointError(
            f"{weights} is a folder, and this checkpoint hears through Whisper, which ships with "
            "DiT-Head: leave the audio encoder's weights out"
        )
    return WhisperEncoder(config, weights or checkpoint.asset_path("whisper_tiny_en_encoder"))
