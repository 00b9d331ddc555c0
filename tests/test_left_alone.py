"""Frames whose face is too large for the bundle go through as they are, and are counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from streams import collect, same, threads_of_streams, warble
from torch import Tensor

from dithead.errors import ExportError, MediaError
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime import cli
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.runtime.pipeline import Summary, stream_file
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

NEAR = {2, 3, 4, 7}
"""Frames of nine in which the face is close to the camera."""


class Limited:
    """The small random model as a bundle with rectangles of up to so many pixels has it."""

    def __init__(self, models: TorchGraphs, largest: int) -> None:
        self.largest_rectangle = largest
        self._models = models

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        kind, _, side = name.partition(".")
        if side.isdigit() and kind != "face_region" and int(side) > self.largest_rectangle:
            raise ExportError(f"no graph '{name}'", hint="export again")
        return self._models.run(name, *inputs)


@pytest.fixture
def zoomed(astronaut: np.ndarray) -> list[np.ndarray]:
    """Frames (160, 160, 3) of a portrait that comes near and goes away again."""
    frames = []
    for index in range(9):
        side = 160 if index in NEAR else 400
        left, top = 225 - side // 2 + index, (110 if index in NEAR else 160) - side // 2
        part = astronaut[max(0, top) : max(0, top) + side, left : left + side]
        small = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None].float()
        size = torch.nn.functional.interpolate(small, (160, 160), mode="area")[0]
        frames.append(size.round().byte().permute(1, 2, 0).contiguous().numpy())
    return frames


@pytest.fixture
def limited(random_models: TorchGraphs) -> Limited:
    return Limited(random_models, 128)


@pytest.mark.parametrize(
    "options",
    [
        Options(steps=1),
        Options(steps=1, generate_every=2),
        Options(steps=1, reference="previous"),
    ],
)
def test_a_face_too_large_for_the_bundle_goes_through_untouched(
    limited: Limited, zoomed: list[np.ndarray], options: Options
) -> None:
    torch.set_num_threads(1)
    sound = warble(0.4)
    with Session(limited).open_stream(options) as stream:
        frames = collect(stream, zoomed, [sound])
    assert [frame.face for frame in frames] == [index not in NEAR for index in range(9)]
    for index, frame in enumerate(frames):
        assert np.array_equal(frame.image, zoomed[index]) == (index in NEAR)
    given = [(torch.from_numpy(image), index / 25) for index, image in enumerate(zoomed)]
    wanted = [image.numpy() for image in revoice(given, torch.from_numpy(sound), limited, options)]
    assert same(frames, wanted)


def test_where_every_frame_must_show_a_face_it_is_an_error(
    limited: Limited, zoomed: list[np.ndarray]
) -> None:
    options = Options(steps=1, on_no_face="error")
    with (
        Session(limited).open_stream(options) as stream,
        pytest.raises(ExportError, match=r"failed at frame 2: no graph 'face_crop\.192'"),
    ):
        collect(stream, zoomed, [warble(0.4)])
    assert not threads_of_streams()


@pytest.fixture
def job(
    zoomed: list[np.ndarray], tone_file: Callable[..., Path], limited: Limited, tmp_path: Path
) -> Callable[..., Summary]:
    """Runs the main job on those frames, or some of them."""

    def run(numbers: range = range(9), **settings: Any) -> Summary:
        video = tmp_path / "in.mkv"
        with av.open(str(video), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=25)
            stream.width, stream.height, stream.pix_fmt = 160, 160, "yuv420p"
            for count, number in enumerate(numbers):
                frame = av.VideoFrame.from_ndarray(zoomed[number], "rgb24")
                frame = frame.reformat(format="yuv420p")
                frame.pts, frame.time_base = count, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        options = Options(steps=1)
        return stream_file(video, tone_file(1.0), tmp_path / "out.mp4", limited, options)

    return run


def test_frames_that_are_left_alone_are_counted(job: Callable[..., Summary]) -> None:
    summary = job()
    assert (summary.frames, summary.faces) == (9, 5)
    assert summary.left_alone == {"too large": 4}
    note = "4 frames were left alone: the face was too large for the bundle (export with a larger"
    assert any(found.startswith(note) for found in summary.notes)
    assert "faces: 5 of 9 frames re-voiced\n" in cli._as_text(summary)
    assert json.loads(cli._as_json(summary))["left_alone"] == summary.left_alone


def test_a_video_of_which_every_frame_is_left_alone_is_an_error(
    job: Callable[..., Summary], tmp_path: Path
) -> None:
    with pytest.raises(MediaError, match="the face was too large for the bundle") as caught:
        job(range(2, 5))
    assert caught.value.hint == "export with a larger --largest-rectangle"
    assert not (tmp_path / "out.mp4").exists()


def test_a_bundle_knows_its_largest_rectangle(small_bundle: Path) -> None:
    assert OnnxGraphs(small_bundle).largest_rectangle == 1024
