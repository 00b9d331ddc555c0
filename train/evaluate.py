"""``dithead-eval``: how well the lips follow the audio, and how true the picture is, on held-out
clips.

Definitions (docs/evaluation.md):

* *Mouth box*: the box of mesh points 78, 308, 0 and 17 plus 12 px at a width of 360 (scaled), on
the true frame. PSNR, SSIM and
  ST-LPIPS are taken there, on decoded frames at source size before video encoding.
* *Opening*: mean of |13-14|, |82-87|, |312-317| over |10-152|, unsmoothed, from the mesh on the
finished frames.
* *Fine*: correlation over time after subtracting an 11-frame moving average from both series.
* *Precision*: the same frames in float32 and in a reduced precision, which PyTorch rounds as a GPU
does.
* *Crossed*: video A driven by the audio of B. The lips must follow B, not A.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.errors import DitheadError, MediaError
from dithead.export.precision import ReducedGraphs
from dithead.face.locate import FaceLocator
from dithead.graphs import Graphs
from dithead.pipeline import (
    FrameGenerator,
    Models,
    Options,
    Patch,
    put_patch,
    revoice,
)
from dithead.runtime.media import AudioSource, VideoSource
from dithead.train.metrics import (
    TREND_FRAMES,
    box_difference,
    box_scores,
    fine_correlation,
    opening,
)
from dithead.train.prepare import list_folder

FEEDBACK_S = 60.0
PRECISION_S = 10.0
CROSSED_SHIFT = 7
"""Clip i is crossed with the audio of clip i + 7, counted round; in a second round i + 8, ..."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A held-out clip in memory."""

    name: str
    frames: list[Tensor]
    times_s: list[float]
    samples: np.ndarray
    meshes: np.ndarray
    """(T, 468, 2) in frame pixels, of the true frames."""


def load_clip(path: Path, models: Models) -> Clip:
    """Decode a clip and fit the mesh to its true frames. Raises MediaError where a frame shows no
    face."""
    with VideoSource(path) as video:
        pairs = [(torch.from_numpy(f.rgb()), float(f.time_s)) for f in video]
    if len(pairs) < TREND_FRAMES:
        raise MediaError(f"{path} has fewer than {TREND_FRAMES} frames")
    samples = np.concatenate(list(AudioSource(path).blocks()))
    frames, times = [p[0] for p in pairs], [p[1] for p in pairs]
    return Clip(path.stem, frames, times, samples, fit_meshes(frames, models))


@torch.inference_mode()
def fit_meshes(frames: list[Tensor], models: Models) -> np.ndarray:
    """Mesh (T, 468, 2) of each frame, followed by the runtime's locator, unsmoothed."""
    locate = FaceLocator(models.detector, models.mesh)
    meshes = []
    for i, frame in enumerate(frames):
        mesh = locate(frame)
        if mesh is None:
            raise MediaError(f"no face in frame {i}: evaluation needs one in every frame")
        meshes.append(mesh[:, :2].numpy())
    return np.stack(meshes)


def frozen_frames(clip: Clip, models: Models) -> Iterator[Tensor]:
    """The baseline: the first frame's lower face blended into every frame, through the same crop,
    mask and seam correction."""
    yield from _replaced(clip, models, lambda crop, first: first)


def ceiling_frames(clip: Clip, models: Models) -> Iterator[Tensor]:
    """The ceiling: every frame's own lower face through the VQGAN and back."""
    yield from _replaced(clip, models, lambda crop, first: models.run("reference_encoder", crop)[0])


def _replaced(
    clip: Clip, models: Models, latent_or_crop: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    generate = FrameGenerator(models, Options())
    first: Tensor | None = None
    for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
        found = generate.track(frame, time_s)
        if found is None:
            yield frame
            continue
        left, top, rectangle, local = generate.cut(frame, found.transform)
        crop, _ = generate.encode(rectangle, local)
        first = crop if first is None else first
        new = latent_or_crop(crop, first)
        face = new if new.shape == crop.shape else generate.decode(new)
        image, weight = generate.blend(face, rectangle, crop, local, found.polygon)
        yield put_patch(frame, Patch(left, top, image, weight))


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _scores(clip: Clip, frames: list[Tensor], metric: Any) -> dict[str, float]:
    return _mean(
        [
            box_scores(true, made, mesh, metric)
            for true, made, mesh in zip(clip.frames, frames, clip.meshes, strict=True)
        ]
    )


def speech_frames(align: Path, times_s: list[float]) -> np.ndarray:
    """Which frames lie in words: (T,) bool, from a GRID alignment (start, end in 1/25000 s,
    word)."""
    spoken = np.zeros(len(times_s), bool)
    times = np.array(times_s)
    for line in align.read_text().splitlines():
        start, end, word = line.split()
        if word not in ("sil", "sp"):
            spoken |= (times >= int(start) / 25000) & (times < int(end) / 25000)
    return spoken


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work for one process."""

    kind: str
    """``own``, ``crossed``, ``silent``, ``feedback`` or ``precision``."""
    video: Path
    audio: Path
    """The same clip, but for ``crossed``."""
    steps: int
    checkpoint: str
    perceptual: bool
    align: Path | None = None
    reference: str = "previous"
    precision: str = "fp16"
    generate_every: int = 1


@cache
def _models(checkpoint: str) -> Models:
    torch.set_num_threads(1)
    return Models.load(checkpoint)


@cache
def _metric() -> Any:
    from dithead.train.perceptual import load_stlpips

    return load_stlpips()


def run_job(job: Job) -> dict[str, Any] | None:
    """Do one piece of work; None, and a line that says why, where it cannot be judged."""
    try:
        return _run(job)
    except MediaError as error:
        print(f"left out of '{job.kind}': {job.video.name}: {error}", file=sys.stderr)
        return None


def _is_usable(item: tuple[Path, str]) -> bool:
    path, checkpoint = item
    try:
        load_clip(path, _models(checkpoint))
    except MediaError as error:
        print(f"left out {path.name}: {error}", file=sys.stderr)
        return False
    return True


@torch.inference_mode()
def _run(job: Job) -> dict[str, Any]:
    models = _models(job.checkpoint)
    clip = load_clip(job.video, models)
    options = Options(
        steps=job.steps,
        reference=job.reference,  # type: ignore[arg-type]
        generate_every=job.generate_every,
    )
    metric = _metric() if job.perceptual else None

    def make(samples: np.ndarray, frames: Iterable[tuple[Tensor, float]]) -> list[Tensor]:
        return list(revoice(frames, torch.from_numpy(samples), models, options))

    pairs = zip(clip.frames, clip.times_s, strict=True)
    true_opening = opening(clip.meshes)
    if job.kind == "own":
        return {
            "generated": _scores(clip, make(clip.samples, iter(pairs)), metric),
            "frozen": _scores(clip, list(frozen_frames(clip, models)), metric),
            "ceiling": _scores(clip, list(ceiling_frames(clip, models)), metric),
        }
    if job.kind == "crossed":
        other = load_clip(job.audio, models)
        made = opening(fit_meshes(make(other.samples, iter(pairs)), models))
        return {"made": made, "own": true_opening, "other": opening(other.meshes)}
    if job.kind == "silent":
        silent = np.zeros_like(clip.samples)
        made = opening(fit_meshes(make(silent, iter(pairs)), models))
        spoken = None if job.align is None else speech_frames(job.align, clip.times_s)
        return {"made": made, "own": true_opening, "spoken": spoken}
    if job.kind == "precision":
        reduced = ReducedGraphs(models, job.precision)  # type: ignore[arg-type]
        return compare_precision(clip, models, reduced, options)
    return _feedback(clip, make)


def _looped(clip: Clip, seconds: float) -> tuple[Clip, float]:
    """A clip repeated for at least so long, its times from 0 and its audio with it; its length in
    seconds."""
    count, start = len(clip.frames), clip.times_s[0]
    length = (clip.times_s[-1] - start) * count / (count - 1)
    rounds = int(np.ceil(seconds / length))
    audio = np.zeros(round(length * 16000), np.float32)
    sound = clip.samples[round(start * 16000) :][: len(audio)]
    audio[: len(sound)] = sound
    times = [turn * length + t - start for turn in range(rounds) for t in clip.times_s]
    meshes = np.tile(clip.meshes, (rounds, 1, 1))
    looped = Clip(clip.name, clip.frames * rounds, times, np.tile(audio, rounds), meshes)
    return looped, rounds * length


def _feedback(clip: Clip, make: Callable[..., list[Tensor]]) -> dict[str, Any]:
    """60 s of a clip looped: PSNR in the mouth box in the first and the last five seconds."""
    clip, length = _looped(clip, FEEDBACK_S)
    made = make(clip.samples, zip(clip.frames, clip.times_s, strict=True))
    psnr = np.array(
        [
            box_scores(true, frame, mesh)["psnr_db"]
            for true, frame, mesh in zip(clip.frames, made, clip.meshes, strict=True)
        ]
    )
    since = np.array(clip.times_s)
    first, last = psnr[since < 5.0], psnr[since >= length - 5.0]
    return {"first_5s_db": float(first.mean()), "last_5s_db": float(last.mean())}


def compare_precision(
    clip: Clip, models: Graphs, reduced: Graphs, options: Options, seconds: float = PRECISION_S
) -> dict[str, Any]:
    """So much of a clip, looped, in float32 and in a reduced precision: how far apart they are in
    the mouth box, and how much further from the true frames the latter is."""
    clip, _ = _looped(clip, seconds)
    full, made = (
        revoice(
            zip(clip.frames, clip.times_s, strict=True),
            torch.from_numpy(clip.samples),
            graphs,
            options,
        )
        for graphs in (models, reduced)
    )
    differences, psnr = [], []
    for true, a, b, mesh in zip(clip.frames, full, made, clip.meshes, strict=True):
        differences.append(box_difference(a, b, mesh))
        psnr.append([box_scores(true, frame, mesh)["psnr_db"] for frame in (a, b)])
    mean, largest = np.array(differences).T
    full_db, reduced_db = np.array(psnr).mean(0)
    return {
        "frames": len(clip.frames),
        "worst_frame_mean_levels": float(mean.max()),
        "largest_levels": float(largest.max()),
        "fp32_db": float(full_db),
        "reduced_db": float(reduced_db),
        "largest_loss_db": float(np.subtract(*np.array(psnr).T).max()),
    }


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do what a command line asks for and sum up each kind.

    Raises:
        MediaError: no held-out clip shows a face in every frame.
    """
    held_out = [
        s.path
        for s in list_folder(arguments.videos, "", arguments.validation)
        if s.split == "validation"
    ]
    if not held_out:
        raise MediaError("no held-out clips: --validation must be at least 1")
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        checks = pool.map(_is_usable, [(p, arguments.checkpoint) for p in held_out], chunksize=1)
        usable = [path for path, good in zip(held_out, checks, strict=True) if good]
        if not usable:
            raise MediaError("every held-out clip was left out: see the lines above")
        jobs = plan(arguments, usable, len(held_out))
        results = pool.map(run_job, jobs, chunksize=1)
    report: dict[str, Any] = {}
    for key in sorted({(job.kind, job.steps, job.reference) for job in jobs}):
        rows = [
            r
            for r, job in zip(results, jobs, strict=True)
            if (job.kind, job.steps, job.reference) == key and r is not None
        ]
        if not rows:
            raise MediaError(f"every clip was left out of '{key[0]}': see the lines above")
        name = f"{key[0]}, {key[1]} steps, {key[2]} reference"
        report[name] = {"clips": len(rows), **_SUMMARIES[key[0]](rows)}
    return report


def _sum_own(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = ("generated", "frozen", "ceiling")
    out: dict[str, Any] = {kind: _mean([r[kind] for r in rows]) for kind in kinds}
    out["gain_db"] = out["generated"]["psnr_db"] - out["frozen"]["psnr_db"]
    return out


def _sum_crossed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "fine_with_audio": fine_correlation([(r["made"], r["other"]) for r in rows]),
        "fine_with_video": fine_correlation([(r["made"], r["own"]) for r in rows]),
        "fine_between_true": fine_correlation([(r["own"], r["other"]) for r in rows]),
    }


def _sum_silent(rows: list[dict[str, Any]]) -> dict[str, Any]:
    out = {
        "fine_with_video": fine_correlation([(r["made"], r["own"]) for r in rows]),
        "mean_opening": float(np.mean(np.concatenate([r["made"] for r in rows]))),
    }
    known = [r for r in rows if r["spoken"] is not None]
    if known:
        own = np.concatenate([r["own"] for r in known])
        spoken = np.concatenate([r["spoken"] for r in known])
        rest, speech = float(own[~spoken].mean()), float(own[spoken].mean())
        out |= {"true_silent_opening": rest, "true_speech_opening": speech}
        out["limit"] = rest + 0.1 * speech
    return out


def _sum_precision(rows: list[dict[str, Any]]) -> dict[str, Any]:
    worst = ("worst_frame_mean_levels", "largest_levels", "largest_loss_db")
    return {**_mean(rows), **{key: max(row[key] for row in rows) for key in worst}}


_SUMMARIES: dict[str, Callable[[list[dict[str, Any]]], dict[str, Any]]] = {
    "own": _sum_own,
    "crossed": _sum_crossed,
    "silent": _sum_silent,
    "feedback": _mean,
    "precision": _sum_precision,
}


def crossed_pairs(clips: int, count: int) -> list[tuple[int, int]]:
    """So many fixed pairs (video, audio) of different clips, or as many as there are.

    Raises:
        MediaError: fewer than two clips.
    """
    if clips < 2:
        raise MediaError("crossed evaluation needs at least two usable clips")
    pairs = []
    for i in range(min(count, clips * (clips - 1))):
        shift = 1 + (CROSSED_SHIFT - 1 + i // clips) % (clips - 1)
        pairs.append((i % clips, (i + shift) % clips))
    return pairs


def plan(arguments: argparse.Namespace, videos: list[Path], held_out: int) -> list[Job]:
    """The jobs that a command line asks for.

    Args:
        videos: usable clips. held_out: number of pairs for ``crossed``: as many as clips were held
            out, so that a damaged clip does not lessen them.
    """
    jobs = []
    for kind in arguments.kinds:
        if kind == "crossed":
            pairs = crossed_pairs(len(videos), min(held_out, arguments.clips or held_out))
        else:
            looped = kind in ("feedback", "precision")
            count = arguments.looped_clips if looped else arguments.clips
            pairs = [(i, i) for i in range(len(videos[:count]))]
        for i, j in pairs:
            align = arguments.align / f"{videos[i].stem}.align" if arguments.align else None
            if align is not None and not align.is_file():
                raise MediaError(f"{align} does not exist: give --align the alignments' folder")
            jobs.append(
                Job(
                    kind,
                    videos[i],
                    videos[j],
                    arguments.steps,
                    arguments.checkpoint,
                    arguments.perceptual,
                    align,
                    "previous" if kind == "feedback" else arguments.reference,
                    arguments.precision,
                    arguments.generate_every,
                )
            )
    return jobs


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``dithead-eval``."""
    kinds = tuple(_SUMMARIES)
    parser = argparse.ArgumentParser(prog="dithead-eval", description=__doc__.split("\n")[0])
    parser.add_argument("videos", type=Path, help="folder of one person's clips")
    parser.add_argument("--checkpoint", default="tiny", help="name or path (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=list(kinds[:4]))
    parser.add_argument("--validation", type=int, default=45, help="held-out clips, first by name")
    parser.add_argument("--clips", type=int, default=None, help="use only so many of them")
    parser.add_argument(
        "--looped-clips", type=int, default=1, help="clips for feedback and for precision"
    )
    parser.add_argument(
        "--precision", choices=("fp16", "bf16"), default="fp16", help="to compare with float32"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--reference", choices=("previous", "fixed"), default="previous")
    parser.add_argument(
        "--generate-every", type=int, choices=(1, 2), default=1, help="2 fills every second face in"
    )
    parser.add_argument("--align", type=Path, help="folder of GRID alignments")
    parser.add_argument("--perceptual", action="store_true", help="ST-LPIPS too (extra 'train')")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args(argv)
    try:
        report = evaluate(arguments)
    except DitheadError as error:
        print(f"dithead-eval: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0
