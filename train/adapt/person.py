"""The person's footage: crops and sound on disk, latents and windows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder
from dithead.errors import MediaError
from dithead.face.choice import FaceChoice
from dithead.footage import speech
from dithead.model import DitHead
from dithead.runtime.media.sources import SPEECH_RATE_HZ, AudioSource
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import Work
from dithead.train.appearance import (
    Appearance,
    plain_appearance,
    render,
    vary_pose,
)
from dithead.train.data import Clip, Footage, make_folders, read_track, save_clip, write_index
from dithead.train.latents import encode_pictures
from dithead.train.masking import masked_pictures, posed_meshes
from dithead.train.motion import crop_meshes
from dithead.train.prepare import MAX_VIDEO_FRAMES, Source, prepare_clip
from dithead.train.samples import Batch
from dithead.train.windows import clip_windows, silence_window, windows_at

MOST_ROWS = 1500
"""Encoded pictures; a short video is encoded up to four times, in slightly different poses."""
LEAST_FRAMES = 25
APART = 15
"""Frames between a frame and its reference, at least."""
DISTURBED_SHARE, SILENCE_SHARE = 0.5, 0.35
"""Samples that hear disturbed sound; silent frames that hear digital silence."""
LEAST_SOUND_S = 0.5
AROUND_S = 2.0
"""Sound that is kept before and after what a part's frames show."""
GRACE_S = 10.0
"""Time for which a face is searched for in each video, however little there is."""
PERSON = "person"


def prepared(
    videos: Sequence[Path],
    work: Work,
    training: Adaptation,
    model: DitHead,
    face: FaceChoice,
    tell: Tell,
) -> Footage:
    """The videos' crops, tracks and sound; the end of each is held out.

    Raises:
        MediaError: a video cannot be read or has no sound, or too few frames show a face.
    """
    data = work.folder / "data"
    if (data / "index.json").is_file():
        return Footage(data)
    make_folders(data)
    clips: list[Clip] = []
    for number, path in enumerate(videos):
        AudioSource(path)  # says so at once if there is none
        until_s = work.seconds * training.prepare_share * (number + 1) / len(videos)
        grace_s = max(until_s, work.spent_s + GRACE_S)

        def going(frames: int, until_s: float = until_s, grace_s: float = grace_s) -> bool:
            tell("looking at the footage", work.share)
            few = frames < 2 * LEAST_FRAMES
            return frames < MAX_VIDEO_FRAMES and work.spent_s < (grace_s if few else until_s)

        source = Source(path, PERSON, "train")
        whole = prepare_clip(
            source, data, model.config, name="whole", face=face, one_person=True, going=going
        )
        clips += _parted(data, whole, f"{number:03d}", training.held_out_share)
    frames = sum(clip.frames for clip in clips if clip.split == "train")
    if frames < LEAST_FRAMES:
        raise MediaError(
            f"{frames} frames with a face to learn from: at least {LEAST_FRAMES} are needed",
            hint="give a longer video",
        )
    write_index(data, clips)
    work.note()
    return Footage(data)


def _parted(data: Path, clip: Clip, name: str, held_out_share: float) -> list[Clip]:
    """A prepared clip as two: what is learnt from, and its end."""
    crops, track = np.load(data / "crops" / f"{clip.name}.npy"), read_track(data, clip.name)
    if len(track["audio"]) < LEAST_SOUND_S * SPEECH_RATE_HZ or not track["audio"].any():
        raise MediaError(f"{clip.name} has no sound to learn from")
    end = clip.frames - max(1, round(clip.frames * held_out_share))
    parts = []
    for split, rows in (("train", slice(0, end)), ("validation", slice(end, None))):
        own = {key: track[key][rows] for key in ("transform", "mesh", "time_s")}
        start = max(0, round((own["time_s"][:1].sum() - AROUND_S) * SPEECH_RATE_HZ))
        stop = round((own["time_s"][-1:].sum() + AROUND_S) * SPEECH_RATE_HZ)
        own["audio"] = track["audio"][start:stop]
        own["time_s"] = own["time_s"] - start / SPEECH_RATE_HZ
        part = Clip(f"{name}.{split}", PERSON, split, len(own["time_s"]))
        save_clip(data, part.name, crops[rows], own)
        parts.append(part)
    (data / "crops" / f"{clip.name}.npy").unlink()
    (data / "track" / f"{clip.name}.npz").unlink()
    return [part for part in parts if part.frames > 0]


@dataclass(frozen=True, slots=True)
class Person:
    """What is learnt from, encoded. N rows: every frame in each of its poses."""

    face: Tensor
    """(N, C, s, s) float16, latents."""
    masked: Tensor
    """(N, C, s, s) float16."""
    pictures: Tensor
    """(N, 3, S, S) uint8, the faces themselves."""
    meshes: Tensor
    """(N, 468, 2) in crop units, as the mesh network found them."""
    windows: Tensor
    """(T, 2, window_frames, features) float16: as recorded, and with a changed level and noise."""
    silence: Tensor
    """(window_frames, features)."""
    silent: Tensor
    """(T,) bool: frames in silence."""
    pose: Tensor
    """(N,) which pose a row has; a reference must have the same."""
    frame: Tensor
    """(N,) its frame, of all clips together."""

    def sample(self, batch: int, random: np.random.Generator) -> tuple[Batch, Tensor]:
        """A random batch, and its rows (B,). A reference is a frame of another moment."""
        rows, references, windows = [], [], []
        for row in random.integers(len(self.face), size=batch).tolist():
            frame = int(self.frame[row])
            apart = (self.frame - frame).abs()
            others = torch.nonzero((self.pose == self.pose[row]) & (apart >= APART)).flatten()
            rows.append(row)
            if len(others) == 0:
                others = torch.where(self.pose == self.pose[row], apart, -1).argmax()[None]
            references.append(int(others[random.integers(len(others))]))
            window = self.windows[frame, int(random.random() < DISTURBED_SHARE)].float()
            quiet = bool(self.silent[frame]) and random.random() < SILENCE_SHARE
            windows.append(self.silence if quiet else window)
        chosen = torch.tensor(rows)
        clean, masked, reference = (
            values.float()
            for values in (self.face[chosen], self.masked[chosen], self.face[references])
        )
        shown = clean, masked, reference, torch.stack(windows), self.pose[chosen]
        return Batch(*shown, past=clean[:, :0], landmarks=torch.zeros(batch, 0, 2)), chosen


@torch.inference_mode()
def encoded(footage: Footage, model: DitHead, encoder: AudioEncoder, seed: int) -> Person:
    """Encode what is learnt from."""
    clips, generator = footage.split("train"), torch.Generator().manual_seed(seed)
    poses = max(1, min(4, MOST_ROWS // sum(clip.frames for clip in clips)))
    faces, maskeds, pictures, meshes, windows, silent = [], [], [], [], [], []
    pose_of, frames = [], []
    first = 0
    for number, clip in enumerate(clips):
        crops, track = torch.from_numpy(np.array(footage.crops(clip))), footage.track(clip)
        heard, quiet = clip_windows(encoder, track, number)
        windows.append(torch.from_numpy(heard).transpose(0, 1))
        silent.append(torch.from_numpy(quiet))
        mesh = crop_meshes(track)
        for pose in range(poses):
            look = plain_appearance(clip.frames)
            if pose > 0:
                look = replace(vary_pose(look, generator), turn=look.turn)
            picture = render(crops, look, model.config.face.crop_px, model.config.face.view)
            face, masked = encoded_pictures(model, picture, look, mesh, generator)
            faces.append(face)
            maskeds.append(masked)
            pictures.append(((picture + 1.0) * 127.5).round().to(torch.uint8))
            meshes.append(posed_meshes(mesh, look, model.config.face.view))
            pose_of.append(torch.full((clip.frames,), pose))
            frames.append(torch.arange(first, first + clip.frames))
        first += clip.frames + APART
        windows.append(torch.zeros(APART, *windows[-1].shape[1:], dtype=torch.float16))
        silent.append(torch.zeros(APART, dtype=torch.bool))
    return Person(
        face=torch.cat(faces),
        masked=torch.cat(maskeds),
        pictures=torch.cat(pictures),
        meshes=torch.cat(meshes),
        windows=torch.cat(windows),
        silence=silence_window(encoder),
        silent=torch.cat(silent),
        pose=torch.cat(pose_of),
        frame=torch.cat(frames),
    )


def encoded_pictures(
    model: DitHead,
    image: Tensor,
    look: Appearance,
    meshes: Tensor,
    generator: torch.Generator,
    jitter: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, S, S) of faces with a look, and their meshes (B, 468, 2) in crop units before
    it -> latents of the faces and of the masked faces."""
    hidden = masked_pictures(image, look, meshes, model.config.face, generator, jitter)
    return encode_pictures(model.face_vqgan, image), encode_pictures(model.masked_vqgan, hidden)


@torch.inference_mode()
def practice_windows(encoder: AudioEncoder) -> np.ndarray:
    """Windows of the packaged recording, 25 a second: (N, window_frames, features) float32."""
    samples = np.concatenate(list(AudioSource(speech()).blocks()))
    times = np.arange(0.0, len(samples) / SPEECH_RATE_HZ, 0.04)
    return windows_at(encoder, samples, times).numpy()
