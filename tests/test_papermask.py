"""The paper's mask: its polygon, its soft edge, what it gives away, and both ways to run it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from streams import TIMES, collect

from dithead.config import PRESETS, FaceConfig, View
from dithead.errors import ConfigError, ExportError
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.face.crop import crop_mask, crop_positions, mask_polygon, transform_from_placement
from dithead.face.mesh import LANDMARKS_68
from dithead.face.papermask import (
    DIRECTIONS,
    LOWER_FACE,
    PaperMask,
    fade_out,
    landmarks_68,
    lower_face_planes,
    paper_mask,
)
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs
from dithead.train.appearance import plain_appearance, random_appearance, vary_pose
from dithead.train.masking import SHIFT, followed, masked_pictures, posed_meshes

CONFIG = FaceConfig(crop_px=128, mask="paper")
JAW = [LANDMARKS_68[i] for i in range(4, 13)]


def mesh(opening: float = 0.0) -> torch.Tensor:
    """A mesh (1, 468, 3) in crop units: the jaw is half an ellipse, and lower if it opens."""
    points = torch.zeros(1, 468, 3)
    angle = torch.linspace(math.pi, 0, 17)
    jaw = torch.stack([0.36 * angle.cos(), -0.2 + 0.55 * angle.sin()], dim=1)
    points[0, list(LANDMARKS_68[:17]), :2] = jaw
    points[0, LANDMARKS_68[29], :2] = torch.tensor([0.0, -0.18])
    points[0, JAW, 1] += opening
    return points


def covered(mask: torch.Tensor) -> float:
    return float(mask.mean())


def test_one_preset_has_it() -> None:
    paper, other = PRESETS["paper"], PRESETS["paper-mask"]
    assert other.face == replace(paper.face, mask="paper")
    assert replace(other, preset="paper", face=paper.face) == paper


@pytest.mark.parametrize("opening", [0.0, 0.08])
def test_the_polygon_is_the_convex_hull_of_the_lower_face(opening: float) -> None:
    spatial = pytest.importorskip("scipy.spatial", reason="the hull is that of scipy")
    points = landmarks_68(mesh(opening))[0, list(LOWER_FACE)]
    planes = lower_face_planes(landmarks_68(mesh(opening)))[0]
    assert planes.shape == (DIRECTIONS, 3)
    line = torch.linspace(-0.5, 0.5, 201)
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    outside = (places @ planes.T).amax(1)
    hull = torch.tensor(spatial.ConvexHull(points.numpy()).equations).float()
    true = (places @ hull.T).amax(1)
    assert (outside[true <= 0] <= 1e-6).all()  # all of the hull
    assert (true[outside <= 0] < 0.0075).all()  # and 2 pixels of 256 round it at most
    assert (points @ planes[:, :2].T + planes[:, 2]).max() == pytest.approx(0, abs=1e-6)


def test_the_edge_is_a_gaussian_over_the_kernels_size() -> None:
    filters = pytest.importorskip("scipy.ndimage", reason="the blur is that of scipy")
    config = replace(CONFIG, crop_px=512)
    mask = paper_mask(mesh(), config)[0, 0]
    sharp = paper_mask(mesh(), replace(config, mask_softness=1e-5))[0, 0]
    assert ((sharp > 0.01) & (sharp < 0.99)).sum() < 20
    blurred = filters.gaussian_filter(sharp.numpy(), config.mask_softness * 512, truncate=2.5)
    off = np.abs(mask.numpy() - blurred)
    assert off.mean() < 0.002
    assert off[340].max() < 0.03  # across the sides; only corners differ more
    x, _ = crop_positions(512)
    assert mask[:, (x[0] < -0.36 - 2.6 * config.mask_softness)].max() == 0


def test_it_shows_how_far_the_mouth_is_open_and_ours_does_not() -> None:
    openings = torch.linspace(0.0, 0.1, 6)
    sizes = [covered(paper_mask(mesh(float(by)), CONFIG)) for by in openings]
    assert np.corrcoef(openings, sizes)[0, 1] > 0.99
    assert sizes[-1] > 1.1 * sizes[0]
    fixed = crop_mask(128, 0.02, mask_polygon(1))
    assert covered(fixed) > sizes[0]  # for ours there is nothing that it could depend on


@pytest.mark.parametrize("view", [View(), View(0.84, 0.065)])
@pytest.mark.parametrize("roll", [0.0, 0.5])
def test_the_graph_finds_the_face_in_the_rectangle(roll: float, view: View) -> None:
    config = replace(CONFIG, crop_span=view.span, crop_down=view.down)
    transform = transform_from_placement(torch.tensor([[101.0, 77.0, math.log(120.0), roll]]))[0]
    placed = mesh()[0].clone()
    placed[:, :2] = placed[:, :2] @ transform[:, :2].T + transform[:, 2]
    crop = torch.rand(1, 3, 128, 128) * 2 - 1
    found = PaperMask(config)(crop, placed, transform)
    expected = fade_out(crop, paper_mask(mesh(), config))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert 0.1 < (found == 0).float().mean() < 0.6


def test_in_training_the_mask_is_shifted_by_a_few_pixels() -> None:
    count = 400
    meshes = mesh()[:, :, :2].expand(count, -1, -1)
    image = torch.ones(1, 3, 128, 128).expand(count, -1, -1, -1)
    look = plain_appearance(count)
    generator = torch.Generator().manual_seed(0)
    exact = masked_pictures(
        image[:1], look.take(torch.tensor([0])), meshes[:1], CONFIG, generator, 0.0
    )
    assert torch.equal(exact, fade_out(image[:1], paper_mask(mesh(), CONFIG)))
    masks = 1 - masked_pictures(image, look, meshes, CONFIG, generator)[:, 0]
    x, y = crop_positions(128)
    total = masks.sum((1, 2))
    middles = torch.stack([(masks * axis).sum((1, 2)) / total for axis in (x, y)], dim=1)
    shift_px = 128 * middles.std(0)
    torch.testing.assert_close(shift_px, torch.full((2,), 128 * SHIFT), atol=0.25, rtol=0)


def test_in_training_the_mask_follows_the_face() -> None:
    generator = torch.Generator().manual_seed(4)
    look = followed(random_appearance(3, generator), CONFIG)
    assert not look.warp.any() and not look.turn.any()
    posed = vary_pose(look, generator)
    image = torch.ones(3, 3, 128, 128)
    meshes = mesh()[:, :, :2].expand(3, -1, -1)
    found = masked_pictures(image, posed, meshes, CONFIG, generator, 0.0)
    moved = posed_meshes(meshes, posed, CONFIG.view)
    torch.testing.assert_close(found, fade_out(image, paper_mask(moved, CONFIG)))
    assert (found - masked_pictures(image, look, meshes, CONFIG, generator, 0.0)).abs().max() > 0.5
    ours = replace(CONFIG, mask="fixed")
    assert followed(posed, ours) is posed
    assert masked_pictures(image, posed, None, ours, generator).shape == image.shape


def paper_models(models: TorchGraphs) -> TorchGraphs:
    """The same weights with the paper's mask."""
    dithead = copy.copy(models.dithead)
    dithead.config = replace(models.config, face=replace(models.config.face, mask="paper"))
    return TorchGraphs(dithead, models.audio, models.faces)


def test_a_stream_equals_the_specification(
    random_models: TorchGraphs, pictures: list[np.ndarray], sound: np.ndarray
) -> None:
    models, options = paper_models(random_models), Options(steps=1)
    torch.set_num_threads(1)
    frames = [
        (torch.from_numpy(image), float(at)) for image, at in zip(pictures, TIMES, strict=True)
    ][:3]
    made, ours = (
        [image.numpy() for image in revoice(frames, torch.from_numpy(sound), graphs, options)]
        for graphs in (models, random_models)
    )
    with Session(models).open_stream(options) as stream:
        found = [frame.image for frame in collect(stream, pictures[:3], [sound])]
    assert len(found) == len(made) == 3
    for image, expected, other in zip(found, made, ours, strict=True):
        assert np.array_equal(image, expected)
        assert not np.array_equal(image, other)  # the model is shown something else


def test_no_bundle_is_made_with_it(random_models: TorchGraphs, tmp_path: Path) -> None:
    models = paper_models(random_models)
    with pytest.raises(ExportError, match="--backend torch"):
        export_bundle(None, tmp_path / "bundle", ExportOptions(), models=models)
    with pytest.raises(ConfigError, match="mask must be one of"):
        FaceConfig(mask="jaw")  # type: ignore[arg-type]
