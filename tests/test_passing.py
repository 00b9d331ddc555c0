"""Of somebody else in the picture not one pixel is altered, wherever they stand, walk or pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import cut_out, placed, scaled
from torch import Tensor

from dithead.face.tracker import FaceTracker
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.patch import put_patch
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs

Person = tuple[list[Tensor], Tensor, Tensor]
"""Frames (288, W, 3); where head and shoulders are, and the face's middle, as of ``cut_out``."""
HEIGHT, WIDTH = 288, 560
LEFT, RIGHT, AWAY, BEYOND = 140.0, 420.0, -140.0, 700.0


def along(*ways: tuple[float, float, int]) -> list[float]:
    """Places on ways, each from, to, in so many frames."""
    return [x for start, end, count in ways for x in torch.linspace(start, end, count).tolist()]


STAY, OTHER = [LEFT] * 60, [RIGHT] * 60
LEAVE = along((LEFT, AWAY, 20), (AWAY, AWAY, 15), (AWAY, LEFT, 25))
SCENES = {
    "stand": (STAY, OTHER, True),
    "cross before": (along((LEFT, RIGHT, 60)), along((RIGHT, LEFT, 60)), True),
    "cross behind": (along((LEFT, RIGHT, 60)), along((RIGHT, LEFT, 60)), False),
    "leave": (LEAVE, OTHER, True),
    "give way": (LEAVE, along((RIGHT, RIGHT, 15), (RIGHT, LEFT, 15), (LEFT, RIGHT, 30)), True),
    "jump": ([LEFT] * 20 + [BEYOND] * 15 + [LEFT] * 25, OTHER, True),
    "walk by": (STAY, along((RIGHT, RIGHT, 10), (RIGHT, AWAY, 40), (AWAY, AWAY, 10)), False),
    "enter": (STAY, along((BEYOND, BEYOND, 15), (BEYOND, 300.0, 45)), False),
}
"""Where the speaker's middle is, where the other's, and whether the speaker is in front."""
LOST = {"stand": 0, "cross before": 2}
"""In these frames are re-voiced but for so many: where heads are together, it may take one to tell
who is in front."""


def altered(
    speaker: Person, other: Person, name: str, every: int, models: TorchGraphs, options: Options
) -> tuple[list[int], list[bool], list[str | None]]:
    """For each frame of a scene: how many of the other's pixels are changed, whether any is, and
    why it was left alone."""
    mine, theirs, in_front = SCENES[name]
    background = torch.linspace(60, 120, WIDTH)[None, :, None].expand(HEIGHT, WIDTH, 3).byte()
    generate = FrameGenerator(models, options)
    hurt, speaks, reasons = [], [], []
    for index, (x, y) in enumerate(zip(mine[::every], theirs[::every], strict=True)):
        people = [
            (frames[index * every % len(frames)], *cut, at)
            for (frames, *cut), at in ((speaker, x), (other, y))
        ]
        frame, owner = placed(background, people[::-1] if in_front else people)
        patch = generate(frame, index * every / 25, index, lambda _: torch.zeros(11, 768))
        same = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
        changed = same if patch is None else (put_patch(frame, patch) != frame).any(2)
        hurt.append(int((changed & (owner == (1 if in_front else 2))).sum()))
        speaks.append(bool(changed.any()))
        reasons.append(generate.left_alone)
    return hurt, speaks, reasons


@pytest.fixture(scope="module")
def drive(carphone_clip: Path) -> list[Tensor]:
    with VideoSource(carphone_clip) as video:
        return [scaled(torch.from_numpy(f.rgb()), HEIGHT, 352) for f in video][:60]


@pytest.fixture(scope="module")
def man(drive: list[Tensor], random_models: TorchGraphs) -> Person:
    return drive[:3], *cut_out(drive[0], random_models)  # later ones leave the cut-out


@pytest.fixture(scope="module")
def woman(random_models: TorchGraphs) -> Person:
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    portrait = torch.from_numpy(np.array(data.astronaut())[:300, 70:370].copy())
    frame = scaled(portrait, HEIGHT, HEIGHT)
    return [frame], *cut_out(frame, random_models)


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("she_speaks", [False, True])
def test_not_one_pixel_of_the_other_is_altered(
    she_speaks: bool, name: str, man: Person, woman: Person, random_models: TorchGraphs
) -> None:
    speaker, other = (woman, man) if she_speaks else (man, woman)
    options = Options(steps=1, detail=False, face=0)
    hurt, speaks, reasons = altered(speaker, other, name, 3, random_models, options)
    assert hurt == [0] * len(hurt)
    assert speaks[0]
    assert speaks[-1] or name == "enter", reasons  # there the other has come in front
    assert speaks.count(False) <= LOST.get(name, 60), reasons


PAIRS = [
    ("grid_new_p1", "grid_s31_lbig7s"),
    ("grid_other_brbk7n", "grid_new_p3"),
    ("grid_s31_bgix9s", "grid_s34_lbwh5n"),
    ("grid_s10_bbab8n", "grid_other_lbax4n"),
    ("grid_s33_bwwy3s", "grid_other_sbia1a"),
]


@pytest.fixture(scope="module")
def talker(shared_footage: Path, random_models: TorchGraphs) -> Callable[[str], Person]:
    def load(name: str) -> Person:
        with VideoSource(shared_footage / "clips" / f"{name}.mp4") as video:
            frames = [scaled(torch.from_numpy(f.rgb()), HEIGHT, 360) for f in video][:60]
        return frames, *cut_out(frames[0], random_models)

    return load


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("pair", [*PAIRS, *(pair[::-1] for pair in PAIRS)])
def test_not_one_pixel_of_any_other_is_altered(
    pair: tuple[str, str], name: str, talker: Callable[[str], Person]
) -> None:
    speaker, other = map(talker, pair)
    hurt, speaks, reasons = altered(speaker, other, name, 1, TorchGraphs.load(), Options(face=0))
    assert hurt == [0] * len(hurt)
    assert speaks[0]
    assert sum(speaks) >= (60 if name == "stand" else 50 if name == "cross before" else 10), reasons


def test_nobody_is_seen_to_pass_where_one_is_alone(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    locate = FaceTracker(random_models.run)
    for frame in drive:
        found = locate(frame)
        assert found is not None
        assert not found.crossed
