"""A whole frame through the Triton kernels equals the reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from exactness import DEVICE, enlarge_blocks
from torch import Tensor

from dithead.config import preset
from dithead.diffusion import ddim_timesteps
from dithead.graphs import own_light
from dithead.kernels import choice
from dithead.torchgraphs import TorchGraphs

WITH_WEIGHTS = (
    "masked_encoder", "reference_encoder", "dit_context", "dit_timestep", "dit_step", "face_decoder"
)  # fmt: skip


def frame(
    graphs: TorchGraphs, steps: int, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[str, Tensor]]:
    """What the graphs of the generator make of a picture, by name."""
    config, random = graphs.config, torch.Generator().manual_seed(0)

    def run(name: str, *inputs: Tensor) -> Tensor:
        """A graph with weights, in their type."""
        cast = (x.to(dtype) if x.is_floating_point() else x for x in inputs)
        return graphs.run(name, *cast)[0]

    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 24, 24, generator=random), (256, 256), mode="bicubic"
    )
    rectangle = (255 * picture[0].permute(1, 2, 0)).clamp(0, 255).to(torch.uint8)
    rectangle = rectangle.contiguous().to(DEVICE)
    transform = torch.tensor([[170.0, 20.0, 128.0], [-20.0, 170.0, 120.0]], device=DEVICE)
    light = own_light(DEVICE)
    crop, lit = graphs.run("face_crop.256", rectangle, transform, light)
    masked, reference = run("masked_encoder", lit), run("reference_encoder", lit)
    yield "masked", masked
    yield "reference", reference
    window = torch.randn(1, *config.audio.window_shape, generator=random).to(DEVICE)
    context = run("dit_context", window)
    visits = [*ddim_timesteps(config.diffusion, steps), -1]
    latent = torch.randn(masked.shape, generator=random).to(DEVICE)
    for now, following in pairwise(visits):
        timestep, after = (torch.tensor([t], device=DEVICE) for t in (now, following))
        modulation = run("dit_timestep", timestep)
        latent = run("dit_step", latent, masked, reference, context, modulation, timestep, after)
    yield "latent", latent
    face = run("face_decoder", latent, light[None])
    yield "face", face
    polygon = torch.tensor([[-0.3, 0.0], [0.3, 0.0], [0.35, 0.3], [0.0, 0.48], [-0.35, 0.3]])
    given = face.float(), rectangle, crop, transform, polygon.to(DEVICE)
    yield "image", graphs.run("face_blend.256", *given)[0]


def in_half(graphs: TorchGraphs) -> None:
    """Weights in float16, the schedule's tables in float32."""
    diffusion = graphs.dithead.diffusion
    tables = {name: getattr(diffusion, name) for name in ("signal", "sigma")}
    for name in WITH_WEIGHTS:
        graphs.module(name).half()
    for name, table in tables.items():
        setattr(diffusion, name, table)


def models(name: str) -> TorchGraphs:
    graphs = TorchGraphs.load("tiny") if name == "tiny" else TorchGraphs.random(preset(name))
    for part in (graphs.dithead, graphs.audio, graphs.faces):
        part.to(DEVICE)
    return graphs


def of_both(
    graphs: TorchGraphs, steps: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A frame by the references and by the kernels; they are not the same to the last digit."""
    made = []
    with torch.inference_mode():
        for kind in ("reference", "triton"):
            monkeypatch.setenv(choice.VARIABLE, kind)
            made.append(dict(frame(graphs, steps, dtype)))
    expected, found = made
    assert any(not torch.equal(found[part], expected[part]) for part in expected)
    return expected, found


@pytest.mark.parametrize(
    ("name", "steps"), [("tiny", 2), pytest.param("paper", 1, marks=pytest.mark.slow)]
)
def test_a_frame_equals_the_references(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge_blocks(monkeypatch)
    expected, found = of_both(models(name), steps, torch.float32, monkeypatch)
    for part, tensor in expected.items():
        if tensor.dtype == torch.uint8:
            assert (found[part].int() - tensor.int()).abs().max() <= 1
            continue
        # float32, through a hundred layers; relative to what varies in the tensor
        off = (found[part] - tensor) / tensor.std()
        assert off.abs().max() < 1e-4, part


# A CPU takes a quarter of an hour for the convolutions of `paper` in float16.
@pytest.mark.parametrize(
    ("name", "steps"), [("tiny", 2), pytest.param("paper", 1, marks=pytest.mark.gpu)]
)
def test_a_frame_in_half_precision_is_as_exact_as_the_references(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarge_blocks(monkeypatch)
    graphs = models(name)
    monkeypatch.setenv(choice.VARIABLE, "reference")
    with torch.inference_mode():
        exact = {part: x.float() for part, x in frame(graphs, steps)}
    in_half(graphs)
    expected, found = of_both(graphs, steps, torch.float16, monkeypatch)
    for part, tensor in exact.items():
        theirs, ours = ((made[part].float() - tensor).abs() for made in (expected, found))
        assert theirs.any(), part
        assert ours.square().mean() <= 1.2 * theirs.square().mean(), part
        assert ours.max() <= 2.0 * theirs.max(), part
