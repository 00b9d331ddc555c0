"""Makes the samples of one part of a video: crops, track, sound, audio windows and latents."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder, load_audio_encoder
from dithead.config import AudioConfig, DitHeadConfig
from dithead.errors import CheckpointError, ConfigError, MediaError
from dithead.face.choice import FaceChoice
from dithead.face.networks import FaceModels
from dithead.runtime.media.sources import SPEECH_RATE_HZ, AudioSource, VideoSource
from dithead.runtime.media.videoframe import VideoFrame
from dithead.train.appearance import plain_appearance, render
from dithead.train.latents import encode_pictures, load_vqgan
from dithead.train.masking import masked_pictures
from dithead.train.motion import crop_meshes
from dithead.train.prepare import face_networks
from dithead.train.shards.ledger import Add, Row
from dithead.train.shards.lists import Part, is_held_out
from dithead.train.shards.report import report_row
from dithead.train.shards.rules import HELD_OUT, SAMPLE_S, ShotRule, SyncRule
from dithead.train.shards.shots import ShotFinder, Stretch
from dithead.train.shards.store import CROPS, LATENTS, TRACK, WINDOWS, npy, packed, sample_name
from dithead.train.shards.sync import matched
from dithead.train.windows import windows_at

BEFORE_S, AFTER_S = 2.0, 3.0
"""Sound that is kept before the first and after the last frame of a sample: what the speech encoder
hears of it."""


@dataclass(slots=True)
class _Tally:
    """What was made of a part so far, for the report."""

    samples: int = 0
    cuts: int = 0
    kept_s: float = 0.0
    unjudged_s: float = 0.0
    left_out_s: dict[str, float] = field(default_factory=dict)
    sound: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SampleMaking:
    """How samples are made; the work for ``dithead.train.shards.run``."""

    config: DitHeadConfig
    face: Path | None = None
    """Weights of the face VQGAN, or a packed checkpoint; None for samples without latents."""
    masked: Path | None = None
    """The same for the masked-face VQGAN."""
    audio_weights: Path | None = None
    """Folder or file of the speech encoder, if it is not the packaged one."""
    face_models: FaceModels = "mediapipe"
    """Which networks find faces."""
    face_weights: Path | None = None
    """Folder of S3FD's and FAN's weights, if these are the networks."""
    max_s: float = SAMPLE_S
    """A longer stretch becomes several samples of equal length."""
    held_out: float = HELD_OUT
    """Share of the people whose samples are for validation."""
    shots: ShotRule = field(default_factory=ShotRule)
    sync: SyncRule = field(default_factory=SyncRule)

    def __post_init__(self) -> None:
        if (self.face is None) != (self.masked is None):
            raise ConfigError(
                "latents need both the face and the masked-face VQGAN: give two files"
            )
        if self.max_s < self.shots.min_s:
            raise ConfigError(
                f"a sample may last {self.shots.min_s:g} s at least, so its limit is not "
                f"{self.max_s:g} s"
            )
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"the held-out share is from 0 to below 1, not {self.held_out:g}")

    def check(self) -> None:
        """Load all weights once, so that a run whose weights are missing or wrong does not begin.

        Raises:
            CheckpointError: some are; the message says which and how to get them.
            BackendUnavailable: the speech encoder's package is not installed.
        """
        face_networks(self.face_models, self.face_weights)
        load_audio_encoder(self.config.audio, self.audio_weights)
        for path, kind in ((self.face, "face"), (self.masked, "masked")):
            if path is None:
                continue
            try:
                load_vqgan(path, f"{kind}_vqgan", self.config)
            except CheckpointError as error:
                raise CheckpointError(
                    f"the {kind} VQGAN: {error.message}",
                    hint=f"train it with dithead train vqgan {kind} --data FOLDER --out FOLDER",
                ) from error

    def settings(self) -> dict[str, Any]:
        """All of it as JSON; weights by their contents."""
        paths = {
            name: getattr(self, name)
            for name in ("face", "masked", "audio_weights", "face_weights")
        }
        plain = {name: _fingerprint(path) for name, path in paths.items()}
        rest = {name: getattr(self, name) for name in ("face_models", "max_s", "held_out")}
        rules = {"shots": asdict(self.shots), "sync": asdict(self.sync)}
        return {**plain, **rest, **rules, "config": self.config.to_dict()}

    def __call__(self, part: Part, add: Add) -> Row:
        """Make the samples of a part, and what the report says of it."""
        split = "validation" if is_held_out(part.person, self.held_out) else "train"
        tally, error = _Tally(), None
        try:
            self._make(part, split, add, tally)
        except MediaError as damage:  # what was made before it is good
            error = str(damage)
        return report_row(
            part.name,
            part.person,
            split,
            samples=tally.samples,
            cuts=tally.cuts,
            kept_s=tally.kept_s,
            left_out_s=tally.left_out_s,
            unjudged_s=tally.unjudged_s,
            sound=tally.sound,
            error=error,
        )

    def _make(self, part: Part, split: str, add: Add, tally: _Tally) -> None:
        if not Path(part.video).is_file():
            raise MediaError(f"the video {part.video} is missing")
        sound, sound_s = read_sound(part)
        with VideoSource(part.video) as video:
            networks = face_networks(self.face_models, self.face_weights)
            finder = ShotFinder(networks, self.config.face, self.shots, choice_of(part, video))
            tally.left_out_s = finder.left_out
            for stretch in _counted(finder, timed(frames_of(part, video)), tally):
                times = np.array(stretch.times_s) - sound_s
                match = matched(np.stack(stretch.meshes), times, sound, self.sync.min_s)
                refusal = self.sync.refusal(match)
                if match is not None:
                    tally.sound.append({"at_s": round(stretch.times_s[0], 3), **asdict(match)})
                if refusal is not None:
                    finder.left_out[refusal] += stretch.length_s
                    continue
                number = finder.person(stretch)
                person = part.person if number == 0 else f"{part.person}-{number + 1}"
                tally.kept_s += stretch.length_s
                tally.unjudged_s += stretch.length_s if match is None else 0.0
                for piece in self._pieces(stretch):
                    name = sample_name(part.name, tally.samples)
                    contents = self._contents(name, stretch, piece, sound, times)
                    frames = piece.stop - piece.start
                    add(*packed(name, person, split, frames, contents))
                    tally.samples += 1

    def _pieces(self, stretch: Stretch) -> Iterator[slice]:
        frames = len(stretch.times_s)
        count = max(1, ceil(stretch.length_s / self.max_s))
        for i in range(count):
            yield slice(frames * i // count, frames * (i + 1) // count)

    @torch.inference_mode()
    def _contents(
        self, name: str, stretch: Stretch, piece: slice, sound: np.ndarray, times_s: np.ndarray
    ) -> dict[str, bytes]:
        """The members of a sample; times are those of the sound."""
        crops = np.stack(stretch.crops[piece])
        times = times_s[piece]
        first = max(0, int((times[0] - BEFORE_S) * SPEECH_RATE_HZ))
        last = int((times[-1] + AFTER_S) * SPEECH_RATE_HZ)
        heard, times = sound[first:last].astype(np.float16), times - first / SPEECH_RATE_HZ
        encoder = _audio_encoder(self.config.audio, self.audio_weights)
        values = np.stack(stretch.transforms[piece]), np.stack(stretch.meshes[piece]), times, heard
        track: dict[str, np.ndarray] = dict(zip(TRACK, values, strict=True))
        arrays = {CROPS: crops, **{f"{part}.npy": array for part, array in track.items()}}
        arrays[WINDOWS] = windows_at(encoder, heard.astype(np.float32), times).half().numpy()
        if self.face is not None and self.masked is not None:
            arrays |= zip(LATENTS, self._latents(name, crops, crop_meshes(track)), strict=True)
        return {kind: npy(array) for kind, array in arrays.items()}

    def _latents(
        self, name: str, crops: np.ndarray, meshes: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whole and masked latents (T, C, s, s) float16 of stored crops as they are, with meshes
        (T, 468, 2) in crop units; the mask is shifted at random, by the sample's name."""
        assert self.face is not None and self.masked is not None
        face = load_vqgan(self.face, "face_vqgan", self.config)
        masked = load_vqgan(self.masked, "masked_vqgan", self.config)
        config, look = self.config.face, plain_appearance(len(crops))
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        image = render(torch.from_numpy(crops), look, config.crop_px, config.view)
        hidden = masked_pictures(image, look, meshes, config, generator)
        whole, part = encode_pictures(face, image), encode_pictures(masked, hidden)
        return whole.numpy(), part.numpy()


def _fingerprint(path: Path | None) -> str | None:
    """What tells a file's or folder's contents from others."""
    if path is None:
        return None
    if not path.exists():
        raise MediaError(f"{path} does not exist: expected weights")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    value = 0
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                value = zlib.crc32(block, value)
    return f"{path.name}:{value:08x}"


def _counted(
    finder: ShotFinder, frames: Iterable[tuple[VideoFrame, float]], tally: _Tally
) -> Iterator[Stretch]:
    """The stretches; the cuts are noted even where the video turns out to be damaged."""
    try:
        yield from finder.stretches(frames)
    finally:
        tally.cuts = finder.cuts


@cache
def _audio_encoder(config: AudioConfig, weights: Path | None) -> AudioEncoder:
    return load_audio_encoder(config, weights)


def choice_of(part: Part, video: VideoSource) -> FaceChoice:
    """Whose face a part is about: in its window, scaled to the video's own size."""
    if part.window is None:
        return "largest"
    scale = video.info.height / part.window_height
    left, top, right, bottom = part.window
    return left * scale, top * scale, right * scale, bottom * scale


def frames_of(part: Part, video: VideoSource) -> Iterator[VideoFrame]:
    """The frames of a part."""
    frames: Iterable[VideoFrame] = video
    if part.start_s > 0:
        frames = video.frames_from(ceil(part.start_s / video.info.time_base))
    for frame in frames:
        if part.end_s is not None and float(frame.time_s) >= part.end_s:
            return
        yield frame


def timed(frames: Iterable[VideoFrame]) -> Iterator[tuple[VideoFrame, float]]:
    """Frames, each with how long it is shown, in seconds: until the next one; the last one as long
    as the file says."""
    held: VideoFrame | None = None
    for frame in frames:
        if held is not None:
            yield held, max(0.0, float(frame.time_s - held.time_s))
        held = frame
    if held is not None:
        yield held, float(held.duration * held.time_base)


def read_sound(part: Part) -> tuple[np.ndarray, float]:
    """The sound (S,) float32 at 16 kHz of a part and a little round it, and the video's time at
    which it begins."""
    first = max(0, int((part.start_s - BEFORE_S) * SPEECH_RATE_HZ))
    last = None if part.end_s is None else ceil((part.end_s + AFTER_S) * SPEECH_RATE_HZ)
    blocks, at = [np.zeros(0, np.float32)], 0
    for block in AudioSource(part.video).blocks():
        if last is not None and at >= last:
            break
        if at + len(block) > first:
            blocks.append(block[max(0, first - at) : None if last is None else last - at])
        at += len(block)
    return np.concatenate(blocks), first / SPEECH_RATE_HZ
