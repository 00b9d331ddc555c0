"""Training from prepared footage to a packed checkpoint, in the small."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dithead import checkpoint
from dithead.config import PRESETS, DiTConfig, DitHeadConfig, View, VQGANConfig, preset
from dithead.diffusion import Diffusion
from dithead.errors import CheckpointError, ConfigError, MediaError
from dithead.face.crop import crop_mask, crop_positions, mask_polygon
from dithead.model import DitHead, build_dit
from dithead.train import cli, latents
from dithead.train.appearance import (
    follow,
    plain_appearance,
    random_appearance,
    render,
    vary_pose,
)
from dithead.train.data import STORED_MARGIN, Footage
from dithead.train.denoising import latent_weights
from dithead.train.dit import train_dit
from dithead.train.latents import Run, load_cache
from dithead.train.loop import MovingAverage, Stage, ahead, load_part
from dithead.train.masking import posed_meshes, training_mask
from dithead.train.picture import save_png
from dithead.train.pictures import PictureSampler
from dithead.train.prepare import Source, delayed, list_folder, list_stills, prepare
from dithead.train.references import References
from dithead.train.samples import Batch, OwnOutputs
from dithead.train.settings import DiTTraining, VQGANTraining
from dithead.train.shape import (
    ShapeSampler,
    ShapeTraining,
    load_shape_head,
    shape_scores,
    train_shape,
)
from dithead.train.vqgan import train_vqgan
from dithead.vqgan import VQGAN

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
            transform=np.tile(np.eye(2, 3, dtype=np.float32), (frames, 1, 1)),
            mesh=np.random.rand(frames, 468, 2).astype(np.float32),
            time_s=np.arange(frames) / 25,
            audio=(0.1 * np.random.randn(16000)).astype(np.float16),
        )
        rows.append({"name": f"c{i}", "person": person, "split": split, "frames": frames})
    (root / "index.json").write_text(json.dumps({"clips": rows}))
    return Footage(root)


def test_stills_are_people_of_their_own_and_are_trained_on(
    footage: Footage, config: DitHeadConfig, tmp_path: Path, astronaut: np.ndarray
) -> None:
    pictures = tmp_path / "stills"
    pictures.mkdir()
    for i in range(41):
        face = astronaut[:256, 100:356] if i < 2 else np.zeros((64, 64, 3), np.uint8)
        save_png(torch.from_numpy(face.copy()), pictures / f"p{i:02}.png")
    sources = list_stills(pictures)
    assert [s.path.stem for s in sources if s.split == "validation"] == ["p00", "p20", "p40"]
    clips = prepare(sources[:3], tmp_path / "prepared", config, workers=1)  # the third is black
    assert [(c.name, c.person, c.split, c.frames, c.still) for c in clips] == [
        ("p00", "p00", "validation", 1, True),
        ("p01", "p01", "train", 1, True),
    ]
    prepared = Footage(tmp_path / "prepared")
    assert prepared.people("train") == {}
    assert [clip.name for clip in prepared.stills("train")] == ["p01"]
    side = round(config.face.crop_px * STORED_MARGIN)
    assert prepared.crops(clips[1]).shape == (1, side, side, 3)
    training = VQGANTraining(steps=2, batch=4)
    train_vqgan(prepared, config, training, tmp_path / "out")
    assert PictureSampler(footage, config, training).stills == []


def test_the_papers_mask_hides_what_the_landmarks_say_in_both_stages(
    footage: Footage, config: DitHeadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The footage's meshes fill the lower right quarter of crop units, from 0 to 1."""
    config = replace(config, face=replace(config.face, mask="paper"))
    sampler = PictureSampler(footage, config, VQGANTraining(kind="masked", plain_share=1.0))
    pictures = sampler.sample(4)
    monkeypatch.setattr(latents, "load_vqgan", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(latents, "encode_pictures", lambda _, shown: shown)
    clip = footage.split("train")[0]
    job = latents._Job(footage.roots, config, Path(), Path(), clip, 5, 0)
    whole, hidden, _ = latents._encode(job)
    assert not np.array_equal(whole[0], whole[-1])
    for masked in (pictures, torch.from_numpy(hidden)):
        grey = (masked == 0).all(1).float()
        assert grey[:, -CROP // 4 :].mean() > 0.15 and grey[:, : CROP // 4].mean() < 0.02
    shown = hidden != 0
    assert np.abs(hidden[shown]).max() <= 1 and (hidden == whole).mean() > 0.5


def test_what_is_made_ahead_comes_in_order_and_errors_arrive() -> None:
    numbers = iter(range(5))
    made = ahead(lambda: next(numbers))
    assert [next(made) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError):
        next(made)  # the source is exhausted
    endless = ahead(lambda: 1)
    assert next(endless) == 1
    endless.close()
    assert not any(thread.name == "ahead" for thread in threading.enumerate())


def test_from_footage_to_a_checkpoint(
    footage: Footage, config: DitHeadConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "test", config)
    out = tmp_path / "out"
    for kind in ("face", "masked"):
        training = VQGANTraining(kind=kind, steps=60, batch=4)  # type: ignore[arg-type]
        train_vqgan(footage, config, training, out)
    losses = [json.loads(line) for line in (out / "vqgan_face.log").read_text().splitlines()]
    assert losses[-1]["psnr_db"] > 12  # a grey picture scores 9

    start = out / "vqgan_face.safetensors"
    again = VQGANTraining(steps=5, batch=4)
    train_vqgan(footage, config, again, tmp_path / "again", start)
    decoder = replace(again, decoder_only=True)
    path = train_vqgan(footage, config, decoder, tmp_path / "decoder", start)
    before, after = load_part(start, "face_vqgan"), load_part(path, "face_vqgan")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)
    other = replace(config, vqgan=replace(config.vqgan, decoder_blocks=(2, 1, 1)))
    with pytest.raises(CheckpointError, match="does not fit"):
        train_vqgan(footage, other, again, tmp_path / "other", start)
    train_vqgan(footage, other, decoder, tmp_path / "other", start)  # a new decoder
    with pytest.raises(ConfigError, match="weights to start from"):
        train_vqgan(footage, config, decoder, tmp_path / "none")

    common = ["--preset", "test", "--threads", "1"]
    weights = [f"--{kind}={out}/vqgan_{kind}.safetensors" for kind in ("face", "masked")]
    cache = tmp_path / "latents"
    looks = ["--main-looks=1", "--main-plain-share=1", "--other-looks=1", "--workers=1"]
    command = ["latents", *common, f"--data={footage.roots[0]}", *weights, f"--out={cache}", *looks]
    assert cli.main(command) == 0
    latents = load_cache(cache)
    assert latents.face.shape == latents.masked.shape == (8 * 20, 4, 16, 16)
    assert 0.5 < latents.face.float().std() < 2

    shape = tmp_path / "shape" / "shape_head.safetensors"
    command = ["shape", *common, f"--data={footage.roots[0]}", weights[0], "--batch=4"]
    assert cli.main([*command, f"--out={shape.parent}", "--minutes=0.05"]) == 0
    assert (
        cli.main([*command, f"--out={tmp_path / 'shape2'}", f"--start={shape}", "--minutes=0.01"])
        == 0
    )

    training = DiTTraining(steps=120, batch=8, warmup_steps=10)
    path = train_dit(latents, config, training, out, shape=shape)
    rows = [json.loads(line) for line in (out / "dit.log").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.85  # that of an untrained denoiser is 1
    assert rows[-1]["shape"] > 0
    held = {"face_vqgan": start, "masked_vqgan": out / "vqgan_masked.safetensors"}
    for part, file in {**held, "dit": path, "shape_head": shape}.items():
        assert checkpoint.load_provenance(file)["part"] == part
    packed = tmp_path / "packed.safetensors"
    command = ["pack", *common, *weights, f"--dit={path}", f"--out={packed}"]
    assert cli.main(command) == 1  # the preset has a shape head
    assert cli.main([*command, f"--shape={shape}"]) == 0
    model = DitHead.load(packed)
    assert model.config == config
    further = train_dit(latents, config, DiTTraining(steps=1, batch=2), tmp_path / "more", packed)
    assert further.is_file()  # the next stage starts from the packed checkpoint
    assert model.dit.patch_out.weight.abs().max() > 0


def test_shapes_are_learnt_from_pictures(
    footage: Footage, config: DitHeadConfig, tmp_path: Path
) -> None:
    """Of pictures that differ the head tells which mesh belongs to which, also where a look has
    moved them."""
    vqgan = tmp_path / "vqgan.safetensors"
    checkpoint.save(vqgan, VQGAN(config.vqgan).state_dict(), config.to_dict(), dtype=None)
    training = ShapeTraining(steps=8, batch=4, latent_noise=0.05, kept=100)
    path = train_shape(footage, config, training, vqgan, tmp_path / "out")
    scores = shape_scores(load_shape_head(path, config), footage, config, vqgan)
    assert scores.keys() == {"lips", "gap"} and np.isfinite(list(scores.values())).all()


def test_shapes_are_learnt_from_stills_made_and_real_people_alike(
    footage: Footage, config: DitHeadConfig, tmp_path: Path
) -> None:
    vqgan = tmp_path / "vqgan.safetensors"
    checkpoint.save(vqgan, VQGAN(config.vqgan).state_dict(), config.to_dict(), dtype=None)
    kinds: tuple[dict[str, Any], ...] = ({"still": True, "frames": 1}, {"driver": "c0"}, {})
    clips = footage.split("train")
    footage.clips = [replace(clip, **kind) for clip, kind in zip(clips, kinds, strict=False)]
    sampler = ShapeSampler(footage, config, ShapeTraining(), vqgan)
    assert [pool for _, pool in sampler.pools] == [[clip] for clip in footage.clips]
    assert [share for share, _ in sampler.pools] == pytest.approx([0.4, 0.4, 0.2])


def test_meshes_follow_the_pose_of_a_look() -> None:
    """A mark in a picture is found where its point is said to be."""
    size, view = 160, View(0.84, 0.065)
    stored = round(size * STORED_MARGIN)
    place = torch.tensor([0.10, 0.12])  # in crop units
    look = replace(
        vary_pose(plain_appearance(1), torch.Generator().manual_seed(3)), turn=torch.zeros(1, 2)
    )
    in_stored = (place - torch.tensor([0.0, view.down])) / view.span / STORED_MARGIN
    column, row = ((in_stored + 0.5) * stored).round().int().tolist()
    crop = torch.zeros(1, stored, stored, 3, dtype=torch.uint8)
    crop[0, row - 2 : row + 2, column - 2 : column + 2] = 255
    picture = render(crop, look, size, view)[0, 0]
    brightest = torch.nonzero(picture > 0).float().mean(0).flip(0) + 0.5
    found = (brightest / size - 0.5) * view.span + torch.tensor([0.0, view.down])
    said = posed_meshes(place.expand(1, 1, 2), look, view)[0, 0]
    assert (said - place).norm() > 0.002
    torch.testing.assert_close(found, said, atol=0.006, rtol=0)


def test_half_a_cache_is_refused(footage: Footage, config: DitHeadConfig, tmp_path: Path) -> None:
    face = torch.zeros(40, 4, 8, 8, dtype=torch.float16).numpy()
    clip = footage.split("train")[0]
    rows = [Run(clip.name, clip.person, 0, look, 20 * look, 20, True) for look in (0, 1)]
    windows = np.zeros((20, 2, 11, 4), np.float16)
    np.save(tmp_path / "windows.npy", windows)
    np.save(tmp_path / "silent.npy", np.zeros(20, bool))
    np.save(tmp_path / "silence.npy", windows[0, 0])
    index = [{"clip": clip.name, "first": 0, "frames": 20}]
    (tmp_path / "windows.json").write_text(json.dumps(index))
    np.save(tmp_path / "landmarks.npy", np.zeros((40, 26, 2), np.float32))
    np.save(tmp_path / "face.npy", face)
    np.save(tmp_path / "masked.npy", face)
    with pytest.raises(MediaError, match=r"runs\.json"):
        load_cache(tmp_path)
    (tmp_path / "runs.json").write_text(json.dumps([asdict(row) for row in rows]))
    assert len(load_cache(tmp_path).face) == 40
    np.save(tmp_path / "masked.npy", face[:39])
    with pytest.raises(MediaError, match="not whole"):
        load_cache(tmp_path)


def test_sound_that_runs_ahead_is_delayed() -> None:
    sound = np.arange(1, 81, dtype=np.float32)
    later, earlier = delayed(sound, 2.0), delayed(sound, -2.0)
    np.testing.assert_array_equal(later, [0] * 32 + list(range(1, 49)))
    np.testing.assert_array_equal(earlier, [*range(33, 81)] + [0] * 32)
    assert len(delayed(sound, 60.0)) == 80 and not delayed(sound, 60.0).any()


def test_clips_of_the_same_name_are_refused(tmp_path: Path, config: DitHeadConfig) -> None:
    sources = [Source(tmp_path / person / "001.mp4", person, "train") for person in ("a", "b")]
    with pytest.raises(MediaError, match="same name"):
        prepare(sources, tmp_path / "data", config)
    with pytest.raises(MediaError, match="not a folder"):
        list_folder(tmp_path / "none", "a", 1)


def test_own_outputs_take_the_place_of_some_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dithead.train.samples.FORGET_SHARE", 0.0)
    torch.manual_seed(0)
    config = preset("tiny")
    tiny = replace(config, dit=DiTConfig(width=64, depth=1, heads=2, conditioning="tokens"))
    size = (tiny.vqgan.latent_channels, tiny.latent_size, tiny.latent_size)
    model = build_dit(tiny)
    window, shape = torch.zeros(8, *tiny.audio.window_shape), (8, *size)
    people = torch.tensor([0, 1, 2, 3, 0, 1, 2, 9])
    nothing, three = torch.zeros(shape), torch.full(shape, 3.0)
    batch = Batch(nothing, nothing, three, window, people, nothing[:, :0], torch.zeros(8, 0, 2))
    training = DiTTraining(own_output_share=1.0, generated_share=0.5, reference_noise=0.0)
    own = OwnOutputs(Diffusion(tiny.diffusion), training, size)
    assert (own.references(batch)[0] == 3).all()  # nothing generated yet
    own.generate(model, batch)
    reference, noise = own.references(batch)
    for row, person in enumerate(people.tolist()):
        known = person in own.latents
        assert torch.equal(reference[row], own.latents[person] if known else batch.reference[row])
    assert set(own.latents) == {0, 1, 2, 3}
    assert noise.std() == pytest.approx(1.0, abs=0.1)
    first = {person: latent.clone() for person, latent in own.latents.items()}
    own.generate(model, batch)
    assert all(not torch.equal(latent, own.latents[person]) for person, latent in first.items())
    monkeypatch.setattr("dithead.train.samples.FORGET_SHARE", 1.0)
    own.generate(model, batch)
    assert not own.latents


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
    references, random = References(runs, DiTTraining()), np.random.default_rng(0)
    for _ in range(400):
        run = runs[random.integers(len(runs))]
        frame = int(random.integers(100))
        row = references.draw(run, frame, random)
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
    assert not torch.equal(images, render(crops, plain_appearance(2), 128))


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_follows_the_look(seed: int) -> None:
    side = round(128 * STORED_MARGIN)
    generator = torch.Generator().manual_seed(seed)
    drawn = crop_mask(side, 0.02 / STORED_MARGIN, mask_polygon(1) / STORED_MARGIN)  # on the crop
    crop = (255 * drawn).byte().movedim(1, -1).expand(-1, -1, -1, 3)
    look = random_appearance(1, generator)
    moved = replace(plain_appearance(1), affine=look.affine)  # turned, shifted, maybe mirrored
    shown = (render(crop, moved, 128)[:, :1] + 1) / 2
    mask = training_mask(moved, 128, 0.02, generator, jitter=0.0)
    still = training_mask(plain_appearance(1), 128, 0.02, generator, jitter=0.0)
    assert (shown - mask).abs().mean() < 0.006
    assert (shown - still).abs().mean() > 0.015


def test_a_look_keeps_its_person_and_changes_the_pose_from_clip_to_clip() -> None:
    generator = torch.Generator().manual_seed(2)
    look = random_appearance(1, generator)
    one, other = follow(look, 30, generator), follow(look, 30, generator)
    for name in ("warp", "background", "light", "gamma", "colour", "coarseness"):
        assert torch.equal(getattr(one, name)[7], getattr(look, name)[0])
        assert torch.equal(getattr(one, name)[7], getattr(other, name)[7])
    assert not torch.equal(one.turn[0], one.turn[29])
    assert not torch.equal(one.affine, other.affine)
    mirrored = torch.linalg.det(look.affine[:, :, :2]) < 0
    assert bool((torch.linalg.det(one.affine[:, :, :2]) < 0)[0]) == bool(mirrored)


def test_turning_the_head_moves_the_nose_more_than_the_temples() -> None:
    side = round(128 * STORED_MARGIN)
    look = plain_appearance(2)
    look.turn[1, 0] = 0.3
    shifts = {}
    for name, x, y in (("nose", 0.0, -0.03), ("temple", -0.4, -0.27)):
        picture = torch.zeros(2, side, side, 3, dtype=torch.uint8)
        column, row = (round((v / STORED_MARGIN + 0.5) * side) for v in (x, y))
        picture[:, row - 3 : row + 4, column - 3 : column + 4] = 255
        light = (render(picture, look, 128)[:, 0] + 1).sum(1)  # (2, 128)
        centre = (light * torch.arange(128)).sum(1) / light.sum(1)
        shifts[name] = float(centre[1] - centre[0]) / 128
    assert shifts["nose"] > 0.05
    assert abs(shifts["temple"]) < 0.5 * shifts["nose"]


def test_only_a_blue_screen_is_replaced() -> None:
    side = round(128 * STORED_MARGIN)
    skin, screen = torch.tensor([200, 150, 120]), torch.tensor([40, 150, 210])
    crop = torch.empty(1, side, side, 3, dtype=torch.uint8)
    crop[:, :, : side // 2], crop[:, :, side // 2 :] = skin.byte(), screen.byte()
    look = plain_appearance(1)
    look.background[:, 0], look.background[:, 3] = 1.0, 1.0  # red, opaque
    image = (render(crop, look, 128)[0] + 1) / 2
    assert torch.allclose(image[:, 64, 20] * 255, skin.float(), atol=1)
    assert torch.allclose(image[:, 64, 110], torch.tensor([1.0, 0.0, 0.0]), atol=0.02)


def test_mouth_weighs_most_and_what_is_kept_least(config: DitHeadConfig) -> None:
    weights = latent_weights(config, DiTTraining())[0, 0]
    size = config.latent_size
    assert weights.mean() == pytest.approx(1.0)
    _, y = crop_positions(size, config.face.view)
    mouth = int((y[:, 0] - 0.18).abs().argmin())
    assert weights[mouth, size // 2] > 0.99 * weights.max()
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
