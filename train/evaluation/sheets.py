"""The pictures of an evaluation: contact sheets, true above generated, and clips side by side."""

from __future__ import annotations

import re
import wave
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.patch import cut_rectangle
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import SPEECH_RATE_HZ, AudioSource
from dithead.runtime.media.videoframe import VideoFrame, convert_picture
from dithead.runtime.media.videoinfo import VideoInfo
from dithead.train.evaluation.clips import Clip
from dithead.train.picture import save_grid

COLUMNS = 8
CELL_PX = 192
CLIP_HEIGHT_PX = 360
FACE_MARGIN = 1.15
_TICK_S = Fraction(1, 90_000)


def file_name(name: str) -> str:
    """A name that any file system accepts."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def save_sheet(clip: Clip, made: list[Tensor], folder: Path, name: str) -> None:
    """Write the face in frames from all over a clip as a PNG: true above generated."""
    chosen = np.linspace(0, len(made) - 1, min(COLUMNS, len(made))).round().astype(int)
    cells = [
        _face(frames[i], clip.meshes[i]) for frames in (clip.frames, made) for i in chosen.tolist()
    ]
    save_grid(torch.cat(cells), folder / f"{file_name(name)}.png", len(chosen))


def _face(frame: Tensor, mesh: np.ndarray) -> Tensor:
    """The square round a face of a frame (H, W, 3) uint8: (1, 3, CELL_PX, CELL_PX) in [-1, 1]."""
    low, high = mesh.min(0), mesh.max(0)
    side = int(FACE_MARGIN * (high - low).max())
    left, top = ((low + high - side) / 2).astype(int).tolist()
    picture = cut_rectangle(frame, left, top, side).permute(2, 0, 1)[None].float() / 127.5 - 1
    return F.interpolate(picture, (CELL_PX, CELL_PX), mode="bilinear", antialias=True)


def still_name(path: Path) -> str:
    """The file that :func:`save_crops` writes for a still."""
    return f"still_{file_name(path.stem)}.png"


def save_crops(true: Tensor, decoded: Tensor, path: Path) -> None:
    """Write a still's crop (1, 3, S, S) in [-1, 1] above stage 1's result as a PNG."""
    save_grid(torch.cat([true, decoded]), path, 1)


def save_side_by_side(
    clip: Clip, made: list[Tensor], samples: np.ndarray, folder: Path, name: str
) -> None:
    """Write a clip as an MP4, true on the left and generated on the right, with the sound (S,) that
    the model was given."""
    height, width = clip.frames[0].shape[:2]
    scale = min(1.0, CLIP_HEIGHT_PX / height)
    height, width = (2 * round(scale * length / 2) for length in (height, width))
    ends = [*clip.times_s[1:], 2 * clip.times_s[-1] - clip.times_s[-2]]
    rate = Fraction(len(clip.times_s) / (ends[-1] - clip.times_s[0])).limit_denominator(1001)
    info = _info(2 * width, height, rate)
    target = folder / f"{file_name(name)}.mp4"
    with TemporaryDirectory() as scratch:
        sound = AudioSource(_write_wav(samples, Path(scratch) / "sound.wav"))
        with VideoSink(target, info, audio=sound) as sink:
            for i, (true, frame) in enumerate(zip(clip.frames, made, strict=True)):
                both = torch.cat([_scaled(picture, height, width) for picture in (true, frame)], 1)
                picture = av.VideoFrame.from_ndarray(both.numpy(), format="rgb24")
                start, end = (round(time_s / _TICK_S) for time_s in (clip.times_s[i], ends[i]))
                planes = convert_picture(picture, "yuv420p", 2 * width, height)
                sink.write(VideoFrame(i, start, _TICK_S, end - start, planes))


def _write_wav(samples: np.ndarray, path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE_HZ)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path


def _scaled(frame: Tensor, height: int, width: int) -> Tensor:
    picture = frame.permute(2, 0, 1)[None].float()
    picture = F.interpolate(picture, (height, width), mode="bilinear", antialias=True)
    return picture[0].permute(1, 2, 0).round().clamp(0, 255).byte()


def _info(width: int, height: int, rate: Fraction) -> VideoInfo:
    return VideoInfo(
        width=width,
        height=height,
        average_rate=rate,
        time_base=_TICK_S,
        pix_fmt="yuv420p",
        source_pix_fmt="yuv420p",
        color_range=1,
        colorspace=2,
        color_primaries=2,
        color_trc=2,
        sample_aspect_ratio=None,
        rotation_deg=0,
        start_s=Fraction(0),
        duration_s=None,
        frame_count=None,
        still=False,
    )
