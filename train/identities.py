"""``dithead-train identities``: talking clips of people who are only known from a still.

Training clips of real speakers drive every suitable still (``dithead.train.retarget``). The result
is prepared footage like any other: the person is the still's, motion and sound are the driver's.
"""

from __future__ import annotations

import logging
import multiprocessing
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dithead.config import DitHeadConfig, FaceConfig
from dithead.errors import MediaError
from dithead.face.mesh import FaceMesh, load_face_mesh, roi_from_mesh
from dithead.train.data import Clip, Footage, make_folders, read_index, save_clip, write_index
from dithead.train.loop import single_thread
from dithead.train.metrics import opening
from dithead.train.motion import Motion, read_motion, stored_pixels_of_units, to_units
from dithead.train.retarget import read_still, retarget

log = logging.getLogger(__name__)

DRIVER_CLOSED, DRIVER_OPEN = 0.012, 0.02
"""A speaker's clip is suitable if its smallest opening is below the first value and its largest
above the second (as measured by ``metrics.opening``)."""
PROBES = 12
"""The mesh network checks this many frames of a generated clip."""
MIN_AGREEMENT = 0.85
"""Correlation required there between the opening it finds and the intended one."""
_STILLS_PER_INDEX = 20


@dataclass(frozen=True, slots=True)
class StillRule:
    """Which stills are suitable, by their mesh."""

    min_side_px: float = 110.0
    """A crop unit has at least this many of the picture's pixels."""
    max_roll: float = 0.26
    """Radians."""
    max_yaw: float = 0.32
    """How far the tip of the nose is from the middle between the ears, in half widths."""
    pitch: tuple[float, float] = (0.22, 0.38)
    """How far down the tip of the nose is from the eyes, as a fraction of the way to the chin."""
    max_opening: float = 0.06
    """As measured by ``metrics.opening``: a smile can be closed, a laugh cannot."""

    def refusal(self, track: dict[str, np.ndarray]) -> str | None:
        """Why a still with this track is not suitable; None if it is."""
        transform, mesh = track["transform"][0], track["mesh"]
        units = to_units(torch.from_numpy(mesh).float())[0].numpy()
        nose, left, right, chin = (units[i] for i in (4, 234, 454, 152))
        eyes = (units[33] + units[263]) / 2
        yaw = (2 * nose[0] - left[0] - right[0]) / max(right[0] - left[0], 1e-6)
        pitch = (nose[1] - eyes[1]) / max(chin[1] - eyes[1], 1e-6)
        if np.hypot(transform[0, 0], transform[1, 0]) < self.min_side_px:
            return "small"
        if abs(np.arctan2(transform[1, 0], transform[0, 0])) > self.max_roll:
            return "tilted"
        if abs(yaw) > self.max_yaw:
            return "turned aside"
        if not self.pitch[0] <= pitch <= self.pitch[1]:
            return "nodding"
        if opening(mesh)[0] > self.max_opening:
            return "mouth open"
        return None


@dataclass(frozen=True, slots=True)
class _Job:
    roots: tuple[Path, ...]
    out: Path
    face: FaceConfig
    still: Clip
    drivers: tuple[Clip, ...]
    vigour: float


def make_identities(
    footage: Footage,
    out: Path,
    config: DitHeadConfig,
    stills: int | None = None,
    clips_per_still: int = 2,
    vigour: tuple[float, float] = (1.0, 1.0),
    rule: StillRule | None = None,
    seed: int = 0,
    workers: int = 2,
) -> tuple[list[Clip], dict[str, int]]:
    """Make ``clips_per_still`` clips of every suitable still.

    Clips already in the index of ``out`` are kept, so an interrupted run goes on where it stopped.

    Args:
        stills: maximum number of training stills, chosen at random; all by default. Held-out stills
            are used, too, in the same share, and their clips stay held out. The drivers are always
            from the training split.
        vigour: each person moves the mouth further than the drivers by a factor of their own, drawn
            between these two.

    Returns:
        All clips, and the number of stills left out for each reason.

    Raises:
        MediaError: the footage has no still or no clip that could drive one.
    """
    drivers = _drivers(footage)
    chosen, left_out = _choose(footage, stills, rule or StillRule(), seed)
    make_folders(out)
    done = {clip.name: clip for clip in read_index(out)}
    jobs = []
    for still in chosen:
        own = _cast(still, drivers, clips_per_still, seed)
        vigorous = _vigour(still, vigour, seed)
        if not all(_name(still, driver, vigorous) in done for driver in own):
            jobs.append(_Job(footage.roots, out, config.face, still, own, vigorous))
    with multiprocessing.get_context("spawn").Pool(workers, initializer=single_thread) as pool:
        for i, (clips, reason) in enumerate(pool.imap_unordered(_make, jobs)):
            done.update((clip.name, clip) for clip in clips)
            if reason is not None:
                left_out[reason] += 1
            if i % _STILLS_PER_INDEX == _STILLS_PER_INDEX - 1 or i + 1 == len(jobs):
                write_index(out, done.values())
                log.info("made %d of %d people", i + 1, len(jobs))
    return sorted(done.values(), key=lambda clip: clip.name), dict(left_out)


def _drivers(footage: Footage) -> dict[str, list[Clip]]:
    """Real training clips in which the mouth both closes and opens, by speaker."""
    speakers: dict[str, list[Clip]] = {}
    for person, clips in footage.people("train").items():
        for clip in clips:
            series = opening(footage.track(clip)["mesh"])
            if not clip.made and series.min() < DRIVER_CLOSED and series.max() > DRIVER_OPEN:
                speakers.setdefault(person, []).append(clip)
    if not speakers:
        raise MediaError("no training clip shows a mouth that opens and closes: prepare videos")
    return speakers


def _choose(
    footage: Footage, limit: int | None, rule: StillRule, seed: int
) -> tuple[list[Clip], Counter[str]]:
    """The suitable stills, and the number of others by reason."""
    chosen: list[Clip] = []
    left_out: Counter[str] = Counter()
    share = 1.0
    for split in ("train", "validation"):
        serving = []
        for still in footage.stills(split):
            reason = rule.refusal(footage.track(still))
            if reason is None:
                serving.append(still)
            else:
                left_out[reason] += 1
        if split == "train" and limit is not None:
            share = min(1.0, limit / max(1, len(serving)))
        order = np.random.default_rng(seed).permutation(len(serving))
        chosen += [serving[i] for i in order[: round(share * len(serving))]]
    if not chosen:
        raise MediaError("no still serves: prepare pictures of faces that look at the camera")
    return chosen, left_out


def _cast(still: Clip, drivers: dict[str, list[Clip]], count: int, seed: int) -> tuple[Clip, ...]:
    """The clips that drive a still: of one speaker as long as he has enough, so that the teeth stay
    the same; speakers are drawn by the square root of their number of clips."""
    random = _random(still, seed)
    people = sorted(drivers)
    weights = np.sqrt([len(drivers[person]) for person in people])
    order = random.choice(len(people), len(people), replace=False, p=weights / weights.sum())
    cast: list[Clip] = []
    for index in order:
        clips = drivers[people[index]]
        cast += [clips[i] for i in random.permutation(len(clips))[: count - len(cast)]]
    return tuple(cast[:count])


def _vigour(still: Clip, limits: tuple[float, float], seed: int) -> float:
    return float(np.exp(_random(still, seed + 1).uniform(*np.log(limits))))


def _random(still: Clip, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(still.name.encode())])


def _name(still: Clip, driver: Clip, vigour: float) -> str:
    """A different vigour gives a different name, so that folders can be used together."""
    return f"{still.name}-{driver.name}" + ("" if vigour == 1.0 else f"-{vigour:.2f}")


@cache
def _mesh_net() -> FaceMesh:
    return load_face_mesh()


@torch.inference_mode()
def _make(job: _Job) -> tuple[list[Clip], str | None]:
    """All clips of one still, or none and the reason."""
    footage = Footage(*job.roots)
    still = read_still(footage.crops(job.still), footage.track(job.still), job.face)
    made = []
    for driver in job.drivers:
        track = footage.track(driver)
        motion = read_motion(footage.crops(driver), track, job.face)
        crops, mesh = retarget(still, motion, job.vigour)
        if agreement(crops, mesh, motion) < MIN_AGREEMENT:
            return [], "lips do not follow"
        made.append((driver, track, crops, mesh))
    clips = []
    for driver, track, crops, mesh in made:
        name = _name(job.still, driver, job.vigour)
        sound = {"time_s": track["time_s"], "audio": track["audio"]}
        # A frame of such a clip is its stored crop.
        pixels = stored_pixels_of_units(crops.shape[1], job.face).numpy()
        transform = np.repeat(pixels[None], len(crops), axis=0)
        save_clip(job.out, name, crops, {"transform": transform, "mesh": mesh, **sound})
        clips.append(Clip(name, job.still.name, job.still.split, len(crops), driver=driver.name))
    return clips, None


def agreement(crops: np.ndarray, mesh: np.ndarray, motion: Motion) -> float:
    """Correlation between the opening that the mesh network finds on generated crops and the
    driver's, over some frames from the most closed to the most open."""
    driven = opening((motion.rest + motion.moved).numpy())
    rows = np.argsort(driven)[np.linspace(0, len(driven) - 1, PROBES).round().astype(int)]
    regions = roi_from_mesh(torch.from_numpy(mesh[rows]))
    found, _ = _mesh_net().forward_batch(torch.from_numpy(crops[rows]), regions)
    return float(np.corrcoef(opening(found[..., :2].numpy()), driven[rows])[0, 1])
