"""A whole frame through the Triton kernels equals the reference."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from dithead.config import preset
from dithead.diffusion import ddim_timesteps
from dithead.graphs import own_light
from dithead.kernels import choice
from dithead.torchgraphs import TorchGraphs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def larger_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and larger programs: the interpreter takes its time for each."""
    if DEVICE.type == "cpu":
        attention = "dithead.kernels.attention.triton"
        for name, value in (
            ("BLOCK_QUERIES", 256),
            ("BLOCK_KEYS", 512),
            ("MOST_FLOAT32", 1 << 16),
            ("ENOUGH_PROGRAMS", 1),
        ):
            monkeypatch.setattr(f"{attention}.{name}", value)
        monkeypatch.setattr("dithead.kernels.attention.tritonaudio.BLOCKS_FLOAT32", (256, 1024))
        monkeypatch.setattr("dithead.kernels.attention.tritonaudio.ENOUGH_PROGRAMS", 1)
        monkeypatch.setattr("dithead.kernels.group_norm_silu.triton.BLOCK_POSITIONS", 512)
        monkeypatch.setattr("dithead.kernels.modulated_layer_norm.triton._AT_ONCE", 1 << 16)
        monkeypatch.setattr("dithead.kernels.composite.triton.BLOCK_ROWS", 64)
        monkeypatch.setattr("dithead.kernels.composite.triton.BLOCK_COLUMNS", 128)


def frame(graphs: TorchGraphs, steps: int) -> Iterator[tuple[str, Tensor]]:
    """What the graphs of the generator make of a picture, by name."""
    config, random = graphs.config, torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 24, 24, generator=random), (256, 256), mode="bicubic"
    )
    rectangle = (255 * picture[0].permute(1, 2, 0)).clamp(0, 255).to(torch.uint8)
    rectangle = rectangle.contiguous().to(DEVICE)
    transform = torch.tensor([[170.0, 20.0, 128.0], [-20.0, 170.0, 120.0]], device=DEVICE)
    light = own_light(DEVICE)
    crop, lit = graphs.run("face_crop.256", rectangle, transform, light)
    (masked,) = graphs.run("masked_encoder", lit)
    (reference,) = graphs.run("reference_encoder", lit)
    yield "masked", masked
    yield "reference", reference
    window = torch.randn(1, *config.audio.window_shape, generator=random).to(DEVICE)
    (context,) = graphs.run("dit_context", window)
    visits = [*ddim_timesteps(config.diffusion, steps), -1]
    latent = torch.randn(masked.shape, generator=random).to(DEVICE)
    for now, following in pairwise(visits):
        timestep, after = (torch.tensor([t], device=DEVICE) for t in (now, following))
        (modulation,) = graphs.run("dit_timestep", timestep)
        given = latent, masked, reference, context, modulation, timestep, after
        (latent,) = graphs.run("dit_step", *given)
    yield "latent", latent
    (face,) = graphs.run("face_decoder", latent, light[None])
    yield "face", face
    polygon = torch.tensor([[-0.3, 0.0], [0.3, 0.0], [0.35, 0.3], [0.0, 0.48], [-0.35, 0.3]])
    given = face, rectangle, crop, transform, polygon.to(DEVICE)
    yield "image", graphs.run("face_blend.256", *given)[0]


@pytest.mark.parametrize(
    ("name", "steps"), [("tiny", 2), pytest.param("paper", 1, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("larger_blocks")
def test_a_frame_equals_the_references(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = TorchGraphs.load("tiny") if name == "tiny" else TorchGraphs.random(preset(name))
    for part in (graphs.dithead, graphs.audio, graphs.detector, graphs.mesh):
        part.to(DEVICE)
    with torch.inference_mode():
        monkeypatch.setenv(choice.VARIABLE, "reference")
        expected = dict(frame(graphs, steps))
        monkeypatch.setenv(choice.VARIABLE, "triton")
        found = dict(frame(graphs, steps))
    for part, tensor in expected.items():
        if tensor.dtype == torch.uint8:
            assert (found[part].int() - tensor.int()).abs().max() <= 1
            continue
        # float32, through a hundred layers; relative to what varies in the tensor
        off = (found[part] - tensor) / tensor.std()
        assert off.abs().max() < 1e-4, part
    assert any(not torch.equal(found[part], expected[part]) for part in expected)
