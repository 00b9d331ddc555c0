"""Speech features: from 16 kHz samples to the window of features that drives one video frame.

Samples are cut into chunks on a fixed grid. Chunk ``h`` yields the features of hop ``h`` and also
sees a fixed stretch of sound before and after it, so a feature depends only on its chunk, never on
how the sound was pushed. Before its start and after its end, the sound counts as silent.

Time convention: feature ``j`` describes the 20 ms interval [20 j, 20 j + 20) ms and stands for its
centre. A window at time t has ``window_frames`` frames; the one k steps from the middle covers an
interval of ``features_per_frame`` * 20 ms centred at t + k * ``window_spacing_ms`` -
``window_shift_ms``; its features are those centred on that interval's equal parts, linearly
interpolated. With two features a frame and t + k * 40 ms - shift = 20 m ms, they are exactly the
features m - 1 and m. Internally, times are whole microseconds, so every runtime uses the same
features with the same weights.
"""

from dithead.audio.config import AUDIO_PRESETS, AudioConfig
from dithead.audio.encoder import (
    AudioEncoder,
    LogMel,
    WhisperEncoder,
    normalise_loudness,
)
from dithead.audio.loading import find_audio_weights, load_audio_encoder
from dithead.audio.stream import (
    AudioFeatures,
    AudioFeatureStream,
    AudioStreamState,
    AudioWindow,
    ChunkEncoder,
    encode_audio,
    sample_window,
)
from dithead.audio.wav2vec2 import Wav2Vec2Encoder, load_wav2vec2, random_wav2vec2

__all__ = [
    "AUDIO_PRESETS",
    "AudioConfig",
    "AudioEncoder",
    "AudioFeatureStream",
    "AudioFeatures",
    "AudioStreamState",
    "AudioWindow",
    "ChunkEncoder",
    "LogMel",
    "Wav2Vec2Encoder",
    "WhisperEncoder",
    "encode_audio",
    "find_audio_weights",
    "load_audio_encoder",
    "load_wav2vec2",
    "normalise_loudness",
    "random_wav2vec2",
    "sample_window",
]
