"""Frames that show the same picture as the one before: the face is where it was, and is neither
looked for nor encoded again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from dithead.config import DitHeadConfig
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.patch import SamePicture
from dithead.pipeline import revoice
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

FOUND_ONCE = ("face_detector", "face_judge", "crop_smoother")


class Counting:
    """Graphs that count their runs."""

    replayable = True

    def __init__(self, graphs: TorchGraphs) -> None:
        self._graphs = graphs
        self.config: DitHeadConfig = graphs.config
        self.device, self.precision = graphs.device, graphs.precision
        self.runs: Counter[str] = Counter()

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        self.runs[name.partition(".")[0]] += 1
        return self._graphs.run(name, *inputs)


def shown(pictures: list[np.ndarray], sound: np.ndarray, graphs: Counting) -> list[np.ndarray]:
    """What the specification makes of pictures at 25 frames a second."""
    torch.set_num_threads(1)
    frames = [(torch.from_numpy(image), index / 25) for index, image in enumerate(pictures)]
    made = revoice(frames, torch.from_numpy(sound), graphs, Options(steps=1))
    return [image.numpy() for image in made]


def test_a_still_is_looked_at_once(
    pictures: list[np.ndarray], sound: np.ndarray, random_models: TorchGraphs
) -> None:
    graphs = Counting(random_models)
    made = shown([pictures[0]] * 8, sound, graphs)
    first = Counting(random_models)
    shown([pictures[0]], sound, first)
    for name in FOUND_ONCE:
        assert graphs.runs[name] == first.runs[name], name
    assert graphs.runs["masked_encoder"] == 2  # the second time in the reference's light
    assert graphs.runs["dit_step"] == graphs.runs["face_decoder"] == 8
    assert len({image.tobytes() for image in made}) > 4  # the mouth moves all the same


def test_what_moves_again_is_looked_at_again(
    pictures: list[np.ndarray], sound: np.ndarray, random_models: TorchGraphs
) -> None:
    order = [0, 0, 0, 1, 1, 1, 2, 0, 0]
    graphs = Counting(random_models)
    shown([pictures[n] for n in order], sound, graphs)
    assert graphs.runs["crop_smoother"] == 4
    assert graphs.runs["masked_encoder"] == 5


def test_streams_equal_the_specification(
    pictures: list[np.ndarray], sound: np.ndarray, session: Session, random_models: TorchGraphs
) -> None:
    blank = pictures[5]  # shows no face
    order = [pictures[0]] * 3 + [pictures[1], blank, blank] + [pictures[1]] * 3
    wanted = shown(order, sound, Counting(random_models))
    buffer = np.empty_like(order[0])
    with session.open_stream(Options(steps=1), in_flight=1) as stream:
        stream.push_audio(sound)
        stream.finish_audio()
        found = []
        for index, image in enumerate(order):
            buffer[:] = image  # one buffer for all; each is pulled before the next is pushed
            stream.push_frame(buffer, index / 25)
            found.append(stream.pull(timeout_s=20).image.copy())
        stream.finish()
    assert all((a == b).all() for a, b in zip(found, wanted, strict=True))


def test_what_was_left_alone_stays_so_and_what_is_shown_then_is_encoded(
    pictures: list[np.ndarray], random_models: TorchGraphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = FrameGenerator(random_models, Options())
    first, other = (torch.from_numpy(image) for image in pictures[:2])
    covered = [True, False, False]
    monkeypatch.setattr(
        "dithead.face.cover.MouthWatch.__call__", lambda watch, face, time_s: covered.pop(0)
    )
    faces, reasons = [], []
    with torch.inference_mode():
        for index, (frame, same) in enumerate(
            [(first, False), (first, True), (other, False), (other, True), (other, True)]
        ):
            faces.append(generate.track(frame, index / 25, same=same))
            reasons.append(generate.left_alone)
    assert reasons == ["covered", "covered", None, None, None]
    kinds = [None if face is None else (face.fresh, face.refers, face.still) for face in faces]
    one, again = (True, True, False), (False, False, False)
    assert kinds == [None, None, one, again, (False, False, True)]
    assert faces[2] is not None
    assert faces[4] is not None
    assert faces[4].transform is faces[2].transform


def test_same_means_to_the_bit() -> None:
    same = SamePicture()
    picture = torch.randint(0, 255, (40, 30, 3), dtype=torch.uint8)
    other = picture.clone()
    assert not same(picture)
    assert same(other)
    other[33, 7, 1] += 1
    assert not same(other)
    assert not same(other[:20])
