"""The denoiser: shapes, conditioning, and what adaLN-zero and the context split promise."""

from itertools import pairwise

import pytest
import torch

from dithead.config import DiffusionConfig, DiTConfig
from dithead.diffusion import Diffusion, ddim_timesteps
from dithead.dit import DiT, position_table
from dithead.graphs import DiTContext, DiTStep, DiTTimestep


def _dit(conditioning: str, awake: bool = True) -> DiT:
    config = DiTConfig(width=64, depth=2, heads=4, conditioning=conditioning)  # type: ignore[arg-type]
    model = DiT(config, 4, 16, 11, 48).eval()
    if awake:  # a fresh adaLN-zero model ignores its input
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.05 * torch.randn_like(p))
    return model


def _inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    noisy, masked, reference = torch.randn(3, batch, 4, 16, 16)
    return noisy, masked, reference, torch.tensor([10, 700])[:batch], torch.randn(batch, 11, 48)


@pytest.mark.parametrize("conditioning", ["paper", "tokens"])
def test_every_input_matters(conditioning: str) -> None:
    model = _dit(conditioning)
    inputs = _inputs()
    base = model(*inputs)
    assert base.shape == (2, 4, 16, 16)
    for i in range(5):
        changed = list(inputs)
        changed[i] = changed[i].flip(0)
        assert (model(*changed) - base).abs().max() > 1e-4, i


@pytest.mark.parametrize("conditioning", ["paper", "tokens"])
def test_fresh_model_predicts_zero(conditioning: str) -> None:
    assert _dit(conditioning, awake=False)(*_inputs()).abs().max() == 0


@pytest.mark.parametrize("conditioning", ["paper", "tokens"])
def test_graphs_equal_the_model(conditioning: str) -> None:
    """dit_context once, dit_timestep and dit_step each step: what DDIM over the whole gives."""
    model = _dit(conditioning)
    diffusion = Diffusion(DiffusionConfig(prediction="velocity"))
    noise, masked, reference, _, window = _inputs()
    expected = diffusion.sample(lambda x, t: model(x, masked, reference, t, window), noise, 3)
    context, step = DiTContext(model)(window), DiTStep(model, diffusion)
    latent = noise
    for now, following in pairwise([*ddim_timesteps(diffusion.config, 3), -1]):
        timesteps = torch.full((2,), now), torch.full((2,), following)
        modulation = DiTTimestep(model)(timesteps[0])
        latent = step(latent, masked, reference, context, modulation, *timesteps)
    torch.testing.assert_close(latent, expected, atol=1e-5, rtol=1e-5)


def test_positions_are_distinct() -> None:
    table = position_table(8, 64)
    distance = torch.cdist(table, table) + torch.eye(64) * 9
    assert distance.min() > 0.5


def test_patches_go_back_where_they_came_from() -> None:
    model = _dit("tokens")
    tokens = torch.arange(64.0)[None, :, None].expand(1, 64, 16)
    image = model.unpatch(tokens)
    assert torch.equal(image[0, 0, ::2, ::2], torch.arange(64.0).view(8, 8))
    assert torch.equal(image[0, 2, 1::2, 1::2], torch.arange(64.0).view(8, 8))
