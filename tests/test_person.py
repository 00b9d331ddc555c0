"""Who speaks stays who speaks, and the caller may say who it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import GREY, cut_out, placed, scaled, side_by_side
from torch import Tensor

from dithead.errors import ConfigError
from dithead.face.choice import FaceChoice
from dithead.face.speakers import NOBODY, Speakers, Turn
from dithead.face.tracker import FaceTracker
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.patch import put_patch
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

WIDTH = 352


@pytest.fixture(scope="module")
def drive(carphone_clip: Path) -> list[Tensor]:
    with VideoSource(carphone_clip) as video:
        frames = [torch.from_numpy(frame.rgb()) for frame in video]
    return [scaled(frame, 288, WIDTH) for frame in frames[:45]]


@pytest.fixture(scope="module")
def woman() -> Tensor:
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    return scaled(torch.from_numpy(np.array(data.astronaut())[:300, 70:370].copy()), 288, 288)


def altered(
    frames: list[Tensor], models: TorchGraphs, choice: FaceChoice
) -> tuple[list[Tensor], list[str | None]]:
    """Which pixels of each frame are changed, and why a frame was left alone."""
    generate = FrameGenerator(models, Options(steps=1, face=choice, detail=False))
    window = torch.zeros(11, 768)
    changed, reasons = [], []
    for index, frame in enumerate(frames):
        patch = generate(frame, index / 25, index, lambda _: window)
        changed.append(
            torch.zeros(frame.shape[:2], dtype=torch.bool)
            if patch is None
            else (put_patch(frame, patch) != frame).any(2)
        )
        reasons.append(generate.left_alone)
    return changed, reasons


@pytest.mark.parametrize("back_from", [None, 24])
def test_while_the_chosen_face_is_away_its_twin_does_not_speak(
    back_from: int | None, drive: list[Tensor], random_models: TorchGraphs
) -> None:
    frames = []
    for index, frame in enumerate(drive[:36]):
        both = side_by_side(frame, frame.flip(1))
        if index >= 15 and (back_from is None or index < back_from):
            both[:, :WIDTH] = GREY
        frames.append(both)
    changed, reasons = altered(frames, random_models, 0)
    assert not any(bool(part[:, WIDTH:].any()) for part in changed)
    speaks = [bool(part.any()) for part in changed]
    away = range(15, back_from or 36)
    assert speaks == [index not in away for index in range(36)]
    assert {reasons[index] for index in away} == {"away"}


@pytest.mark.parametrize("she_is_in_front", [False, True])
@pytest.mark.parametrize("choice", [0, 1])
def test_of_two_who_cross_one_speaks(
    she_is_in_front: bool,
    choice: int,
    drive: list[Tensor],
    woman: Tensor,
    random_models: TorchGraphs,
) -> None:
    man = drive[0]
    his, hers = (cut_out(picture, random_models) for picture in (man, woman))
    background = torch.full((288, 640, 3), 100, dtype=torch.uint8)
    frames, owners = [], []
    for step in torch.linspace(0, 1, 40).tolist():
        people = [(man, *his, 130 + 380 * step), (woman, *hers, 510 - 380 * step)]
        frame, owner = placed(background, people if she_is_in_front else people[::-1])
        frames.append(frame)
        owners.append(owner if she_is_in_front else (3 - owner) % 3)
    changed, reasons = altered(frames, random_models, choice)
    other = owners[0].new_tensor(2 - choice)  # 1 is his, 2 hers
    for part, owner in zip(changed, owners, strict=True):
        assert not (part & (owner == other)).any()
    assert changed[0].any(), reasons
    assert changed[-1].any(), reasons  # taken up again where the other was in front


def test_who_comes_into_the_place_of_another_does_not_speak(
    drive: list[Tensor], woman: Tensor, random_models: TorchGraphs
) -> None:
    his, hers = (cut_out(picture, random_models) for picture in (drive[0], woman))
    background = torch.full((288, 640, 3), 100, dtype=torch.uint8)
    places = [(x, 480.0) for x in torch.linspace(200, -250, 14).tolist()]  # he goes
    places += [(-250.0, x) for x in torch.linspace(480, 200, 14).tolist()]  # she takes his place
    places += [(-250.0, 200.0)] * 6
    places += [(-250.0, x) for x in torch.linspace(200, 480, 14).tolist()]
    places += [(x, 480.0) for x in torch.linspace(-250, 200, 14).tolist()]
    frames = [
        placed(background, [(woman, *hers, x_hers), (drive[0], *his, x_his)])[0]
        for x_his, x_hers in places
    ]
    changed, _ = altered(frames, random_models, 0)
    assert not any(bool(part.any()) for part in changed[14:48])
    assert all(bool(part.any()) for part in (*changed[:4], *changed[-3:]))


def test_a_face_is_chosen_by_a_point_or_a_box(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    frame = side_by_side(drive[0], drive[0].flip(1))
    right = FaceTracker(random_models.run, 1)(frame)
    assert right is not None
    middle = right.mesh[:, :2].mean(0)
    low, high = right.mesh[:, :2].amin(0), right.mesh[:, :2].amax(0)
    point = (float(middle[0]), float(middle[1]))
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    for choice in (point, box):
        found = FaceTracker(random_models.run, choice)(frame)
        assert found is not None
        assert torch.equal(found.mesh, right.mesh)
    assert FaceTracker(random_models.run, (5.0, 5.0))(frame) is None


@pytest.mark.parametrize("choice", ["first", -1, (1.0,), (5.0, 5.0, 5.0, 9.0)])
def test_a_choice_that_is_none_is_refused(choice: FaceChoice) -> None:
    with pytest.raises(ConfigError, match="face must be"):
        Options(face=choice)


def test_a_caller_says_for_each_frame_whose_face_it_is(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    left, right = (0, 0, WIDTH, 288), (WIDTH, 0, 2 * WIDTH, 288)
    boxes = [left, left, right, None, right, NOBODY, left]
    frames = [side_by_side(f, f.flip(1)) for f in drive[: len(boxes)]]
    with Session(random_models).open_stream(Options(steps=1, detail=False)) as stream:
        stream.push_audio(np.zeros(16000, np.float32))
        for index, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
            stream.push_frame(frame.numpy(), index / 25, face_box=box)
        stream.finish()
        made = list(stream.frames())
    sides = []
    for frame, out in zip(frames, made, strict=True):
        changed = (out.image != frame.numpy()).any((0, 2))
        sides.append((bool(changed[:WIDTH].any()), bool(changed[WIDTH:].any())))
    first, second, none = (True, False), (False, True), (False, False)
    assert sides == [first, first, second, second, second, none, first]
    assert [out.left_alone for out in made] == [None] * 5 + ["nobody", None]
    assert [out.face for out in made] == [True] * 5 + [False, True]


def test_turns_are_read_from_a_file(tmp_path: Path, drive: list[Tensor]) -> None:
    path = tmp_path / "turns.txt"
    path.write_text("# who speaks\n1.0 2.0 352 0 704 288\n\n0, 0.5, 0, 0, 352, 288  # first\n")
    speakers = Speakers.read(path)
    assert speakers.turns[0] == Turn(0.0, 0.5, (0.0, 0.0, 352.0, 288.0))
    assert [speakers.box_at(t)[0] for t in (0.0, 0.49, 1.0, 1.99)] == [0, 0, 352, 352]
    assert [speakers.box_at(t) for t in (-0.1, 0.5, 0.99, 2.0)] == [NOBODY] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1 2 3 4", "line 1: expected start, end"),
        ("0 1 a b c d", "line 1: expected start, end"),
        ("\n# nobody\n", "names nobody"),
        ("1 0 0 0 9 9", "must end after it starts"),
        ("0 1 9 9 0 0", "must end after it starts"),
        ("0 2 0 0 9 9\n1 3 0 0 9 9", "one person speaks at a time"),
    ],
)
def test_turns_that_are_none_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "turns.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Speakers.read(path)
    with pytest.raises(ConfigError, match="cannot read"):
        Speakers.read(tmp_path / "none.txt")


def test_speakers_of_a_stream_take_turns(drive: list[Tensor], random_models: TorchGraphs) -> None:
    speakers = Speakers((Turn(0.04, 0.12, (0, 0, 352, 288)), Turn(0.12, 0.2, (352, 0, 704, 288))))
    generate = FrameGenerator(random_models, Options(steps=1, speakers=speakers, detail=False))
    sides = []
    for index, frame in enumerate(drive[:6]):
        both = side_by_side(frame, frame.flip(1))
        patch = generate(both, index * 0.04, index, lambda _: torch.zeros(11, 768))
        sides.append(None if patch is None else patch.left + patch.image.shape[0] // 2 < WIDTH)
    assert sides == [None, True, True, False, False, None]


@pytest.mark.parametrize("width", [80, 160])
def test_a_small_face_that_was_lost_is_taken_up_again(
    width: int, woman: Tensor, random_models: TorchGraphs
) -> None:
    side = round(288 * width / 105)
    frame = torch.full((1080, 1920, 3), 110, dtype=torch.uint8)
    hidden = frame.clone()
    frame[400 : 400 + side, 1200 : 1200 + side] = scaled(woman, side, side)
    locate = FaceTracker(random_models.run)
    seen = [locate(shown) is not None for shown in [frame] * 3 + [hidden] * 3 + [frame] * 3]
    assert seen == [True] * 3 + [False] * 3 + [True] * 3


def test_who_walks_through_the_picture_does_not_speak(
    drive: list[Tensor], woman: Tensor, random_models: TorchGraphs
) -> None:
    his, hers = (cut_out(picture, random_models) for picture in (drive[0], woman))
    background = torch.full((288, 640, 3), 100, dtype=torch.uint8)
    walk = torch.linspace(-150, 800, 34).tolist()
    frames, owners = [], []
    for x in [-300.0] * 5 + walk + [900.0] * 6:
        frame, owner = placed(background, [(drive[0], *his, 320), (woman, *hers, x)])
        frames.append(frame)
        owners.append(owner)
    changed, _ = altered(frames, random_models, "largest")
    for part, owner in zip(changed, owners, strict=True):
        assert not (part & (owner == 2)).any()
    assert changed[0].any()
    assert changed[-1].any()


def test_who_has_taken_the_place_in_a_jump_does_not_speak(
    drive: list[Tensor], woman: Tensor, random_models: TorchGraphs
) -> None:
    his, hers = (cut_out(picture, random_models) for picture in (drive[0], woman))
    background = torch.full((288, 640, 3), 100, dtype=torch.uint8)
    places = [(160, 480)] * 12 + [(-300, 160)] * 30 + [(160, 480)] * 6
    frames = [placed(background, [(drive[0], *his, a), (woman, *hers, b)])[0] for a, b in places]
    changed, _ = altered(frames, random_models, 0)
    assert [bool(part.any()) for part in changed] == [True] * 12 + [False] * 30 + [True] * 6


def test_a_camera_that_shakes_is_no_cut(drive: list[Tensor], random_models: TorchGraphs) -> None:
    locate = FaceTracker(random_models.run)
    wide = torch.nn.functional.pad(drive[0].permute(2, 0, 1), (60, 60, 60, 60), value=GREY)
    wide = wide.permute(1, 2, 0)
    for index, (x, y) in enumerate([(30, 30), (60, 20), (20, 50), (55, 55), (10, 30), (60, 60)]):
        found = locate(wide[y : y + 288, x : x + WIDTH].contiguous())
        assert found is not None
        assert found.changed == (index == 0)


def test_a_box_holds_for_the_frame_that_it_comes_with(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    both, left = side_by_side(drive[0], drive[0].flip(1)), (0.0, 0.0, float(WIDTH), 288.0)
    swapped = both.roll(WIDTH, 1)
    locate = FaceTracker(random_models.run)
    for frame in (both, both, swapped, swapped):
        found = locate(frame, box=left)
        assert found is not None
        assert float(found.mesh[:, 0].mean()) < WIDTH
    assert locate(swapped, box=NOBODY) is None
    found = locate(swapped)
    assert found is not None
    assert float(found.mesh[:, 0].mean()) < WIDTH
