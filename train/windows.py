"""The sound of ``dithead-train latents``: the audio windows of every clip."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder, encode_audio, load_audio_encoder
from dithead.config import AudioConfig, DitHeadConfig
from dithead.errors import MediaError
from dithead.train.data import Clip, Footage, open_footage, write_json
from dithead.train.loop import single_thread
from dithead.train.rows import check_frames, remove_partial, written_rows

SILENT_RMS = 0.028
"""A frame whose whole audio window is quieter than this (after loudness normalisation of the clip)
counts as silent."""
INDEX = "windows.json"
"""Which rows are whose of ``windows.npy`` (N, audio variants, window_frames, features) and
``silent.npy`` (N,)."""
EARLIER = "windows"
"""The folder in which earlier versions had a file for each clip."""


@dataclass(frozen=True, slots=True)
class _Sound:
    roots: tuple[Path, ...]
    config: AudioConfig
    weights: Path | None
    clip: Clip
    seed: int


@cache
def _audio_encoder(config: AudioConfig, weights: Path | None) -> AudioEncoder:
    return load_audio_encoder(config, weights)


def _hear(job: _Sound) -> tuple[np.ndarray, np.ndarray]:
    encoder = _audio_encoder(job.config, job.weights)
    return clip_windows(encoder, open_footage(job.roots).track(job.clip), job.seed)


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
    level and added noise; clips with the same sound share them. They are written as they are made.

    Args:
        audio_weights: of the speech encoder, if it is not the packaged one.

    Raises:
        MediaError: there are no clips, or one has not as many frames as the index says.
    """
    silence = silence_window(load_audio_encoder(config.audio, audio_weights)).numpy()
    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX).unlink(missing_ok=True)  # written last: without it there are no windows
    remove_partial(out)
    shutil.rmtree(out / EARLIER, ignore_errors=True)
    sounds = {clip.driver or clip.name: clip for clip in footage.split("train")}
    jobs = [
        _Sound(footage.roots, config.audio, audio_weights, clip, seed + i)
        for i, (_, clip) in enumerate(sorted(sounds.items()))
    ]
    frames = sum(clip.frames for clip in sounds.values())
    index: list[dict[str, Any]] = []
    first = 0
    with (
        written_rows(out / "windows.npy", frames) as all_windows,
        written_rows(out / "silent.npy", frames) as all_silent,
        multiprocessing.get_context("spawn").Pool(workers, initializer=single_thread) as pool,
    ):
        for name, (windows, silent) in zip(sorted(sounds), pool.imap(_hear, jobs), strict=True):
            check_frames(sounds[name].name, len(silent), sounds[name].frames)
            all_windows.add(windows.swapaxes(0, 1))
            all_silent.add(silent)
            index.append({"clip": name, "first": first, "frames": len(silent)})
            first += len(silent)
    with written_rows(out / "silence.npy", len(silence)) as rows:
        rows.add(silence)
    write_json(out / INDEX, index)


@dataclass(frozen=True, slots=True)
class WindowCache:
    """The windows of all clips, see :class:`dithead.train.latents.LatentCache`."""

    windows: dict[str, np.ndarray]
    silent: dict[str, np.ndarray]
    silence_window: Tensor


def load_windows(folder: Path) -> WindowCache:
    """Open what :func:`cache_windows` wrote; the windows stay on disk, mapped read-only.

    Raises:
        MediaError: there are none, they are of an earlier version, or incomplete.
    """
    if not (folder / INDEX).is_file() and (folder / EARLIER).is_dir():
        raise MediaError(
            f"{folder} has audio windows of an earlier version, a file for each clip: expected "
            "windows.npy, which need not be in memory",
            hint="run dithead-train latents again",
        )
    for name in (INDEX, "windows.npy", "silent.npy", "silence.npy"):
        if not (folder / name).is_file():
            raise MediaError(f"{folder} has no {name}: run dithead-train latents first")
    index = json.loads((folder / INDEX).read_text())
    # One file for all clips, as each mapped file stays open and a process may have 1024.
    windows = np.load(folder / "windows.npy", mmap_mode="r")
    silent = np.load(folder / "silent.npy")
    if {len(windows), len(silent)} != {sum(row["frames"] for row in index)}:
        raise MediaError(f"{folder} is not whole: run dithead-train latents again")
    rows = {row["clip"]: slice(row["first"], row["first"] + row["frames"]) for row in index}
    return WindowCache(
        {name: windows[place].swapaxes(0, 1) for name, place in rows.items()},
        {name: silent[place] for name, place in rows.items()},
        torch.from_numpy(np.load(folder / "silence.npy")),
    )


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
