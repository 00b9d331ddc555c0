"""Lips and sound of a stretch, as the sync model sees them: 25 times a second."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder, encode_audio
from dithead.errors import MediaError
from dithead.train.evaluation.motion import grid
from dithead.train.motion import to_units
from dithead.train.sync.model import LIP_POINTS


def even_times(times_s: np.ndarray) -> np.ndarray:
    """Times 25 times a second, from the first to the last of some."""
    return times_s[0] + grid(float(times_s[-1] - times_s[0]))


def lip_series(mesh: np.ndarray, times_s: np.ndarray, even_s: np.ndarray) -> Tensor:
    """Lips of meshes (T, 468, 2) in pixels, put upright and of one size frame by frame, at some
    times (N,): (N, points, 2) in crop units.

    Raises:
        MediaError: there is no mesh.
    """
    if len(mesh) == 0:
        raise MediaError("no face in the stretch: expected a mesh for every frame")
    upright = to_units(torch.from_numpy(np.asarray(mesh, np.float32)))[:, list(LIP_POINTS)].numpy()
    flat = upright.reshape(len(mesh), -1)
    columns = [np.interp(even_s, times_s, column) for column in flat.T]
    lips = np.stack(columns, axis=1).reshape(len(even_s), len(LIP_POINTS), 2)
    return torch.from_numpy(lips).float()


@torch.inference_mode()
def sound_series(encoder: AudioEncoder, sound: np.ndarray, even_s: np.ndarray) -> Tensor:
    """Features of a sound (S,) at 16 kHz, at some times (N,): (N, features). Only what the speech
    encoder hears of it at these times is encoded."""
    config = encoder.config
    context_s = config.chunk_ms / 1000
    # From the start of a chunk of the whole sound, so that the features are the same.
    hops = max(0, int((even_s[0] - context_s) * 1000 / config.hop_ms))
    first, last = hops * config.hop_samples, int((even_s[-1] + context_s) * config.sample_rate_hz)
    part = np.asarray(sound[first:last], np.float32)
    features = encode_audio(encoder, part, batch=8)
    offset_s = first / config.sample_rate_hz
    return torch.cat([features.window(float(time_s) - offset_s) for time_s in even_s])
