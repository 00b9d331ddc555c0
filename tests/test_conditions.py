"""The conditions of two other papers: off they change nothing, on they are learnt from, and streams
equal the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from denoisers import FRAMES, random_cache, small_config
from streams import TIMES, collect, same
from torch import Tensor

from dithead import checkpoint
from dithead.conditions import MIRRORED, UPPER_LANDMARKS, AudioFilter, LayBack, UpperLandmarks
from dithead.config import DiTConfig, DitHeadConfig, View, preset
from dithead.diffusion import Diffusion
from dithead.dit import DiT
from dithead.errors import ConfigError, ExportError
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.face.crop import crop_mask, crop_positions, mask_polygon
from dithead.face.mesh import LANDMARKS_68
from dithead.generator import FrameGenerator
from dithead.model import DitHead
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs
from dithead.train.appearance import plain_appearance, random_appearance, render
from dithead.train.data import STORED_MARGIN
from dithead.train.denoising import latent_weights
from dithead.train.distributed import Processes
from dithead.train.dit import train_dit
from dithead.train.draws import SequentialDraws
from dithead.train.keyed import KeyedDraws
from dithead.train.latents import LatentCache, Run, look_landmarks
from dithead.train.samples import Batch, LatentSampler, OwnOutputs
from dithead.train.settings import DiTTraining

CHOICES: list[dict[str, Any]] = [{"landmarks": True}, {"motion_frames": 2}, {"audio_filter": True}]
"""Settings of the denoiser."""
RUN: list[dict[str, Any]] = [
    *CHOICES,
    {"inpaint": True},
    {"inpaint": True, "landmarks": True, "motion_frames": 1, "audio_filter": True},
]
"""What is run: those, and settings of the sampler."""
DIFFTALK: dict[str, Any] = {"landmarks": True, "audio_filter": True}
"""What that paper's denoiser has of them."""
MODELS = [
    *CHOICES,
    {"motion_frames": 1, "skip": True},
    {"landmarks": True, "audio_filter": True, "conditioning": "paper"},
]


def names(choice: dict[str, Any]) -> str:
    return "-".join(choice)


def small_dit(**choices: Any) -> DiT:
    """A denoiser that does not ignore its input, as a fresh one does."""
    conditioning = {"conditioning": "tokens", **choices}
    model = DiT(DiTConfig(width=64, depth=2, heads=4, **conditioning), 4, 16, 11, 48).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def small_inputs(model: DiT) -> list[Tensor]:
    """Inputs of two samples: latents, timesteps, windows, and what the model is shown besides."""
    noisy, masked = torch.randn(2, 2, 4, 16, 16)
    reference = torch.randn(2, 4 * (1 + model.config.motion_frames), 16, 16)
    inputs = [noisy, masked, reference, torch.tensor([10, 700]), torch.randn(2, 11, 48)]
    if model.config.landmarks:
        inputs.append(0.3 * torch.randn(2, len(UPPER_LANDMARKS), 2))
    return inputs


@pytest.mark.parametrize("choice", MODELS, ids=names)
def test_every_condition_matters_and_everything_learns(choice: dict[str, Any]) -> None:
    model = small_dit(**choice)
    inputs = small_inputs(model)
    base = model(*inputs)
    assert base.shape == (2, 4, 16, 16)
    for i in range(len(inputs)):
        changed = [value.flip(0) if j == i else value for j, value in enumerate(inputs)]
        assert (model(*changed) - base).abs().max() > 1e-4, i
    base.square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_configurations_of_earlier_versions_load_with_everything_off() -> None:
    for name in ("tiny", "base", "paper"):
        values = preset(name).to_dict()
        for key in ("landmarks", "motion_frames", "audio_filter"):
            assert values["dit"].pop(key) in (False, 0)
        assert values["diffusion"].pop("inpaint") is False
        assert DitHeadConfig.from_dict(values) == preset(name)


@pytest.mark.parametrize("conditioning", ["paper", "tokens"])
def test_what_is_off_has_no_weights_and_draws_no_numbers(conditioning: Any) -> None:
    """So a fresh model's weights are those of versions without these choices."""
    torch.manual_seed(0)
    plain = small_dit(conditioning=conditioning)
    assert not any("landmark" in name or "filter" in name for name in plain.state_dict())
    torch.manual_seed(0)
    noisy, masked, reference, timestep, window = small_inputs(plain)
    modulation = plain.modulation(timestep)
    keys = plain.context(plain.audio_tokens(window), modulation)
    expected = plain.predict(noisy, masked, reference, modulation, keys)
    assert torch.equal(plain(noisy, masked, reference, timestep, window), expected)


def test_landmarks_that_are_not_given_are_asked_for() -> None:
    model = small_dit(landmarks=True)
    with pytest.raises(ConfigError, match="needs landmarks"):
        model(*small_inputs(model)[:5])


def test_landmarks_do_not_follow_the_mouth() -> None:
    """They are those of the upper face in crop units, whatever the rest does."""
    mesh = 100 * torch.rand(468, 3)
    transform = torch.tensor([[80.0, -20.0, 64.0], [20.0, 80.0, 60.0]])
    shown = UpperLandmarks()(mesh, transform)
    pixels = shown[0] @ transform[:, :2].T + transform[:, 2]
    torch.testing.assert_close(pixels, mesh[list(UPPER_LANDMARKS), :2], atol=1e-3, rtol=0)
    lower = [i for i in LANDMARKS_68[:17] + LANDMARKS_68[31:36] + LANDMARKS_68[48:]]
    mesh[lower] += 10.0
    assert torch.equal(shown, UpperLandmarks()(mesh, transform))


@pytest.mark.parametrize("seed", range(4))
def test_landmarks_are_where_a_look_puts_them(seed: int) -> None:
    """A mark in a picture that is bent, turned, shifted and perhaps mirrored is found where its
    landmark is said to be."""
    size, view, marked = 256, View(0.84, 0.065), 15  # an eye's upper lid
    stored = round(size * STORED_MARGIN)
    place = torch.tensor([-0.15, -0.20])  # in crop units
    meshes = torch.zeros(1, 468, 2)
    meshes[0, UPPER_LANDMARKS[marked]] = place
    look = random_appearance(1, torch.Generator().manual_seed(seed))
    plain = plain_appearance(1)
    look = replace(plain, affine=look.affine, warp=look.warp, turn=look.turn)
    in_stored = (place - torch.tensor([0.0, view.down])) / view.span / STORED_MARGIN
    column, row = ((in_stored + 0.5) * stored).round().int().tolist()
    crop = torch.zeros(1, stored, stored, 3, dtype=torch.uint8)
    crop[0, row - 2 : row + 2, column - 2 : column + 2] = 255
    picture = render(crop, look, size, view)[0, 0]
    brightest = torch.nonzero(picture > 0).float().mean(0).flip(0) + 0.5
    found = (brightest / size - 0.5) * view.span + torch.tensor([0.0, view.down])
    mirrored = bool(torch.linalg.det(look.affine[0, :, :2]) < 0)
    said = look_landmarks(meshes, look, view)[0, MIRRORED[marked] if mirrored else marked]
    torch.testing.assert_close(found, said, atol=0.006, rtol=0)


def learnable_cache(config: DitHeadConfig) -> LatentCache:
    """One clip in which everything a denoiser is shown tells the same: how far the mouth is open,
    which is the latent."""
    frames = 120
    channels, size = config.vqgan.latent_channels, config.latent_size
    random = np.random.default_rng(0)
    opening = torch.from_numpy(np.sin(np.arange(frames) * 0.7)).float()
    pattern, still = torch.from_numpy(random.standard_normal((2, channels, 1, 1))).float()
    pattern, still = pattern.expand(-1, size, size), still.expand(-1, size, size)
    face = still + opening[:, None, None, None] * pattern
    windows = random.standard_normal((2, frames, *config.audio.window_shape))
    if config.dit.audio_filter:  # noise that a mean over the window tells from the opening
        windows += opening.numpy()[:, None, None]
    landmarks = opening[:, None, None] * torch.ones(frames, len(UPPER_LANDMARKS), 2) / 4
    return LatentCache(
        [Run("c", "a", 0, 0, 0, frames, True)],
        face.half(),
        still.expand_as(face).half(),
        {"c": windows.astype(np.float16)},
        {"c": np.zeros(frames, bool)},
        torch.zeros(config.audio.window_shape),
        landmarks,
    )


@pytest.mark.parametrize("lip_weight", [0.0, 0.2])
@pytest.mark.parametrize("choice", [*CHOICES, DIFFTALK], ids=names)
def test_a_clip_is_learnt_by_heart_from_each_condition(
    choice: dict[str, Any], lip_weight: float, tmp_path: Path
) -> None:
    """The latents' variance is what is left to a denoiser that only knows the rest."""
    torch.set_num_threads(1)
    config = small_config()
    config = replace(config, dit=replace(config.dit, **choice))
    cache = learnable_cache(config)
    training = DiTTraining(
        steps=85,
        batch=8,
        warmup_steps=10,
        learning_rate=5e-3,
        generated_share=0.0,
        first_step_share=1.0,
        average_decay=0.9,
        reference_noise=0.0,
        past_noise=0.0,
        lip_weight=lip_weight,
    )
    path = train_dit(cache, config, training, tmp_path)
    model = DitHead(config).dit
    checkpoint.load_into(model, checkpoint.load(path)[0], path)
    batch = LatentSampler(cache, replace(training, seed=5), config.dit).sample(32)
    unknown = float((batch.clean - batch.clean.mean(0)).square().mean())
    others = {name: getattr(batch, name).roll(1, 0) for name in ("past", "landmarks", "window")}
    shuffled = replace(batch, **others)
    assert one_step_error(model, config, batch, batch) < 0.3 * unknown
    assert one_step_error(model, config, batch, shuffled) > unknown


@torch.inference_mode()
def one_step_error(model: DiT, config: DitHeadConfig, batch: Batch, shown: Batch) -> float:
    """Squared error of what one step makes of pure noise, where the model is shown a batch."""
    given = shown.window, *shown.conditions
    reference = torch.cat([shown.reference, shown.past], 1)
    noise = torch.randn_like(batch.clean)
    made = Diffusion(config.diffusion).sample(
        lambda noisy, t: model(noisy, shown.masked, reference, t, *given), noise, 1
    )
    return float((made - batch.clean).square().mean())


@pytest.fixture(scope="module")
def models_with(random_models: TorchGraphs) -> Callable[[dict[str, Any]], TorchGraphs]:
    """The small random model, with other choices."""

    def make(choice: dict[str, Any]) -> TorchGraphs:
        torch.manual_seed(1)
        base = random_models.config
        of_the_sampler = {name: value for name, value in choice.items() if name == "inpaint"}
        of_the_dit = {name: value for name, value in choice.items() if name != "inpaint"}
        dit, diffusion = replace(base.dit, **of_the_dit), replace(base.diffusion, **of_the_sampler)
        model = DitHead(replace(base, dit=dit, diffusion=diffusion))
        with torch.no_grad():
            for parameter in model.dit.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.face_vqgan.load_state_dict(random_models.dithead.face_vqgan.state_dict())
        model.eval().requires_grad_(False)
        return TorchGraphs(model, random_models.audio, random_models.faces)

    return make


@pytest.mark.parametrize("choice", RUN, ids=names)
def test_streams_equal_the_pipeline(
    models_with: Callable[[dict[str, Any]], TorchGraphs],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    choice: dict[str, Any],
) -> None:
    torch.set_num_threads(1)
    models, options = models_with(choice), Options(steps=2, seed=3)
    frames = zip(map(torch.from_numpy, pictures), map(float, TIMES), strict=True)
    wanted = [i.numpy() for i in revoice(frames, torch.from_numpy(sound), models, options)]
    with Session(models).open_stream(options, in_flight=4) as stream:
        made = collect(stream, pictures, [sound])
        assert same(made, wanted)
        if len(choice) > 1:
            stream.reset()
            assert same(collect(stream, pictures, [sound]), wanted)


def test_what_is_known_is_laid_back(
    models_with: Callable[[dict[str, Any]], TorchGraphs],
) -> None:
    """At the end it is the frame's own, to the bit; on the way it has the noise of its step; what
    is hidden, and all that is next to it, is the denoiser's."""
    models = models_with({"inpaint": True})
    generator = FrameGenerator(models, Options(steps=3))
    noise, masked, reference, known = torch.randn(4, 2, 4, 16, 16)
    windows = torch.randn(2, *models.config.audio.window_shape)
    asked: list[tuple[Tensor, ...]] = []
    run = models.run

    def noted(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        if name == "dit_step":
            asked.append(inputs)
        return run(name, *inputs)

    models.run = noted  # type: ignore[method-assign]
    latent = generator.sample(noise, masked, reference, windows, known)
    lay_back = models.module("lay_back")
    assert isinstance(lay_back, LayBack)
    kept = lay_back.known[0, 0]
    face = models.config.face
    mask = crop_mask(face.crop_px, face.mask_softness, mask_polygon(1), face.view)
    hidden = F.max_pool2d((mask > 0).float(), 4)[0, 0] > 0
    assert not (kept & hidden).any() and 0.1 < kept.float().mean() < 0.6
    assert torch.equal(latent[:, :, kept], known[:, :, kept])
    assert not (latent == known)[:, :, ~kept].any()
    for inputs in asked[1:]:
        at = inputs[5]
        wanted = models.dithead.diffusion.add_noise(known, noise, at)
        assert torch.equal(inputs[0][:, :, kept], wanted[:, :, kept])


def test_what_is_known_tells_nothing_of_what_is_hidden(
    models_with: Callable[[dict[str, Any]], TorchGraphs],
) -> None:
    models = models_with({"inpaint": True})
    face = models.config.face
    crop = torch.rand(1, 3, face.crop_px, face.crop_px) * 2 - 1
    mask = crop_mask(face.crop_px, face.mask_softness, mask_polygon(1), face.view)
    other = torch.where(mask > 0, torch.rand_like(crop), crop)
    (known,) = models.run("known_encoder", crop)
    assert torch.equal(known, models.run("known_encoder", other)[0])
    assert not torch.equal(known, models.run("reference_encoder", crop)[0])


def test_the_audio_filter_averages_over_time() -> None:
    """Each frame of a filtered window is a mean of all, at first mostly of itself; what learns is
    which frames are alike."""
    torch.manual_seed(0)
    smooth = AudioFilter(11, 48)
    for layer in (smooth.query, smooth.key):
        torch.nn.init.zeros_(layer.weight)
    window = torch.zeros(1, 11, 48)
    window[0, 5] = 1.0
    heard = smooth(window)[0, :, 0]
    assert heard.argmax() == 5 and 0.4 < heard[5] < 0.5
    assert torch.equal(heard.argsort(descending=True)[:3].sort().values, torch.tensor([4, 5, 6]))
    torch.testing.assert_close(smooth(torch.ones(1, 11, 48)), torch.ones(1, 11, 48))


def test_a_bundle_holds_the_audio_filter(
    models_with: Callable[[dict[str, Any]], TorchGraphs], tmp_path: Path
) -> None:
    """The export itself compares the file with PyTorch."""
    options = ExportOptions(graphs=("dit_context",), targets=("gpu",))
    models = models_with({"audio_filter": True})
    report = export_bundle(None, tmp_path / "bundle", options, models=models)
    assert [name.split(".")[1] for name in report.built] == ["fp16"]


@pytest.mark.parametrize("choice", [*CHOICES[:2], {"inpaint": True}], ids=names)
def test_bundles_refuse_what_they_cannot_hold(
    models_with: Callable[[dict[str, Any]], TorchGraphs], choice: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=next(iter(choice)) + ".*torch"):
        export_bundle(None, tmp_path / "bundle", ExportOptions(), models=models_with(choice))
    assert not (tmp_path / "bundle").exists()


def test_a_frame_is_shown_the_two_before(
    models_with: Callable[[dict[str, Any]], TorchGraphs], pictures: list[np.ndarray]
) -> None:
    """At the start, and with another face, these are the reference; with a reference that gives
    way to another of the same face, they stay."""
    generator = FrameGenerator(models_with({"motion_frames": 2}), Options())
    crop, channels = torch.rand(1, 3, 64, 64), 4
    latents = torch.randn(3, 1, channels, 16, 16)

    def shown(refers: bool = False, share: float = 1.0) -> list[Tensor]:
        return list(generator.begin(crop, 0, refers, share)[1].split(channels, dim=1))

    first = shown()
    assert torch.equal(first[1], first[0]) and torch.equal(first[2], first[0])
    generator.keep(latents[0])
    reference, *past = shown()
    assert torch.equal(reference, first[0])
    assert torch.equal(torch.stack(past), torch.stack([latents[0], first[0]]))
    back = generator.save_denoising()
    generator.keep(latents[1])
    generator.keep(latents[2])
    assert torch.equal(torch.stack(shown(True, 0.5)[1:]), torch.stack([latents[2], latents[1]]))
    back()
    assert torch.equal(torch.stack(shown()[1:]), torch.stack(past))
    again = shown(refers=True)
    assert torch.equal(again[1], again[0]) and torch.equal(again[2], again[0])


def test_frames_that_need_those_before_are_not_batched(
    models_with: Callable[[dict[str, Any]], TorchGraphs],
) -> None:
    session = Session(models_with({"motion_frames": 2}))
    with pytest.raises(ConfigError, match="motion_frames"):
        session.open_stream(Options(), batch=2)


def test_samples_have_the_frames_before_within_their_clip() -> None:
    config = small_config()
    cache = random_cache(config)
    shown = replace(config.dit, motion_frames=2)
    sampler = LatentSampler(cache, DiTTraining(), shown)
    for _ in range(300):
        sample = sampler.draw()
        wanted = [sample.row - 1, sample.row - 2]
        first = sample.row - sample.row % FRAMES
        assert sample.past == tuple(at if at >= first else sample.reference for at in wanted)
    batch = sampler.sample(3)
    assert batch.past.shape == (3, 2 * batch.clean.shape[1], *batch.clean.shape[2:])


@pytest.mark.parametrize("keyed", [False, True])
def test_the_frames_before_have_their_own_noise(keyed: bool) -> None:
    """Up to another level than the references, and another in each sample."""
    config, training = small_config(), DiTTraining(batch=64, reference_noise=0.0, past_noise=2.0)
    sampler = LatentSampler(random_cache(config), training, replace(config.dit, motion_frames=2))
    own = OwnOutputs(Diffusion(config.diffusion), training, tuple(sampler.cache.face.shape[1:]))
    where = torch.device("cpu")
    draws = (
        KeyedDraws(sampler, own, Processes(where))
        if keyed
        else SequentialDraws(sampler, own, own.diffusion, where)
    )
    with closing(draws):
        drawn = draws.next()
    reference, past = drawn.reference.split([16, 32], 1)
    assert torch.equal(reference, drawn.batch.reference)
    levels = (past - drawn.batch.past).std((1, 2, 3))
    assert levels.min() < 0.3 and 1.7 < levels.max() < 2.1


def test_latents_without_landmarks_say_so() -> None:
    config = small_config()
    with pytest.raises(ConfigError, match=r"without.*latents again"):
        LatentSampler(random_cache(config), DiTTraining(), replace(config.dit, landmarks=True))


@pytest.mark.parametrize("name", ["tiny", "paper"])
def test_the_second_loss_is_that_in_the_lips_box(name: str) -> None:
    """The weighted mean is the first loss and a part of the second; an error elsewhere adds nothing
    to that."""
    config = preset(name)
    training = DiTTraining(lip_weight=0.2)
    size, view = config.latent_size, config.face.view
    error = torch.rand(1, 4, size, size)
    x, y = crop_positions(size, view)
    inside = (x.abs() < 0.20) & (y > 0.07) & (y < 0.33)
    edge = view.span / size
    around = (x.abs() < 0.20 + edge) & (y > 0.07 - edge) & (y < 0.33 + edge)
    assert inside.sum() >= 9

    def loss(of: Tensor, settings: DiTTraining) -> float:
        return float((latent_weights(config, settings) * of).mean())

    for of, factor in ((torch.ones_like(error), 1.0), (error * ~around, 0.0)):
        added = loss(of, training) - loss(of, DiTTraining())
        assert added == pytest.approx(0.2 * factor, abs=1e-5)
    added = loss(error, training) - loss(error, DiTTraining())
    assert added == pytest.approx(0.2 * float(error[..., inside].mean()), rel=0.1)
    with pytest.raises(ConfigError, match="lip_weight"):
        DiTTraining(lip_weight=-0.1)
