"""The sound of ``dithead-train latents``: the audio windows of every clip."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder, encode_audio, load_audio_encoder
from dithead.config import AudioConfig, DitHeadConfig
from dithead.train.data import Clip, Footage, open_footage
from dithead.train.loop import single_thread

SILENT_RMS = 0.028
"""A frame whose whole audio window is quieter than this (after loudness normalisation of the clip)
counts as silent."""


@dataclass(frozen=True, slots=True)
class _Sound:
    roots: tuple[Path, ...]
    config: AudioConfig
    weights: Path | None
    clip: Clip
    out: Path
    seed: int


@cache
def _audio_encoder(config: AudioConfig, weights: Path | None) -> AudioEncoder:
    return load_audio_encoder(config, weights)


def _hear(job: _Sound) -> None:
    encoder = _audio_encoder(job.config, job.weights)
    windows, silent = clip_windows(encoder, open_footage(job.roots).track(job.clip), job.seed)
    np.savez(job.out, windows=windows, silent=silent)


@torch.inference_mode()
def clip_windows(
    encoder: AudioEncoder, track: dict[str, np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """A clip's windows as recorded and with a changed level and added noise, (2, T, window_frames,
    features) float16; which of its frames are silent, (T,)."""
    audio, times = track["audio"].astype(np.float32), track["time_s"]
    variants = []
    for samples in (audio, _disturb(audio, np.random.default_rng(seed))):
        variants.append(windows_at(encoder, samples, times).half().numpy())
    return np.stack(variants), _silent_frames(audio, times)


@torch.inference_mode()
def windows_at(encoder: AudioEncoder, samples: np.ndarray, times_s: np.ndarray) -> Tensor:
    """The windows of a sound (S,) at some times (T,): (T, window_frames, features)."""
    features = encode_audio(encoder, samples, batch=16)
    return torch.stack([features.window(float(time_s)) for time_s in times_s])


def cache_windows(
    footage: Footage,
    config: DitHeadConfig,
    out: Path,
    audio_weights: Path | None = None,
    seed: int = 0,
    workers: int = 2,
) -> None:
    """Audio windows of every training clip at its frames' times, as recorded and with a changed
    level and added noise; clips with the same sound share them.

    Args:
        audio_weights: of the speech encoder, if it is not the packaged one.
    """
    folder = out / "windows"
    folder.mkdir(parents=True, exist_ok=True)
    sounds = {clip.driver or clip.name: clip for clip in footage.split("train")}
    jobs = [
        _Sound(footage.roots, config.audio, audio_weights, clip, folder / f"{name}.npz", seed + i)
        for i, (name, clip) in enumerate(sorted(sounds.items()))
    ]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=single_thread) as pool:
        for _ in pool.imap_unordered(_hear, jobs):
            pass
    silence = silence_window(load_audio_encoder(config.audio, audio_weights))
    np.save(out / "silence.npy", silence.numpy())


@torch.inference_mode()
def silence_window(encoder: AudioEncoder) -> Tensor:
    """The window of digital silence: (window_frames, features)."""
    return encode_audio(encoder, np.zeros(32000, np.float32)).window(1.0)


def _disturb(audio: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same speech, louder or softer, in a room with noise."""
    gain = 10 ** (random.uniform(-8, 8) / 20)
    level = np.sqrt(np.mean(audio**2)) * 10 ** (-random.uniform(12, 35) / 20)
    white = random.standard_normal(len(audio)).astype(np.float32)
    smooth = np.convolve(white, np.ones(16) / 4, mode="same")
    noise = white if random.random() < 0.5 else smooth
    return np.clip(gain * (audio + level * noise), -1, 1).astype(np.float32)


def _silent_frames(audio: np.ndarray, times: np.ndarray, rate: int = 16000) -> np.ndarray:
    normal = audio * 0.07 / max(float(np.sqrt(np.mean(audio**2))), 1e-4)
    power = np.convolve(normal**2, np.ones(rate // 50) / (rate // 50), mode="same")
    half = int(0.24 * rate)
    out = []
    for t in times:
        middle = round(t * rate)
        piece = power[max(0, middle - half) : middle + half]
        out.append(len(piece) > 0 and float(np.sqrt(piece.max())) < SILENT_RMS)
    return np.array(out)
