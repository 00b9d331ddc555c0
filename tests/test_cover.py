"""What is in front of the mouth stays there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import covered, lit
from torch import Tensor

from dithead.face.cover import FOR_GOOD_S, MouthWatch
from dithead.face.tracker import FaceTracker
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs

HANDS = {
    "hand": (50, 78, 70, 40, (0xC0, 0x80, 0x60)),
    "cup": (52, 74, 60, 50, (240, 240, 235)),
    "microphone": (58, 80, 52, 60, (25, 25, 30)),
}


@pytest.fixture(scope="module")
def drive(carphone_clip: Path) -> list[Tensor]:
    with VideoSource(carphone_clip) as video:
        return [torch.from_numpy(frame.rgb()) for frame in video]


def watched(frames: list[Tensor], models: TorchGraphs, fps: float = 30.0) -> list[bool]:
    """Whether each frame's mouth is seen to be covered."""
    locate, watch, found = FaceTracker(models.run), MouthWatch(), []
    for index, frame in enumerate(frames):
        face = locate(frame)
        assert face is not None
        found.append(watch(face, index / fps))
        locate.mouths = watch.known
        locate.reference = face.looks if locate.reference is None else locate.reference
    return found


@pytest.mark.parametrize("what", HANDS)
def test_a_mouth_is_covered_while_something_is_before_it(
    what: str, drive: list[Tensor], random_models: TorchGraphs
) -> None:
    *place, colour = HANDS[what]
    frames = [
        covered(frame, *place, torch.tensor(colour, dtype=torch.uint8)) if 10 <= i < 24 else frame
        for i, frame in enumerate(drive[:36])
    ]
    found = watched(frames, random_models)
    assert found[:10] == [False] * 10
    assert found[10:24] == [True] * 14  # and does not flicker
    assert not any(found[27:])


def test_the_own_skin_before_the_mouth_is_seen(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    cheek = drive[0][84:88, 76:80].float().mean((0, 1)).round().byte()
    frames = [covered(f, 56, 80, 56, 36, cheek) if i >= 8 else f for i, f in enumerate(drive[:20])]
    found = watched(frames, random_models)
    assert found == [i >= 8 for i in range(20)]


@pytest.mark.parametrize("every", [1, 3])
def test_an_ordinary_mouth_is_never_covered(
    every: int, drive: list[Tensor], random_models: TorchGraphs
) -> None:
    assert not any(watched(drive[::every], random_models, 30 / every))
    dimmer = [lit(frame, 1 - 0.5 * i / len(drive)) for i, frame in enumerate(drive)]
    assert not any(watched(dimmer[::every], random_models, 30 / every))


def test_a_covered_frame_is_left_as_it_is(drive: list[Tensor], random_models: TorchGraphs) -> None:
    *place, colour = HANDS["hand"]
    hand = torch.tensor(colour, dtype=torch.uint8)
    generate = FrameGenerator(random_models, Options(steps=1, detail=False))
    window = torch.zeros(11, 768)
    for index, frame in enumerate(drive[:12]):
        before = covered(frame, *place, hand) if 5 <= index < 8 else frame
        patch = generate(before, index / 30, index, lambda _: window)
        assert (patch is None) == (5 <= index < 10)  # three frames until it is bare again
        assert generate.left_alone == ("covered" if patch is None else None)


def test_a_face_that_was_covered_at_first_is_begun_with_anew(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    *place, colour = HANDS["hand"]
    hand = torch.tensor(colour, dtype=torch.uint8)
    frames = [covered(f, *place, hand) if i < 6 else f for i, f in enumerate(drive[:14])]
    assert not any(watched(frames, random_models)[9:])  # three frames until lips are believed


def test_what_stays_for_good_is_the_mouth(drive: list[Tensor], random_models: TorchGraphs) -> None:
    *place, colour = HANDS["microphone"]
    dark = torch.tensor(colour, dtype=torch.uint8)
    frames = [drive[0], *[covered(drive[0], *place, dark)] * 30]
    found = watched(frames, random_models, fps=5.0)
    assert found[1]
    assert not found[-1]
    assert sum(found) <= FOR_GOOD_S * 5 + 2


@pytest.mark.parametrize("colour", [(20, 20, 25), (60, 90, 200), (60, 160, 70), (240, 240, 240)])
def test_a_mask_that_is_put_on_is_no_mouth(
    colour: tuple[int, int, int], drive: list[Tensor], random_models: TorchGraphs
) -> None:
    generate = FrameGenerator(random_models, Options(steps=1, detail=False))
    cloth = torch.tensor(colour, dtype=torch.uint8)
    reasons = []
    for index, frame in enumerate(drive[:20]):
        worn = covered(frame, 52, 66, 54, 44, cloth) if index >= 6 else frame
        generate(worn, index / 30, index, lambda _: torch.zeros(11, 768))
        reasons.append(generate.left_alone)
    assert reasons[:6] == [None] * 6
    assert set(reasons[6:]) <= {"covered", "away"}
