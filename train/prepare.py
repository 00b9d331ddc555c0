"""``dithead-train prepare``: from videos to crops, tracks and audio on disk, made once with the
runtime's own tracker."""

from __future__ import annotations

import csv
import json
import logging
import multiprocessing
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from dithead.config import DitHeadConfig
from dithead.errors import MediaError
from dithead.face.crop import STABLE_POINTS, crop_face
from dithead.face.detector import load_face_detector
from dithead.face.locate import FaceLocator
from dithead.face.mesh import load_face_mesh
from dithead.face.tracker import FaceTracker
from dithead.runtime.media import AudioSource, VideoSource
from dithead.train.data import STORED_MARGIN, Clip, write_json
from dithead.train.loop import single_thread

log = logging.getLogger(__name__)

MAX_VIDEO_FRAMES = 1500
"""Of longer videos, so many frames from the start are taken."""


@dataclass(frozen=True, slots=True)
class Source:
    """A video to prepare."""

    path: Path
    person: str
    split: str


def list_folder(folder: Path, person: str, validation: int) -> list[Source]:
    """Every video in a folder, of one person; the ``validation`` whose names sort first are held
    out."""
    if not folder.is_dir():
        raise MediaError(
            f"{folder} is not a folder: expected one with .mp4, .mpg, .mov or .mkv files"
        )
    paths = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in {".mp4", ".mpg", ".mov", ".mkv"}
    )
    if not paths:
        raise MediaError(f"no video in {folder}: expected .mp4, .mpg, .mov or .mkv files")
    return [
        Source(path, person, "validation" if i < validation else "train")
        for i, path in enumerate(paths)
    ]


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


def prepare(
    sources: Sequence[Source], out: Path, config: DitHeadConfig, workers: int = 2
) -> list[Clip]:
    """Track every source and write crops, tracks and audio; a clip with a faceless frame is left
    out and logged.

    Clips already in the index are kept, so an interrupted run goes on where it stopped.

    Raises:
        MediaError: two sources bear the same name, by which a clip goes.
    """
    names: dict[str, Path] = {}
    for source in sources:
        other = names.setdefault(source.path.stem, source.path)
        if other != source.path:
            raise MediaError(f"{other} and {source.path} bear the same name: rename one of them")
    for folder in ("crops", "track"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    index = out / "index.json"
    done = (
        {c["name"]: Clip(**c) for c in json.loads(index.read_text())["clips"]}
        if index.is_file()
        else {}
    )
    todo = [s for s in sources if s.path.stem not in done]
    jobs = [(source, out, config) for source in todo]
    with multiprocessing.get_context("spawn").Pool(workers, initializer=single_thread) as pool:
        for i, clip in enumerate(pool.imap_unordered(_prepare_one, jobs)):
            if clip is not None:
                done[clip.name] = clip
            if i % 50 == 49 or i + 1 == len(jobs):
                _write_index(index, done.values())
                log.info("prepared %d of %d", i + 1, len(jobs))
    return list(done.values())


def _write_index(path: Path, clips: Iterable[Clip]) -> None:
    write_json(path, {"clips": sorted((asdict(c) for c in clips), key=lambda row: row["name"])})


def _prepare_one(job: tuple[Source, Path, DitHeadConfig]) -> Clip | None:
    source, out, config = job
    try:
        return prepare_clip(source, out, config)
    except MediaError as error:
        log.warning("left out %s: %s", source.path.name, error)
        return None


@torch.inference_mode()
def prepare_clip(source: Source, out: Path, config: DitHeadConfig) -> Clip:
    """Prepare one video. Raises MediaError: unreadable, no audio, or a frame without a face."""
    size = round(config.face.crop_px * STORED_MARGIN)
    locate = FaceLocator(load_face_detector(), load_face_mesh())
    tracker = FaceTracker(config.face)
    state = tracker.initial_state()
    crops, transforms, meshes = [], [], []
    times: list[float] = []
    with VideoSource(source.path) as video:
        for frame in video:
            if len(times) == MAX_VIDEO_FRAMES:
                break
            image = torch.from_numpy(frame.rgb())
            mesh = locate(image)
            if mesh is None:
                raise MediaError(f"no face in frame {frame.index}")
            elapsed = float(frame.time_s) - times[-1] if times else 0.0
            transform, _, state = tracker(mesh, state, torch.tensor(elapsed))
            wide = transform.clone()
            wide[:, :2] *= STORED_MARGIN
            density = max(1, round(float(wide[:, 0].norm()) / size))
            picture = crop_face(image.movedim(-1, 0)[None].float(), wide[None], size, density)
            crops.append(picture[0].round().byte().movedim(0, -1).numpy())
            transforms.append(transform.numpy())
            meshes.append(mesh[:, :2].numpy())
            times.append(float(frame.time_s))
    samples = np.concatenate(list(AudioSource(source.path).blocks()))
    name = source.path.stem
    np.save(out / "crops" / f"{name}.npy", np.stack(crops))
    np.savez(
        out / "track" / f"{name}.npz",
        transform=np.stack(transforms),
        mesh=np.stack(meshes).astype(np.float32),
        time_s=np.array(times),
        audio=samples.astype(np.float16),
    )
    return Clip(name, source.person, source.split, len(times))


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
