"""One job of the evaluation: a clip, re-voiced in one way, and the measures taken on it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import MediaError
from dithead.export.layers import ReducedGraphs
from dithead.options import Options
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation import theval
from dithead.train.evaluation.baselines import ceiling_frames, frozen_frames
from dithead.train.evaluation.clips import Clip, ClipStore, follow_meshes, track
from dithead.train.evaluation.colour import colour_distance
from dithead.train.evaluation.identity import (
    FaceRecognition,
    identity,
    load_face_recognition,
)
from dithead.train.evaluation.inception import Inception, load_inception
from dithead.train.evaluation.looped import compare_precision, feedback
from dithead.train.evaluation.models import JudgedModel, load_models, revoiced
from dithead.train.evaluation.motion import RATE_HZ, jitter, moving, on_grid
from dithead.train.evaluation.papertable import FACE, SYNC
from dithead.train.evaluation.reconstruction import clip_reconstruction, still_reconstruction
from dithead.train.evaluation.sheets import (
    save_crops,
    save_sheet,
    save_side_by_side,
    still_name,
)
from dithead.train.evaluation.sound import loudness, silent_stretches, speech_frames
from dithead.train.evaluation.wholeface import keep_features, whole_face
from dithead.train.metrics import laplacian_variance, mean_box_scores, opening
from dithead.train.perceptual import load_stlpips
from dithead.train.sync.score import named_scores

LEAD_S = 0.2
_EYE_CORNERS = [33, 263]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all jobs have in common."""

    model: JudgedModel
    store: Path
    """Folder of the run's :class:`ClipStore`."""
    options: Options
    precision: str = "fp16"
    perceptual: bool = False
    identity: bool = False
    face: bool = False
    """Whether the whole face is measured, too, as the paper's table needs it."""
    fid: bool = False
    """Whether what FID compares of it is kept in the store."""
    syncnet: Path | None = None
    """SyncNet's weights, if LSE-C and LSE-D of it are measured."""
    report: Path | None = None
    """Folder for pictures and clips."""


@dataclass(frozen=True, slots=True)
class Job:
    """One job for one process."""

    kind: str
    """``own``, ``crossed``, ``silent``, ``reconstruction``, ``feedback``, ``precision`` or
    ``stills``."""
    person: str
    video: Path
    audio: Path
    """The same clip, except for ``crossed``."""
    align: Path | None = None
    voice: str = ""
    """Whose sound it is, for ``crossed``."""

    @property
    def name(self) -> str:
        """Name of its sheet and clip."""
        parts = [self.person, self.kind, self.video.stem]
        return " ".join([*parts, self.audio.stem] if self.kind == "crossed" else parts)


@cache
def _metric() -> Any:
    return load_stlpips()


@cache
def _recognition() -> FaceRecognition:
    return load_face_recognition()


@cache
def _inception() -> Inception:
    return load_inception()


@lru_cache(maxsize=2)
def _clip(path: Path, folder: Path) -> Clip:
    return ClipStore(folder).load(path)


def run_job(work: tuple[Job, Settings]) -> dict[str, Any] | None:
    """Do one job; None, and a line that says why, if it cannot be judged."""
    job, settings = work
    try:
        return _run(job, settings)
    except MediaError as error:
        print(f"left out of '{job.kind}': {job.video.name}: {error}", file=sys.stderr)
        return None


@torch.inference_mode()
def _run(job: Job, settings: Settings) -> dict[str, Any]:
    models = load_models(settings.model)
    if job.kind == "stills":
        scores, (true, decoded) = still_reconstruction(job.video, models)
        if settings.report is not None:
            save_crops(true, decoded, settings.report / still_name(job.video))
        return scores
    clip = _clip(job.video, settings.store)
    options = settings.options
    if job.kind == "feedback":
        options = replace(options, reference="previous")

    def make(samples: np.ndarray, frames: Iterable[tuple[Tensor, float]]) -> list[Tensor]:
        return list(revoiced(frames, torch.from_numpy(samples), models, options))

    if job.kind == "reconstruction":
        return clip_reconstruction(clip, models)
    if job.kind == "precision":
        reduced = ReducedGraphs(models, settings.precision)  # type: ignore[arg-type]
        return compare_precision(clip, models, reduced, options)
    if job.kind == "feedback":
        return feedback(clip, make)
    other = _clip(job.audio, settings.store)
    if job.kind == "crossed":
        clip, other = _same_length(clip, other)
    samples = np.zeros_like(clip.samples) if job.kind == "silent" else other.samples
    made = make(samples, zip(clip.frames, clip.times_s, strict=True))
    if settings.report is not None:
        save_sheet(clip, made, settings.report, job.name)
        save_side_by_side(clip, made, samples, settings.report, job.name)
    meshes, found = follow_meshes(made, models)
    shown: dict[str, Any] = {
        "lost_faces": float(1 - found.mean()),
        "jitter": jitter(clip.meshes, meshes),
    }
    if settings.identity:
        shown["identity"] = identity(clip.frames, made, clip.meshes, _recognition())
    if settings.face and job.kind == "own":
        metric = _metric() if settings.perceptual else None
        shown[FACE] = whole_face(clip, made, metric, settings.syncnet)
        if settings.fid:
            file = ClipStore(settings.store).features_file(job.video)
            keep_features(clip, made, _inception(), file)
    if job.kind == "own":
        return shown | _own(clip, made, meshes, models, settings.perceptual)
    if job.kind == "crossed":
        return shown | {"voice": job.voice} | _crossed(clip, other, made, meshes, models)
    return shown | _silent(clip, meshes, job.align)


def _own(
    clip: Clip, made: list[Tensor], meshes: np.ndarray, models: TorchGraphs, perceptual: bool
) -> dict[str, Any]:
    metric = _metric() if perceptual else None
    outlines = track(clip, models)[1]
    silent = silent_stretches(clip.samples, clip.times_s)
    level = loudness(clip.samples, clip.times_s)
    scores = {
        "generated": _scores(clip, made, meshes, outlines, metric),
        "frozen": _scores(clip, list(frozen_frames(clip, models)), None, outlines, metric),
        "ceiling": _scores(clip, list(ceiling_frames(clip, models)), None, outlines, metric),
    }
    dynamics = {
        who: {
            "lip_dynamics": theval.lip_dynamics(points),
            "eyebrow_dynamics": theval.eyebrow_dynamics(points),
            "silent_lip_stability": theval.silent_lip_stability(points, silent),
            "lip_sync": theval.lip_sync(points, level, silent),
        }
        for who, points in (("generated", meshes), ("true", clip.meshes))
    }
    series = {
        "made": on_grid(opening(meshes), clip.times_s),
        "own": on_grid(opening(clip.meshes), clip.times_s),
    }
    fit = named_scores({"generated": meshes, "true": clip.meshes}, clip.times_s, clip.samples)
    return {**scores, "theval": dynamics, SYNC: fit, "series": series}


def _scores(
    clip: Clip,
    made: list[Tensor],
    meshes: np.ndarray | None,
    outlines: np.ndarray,
    metric: Any = None,
) -> dict[str, float]:
    """Means over a clip of the measures in its mouth box, and :func:`_looks`."""
    boxes = mean_box_scores(clip.frames, made, clip.meshes, metric)
    return boxes | _looks(clip, made, meshes, outlines)


def _looks(
    clip: Clip, made: list[Tensor], meshes: np.ndarray | None, outlines: np.ndarray
) -> dict[str, float]:
    """Sharpness and colour of a clip; ``meshes`` are those of the finished frames, whose lips may
    differ from the true ones."""
    sharp, colours = [], []
    for i, (true, frame, mesh) in enumerate(zip(clip.frames, made, clip.meshes, strict=True)):
        sharp.append((laplacian_variance(frame, mesh), laplacian_variance(true, mesh)))
        lips = [mesh] if meshes is None else [mesh, meshes[i]]
        colours.append(colour_distance(true, frame, outlines[i], lips))
    generated, true_value = np.mean(sharp, axis=0)
    return {
        "sharpness": float(generated / max(true_value, 1e-9)),
        "colour": float(np.nanmean(colours)),
    }


def _crossed(
    clip: Clip, other: Clip, made: list[Tensor], meshes: np.ndarray, models: TorchGraphs
) -> dict[str, Any]:
    again, _ = follow_meshes(_at_size_of(other, clip), models)
    series = {
        "made": on_grid(opening(meshes), clip.times_s),
        "own": on_grid(opening(clip.meshes), clip.times_s),
        "other": on_grid(opening(other.meshes), other.times_s),
        "again": on_grid(opening(again), other.times_s),
    }
    return {**_looks(clip, made, meshes, track(clip, models)[1]), "series": series}


def _same_length(video: Clip, audio: Clip) -> tuple[Clip, Clip]:
    """Both cut to the length of the shorter one: the video at its end; the sound so that most of
    the speech is left, from shortly before its first word."""
    length = video.times_s[-1] + 1 / RATE_HZ
    spare = audio.times_s[-1] + 1 / RATE_HZ - length
    if spare <= 0:
        return video.part(0.0, length + spare), audio
    spoken = np.flatnonzero(~silent_stretches(audio.samples, audio.times_s))
    start = min(spare, max(0.0, audio.times_s[int(spoken[0])] - LEAD_S))
    return video, audio.part(start, start + length)


def _at_size_of(clip: Clip, like: Clip) -> list[Tensor]:
    """A clip's frames, scaled so that its face is as large as another's."""

    def eyes_px(meshes: np.ndarray) -> float:
        left, right = (meshes[:, corner] for corner in _EYE_CORNERS)
        return float(np.linalg.norm(left - right, axis=1).mean())

    scale = eyes_px(like.meshes) / eyes_px(clip.meshes)
    size = [round(scale * length) for length in clip.frames[0].shape[:2]]
    scaled = []
    for frame in clip.frames:
        picture = frame.permute(2, 0, 1)[None].float()
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
        scaled.append(picture[0].permute(1, 2, 0).round().clamp(0, 255).byte())
    return scaled


def _silent(clip: Clip, meshes: np.ndarray, align: Path | None) -> dict[str, Any]:
    grid = on_grid(np.array(clip.times_s), clip.times_s)
    filed = list(grid + clip.start_s)
    made, own = (on_grid(opening(points), clip.times_s) for points in (meshes, clip.meshes))
    return {
        "series": {
            "made": made,
            "own": own,
            "made_moving": moving(made),
            "own_moving": moving(own),
            "silent": silent_stretches(clip.samples, grid),
            "spoken": None if align is None else speech_frames(align, filed),
        }
    }
