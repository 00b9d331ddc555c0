"""The presets of the paper (arXiv 2312.06400): every number that it states, and DiT-L/2's published
size. docs/paper.md says line by line where each of them is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dithead.audio import sample_window
from dithead.bench.counting import count
from dithead.config import PRESETS, DiffusionConfig, DitHeadConfig
from dithead.diffusion import Diffusion
from dithead.model import DitHead, build_dit
from dithead.train.latents import Run
from dithead.train.references import References
from dithead.train.settings import DiTTraining
from dithead.vqgan import Codebook

PAPER, PAPER_512 = PRESETS["paper"], PRESETS["paper-512"]
FRAME_RATE_HZ = 25
DIT_L2_PARAMETERS = 458e6
"""DiT (arXiv 2212.09748), table 4: DiT-L/2 at 256 x 256."""
DIT_L2_MULTIPLY_ADDS = 80.71e9
"""The same table's "Gflops", which are multiply-adds."""


@pytest.fixture(scope="module")
def paper() -> DitHead:
    """The preset with shapes and no memory."""
    with torch.device("meta"):
        return DitHead(PAPER)


def parameters(module: torch.nn.Module, *parts: str) -> int:
    """Of a module, or of those of its parameters whose name has one of the parts."""
    named = module.named_parameters()
    return sum(p.numel() for name, p in named if not parts or set(parts) & set(name.split(".")))


def test_eleven_frames_are_the_sound_of_0_44_s() -> None:
    """Feature j lies from 20 j to 20 j + 20 ms; frame 10 of a video is at 400 ms."""
    audio = PAPER.audio
    assert (audio.window_frames, audio.window_spacing_ms) == (11, 1000 // FRAME_RATE_HZ)
    features = torch.arange(60.0)[:, None].expand(-1, audio.feature_dim)
    window = sample_window(features, torch.tensor(0), torch.tensor(400_000), audio)
    # Frame 5 is at 200 ms: the mean of feature 9, 180 to 200 ms, and feature 10, 200 to 220 ms.
    before = [9.5, 11.5, 13.5, 15.5, 17.5]
    after = [21.5, 23.5, 25.5, 27.5, 29.5]
    assert window[:, 0].tolist() == [*before, 19.5, *after]
    # So each frame is the mean of its own 40 ms, and the eleven together are all of 180 to 620 ms.
    used = {9 + i for i in range(22)}
    assert len(used) * 20 == 620 - 180 == 440 == 11 * 1000 // FRAME_RATE_HZ
    changed = features.clone()
    changed[sorted(used)] = 0.0
    outside = sample_window(changed, torch.tensor(0), torch.tensor(400_000), audio)
    assert not outside.any()


def test_a_window_is_363_numbers(paper: DitHead) -> None:
    assert PAPER.audio.window_shape == (11, 33)
    assert 11 * 33 == 363
    assert paper.dit.audio_in.weight.shape == (1024, 363)


@pytest.mark.parametrize("preset", [PAPER, PAPER_512])
def test_audio_and_timestep_are_one_token_of_twice_the_width(
    preset: DitHeadConfig, paper: DitHead
) -> None:
    assert preset.dit == PAPER.dit
    window, timestep = torch.empty(1, 11, 33, device="meta"), torch.zeros(1, device="meta")
    modulation = paper.dit.modulation(timestep.long())
    assert modulation.shape == (1, 1, 1024)
    for keys, values in paper.dit.context(paper.dit.audio_tokens(window), modulation):
        assert keys.shape == values.shape == (1, 16, 1, 64)
    assert all(block.cross_kv.weight.shape == (2048, 2048) for block in paper.dit.blocks)
    assert all(block.modulation is None for block in paper.dit.blocks)


@pytest.mark.parametrize(
    ("preset", "pixels", "tokens"), [(PAPER, 256, 256), (PAPER_512, 512, 1024)]
)
def test_latents_of_both_sizes(preset: DitHeadConfig, pixels: int, tokens: int) -> None:
    with torch.device("meta"):
        model = DitHead(preset)
        picture = torch.empty(1, 3, pixels, pixels)
    side = pixels // 8
    for vqgan in (model.face_vqgan, model.masked_vqgan):
        latent = vqgan.encode(picture)
        assert latent.shape == (1, 4, side, side)
        assert vqgan.decode(latent).shape == picture.shape
        assert vqgan.codebook.entries.shape == (16384, 4)
    assert model.face_vqgan is not model.masked_vqgan
    assert model.dit.positions.shape == (tokens, 1024)
    # The noised, the masked and the reference latent side by side, in patches of 2 x 2.
    assert model.dit.patch_in.weight.shape == (1024, 3 * 4, 2, 2)


def test_what_is_common_with_dit_l2_has_its_published_size(paper: DitHead) -> None:
    """DiT-L/2 is self-attention, MLP and adaLN-zero. ``tokens`` has them all, and cross-attention,
    its norm, the audio's projection and a seventh row of the modulation besides, which are left
    out; what it has not is DiT's table of classes (1001 x 1024 numbers)."""
    sizes = dataclasses.replace(PAPER.dit, conditioning="tokens")
    with torch.device("meta"):
        tokens = build_dit(dataclasses.replace(PAPER, dit=sizes))
    ours = parameters(tokens) - parameters(
        tokens, "cross_q", "cross_kv", "cross_out", "norm2", "audio_in", "audio_norm",
        "audio_positions",
    )  # fmt: skip
    ours -= sum(parameters(block.modulation) // 7 for block in tokens.blocks)  # type: ignore[arg-type]
    assert ours == pytest.approx(DIT_L2_PARAMETERS, rel=0.01)
    assert ours + 1001 * 1024 == pytest.approx(DIT_L2_PARAMETERS, rel=0.001)
    # ``paper`` has cross-attention (q, out and a key and value of twice the width: 6 D^2) where DiT
    # has adaLN's six rows (6 D^2): as many.
    trunk = ("qkv", "attention_out", "mlp_in", "mlp_out", "timestep_in", "timestep_out")
    assert parameters(paper.dit, *trunk) == parameters(tokens, *trunk)
    assert parameters(paper.dit) == pytest.approx(DIT_L2_PARAMETERS, rel=0.01)


def test_a_step_is_what_dit_l2_is_published_to_cost() -> None:
    """Counted on the whole step, less the cross-attention that DiT has not, against the published
    figure less the adaLN that ``paper`` has not."""
    costs = count(PAPER, "reference")["dit_step"]
    counted = sum(cost.operations for cost in costs.values()) / 2
    d, tokens, depth = 1024, 256, 24
    cross = depth * (2 * tokens * d * d + 4 * d * d + 2 * tokens * d)  # q, out; k, v; attention
    adaln = depth * 6 * d * d + 2 * d * d  # of one timestep
    assert counted - cross == pytest.approx(DIT_L2_MULTIPLY_ADDS - adaln, rel=0.002)
    assert counted == pytest.approx(93.6e9, rel=0.002)


def test_diffusion_is_adms_in_250_steps_of_ddim() -> None:
    found = PAPER.diffusion
    assert found == PAPER_512.diffusion == DiffusionConfig()
    assert (found.timesteps, found.steps) == (1000, 250)
    assert (found.schedule, found.prediction, found.noise) == ("linear", "noise", "frame")
    assert found.noise_scale == 1.0


@torch.no_grad()
def test_ddim_equals_that_of_diffusers() -> None:
    scheduling = pytest.importorskip(
        "diffusers.schedulers.scheduling_ddim", reason="the package diffusers is not installed"
    )
    theirs = scheduling.DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=2e-2,
        beta_schedule="linear",
        prediction_type="epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    theirs.set_timesteps(250)
    diffusion = Diffusion(PAPER.diffusion)
    clean, noise = torch.randn(2, 2, 4, 8, 8)

    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        """The noise that a guess at the clean latent implies; the guess depends on the input."""
        guess = clean * (1.0 + 0.1 * torch.sin(3.0 * noisy))
        signal = diffusion.signal[timestep].view(-1, 1, 1, 1)
        sigma = diffusion.sigma[timestep].view(-1, 1, 1, 1)
        return (noisy - signal * guess) / sigma

    expected = noise
    for timestep in theirs.timesteps:
        predicted = predict(expected, timestep.expand(2))
        expected = theirs.step(predicted, timestep, expected, eta=0.0).prev_sample
    found = diffusion.sample(predict, noise, PAPER.diffusion.steps)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # float32


def test_the_quantiser_finds_the_nearest_of_16384() -> None:
    codebook = Codebook(PAPER.vqgan.codebook_size, PAPER.vqgan.latent_channels)
    latent = torch.randn(1, 4, 8, 8)
    entries = codebook.entries.detach().double().numpy()
    found = codebook(latent).detach().double().movedim(1, -1).reshape(-1, 4).numpy()
    places = latent.double().movedim(1, -1).reshape(-1, 4).numpy()
    for place, chosen in zip(places, found, strict=True):
        least = np.sqrt(np.square(entries - place).sum(1)).min()
        assert math.dist(place, chosen) == pytest.approx(least, abs=1e-6)  # float32 distances
    assert len(np.unique(found, axis=0)) > 50


def test_a_reference_is_of_the_same_clip_60_frames_away() -> None:
    runs = [Run(f"c{clip}", "a", 0, 0, 200 * clip, 200, True) for clip in range(3)]
    training = DiTTraining(other_clip_share=0.0)
    references, random = References(runs, training), np.random.default_rng(0)
    assert training.min_distance == 60
    away = []
    for _ in range(500):
        run, frame = runs[random.integers(3)], int(random.integers(200))
        row = references.draw(run, frame, random)
        assert run.first <= row < run.first + 200
        away.append(row - run.first - frame)
    assert min(map(abs, away)) in range(60, 65)  # no nearer, and no further than need be
    assert min(away) < -120 and max(away) > 120  # before and after
