"""``dithead-train latents``: the data of stage 2, made once from prepared footage and the two
frozen VQGANs.

Every clip is encoded with several looks. Clips of one person form groups that share their looks, so
that a reference can come from another clip of the same person; each clip has its own pose.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead import checkpoint
from dithead.conditions import MIRRORED, UPPER_LANDMARKS
from dithead.config import DitHeadConfig, View
from dithead.errors import ConfigError, MediaError
from dithead.train.appearance import (
    Appearance,
    bent_places,
    follow,
    in_picture,
    plain_appearance,
    random_appearance,
    render,
)
from dithead.train.data import Clip, Footage, open_footage, write_json
from dithead.train.loop import load_part, precision, single_thread
from dithead.train.masking import followed, masked_pictures
from dithead.train.motion import crop_meshes
from dithead.train.rows import check_frames, remove_partial, written_rows
from dithead.train.windows import load_windows
from dithead.vqgan import VQGAN

log = logging.getLogger(__name__)

GROUP_CLIPS = 4
MADE_STRENGTH = 0.3
"""How far looks change people made from stills, of whom there are many: see random_appearance."""
ENCODED_AT_ONCE = 8
"""Pictures in one batch of the encoders: on a CPU, larger batches do not fit the caches."""
ARRAYS = ("face", "masked", "landmarks")
"""Files of the cache, with a row for each frame of each run."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of the cache: one clip with one look."""

    clip: str
    person: str
    group: int
    look: int
    first: int
    frames: int
    main: bool
    made: bool = False
    """Of a person made from a still."""
    sound: str = ""
    """The clip whose windows it uses, if not its own."""

    @property
    def heard(self) -> str:
        """The clip whose windows it uses."""
        return self.sound or self.clip


@dataclass(frozen=True, slots=True)
class LatentCache:
    """The cache, all but ``silent`` mapped from disk and read as it is used. N rows over all runs;
    windows are stored once for each clip and audio variant."""

    runs: list[Run]
    face: Tensor
    """(N, C, S, S) float16."""
    masked: Tensor
    """(N, C, S, S) float16."""
    windows: dict[str, np.ndarray]
    """Heard clip -> (audio variants, T, window_frames, features) float16."""
    silent: dict[str, np.ndarray]
    """Heard clip -> (T,) bool."""
    silence_window: Tensor
    """(window_frames, features): the window of digital silence."""
    landmarks: Tensor | None = None
    """(N, 26, 2) float32 in crop units, see :data:`dithead.conditions.UPPER_LANDMARKS`; None if the
    cache was made without."""

    def check_fits(self, config: DitHeadConfig) -> None:
        """Raise ConfigError if a configuration's latents or windows have other shapes."""
        size = config.latent_size
        expected = (config.vqgan.latent_channels, size, size), config.audio.window_shape
        found = tuple(self.face.shape[1:]), tuple(self.silence_window.shape)
        if found != expected:
            raise ConfigError(
                f"the latents are {found[0]}, with windows {found[1]}; those of {config.preset} "
                f"are {expected[0]}, with {expected[1]}",
                hint="give the --preset that they were made for, or run dithead-train latents",
            )


def _looks(
    footage: Footage,
    seed: int,
    main_looks: int,
    main_plain_share: float,
    other_looks: int,
    made_looks: int,
) -> Iterator[tuple[Clip, int, int, int, bool]]:
    """Clip, group, index of the look (0 is the plain one), seed of the look, and whether it is of
    the main person: the real one with the most clips."""
    random = np.random.default_rng(seed)
    people = footage.people("train")
    real = [person for person, clips in people.items() if not clips[0].made]
    main = max(real, key=lambda person: len(people[person]), default=None)
    group = 0
    for person, clips in sorted(people.items()):
        shuffled = [clips[i] for i in random.permutation(len(clips))]
        for start in range(0, len(shuffled), GROUP_CLIPS):
            looks = made_looks if clips[0].made else other_looks
            indices = list(range(1 + (main_looks if person == main else looks)))
            if person == main and random.random() >= main_plain_share:
                indices.remove(0)
            for index in indices:
                look_seed = int(random.integers(2**31))
                for clip in shuffled[start : start + GROUP_CLIPS]:
                    yield clip, group, index, look_seed, person == main
            group += 1


@dataclass(frozen=True, slots=True)
class _Job:
    roots: tuple[Path, ...]
    config: DitHeadConfig
    face: Path
    masked: Path
    clip: Clip
    look_seed: int | None
    """None for the plain look."""
    seed: int


@cache
def load_vqgan(path: Path, part: str, config: DitHeadConfig) -> VQGAN:
    """One of the two frozen VQGANs, loaded once per process."""
    model = VQGAN(config.vqgan)
    checkpoint.load_into(model, load_part(path, part), path)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def _encode(job: _Job, device: str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    face = load_vqgan(job.face, "face_vqgan", job.config).to(device)
    masked = load_vqgan(job.masked, "masked_vqgan", job.config).to(device)
    config = job.config.face
    crops = torch.from_numpy(np.array(open_footage(job.roots).crops(job.clip)))
    generator = torch.Generator().manual_seed(job.seed)
    look = plain_appearance(len(crops))
    if job.look_seed is not None:
        strength = MADE_STRENGTH if job.clip.made else 1.0
        person = random_appearance(1, torch.Generator().manual_seed(job.look_seed), strength)
        look = follow(person, len(crops), generator)
    look = followed(look, config)
    meshes = crop_meshes(open_footage(job.roots).track(job.clip))
    with torch.device(device):
        image = render(crops.to(device), look.to(device), config.crop_px, config.view)
    hidden = masked_pictures(image, look, meshes, config, generator)
    whole, part = encode_pictures(face, image), encode_pictures(masked, hidden)
    landmarks = look_landmarks(meshes, look, config.view)
    return whole.cpu().numpy(), part.cpu().numpy(), landmarks.numpy()


def look_landmarks(meshes: Tensor, look: Appearance, view: View) -> Tensor:
    """Meshes (T, 468, 2) in crop units -> the landmarks (T, 26, 2) that a denoiser is shown, where
    they are in the pictures of a look, in crop units."""
    middle = torch.tensor([0.0, view.down])
    places = (meshes[:, UPPER_LANDMARKS] - middle) / view.span
    places = in_picture(bent_places(places, look, view), look) * view.span + middle
    mirrored = torch.linalg.det(look.affine[:, :, :2]) < 0
    return torch.where(mirrored[:, None, None], places[:, MIRRORED], places)


@torch.inference_mode()
def encode_pictures(vqgan: VQGAN, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) in [-1, 1] -> latents (B, C, s, s) float16."""
    count = ENCODED_AT_ONCE if pictures.device.type == "cpu" else len(pictures)
    with precision(pictures.device):
        latents = [vqgan.encode(part).half() for part in pictures.split(count)]
    return torch.cat(latents)


def cache_latents(
    footage: Footage,
    config: DitHeadConfig,
    face: Path,
    masked: Path,
    out: Path,
    main_looks: int = 1,
    main_plain_share: float = 0.5,
    other_looks: int = 24,
    made_looks: int = 1,
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
) -> None:
    """Encode every training clip with its looks, whole and masked; the mask is shifted at random in
    every frame. Latents are written as they are made; an interrupted call leaves no cache.

    Args:
        face, masked: weights of the two VQGANs, or a packed checkpoint with them.
        main_looks, other_looks: random looks of the person with the most clips, and of each other
            person. made_looks: mild ones of each person made from a still.
        main_plain_share: share of the main person's groups that are also encoded as they are.
        device: a GPU encodes by itself; CPUs share the clips.

    Raises:
        MediaError: there are no clips, or one has not as many frames as the index says.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "runs.json").unlink(missing_ok=True)  # written last: without it there is no cache
    remove_partial(out)
    plan = list(_looks(footage, seed, main_looks, main_plain_share, other_looks, made_looks))
    jobs = [
        _Job(footage.roots, config, face, masked, clip, look if index else None, seed + i)
        for i, (clip, _, index, look, _) in enumerate(plan)
    ]
    frames = sum(job.clip.frames for job in jobs)
    runs: list[Run] = []
    first = 0
    with ExitStack() as stack:
        files = [stack.enter_context(written_rows(out / f"{name}.npy", frames)) for name in ARRAYS]
        results: Iterator[tuple[np.ndarray, ...]]
        if device == "cpu":
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(spawn.Pool(workers, initializer=single_thread))
            results = pool.imap(_encode, jobs)
        else:
            results = (_encode(job, device) for job in jobs)
        for i, arrays in enumerate(results):
            clip, group, index, _, main = plan[i]
            check_frames(clip.name, len(arrays[0]), clip.frames)
            for file, array in zip(files, arrays, strict=True):
                file.add(array)
            runs.append(
                Run(
                    clip.name,
                    clip.person,
                    group,
                    index,
                    first,
                    clip.frames,
                    main,
                    clip.made,
                    clip.driver,
                )
            )
            first += clip.frames
            if i % 100 == 99:
                log.info("encoded %d of %d clips", i + 1, len(plan))
    write_json(out / "runs.json", [asdict(run) for run in runs])


def load_cache(folder: Path) -> LatentCache:
    """Open a cache written by :func:`cache_latents` and
    :func:`dithead.train.windows.cache_windows`.

    Raises:
        MediaError: the folder has none, an incomplete one, or one of an earlier version.
    """
    for name in ("runs.json", *(f"{name}.npy" for name in ARRAYS)):
        if not (folder / name).is_file():
            raise MediaError(f"{folder} has no {name}: run dithead-train latents first")
    runs = [Run(**row) for row in json.loads((folder / "runs.json").read_text())]
    # Read from disk as they are drawn, and held once for all processes of a machine; "c" because
    # PyTorch warns of arrays that cannot be written.
    face, masked, landmarks = (
        torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ARRAYS
    )
    sound = load_windows(folder)
    rows = {len(face), len(masked), len(landmarks)}
    heard = {name: len(silent) for name, silent in sound.silent.items()}
    whole = rows == {sum(run.frames for run in runs)}
    if not whole or any(heard.get(run.heard, 0) < run.frames for run in runs):
        raise MediaError(f"{folder} is not whole: run dithead-train latents again")
    return LatentCache(
        runs, face, masked, sound.windows, sound.silent, sound.silence_window, landmarks
    )
