"""What the host decides on: graphs without weights that give it plain numbers."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dithead.face.likeness import LOOKS_SHAPE, MOST_COMPARED, FaceLikeness
from dithead.face.passing import MOST_SIDES, SIDES_SHAPE, FaceSides
from dithead.face.scene import COLUMNS, GLANCES, ROWS, SCENE, FrameGlance, SceneChange, part_round
from dithead.face.tracker import FaceTracker
from dithead.graphs import Mix
from dithead.torchgraphs import TorchGraphs

FACE = Path(__file__).resolve().parents[1] / "dithead" / "face"
HOST = ("tracker", "others", "search", "choice", "reference", "cover")
PUT_TOGETHER = {"stack", "zeros", "zeros_like", "full", "tensor", "cat", "rot90"}
"""Of torch, what only puts tensors together or takes them apart."""


@pytest.mark.parametrize("name", HOST)
def test_the_host_computes_nothing_on_tensors(name: str) -> None:
    tree = ast.parse((FACE / f"{name}.py").read_text())
    used = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
    }
    assert used <= PUT_TOGETHER


@pytest.mark.parametrize(("height", "width"), [(54, 96), (1080, 1920), (144, 176), (17, 9)])
def test_a_glance_sees_the_middle_of_every_part(height: int, width: int) -> None:
    rows = torch.arange(height)[:, None].expand(height, width)
    columns = torch.arange(width).expand(height, width)
    frame = torch.stack([rows % 251, columns % 251, torch.zeros(height, width)], 2).to(torch.uint8)
    seen = FrameGlance()(frame)
    assert seen.shape == (ROWS, COLUMNS, 3)
    places = [(2 * n + 1) * height // (2 * 3 * ROWS) for n in range(3)]
    assert seen[0, 0, 0] == pytest.approx(sum(p % 251 for p in places) / 3)


def test_only_what_is_shown_counts_as_a_change() -> None:
    change, inside = SceneChange(), torch.ones(ROWS, COLUMNS)
    scene, other = (255 * torch.rand(ROWS, COLUMNS, 3) for _ in range(2))
    brighter = 0.6 * scene + 30
    found = change(torch.stack([scene, scene, brighter, other]), inside)
    assert found.shape == (GLANCES,)
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] > SCENE
    assert found[3] > 0.8
    same = change(torch.stack([other, scene, scene, brighter]), inside)
    assert same[3] < 0.02


def test_a_change_round_a_face_is_seen_there_alone() -> None:
    before = 255 * torch.rand(ROWS, COLUMNS, 3)
    after = before.clone()
    after[:, : COLUMNS // 2] = 255 * torch.rand(ROWS, COLUMNS // 2, 3)
    glances = torch.stack([before, before, before, after])
    changes = []
    for place in ((40.0, 40.0, 60.0, 60.0), (260.0, 40.0, 280.0, 60.0)):
        inside = torch.zeros(ROWS, COLUMNS)
        rows, columns = part_round(place, 180, 320)
        inside[rows, columns] = 1.0
        changes.append(float(SceneChange()(glances, inside)[3]))
    assert changes[0] > 0.7
    assert changes[1] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("value", [1e9, -1e9])
def test_a_place_out_of_the_world_is_in_the_picture(value: float) -> None:
    box = (value, value, value + 10.0, value + 10.0)
    for part, count in zip(part_round(box, 180, 320), (ROWS, COLUMNS), strict=True):
        assert 0 <= part.start < part.stop <= count


def test_rows_that_stand_for_nobody_change_nothing() -> None:
    known = 40 + 100 * torch.rand(MOST_COMPARED, *LOOKS_SHAPE)
    fewer = torch.cat([known[:3], torch.zeros_like(known[3:])])
    assert torch.equal(FaceLikeness()(fewer, known[5])[:3], FaceLikeness()(known, known[5])[:3])


def test_the_sides_of_a_face_beyond_the_frame_are_its_edge(random_models: TorchGraphs) -> None:
    mesh = 30.0 * torch.randn(468, 3)  # half of it out of the frame
    looks, known = torch.full(LOOKS_SHAPE, 100.0), torch.zeros(MOST_SIDES + 1, *SIDES_SHAPE)
    frame = torch.full((64, 80, 3), 100, dtype=torch.uint8)
    sides, seen = FaceSides()(frame, mesh, looks, known)
    assert sides.abs().max() < 1e-6
    assert seen[: 2 * (MOST_SIDES + 1)].abs().max() < 1e-6


def test_a_mixture_is_exact_at_both_ends() -> None:
    before, latest = torch.rand(2, 3, 4)
    assert torch.equal(Mix()(before, latest, torch.tensor(0.0)), before)
    assert torch.allclose(Mix()(before, latest, torch.tensor(1.0)), latest)


def test_a_mesh_that_is_no_number_is_no_face(
    random_models: TorchGraphs, astronaut: np.ndarray
) -> None:
    broken = False

    def run(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = random_models.run(name, *inputs)
        if broken and name == "face_landmarks":
            return outputs[0] * float("nan"), outputs[1]
        return outputs

    track, frame = FaceTracker(run), torch.from_numpy(astronaut)
    assert track(frame) is not None
    broken = True
    assert track(frame) is None
