"""The speech encoder that a configuration names, with its weights."""

from __future__ import annotations

from pathlib import Path

from dithead import checkpoint
from dithead.audio.config import WAV2VEC2, WHISPER, AudioConfig
from dithead.audio.encoder import WHISPER_ADVICE, AudioEncoder, WhisperEncoder
from dithead.audio.wav2vec2 import (
    ADVICE,
    Wav2Vec2Encoder,
    find_wav2vec2,
    load_wav2vec2,
    require_transformers,
)
from dithead.errors import CheckpointError


def find_audio_weights(config: AudioConfig, weights: str | Path | None) -> Path | None:
    """The absolute path of what :func:`load_audio_encoder` would read, fetched from the hub if that
    is asked for: for processes that run in other folders. None for the packaged encoder.

    Raises:
        CheckpointError: wav2vec2's weights are not there.
    """
    if weights is None:
        return None
    path = find_wav2vec2(weights) if config.encoder == WAV2VEC2 else Path(weights)
    return path.absolute()


def load_audio_encoder(config: AudioConfig, weights: str | Path | None = None) -> AudioEncoder:
    """Make the encoder that a configuration names.

    Args:
        config: which encoder and which grid.
        weights: None for the packaged encoder, Whisper tiny.en; a file of ``dithead train convert
            whisper`` for Whisper base; for wav2vec2 see :func:`dithead.audio.load_wav2vec2`.

    Raises:
        CheckpointError: the weights are missing or do not fit.
        BackendUnavailable: wav2vec2 is asked for, and transformers is not installed.
    """
    if config.encoder == WAV2VEC2:
        require_transformers()  # first: its error has the command that installs it
        if weights is None:
            raise CheckpointError(f"wav2vec2 does not ship with DiT-Head: {ADVICE}")
        return Wav2Vec2Encoder(config, load_wav2vec2(weights))
    advice = WHISPER_ADVICE[config.encoder]
    if weights is not None and Path(weights).is_dir():
        raise CheckpointError(
            f"{weights} is a folder, and this checkpoint hears through {config.encoder}; {advice}"
        )
    if config.encoder != WHISPER:
        if weights is None:
            raise CheckpointError(f"{config.encoder} does not ship with DiT-Head: {advice}")
        return WhisperEncoder(config, weights)
    return WhisperEncoder(config, weights or checkpoint.asset_path("whisper_tiny_en_encoder"))
