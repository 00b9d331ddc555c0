"""The people in an evaluation and their held-out clips, decoded and fitted once a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead.errors import MediaError
from dithead.face.cropsmoother import CropSmoother
from dithead.face.tracker import FaceTracker
from dithead.graphs import Graphs
from dithead.runtime.media.sources import SPEECH_RATE_HZ, AudioSource, VideoSource
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation.motion import RATE_HZ
from dithead.train.evaluation.sound import silent_stretches
from dithead.train.metrics import TREND_FRAMES
from dithead.train.prepare import delayed, list_folder, list_manifest

MARGIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Person:
    """A person and the clips that show them, sorted by name."""

    name: str
    clips: list[Path]


@dataclass(frozen=True, slots=True)
class Clip:
    """A held-out clip in memory."""

    name: str
    frames: Sequence[Tensor]
    """(H, W, 3) uint8 RGB each."""
    times_s: list[float]
    samples: np.ndarray
    """(S,) float32, 16 kHz mono."""
    meshes: np.ndarray
    """(T, 468, 2) in frame pixels, of the true frames."""

    start_s: float = 0.0
    """Its start in its file."""

    def part(self, start_s: float, end_s: float) -> Clip:
        """The part from one time up to another, with times from 0."""
        times = np.array(self.times_s)
        first, last = np.searchsorted(times, [start_s - 1e-6, end_s - 1e-6]).tolist()
        begin = self.times_s[first]
        samples = self.samples[round(begin * SPEECH_RATE_HZ) : round(end_s * SPEECH_RATE_HZ)]
        return Clip(
            self.name,
            self.frames[first:last],
            (times[first:last] - begin).tolist(),
            samples,
            self.meshes[first:last],
            self.start_s + begin,
        )


def people_in_folder(folder: Path, validation: int, name: str | None = None) -> list[Person]:
    """The one person of a folder of clips, named after it or as given, with the held-out clips: the
    first by name."""
    held_out = [s.path for s in list_folder(folder, "", validation) if s.split == "validation"]
    if not held_out:
        raise MediaError("no held-out clips: --validation must be at least 1")
    return [Person(name or folder.resolve().name, held_out)]


def people_in_manifest(manifest: Path, split: str) -> list[Person]:
    """Everybody in one split of a manifest, sorted by name."""
    clips: dict[str, list[Path]] = {}
    for source in list_manifest(manifest, split):
        clips.setdefault(source.person, []).append(source.path)
    if not clips:
        raise MediaError(f"{manifest} has no row with split={split}")
    return [Person(name, sorted(clips[name])) for name in sorted(clips)]


def load_clip(
    path: Path, models: TorchGraphs, seconds: float | None = None, sound_delay_ms: float = 0.0
) -> Clip:
    """Decode a clip and fit the mesh to its true frames.

    Args:
        seconds: maximum length, from a second before the first sound to at most a second after the
            last: long silence is easy to copy. None takes everything.
        sound_delay_ms: added to the sound's times.

    Raises:
        MediaError: it cannot be read, is too short, or a frame shows no face.
    """
    samples = delayed(np.concatenate(list(AudioSource(path).blocks())), sound_delay_ms)
    start, end = (0.0, np.inf) if seconds is None else speaking_part(samples, seconds)
    frames, times = [], []
    with VideoSource(path) as video:
        for frame in video:
            time_s = float(frame.time_s)
            if time_s >= end - 1e-6:
                break
            if time_s >= start - 1e-6:
                frames.append(torch.from_numpy(frame.rgb()))
                times.append(time_s)
    if not times or (times[-1] - times[0]) * RATE_HZ < TREND_FRAMES - 1:
        raise MediaError(f"{path} is shorter than {TREND_FRAMES / RATE_HZ} s")
    begin = times[0] if start > 0 else 0.0
    if seconds is not None:
        samples = samples[round(begin * SPEECH_RATE_HZ) : round(end * SPEECH_RATE_HZ)]
    shifted = [time_s - begin for time_s in times]
    return Clip(path.stem, frames, shifted, samples, fit_meshes(frames, models), begin)


def speaking_part(samples: np.ndarray, seconds: float) -> tuple[float, float]:
    """The part of a clip's sound (S,) that is worth judging, in seconds; see :func:`load_clip`."""
    times = np.arange(int(len(samples) / SPEECH_RATE_HZ * RATE_HZ)) / RATE_HZ
    spoken = times[~silent_stretches(samples, times)]
    start = max(0.0, float(spoken[0]) - MARGIN_S)
    return start, min(float(spoken[-1]) + MARGIN_S, start + seconds)


@torch.inference_mode()
def fit_meshes(frames: Sequence[Tensor], models: TorchGraphs) -> np.ndarray:
    """Mesh (T, 468, 2) of each frame, tracked by the runtime's locator, not smoothed.

    Raises:
        MediaError: a frame shows no face.
    """
    meshes, found = follow_meshes(frames, models)
    if not found.all():
        missing = int(np.argmin(found))
        raise MediaError(f"no face in frame {missing}: evaluation needs one in every frame")
    return meshes


@torch.inference_mode()
def follow_meshes(frames: Sequence[Tensor], models: TorchGraphs) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`fit_meshes`, for frames that may have lost their face.

    Returns:
        Meshes (T, 468, 2), without a face those of the nearest earlier frame with one (at the
        start, of the first with one); which frames show a face, (T,) bool.

    Raises:
        MediaError: no frame shows a face.
    """
    locate = FaceTracker(models.run)
    faces = [locate(frame.to(models.device)) for frame in frames]
    fitted = [None if face is None else face.mesh[:, :2].cpu().numpy() for face in faces]
    found = np.array([mesh is not None for mesh in fitted])
    if not found.any():
        raise MediaError("no face in any frame")
    sources = np.maximum.accumulate(np.where(found, np.arange(len(found)), int(np.argmax(found))))
    return np.stack([fitted[i] for i in sources]), found


@torch.inference_mode()
def track(clip: Clip, graphs: Graphs) -> tuple[list[Tensor], np.ndarray]:
    """Where the runtime's tracker finds a clip's face.

    Returns:
        Crop transforms (2, 3), crop units to frame pixels, for each frame; outlines of the blend
        (T, P, 2) in frame pixels.
    """
    state = CropSmoother.initial_state(graphs.device)
    transforms, outlines = [], []
    before = clip.times_s[0]
    for mesh, time_s in zip(clip.meshes, clip.times_s, strict=True):
        elapsed = torch.full((), time_s - before, device=graphs.device)
        points = torch.from_numpy(mesh).float().to(graphs.device)
        transform, polygon, state = graphs.run("crop_smoother", points, state, elapsed)
        outlines.append((polygon @ transform[:, :2].T + transform[:, 2]).cpu().numpy())
        transforms.append(transform.cpu())
        before = time_s
    return transforms, np.stack(outlines)


class ClipStore:
    """Clips decoded once in a run and kept in a folder, from which every process maps them.

    Args:
        folder: empty at first. seconds, sound_delay_ms: as for :func:`load_clip`.
    """

    def __init__(
        self, folder: Path, seconds: float | None = None, sound_delay_ms: float = 0.0
    ) -> None:
        self.folder = folder
        self.seconds = seconds
        self.sound_delay_ms = sound_delay_ms

    def add(self, path: Path, models: TorchGraphs) -> None:
        """Decode a clip, fit its meshes and write both. Raises MediaError as :func:`load_clip`."""
        clip = load_clip(path, models, self.seconds, self.sound_delay_ms)
        shape = (len(clip.frames), *clip.frames[0].shape)
        frames = np.lib.format.open_memmap(
            self._file(path, "npy"), mode="w+", dtype=np.uint8, shape=shape
        )
        for kept, frame in zip(frames, clip.frames, strict=True):
            kept[:] = frame.numpy()
        frames.flush()
        np.savez(
            self._file(path, "npz"),
            times=clip.times_s,
            samples=clip.samples,
            meshes=clip.meshes,
            start=clip.start_s,
        )

    def load(self, path: Path) -> Clip:
        """A clip that was added."""
        frames = list(torch.from_numpy(np.load(self._file(path, "npy"), mmap_mode="c")))
        with np.load(self._file(path, "npz")) as kept:
            return Clip(
                path.stem,
                frames,
                kept["times"].tolist(),
                kept["samples"],
                kept["meshes"],
                float(kept["start"]),
            )

    def features_file(self, path: Path) -> Path:
        """Where what FID compares of a clip is kept, see :mod:`.wholeface`."""
        return self._file(path, "features.npz")

    def _file(self, path: Path, extension: str) -> Path:
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        return self.folder / f"{name}.{extension}"
