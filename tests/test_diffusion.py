"""The schedule, the inversion of the forward process, DDIM, and the noise graph."""

import itertools
import math

import pytest
import torch

from dithead.config import DiffusionConfig
from dithead.diffusion import Diffusion, InitialNoise, ddim_timesteps, signal_levels
from dithead.errors import ConfigError


def test_linear_schedule_is_adms() -> None:
    levels = signal_levels(DiffusionConfig())
    assert levels[0].item() == pytest.approx(1 - 1e-4, abs=1e-12)
    ratio = (1 - levels[500] / levels[499]).item()  # beta of step 500
    assert ratio == pytest.approx(1e-4 + (2e-2 - 1e-4) * 500 / 999, rel=1e-9)
    assert (levels[1:] < levels[:-1]).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 50, 250, 1000])
def test_timesteps_start_at_the_noisiest_and_fall(steps: int) -> None:
    visits = ddim_timesteps(DiffusionConfig(), steps)
    assert visits[0] == 999
    assert len(visits) == steps
    assert all(a > b >= 0 for a, b in itertools.pairwise(visits))


@pytest.mark.parametrize("steps", [0, 1001, -3])
def test_impossible_number_of_steps(steps: int) -> None:
    with pytest.raises(ConfigError, match="steps"):
        ddim_timesteps(DiffusionConfig(), steps)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_split_inverts_the_forward_process(prediction: str, schedule: str) -> None:
    config = DiffusionConfig(prediction=prediction, schedule=schedule)  # type: ignore[arg-type]
    diffusion = Diffusion(config)
    clean, noise = torch.randn(2, 4, 4, 8, 8)
    timestep = torch.tensor([0, 300, 600, 900])
    noisy = diffusion.add_noise(clean, noise, timestep)
    target = diffusion.target(clean, noise, timestep)
    found_clean, found_noise = diffusion.split(noisy, target, timestep)
    torch.testing.assert_close(found_clean, clean, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(found_noise, noise, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["noise", "velocity"])
@pytest.mark.parametrize("steps", [1, 2, 4, 50])
def test_ddim_with_a_perfect_network_finds_the_clean_latent(prediction: str, steps: int) -> None:
    diffusion = Diffusion(DiffusionConfig(prediction=prediction))  # type: ignore[arg-type]
    clean, noise = torch.randn(2, 2, 4, 8, 8)

    def oracle(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        signal = diffusion.signal[timestep].view(-1, 1, 1, 1)
        sigma = diffusion.sigma[timestep].view(-1, 1, 1, 1)
        implied = (noisy - signal * clean) / sigma
        return diffusion.target(clean, implied, timestep)

    found = diffusion.sample(oracle, noise, steps)
    torch.testing.assert_close(found, clean, atol=2e-3, rtol=1e-3)


def test_noise_is_standard_normal_and_keyed() -> None:
    noise = InitialNoise(4, 32)
    seeds, frames = torch.arange(40).repeat_interleave(5), torch.arange(5).repeat(40)
    x = noise(seeds, frames)  # (200, 4, 32, 32)
    assert abs(x.mean().item()) < 0.005
    assert abs(x.std().item() - 1) < 0.005
    assert abs((x**4).mean().item() - 3) < 0.05
    flat = x.flatten(1)
    together = (flat @ flat.T / flat.shape[1]).fill_diagonal_(0)
    assert together.abs().max() < 0.09  # 4096 numbers: six sigma
    assert torch.equal(noise(seeds[7:8], frames[7:8])[0], x[7])


def test_noise_golden_values() -> None:
    """The same in every language: these numbers must never change."""
    found = InitialNoise(1, 2)(torch.tensor([1234]), torch.tensor([56])).flatten()
    expected = []
    mask = 0xFFFFFFFF

    def hashed(x: int) -> int:
        x = (x + 0x9E3779B9) & mask
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
        return x ^ (x >> 16)

    key = hashed(hashed(1234) ^ 56)
    for i in range(4):
        u1 = (hashed(key ^ hashed(2 * i)) + 1) / 2**32
        u2 = hashed(key ^ hashed(2 * i + 1)) / 2**32
        expected.append(math.sqrt(-2 * math.log(u1)) * math.cos(2 * math.pi * u2))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-6)
