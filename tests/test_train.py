"""Training from prepared footage to a packed checkpoint, in the small; what evaluation computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dithead.config import DiTConfig, DitHeadConfig, VQGANConfig, preset
from dithead.errors import MediaError
from dithead.face.crop import mask_out
from dithead.model import DitHead
from dithead.train import cli, evaluate
from dithead.train.data import (
    STORED_MARGIN,
    Footage,
    plain_appearance,
    random_appearance,
    render,
    training_mask,
)
from dithead.train.dit import DiTTraining, LatentSampler, latent_weights, train_dit
from dithead.train.latents import Run, load_cache
from dithead.train.loop import MovingAverage, Stage
from dithead.train.vqgan import VQGANTraining, train_vqgan

CROP = 64


@pytest.fixture(scope="session")
def config() -> DitHeadConfig:
    """The tiny preset, smaller still."""
    tiny = preset("tiny")
    return replace(
        tiny,
        face=replace(tiny.face, crop_px=CROP),
        vqgan=VQGANConfig((8, 8, 16), (8, 8, 16), blocks=1, attention=False, codebook_size=64),
        dit=DiTConfig(width=64, depth=2, heads=2, conditioning="tokens"),
    )


@pytest.fixture
def footage(tmp_path: Path, astronaut: np.ndarray) -> Footage:
    """Prepared footage of the portrait: three clips of one person, one of another, one held out."""
    root = tmp_path / "data"
    for folder in ("crops", "track"):
        (root / folder).mkdir(parents=True)
    side = round(CROP * STORED_MARGIN)
    rows = []
    for i, (person, split) in enumerate(
        [("a", "train"), ("a", "train"), ("a", "train"), ("b", "train"), ("a", "validation")]
    ):
        frames = 20
        base = np.roll(astronaut, 40 * (person == "b"), axis=2)
        crops = [
            base[30 + t : 30 + t + 2 * side : 2, 150 : 150 + 2 * side : 2] for t in range(frames)
        ]
        np.save(root / "crops" / f"c{i}.npy", np.stack(crops))
        np.savez(
            root / "track" / f"c{i}.npz",
            transform=np.zeros((frames, 2, 3), np.float32),
            mesh=np.random.rand(frames, 468, 2).astype(np.float32),
            time_s=np.arange(frames) / 25,
            audio=(0.1 * np.random.randn(16000)).astype(np.float16),
        )
        rows.append({"name": f"c{i}", "person": person, "split": split, "frames": frames})
    (root / "index.json").write_text(json.dumps({"clips": rows}))
    return Footage(root)


def test_from_footage_to_a_checkpoint(
    footage: Footage, config: DitHeadConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cli.preset.__globals__["PRESETS"], "test", config)
    out = tmp_path / "out"
    for kind in ("face", "masked"):
        training = VQGANTraining(kind=kind, steps=60, batch=4)  # type: ignore[arg-type]
        train_vqgan(footage, config, training, out)
    losses = [json.loads(line) for line in (out / "vqgan_face.log").read_text().splitlines()]
    assert losses[-1]["psnr_db"] > 12  # a grey picture scores 9

    again = VQGANTraining(steps=5, batch=4)
    train_vqgan(footage, config, again, tmp_path / "again", out / "vqgan_face.safetensors")

    common = ["--preset", "test", "--threads", "1"]
    weights = [f"--{kind}={out}/vqgan_{kind}.safetensors" for kind in ("face", "masked")]
    cache = tmp_path / "latents"
    looks = ["--main-looks", "2", "--other-looks", "2", "--workers", "1"]
    command = ["latents", *common, f"--data={footage.root}", *weights, f"--out={cache}", *looks]
    assert cli.main(command) == 0
    latents = load_cache(cache)
    assert latents.face.shape == latents.masked.shape == (8 * 20, 4, 16, 16)
    assert 0.5 < latents.face.float().std() < 2

    training = DiTTraining(steps=120, batch=8, warmup_steps=10)
    path = train_dit(latents, config, training, out)
    rows = [json.loads(line) for line in (out / "dit.log").read_text().splitlines()]
    assert rows[-1]["loss"] < 1.2
    packed = tmp_path / "packed.safetensors"
    command = ["pack", *common, *weights, f"--dit={path}", f"--out={packed}"]
    assert cli.main(command) == 0
    model = DitHead.load(packed)
    assert model.config == config
    further = train_dit(latents, config, DiTTraining(steps=1, batch=2), tmp_path / "more", packed)
    assert further.is_file()  # the next stage starts from the packed checkpoint
    assert model.dit.patch_out.weight.abs().max() > 0


def test_references_are_of_the_same_look_and_never_near(
    footage: Footage, config: DitHeadConfig
) -> None:
    runs = [
        Run(
            f"c{clip}",
            "a" if clip < 2 else "b",
            clip // 2,
            look,
            100 * (2 * clip + look),
            100,
            clip < 2,
        )
        for clip in range(3)
        for look in range(2)
    ]
    by_row = {row: run for run in runs for row in range(run.first, run.first + run.frames)}
    sampler = LatentSampler.__new__(LatentSampler)
    sampler.training, sampler.random = DiTTraining(), np.random.default_rng(0)
    sampler.alike = {}
    for run in runs:
        sampler.alike.setdefault((run.group, run.look), []).append(run)
    for _ in range(400):
        run = runs[sampler.random.integers(len(runs))]
        frame = int(sampler.random.integers(100))
        row = sampler._reference_row(run, frame)
        other = by_row[row]
        assert (other.group, other.look, other.person) == (run.group, run.look, run.person)
        if other.clip == run.clip:
            assert abs(row - run.first - frame) >= min(60, max(frame, 99 - frame))


def test_appearance_is_applied_alike_and_the_mask_follows_it() -> None:
    generator = torch.Generator().manual_seed(1)
    side = round(128 * STORED_MARGIN)
    look = random_appearance(1, generator).take(torch.zeros(2, dtype=torch.long))
    crops = torch.randint(0, 255, (1, side, side, 3), dtype=torch.uint8).expand(2, -1, -1, -1)
    images = render(crops, look, 128)
    assert torch.equal(images[0], images[1])
    plain = training_mask(plain_appearance(2), 128, 0.02, generator, jitter=0.0)
    moved = training_mask(look, 128, 0.02, generator, jitter=0.0)
    assert 0.8 < float(moved.mean() / plain.mean()) < 1.25
    assert not torch.equal(plain, moved)
    assert (mask_out(images, moved)[moved.expand(-1, 3, -1, -1) == 1] == 0).all()


def test_mouth_weighs_most_and_what_is_kept_least(config: DitHeadConfig) -> None:
    weights = latent_weights(config, DiTTraining())[0, 0]
    size = config.latent_size
    assert weights.mean() == pytest.approx(1.0)
    assert weights[round(0.68 * size), size // 2] > 0.99 * weights.max()
    assert weights[0, 0] < 0.2 * weights.max()


def test_stage_ends_by_steps_and_the_rate_warms_up_and_falls(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "log", minutes=10, steps=100)
    rates = []
    while stage.running:
        rates.append(stage.learning_rate(1.0, warmup_steps=10))
        stage.step += 1
    assert len(rates) == 100
    assert rates[0] == pytest.approx(0.1, abs=0.01)
    assert np.argmax(rates) == 9
    assert rates[-1] < 0.06


def test_moving_average_follows_the_weights() -> None:
    layer = torch.nn.Linear(2, 2)
    average = MovingAverage(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for _ in range(200):
        average.update()
    torch.testing.assert_close(average.values["weight"], torch.ones(2, 2), atol=1e-4, rtol=0)


def test_missing_footage_is_one_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MediaError, match="prepare"):
        Footage(tmp_path)
    with pytest.raises(MediaError, match="latents"):
        load_cache(tmp_path)
    assert cli.main(["vqgan", "face", "--data", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "prepare" in capsys.readouterr().err
    assert cli.main(["dit", "--latents", "x", "--out", "x", "--minutes", "500"]) == 1
    assert "at most 120 minutes" in capsys.readouterr().err


def test_opening_reads_the_lips() -> None:
    mesh = np.zeros((2, 468, 2))
    mesh[:, 152] = (0, 100)
    for upper, lower in ((13, 14), (82, 87), (312, 317)):
        mesh[0, lower] = mesh[0, upper] + (0, 3)
        mesh[1, lower] = mesh[1, upper] + (0, 12)
    np.testing.assert_allclose(evaluate.opening(mesh), [0.03, 0.12])


def test_fine_correlation_ignores_the_trend() -> None:
    time = np.arange(200)
    slow, quick = 10 * np.sin(time / 60), np.sin(time * 1.3)
    other = np.cos(time * 2.1)
    assert evaluate.fine_correlation([(slow + quick, slow + quick)]) == pytest.approx(1.0)
    assert abs(evaluate.fine_correlation([(slow + quick, slow + other)])) < 0.2
    assert np.corrcoef(slow + quick, slow + other)[0, 1] > 0.9
    assert evaluate.fine_correlation([(quick, -quick[:150])]) == pytest.approx(-1.0)


def test_mouth_box_scales_with_the_frame() -> None:
    mesh = np.zeros((468, 2))
    mesh[[78, 308, 0, 17]] = [(100, 150), (140, 150), (120, 140), (120, 160)]
    assert evaluate.mouth_box(mesh, 360, 288) == (88, 128, 152, 172)
    assert evaluate.mouth_box(2 * mesh, 720, 576) == (176, 256, 304, 344)
    assert evaluate.mouth_box(mesh, 130, 165)[2:] == (130, 165)


def test_ssim_and_psnr_by_hand() -> None:
    true = torch.randint(0, 255, (60, 60, 3), dtype=torch.uint8)
    mesh = np.zeros((468, 2))
    mesh[[78, 308, 0, 17]] = [(15, 30), (45, 30), (30, 15), (30, 45)]
    same = evaluate.box_scores(true, true, mesh)
    assert same["ssim"] == pytest.approx(1.0)
    off = evaluate.box_scores(true.clamp(max=245), (true.clamp(max=245) + 5), mesh)
    assert off["psnr_db"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    noisy = (true.float() + 60 * torch.randn(60, 60, 3)).clamp(0, 255).byte()
    assert evaluate.box_scores(true, noisy, mesh)["ssim"] < 0.9


def test_speech_frames_are_read_from_an_alignment(tmp_path: Path) -> None:
    align = tmp_path / "a.align"
    align.write_text(
        "0 10000 sil\n10000 20000 bin\n20000 22000 sp\n22000 30000 blue\n30000 75000 sil\n"
    )
    spoken = evaluate.speech_frames(align, [0.0, 0.4, 0.79, 0.84, 0.9, 1.19, 1.2])
    assert spoken.tolist() == [False, True, True, False, True, True, False]
