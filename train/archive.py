"""``dithead-train archive`` and ``restore``: prepared footage in one small file.

So footage can be carried to another machine to train there. Crops are stored as H.264, sound as
Opus, meshes as coefficients of a few directions: about a hundredth of the folder's size.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from dithead.errors import MediaError
from dithead.runtime.media.sources import SPEECH_RATE_HZ
from dithead.train.data import Clip, Footage, make_folders, save_clip, write_index
from dithead.train.motion import crop_meshes, from_crop

VERSION = 1
CLIP_CRF, STILL_CRF = "18", "12"
OPUS_RATE_HZ, OPUS_BITS_PER_S = 48_000, 28_000
DIRECTIONS = 96
"""As many as the shape head can tell apart."""
RATE = Fraction(25)
"""Of the stored video; a clip's true times are stored beside it."""
STILLS = "stills"
_DAMAGES = (
    *(tarfile.TarError, zipfile.BadZipFile, av.FFmpegError),
    *(KeyError, ValueError, TypeError, AttributeError, IndexError, OSError),
)


def archive(footage: Footage, out: Path) -> int:
    """Store all clips and stills of prepared footage. People made from stills are left out, as
    ``dithead-train identities`` makes them again.

    Returns:
        The file's size in bytes.

    Raises:
        MediaError: there is nothing to store.
    """
    clips = [clip for clip in footage.clips if not clip.made and not clip.still]
    stills = [clip for clip in footage.clips if clip.still]
    if not clips and not stills:
        raise MediaError("the footage holds nothing to store")
    partial = out.with_name(out.name + ".partial")
    try:
        with tarfile.open(partial, "w") as tar:
            for clip in clips:
                sound = footage.track(clip)["audio"].astype(np.float32)
                video = _encoded(footage.crops(clip), CLIP_CRF, sound)
                _add(tar, f"{clip.name}.mkv", video)
            if stills:
                pictures = np.concatenate([footage.crops(still)[:1] for still in stills])
                _add(tar, f"{STILLS}.mkv", _encoded(pictures, STILL_CRF, None, intra=True))
            _add(tar, "tracks.npz", _packed_tracks([footage.track(c) for c in (*clips, *stills)]))
            index = {"version": VERSION, "clips": [asdict(clip) for clip in (*clips, *stills)]}
            _add(tar, "index.json", json.dumps(index).encode())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out.stat().st_size


def restore(source: Path, out: Path) -> list[Clip]:
    """Write an archive's footage as a folder of ``dithead-train prepare``.

    Returns:
        Its clips.

    Raises:
        MediaError: the file is not an archive, of another version, or damaged.
    """
    make_folders(out)
    clips = []
    for clip, crops, track in _stored(source):
        save_clip(out, clip.name, crops, track)
        clips.append(clip)
    write_index(out, clips)
    return clips


def _stored(source: Path) -> Iterator[tuple[Clip, np.ndarray, dict[str, Any]]]:
    """The clips of an archive, with their crops and tracks."""
    with ExitStack() as stack:
        try:
            tar = stack.enter_context(tarfile.open(source))
            index = json.loads(_read(tar, "index.json"))
            if index["version"] != VERSION:
                raise MediaError(f"{source} is an archive of another version: make it again")
            clips = [Clip(**row) for row in index["clips"]]
            tracks = _unpacked_tracks(_read(tar, "tracks.npz"))
            stills = iter(_decoded(_read(tar, f"{STILLS}.mkv"))[0] if clips[-1].still else ())
        except _DAMAGES as error:
            raise MediaError(f"{source} is no archive of footage ({error})") from error
        for clip, track in zip(clips, tracks, strict=True):
            if Path(clip.name).name != clip.name:
                raise MediaError(f"{source} names a clip {clip.name!r}: that is no file's name")
            try:
                samples, sound = int(track.pop("samples")), np.zeros(0, np.float32)
                if clip.still:
                    crops = next(stills)[None]
                else:
                    crops, sound = _decoded(_read(tar, f"{clip.name}.mkv"))
                if len(crops) != len(track["time_s"]) or len(crops) != clip.frames:
                    raise ValueError(f"{clip.name} has {len(crops)} frames, not {clip.frames}")
            except (*_DAMAGES, StopIteration) as error:
                raise MediaError(f"{source} is damaged ({error})") from error
            track["audio"] = sound[:samples].astype(np.float16)
            yield clip, crops, track


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def _read(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return file.read()


def _encoded(
    pictures: np.ndarray, crf: str, sound: np.ndarray | None, intra: bool = False
) -> bytes:
    """Pictures (T, S, S, 3) uint8 and sound (S,) as a Matroska file."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        options = {"crf": crf, "preset": "slow"} | ({"g": "1"} if intra else {})
        video: VideoStream = container.add_stream("libx264", rate=RATE, options=options)
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt = "yuv444p"
        speech: AudioStream | None = None
        if sound is not None and sound.size:
            speech = container.add_stream("libopus", rate=OPUS_RATE_HZ, layout="mono")
            speech.bit_rate = OPUS_BITS_PER_S
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = number, 1 / RATE
            container.mux(video.encode(frame.reformat(format="yuv444p")))
        container.mux(video.encode())
        if speech is not None and sound is not None:
            for piece in _resampled(sound, SPEECH_RATE_HZ, OPUS_RATE_HZ):
                container.mux(speech.encode(piece))
            container.mux(speech.encode())
    return buffer.getvalue()


def _decoded(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The reverse: pictures (T, S, S, 3) uint8, sound (S,) float32 at 16 kHz, padded with zeros."""
    pictures, pieces = [], [np.zeros(0, np.float32)]
    with av.open(io.BytesIO(content), "r") as container:
        resampler = av.AudioResampler("fltp", "mono", SPEECH_RATE_HZ)
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                pictures.append(frame.to_ndarray(format="rgb24"))
            else:
                pieces += [part.to_ndarray()[0] for part in resampler.resample(frame)]
        if len(pieces) > 1:
            pieces += [part.to_ndarray()[0] for part in resampler.resample(None)]
    return np.stack(pictures), np.concatenate([*pieces, np.zeros(SPEECH_RATE_HZ, np.float32)])


def _resampled(sound: np.ndarray, rate_hz: int, to_hz: int) -> Iterator[av.AudioFrame]:
    resampler = av.AudioResampler("flt", "mono", to_hz, frame_size=to_hz // 50)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[None]), "fltp", "mono")
    frame.sample_rate, frame.pts = rate_hz, 0
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


def _packed_tracks(tracks: Sequence[dict[str, np.ndarray]]) -> bytes:
    meshes = torch.cat([crop_meshes(track) for track in tracks]).flatten(1)  # (N, 936)
    mean = meshes.mean(0)
    count = min(DIRECTIONS, *meshes.shape)
    directions = torch.linalg.svd(meshes - mean, full_matrices=False)[2][:count]
    arrays = {
        "mean": mean.numpy(),
        "directions": directions.numpy(),
        "coefficients": ((meshes - mean) @ directions.T).half().numpy(),
        "transform": np.concatenate([track["transform"] for track in tracks]).astype(np.float32),
        "time_s": np.concatenate([track["time_s"] for track in tracks]),
        "frames": np.array([len(track["time_s"]) for track in tracks]),
        "samples": np.array([len(track["audio"]) for track in tracks]),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _unpacked_tracks(content: bytes) -> list[dict[str, Any]]:
    with np.load(io.BytesIO(content)) as file:
        held = {key: file[key] for key in file.files}
    shapes = held["coefficients"].astype(np.float32) @ held["directions"] + held["mean"]
    meshes = from_crop(
        torch.from_numpy(shapes).view(len(shapes), -1, 2), torch.from_numpy(held["transform"])
    )
    tracks, start = [], 0
    for frames, samples in zip(held["frames"], held["samples"], strict=True):
        rows = slice(start, start := start + int(frames))
        tracks.append(
            {
                "transform": held["transform"][rows],
                "mesh": meshes[rows].numpy(),
                "time_s": held["time_s"][rows],
                "samples": int(samples),
            }
        )
    return tracks
