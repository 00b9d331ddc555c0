"""``dithead-train prepare``: converts videos to crops, tracks and audio on disk, once, with the
runtime's own tracker."""

from __future__ import annotations

import csv
import logging
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dithead.config import DitHeadConfig, FaceConfig
from dithead.errors import MediaError
from dithead.face.choice import FaceChoice
from dithead.face.crop import STABLE_POINTS, crop_face
from dithead.face.cropsmoother import CropSmoother
from dithead.face.likeness import unlikeness
from dithead.face.networks import FaceModels, FaceNetworks
from dithead.face.tracker import ANOTHER, FaceTracker
from dithead.runtime.media.sources import SPEECH_RATE_HZ, AudioSource, VideoSource
from dithead.train.data import STORED_MARGIN, Clip, make_folders, read_index, save_clip, write_index
from dithead.train.loop import single_thread

log = logging.getLogger(__name__)

MAX_VIDEO_FRAMES = 1500
"""Only this many frames from the start of longer videos are used."""
ENOUGH_FRAMES = 100
"""With so many frames of one person, the rest of a video is not needed if it may show another."""
AFTER_S = 3.0
"""Sound that is kept after the last frame."""
HELD_OUT_STILLS = 20
"""One in this many stills is held out."""


@dataclass(frozen=True, slots=True)
class Source:
    """A video to prepare."""

    path: Path
    person: str
    split: str
    still: bool = False
    """A picture, not a video."""
    sound_delay_ms: float = 0.0
    """Added to the sound's times, if a recording's sound runs ahead of its picture."""


def list_folder(folder: Path, person: str, validation: int) -> list[Source]:
    """Every video in a folder, of one person; the first ``validation`` by name are held out."""
    paths = _files(folder, (".mp4", ".mpg", ".mov", ".mkv"))
    return [
        Source(path, person, "validation" if i < validation else "train")
        for i, path in enumerate(paths)
    ]


def list_stills(folder: Path) -> list[Source]:
    """Every picture in a folder, each of another person, named after the file; by that name every
    twentieth is held out."""
    return [
        Source(path, path.stem, "train" if i % HELD_OUT_STILLS else "validation", still=True)
        for i, path in enumerate(_files(folder, (".jpg", ".jpeg", ".png")))
    ]


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """A folder's files with such names, sorted."""
    kinds = ", ".join(suffixes)
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder: expected one with {kinds} files")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes)
    if not paths:
        raise MediaError(f"nothing in {folder} to prepare: expected {kinds} files")
    return paths


def list_manifest(manifest: Path, split: str = "train") -> list[Source]:
    """Rows of a TSV with the columns ``file``, ``split``, ``person``; those of one split."""
    if not manifest.is_file():
        raise MediaError(f"{manifest} does not exist: expected a table of tab-separated columns")
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"file", "split", "person"} <= rows[0].keys():
        raise MediaError(f"{manifest} needs the tab-separated columns file, split and person")
    return [
        Source(manifest.parent / row["file"], row["person"], split)
        for row in rows
        if row["split"] == split
    ]


@cache
def face_networks(models: FaceModels = "mediapipe", weights: Path | None = None) -> FaceNetworks:
    """The networks that find faces, loaded once per process; see
    :meth:`dithead.face.networks.FaceNetworks.load`."""
    return FaceNetworks.load(models, weights)


def prepare(
    sources: Sequence[Source],
    out: Path,
    config: DitHeadConfig,
    workers: int = 2,
    face_models: FaceModels = "mediapipe",
    face_weights: Path | None = None,
) -> list[Clip]:
    """Track every source and write crops, tracks and audio; a clip with a faceless frame is left
    out and logged.

    Clips already in the index are kept, so an interrupted run goes on where it stopped.

    Args:
        face_models: which networks find faces. face_weights: folder of S3FD's and FAN's weights;
            None takes the one in the user's cache.

    Raises:
        MediaError: two sources have the same name, which is the clip's name.
        CheckpointError: weights of the networks are missing; nothing was written.
    """
    names: dict[str, Path] = {}
    for source in sources:
        other = names.setdefault(source.path.stem, source.path)
        if other != source.path:
            raise MediaError(f"{other} and {source.path} bear the same name: rename one of them")
    face_networks(face_models, face_weights)
    make_folders(out)
    done = {clip.name: clip for clip in read_index(out)}
    todo = [s for s in sources if s.path.stem not in done]
    jobs = [_Job(source, out, config, face_models, face_weights) for source in todo]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=single_thread) as pool:
        for i, clip in enumerate(pool.imap_unordered(_prepare_one, jobs)):
            if clip is not None:
                done[clip.name] = clip
            if i % 200 == 199 or i + 1 == len(jobs):
                write_index(out, done.values())
                log.info("prepared %d of %d", i + 1, len(jobs))
    return list(done.values())


@dataclass(frozen=True, slots=True)
class _Job:
    source: Source
    out: Path
    config: DitHeadConfig
    face_models: FaceModels
    face_weights: Path | None


def _prepare_one(job: _Job) -> Clip | None:
    networks = face_networks(job.face_models, job.face_weights)
    try:
        return prepare_clip(job.source, job.out, job.config, networks=networks)
    except MediaError as error:
        log.warning("left out %s: %s", job.source.path.name, error)
        return None


@torch.inference_mode()
def prepare_clip(
    source: Source,
    out: Path,
    config: DitHeadConfig,
    *,
    networks: FaceNetworks | None = None,
    name: str | None = None,
    face: FaceChoice = "largest",
    one_person: bool = False,
    going: Callable[[int], bool] = lambda frames: frames < MAX_VIDEO_FRAMES,
) -> Clip:
    """Prepare one video or still.

    Args:
        networks: which find faces; None takes the packaged ones.
        name: of the clip; None takes the file's.
        face: whose face.
        one_person: leave frames without a face out, which otherwise are an error, and end where
            somebody else may be followed.
        going: whether to go on after so many frames with a face; asked before each frame.

    Raises:
        MediaError: unreadable, a video without audio, a frame without a face, or no face at all.
    """
    locate = FaceTracker((networks or face_networks()).run, face)
    tracker = CropSmoother(config.face)
    state = tracker.initial_state()
    crops: list[np.ndarray] = []
    transforms: list[np.ndarray] = []
    meshes: list[np.ndarray] = []
    times: list[float] = []
    looks: torch.Tensor | None = None  # of the person, when that one was first seen
    with VideoSource(source.path) as video:
        for frame in video:
            if not going(len(times)):
                break
            image = torch.from_numpy(frame.rgb())
            found = locate(image)
            if found is None and one_person:
                continue
            if found is None:
                raise MediaError(f"no face in frame {frame.index}")
            looks = found.looks if looks is None else looks
            if found.changed:
                state = tracker.initial_state()
                other = float(unlikeness(looks[None], found.looks)) > ANOTHER
                if other and one_person and len(times) >= ENOUGH_FRAMES:
                    break
                if other and one_person:
                    looks = found.looks
                    for values in (crops, transforms, meshes, times):
                        values.clear()
            mesh = found.mesh
            elapsed = float(frame.time_s) - times[-1] if times else 0.0
            transform, _, state = tracker(mesh, state, torch.tensor(elapsed))
            crops.append(stored_crop(image, transform, config.face))
            transforms.append(transform.numpy())
            meshes.append(mesh[:, :2].numpy())
            times.append(float(frame.time_s))
    if not times:
        raise MediaError(f"{source.path} shows no face")
    blocks, left = [np.zeros(0, np.float32)], (times[-1] + AFTER_S) * SPEECH_RATE_HZ
    for block in () if source.still else AudioSource(source.path).blocks():
        blocks.append(block)
        left -= len(block)
        if left < 0:
            break
    samples = delayed(np.concatenate(blocks), source.sound_delay_ms)
    name = name or source.path.stem
    track = {
        "transform": np.stack(transforms),
        "mesh": np.stack(meshes).astype(np.float32),
        "time_s": np.array(times),
        "audio": samples.astype(np.float16),
    }
    save_clip(out, name, np.stack(crops), track)
    return Clip(name, source.person, source.split, len(times), source.still)


def delayed(samples: np.ndarray, by_ms: float) -> np.ndarray:
    """Sound (S,) at 16 kHz, later by so many milliseconds (earlier if negative); as long as
    before."""
    shift = round(abs(by_ms) * SPEECH_RATE_HZ / 1000)
    silence = np.zeros(min(shift, len(samples)), samples.dtype)
    if by_ms < 0:
        return np.concatenate([samples[shift:], silence])
    return np.concatenate([silence, samples[: len(samples) - len(silence)]])


def stored_crop(image: torch.Tensor, transform: torch.Tensor, config: FaceConfig) -> np.ndarray:
    """The stored part of a frame (H, W, 3) uint8: (S, S, 3) uint8, S is STORED_MARGIN times the
    model's crop."""
    size = round(config.crop_px * STORED_MARGIN)
    view = config.view._replace(span=config.crop_span * STORED_MARGIN)
    density = max(1, round(float(transform[:, 0].norm()) * view.span / size))
    frame = image.movedim(-1, 0)[None].float()
    picture = crop_face(frame, transform[None], size, density, view)
    return picture[0].round().byte().movedim(0, -1).numpy()


def mean_template(meshes: np.ndarray, side: float, centre: tuple[float, float]) -> np.ndarray:
    """Mean shape of the stable points over frontal meshes (N, 468, 2), for ``dithead.face.crop``.

    Args:
        side: the crop's side in widths of the face between the temples (mesh points 127 and 356).
        centre: the crop's centre in crop sides from the middle of the outer eye corners, x and y.

    Returns:
        (len(STABLE_POINTS), 2) in crop units.
    """
    shapes = []
    for mesh in meshes.astype(np.float64):
        z = mesh[:, 0] + 1j * mesh[:, 1]
        eyes = (z[33] + z[263]) / 2
        axis = (z[356] - z[127]) / abs(z[356] - z[127])
        unit = abs(z[356] - z[127]) * side * axis
        shapes.append((z - eyes) / unit - complex(*centre))
    mean = np.mean(shapes, axis=0)[list(STABLE_POINTS)]
    return np.stack([mean.real, mean.imag], axis=1)
