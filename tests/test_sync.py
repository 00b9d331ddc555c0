"""The sync model of ours: its losses, its training, and what the packaged one can tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dithead import checkpoint, footage
from dithead.config import preset
from dithead.errors import CheckpointError, ConfigError, MediaError
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.torchgraphs import TorchGraphs
from dithead.train import cli
from dithead.train.data import Clip, Footage, make_folders, save_clip, write_index
from dithead.train.prepare import Source, prepare
from dithead.train.sync import accuracy
from dithead.train.sync.augment import MIRRORED, changed_lips, changed_sound
from dithead.train.sync.model import (
    LIP_POINTS,
    WINDOW_FRAMES,
    SyncConfig,
    SyncModel,
    load_sync_model,
    normalised,
    save_sync_model,
)
from dithead.train.sync.score import SHORTEST_S, SyncScorer, compared
from dithead.train.sync.series import sound_series
from dithead.train.sync.training import SyncTraining, lag_loss, window_loss
from dithead.train.windows import windows_at

RATE_HZ = 25


@pytest.fixture(scope="module")
def scorer() -> SyncScorer:
    """The packaged model."""
    return SyncScorer.load()


@pytest.fixture(scope="module")
def mean_mesh() -> np.ndarray:
    """(468, 2) a face in pixels, with closed lips."""
    tensors, _ = checkpoint.load(checkpoint.asset_path("face_mean"))
    (mesh,) = (tensor for tensor in tensors.values() if tensor.shape[0] == 468)
    return 200 * mesh[:, :2].numpy() + 150


def syllables(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with syllables (S,) at 16 kHz, and their loudness at 25 a second."""
    random = np.random.default_rng(seed)
    knots = np.arange(0, seconds + 1, 0.14)
    at = np.arange(round(16000 * seconds)) / 16000
    level = np.interp(at, knots, random.random(len(knots)))
    return (0.3 * level * random.standard_normal(len(at))).astype(np.float32), level[::640]


def speaking(mesh: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Meshes (T, 468, 2) whose lower lip and chin follow a level."""
    meshes = np.tile(mesh, (len(level), 1, 1))
    lower = [14, 87, 317, 17, 84, 314, 178, 402, 181, 405, 152, 175, 199]
    meshes[:, lower, 1] += 12 * level[:, None]
    return meshes.astype(np.float32)


def late(frames: np.ndarray, by: int) -> np.ndarray:
    """Frames that come so much later than before; those that leave at the end begin it."""
    return np.roll(frames, by, axis=0)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def test_the_contrastive_losses_equal_sums_by_hand() -> None:
    lips, sound, sharpness = unit(3, 12, 5), unit(3, 12, 5), torch.tensor(7.0, dtype=torch.float64)
    windows = [(clip, at) for clip in range(3) for at in range(0, 12, 2)]
    total = 0.0
    for own in windows:
        for a, b in ((lips, sound), (sound, lips)):
            weights = [float((sharpness * (a[own] @ b[other])).exp()) for other in windows]
            total -= np.log(weights[windows.index(own)] / sum(weights))
    assert float(window_loss(lips, sound, sharpness)) == pytest.approx(
        total / 2 / len(windows), rel=1e-9
    )
    start, averaged, most, total = 4, 5, 2, 0.0
    for clip in range(3):
        weights = {}
        for other in range(3):
            for lag in range(-most, most + 1):
                cosines = [
                    float(lips[clip, start + i] @ sound[other, start + lag + i])
                    for i in range(averaged)
                ]
                weights[other, lag] = np.exp(4.0 * 7.0 * np.mean(cosines))
        total -= np.log(weights[clip, 0] / sum(weights.values()))
    found = lag_loss(lips, sound, sharpness, start, averaged, most)
    assert float(found) == pytest.approx(total / 3, rel=1e-9)


def test_embeddings_see_their_window_alone_and_are_of_length_one() -> None:
    model = SyncModel(SyncConfig(width=8, embedding=4)).eval()
    lips = torch.randn(1, 40, len(LIP_POINTS), 2)
    sound = torch.randn(1, 40, model.config.audio.window_shape[1])
    a, b = model(lips, sound)
    assert a.shape == b.shape == (1, 40 - WINDOW_FRAMES + 1, 4)
    torch.testing.assert_close(a.norm(dim=-1), torch.ones(1, 28))
    changed = lips.clone()
    changed[:, 20] += 1
    differs = (model(changed, sound)[0] - a).abs().amax((0, 2)) > 1e-6
    assert differs.nonzero().flatten().tolist() == list(range(20 - WINDOW_FRAMES + 1, 21))


def test_lips_are_compared_without_their_shape_and_size() -> None:
    lips = torch.randn(30, len(LIP_POINTS), 2)
    other = 3 * lips + torch.randn(len(LIP_POINTS), 2)
    torch.testing.assert_close(normalised(lips), normalised(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lag", [-9, 0, 4])
def test_the_lag_and_its_confidence_are_found(lag: int) -> None:
    sound = unit(60, 8).float()
    lips = torch.roll(sound, lag, 0)
    spoken = np.ones(60, bool)
    found = compared(lips, sound, spoken)
    assert found.lag_ms == 40 * lag
    assert found.distance == pytest.approx(0, abs=1e-3)
    means = [torch.diagonal(torch.cdist(lips, sound), -by).mean().item() for by in range(-15, 16)]
    assert found.confidence == pytest.approx(np.median(means) - min(means), abs=1e-4)
    # What is not spoken does not count.
    spoken[:30], mixed = False, lips.clone()
    mixed[: 30 + min(0, lag)] = unit(30 + min(0, lag), 8).float()
    assert compared(mixed, sound, spoken).distance == pytest.approx(0, abs=1e-3)
    with pytest.raises(MediaError, match="0 frames of the stretch have speech"):
        compared(lips, sound, np.zeros(60, bool))


def test_changes_keep_the_moment(mean_mesh: np.ndarray) -> None:
    assert [MIRRORED[place] for place in MIRRORED] == list(range(len(LIP_POINTS)))
    points = mean_mesh[list(LIP_POINTS)]
    middle = points[[LIP_POINTS.index(13), LIP_POINTS.index(14)], 0].mean()
    mirrored = points[MIRRORED] * (-1, 1) + (2 * middle, 0)
    assert np.abs(mirrored - points).max() < 0.05 * np.ptp(points[:, 0])
    sound, level = syllables(3.0, 1)
    lips = torch.from_numpy(speaking(mean_mesh, level)[:, list(LIP_POINTS)]) / 200
    random = np.random.default_rng(0)
    for _ in range(4):
        moved = changed_lips(lips, random)
        gap = (moved[:, LIP_POINTS.index(14)] - moved[:, LIP_POINTS.index(13)]).norm(dim=1)
        assert np.corrcoef(gap.numpy(), level)[0, 1] > 0.9
        speed, heard = changed_sound(sound, random)
        assert len(heard) == pytest.approx(len(sound) / speed, abs=2)
        assert np.abs(heard).max() <= 1


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, mean_mesh: np.ndarray) -> Footage:
    """Prepared footage of two people whose lips follow the loudness of noise."""
    root = tmp_path_factory.mktemp("toy")
    make_folders(root)
    clips = []
    for number in range(7):
        sound, level = syllables(3.0, number)
        track = {
            "transform": np.tile(np.eye(2, 3, dtype=np.float32), (75, 1, 1)),
            "mesh": speaking(mean_mesh, level),
            "time_s": np.arange(75) / RATE_HZ,
            "audio": sound.astype(np.float16),
        }
        save_clip(root, f"c{number}", np.zeros((75, 2, 2, 3), np.uint8), track)
        clips.append(Clip(f"c{number}", "ab"[number % 2], "train", 75))
    write_index(root, clips)
    return Footage(root)


def test_training_learns_what_a_toy_says(
    toy: Footage, tmp_path: Path, mean_mesh: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sync.safetensors"
    command = ["sync", "--data", str(toy.roots[0]), "--out", str(out), "--threads=1"]
    assert cli.main([*command, "--steps=80", "--batch=6", "--versions=0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["people"], told["steps"]) == (7, 2, 80)
    losses = [json.loads(row)["loss"] for row in out.with_suffix(".log").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    sound, level = syllables(3.0, 99)  # which it has not heard
    mesh, times = speaking(mean_mesh, level), np.arange(75) / RATE_HZ
    trained = SyncScorer.load(out)
    for by in (-6, 0, 6):
        found = trained.score(late(mesh, by), times, sound)
        assert found.lag_ms == pytest.approx(40 * by, abs=40)
    assert cli.main([*command, "--without", "carl"]) == 1
    assert "nobody in the footage is called carl" in capsys.readouterr().err
    assert cli.main([*command, "--without", "a", "b"]) == 1
    assert "no clip of 2.2 s or more" in capsys.readouterr().err
    for bad in (tmp_path / "none" / "x.safetensors", tmp_path):  # found before it is trained
        assert cli.main([*command[:3], "--out", str(bad)]) == 1
        assert "expected a .safetensors file" in capsys.readouterr().err
    of = ["--data", str(toy.roots[0]), "--weights", str(out)]
    for wrong, told in (("--seconds=1.6", "pieces of 1.84 s or more"), ("--people=z", "'z'")):
        assert accuracy.main([*of, wrong]) == 1
        assert told in capsys.readouterr().err


def test_a_model_is_saved_and_found_again(tmp_path: Path) -> None:
    model = SyncModel(SyncConfig(width=8, embedding=4)).half().float().eval()
    path = tmp_path / "m.safetensors"
    save_sync_model(path, model, {})
    again = load_sync_model(path)
    assert again.config == model.config
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    with pytest.raises(CheckpointError, match="holds no sync model"):
        load_sync_model(checkpoint.asset_path("face_mean"))
    checkpoint.save(path, model.state_dict(), {"sync": {"width": 8, "colour": "red"}})
    with pytest.raises(CheckpointError, match="settings of a sync model"):
        load_sync_model(path)
    for wrong in ({"width": 0}, {"dropout": 1.0}):
        with pytest.raises(ConfigError):
            SyncConfig(**wrong)  # type: ignore[arg-type]
    for settings in ({"batch": 1}, {"main_share": 2.0}, {"piece_frames": 40}):
        with pytest.raises(ConfigError):
            SyncTraining(**settings)  # type: ignore[arg-type]


def test_only_what_is_heard_of_a_long_sound_is_encoded(scorer: SyncScorer) -> None:
    sound, _ = syllables(7.0, 5)
    even = 3.2 + np.arange(30) / RATE_HZ
    heard = sound_series(scorer.encoder, sound, even)
    around = sound.copy()
    around[:16000], around[-16000:] = 0.9, 0.9
    assert torch.equal(heard, sound_series(scorer.encoder, around, even))


def test_what_cannot_be_judged_is_an_error(scorer: SyncScorer, mean_mesh: np.ndarray) -> None:
    sound, level = syllables(3.0, 3)
    mesh, times = speaking(mean_mesh, level), np.arange(75) / RATE_HZ
    with pytest.raises(MediaError, match="no face"):
        scorer.score(mesh[:0], times[:0], sound)
    with pytest.raises(MediaError, match=f"too short to judge: expected {SHORTEST_S:.2f} s"):
        scorer.score(mesh[:40], times[:40], sound)
    with pytest.raises(MediaError, match="silent"):
        scorer.score(mesh, times, 0 * sound)
    with pytest.raises(MediaError, match="does not move"):
        scorer.score(np.tile(mesh[:1], (75, 1, 1)), times, sound)


@pytest.fixture(scope="module")
def read_aloud() -> np.ndarray:
    """3.6 s of the packaged recording, 16 kHz."""
    with av.open(str(footage.speech())) as container:
        blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(blocks)[16000 : 16000 + 57600].astype(np.float32) / 32768


@torch.inference_mode()
def generated_lips(portrait: np.ndarray, sound: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Meshes (T, 468, 2) of a portrait that the packaged checkpoint makes speak, at some times,
    read off the latents."""
    graphs = TorchGraphs.load("tiny")
    windows = windows_at(graphs.audio, sound, times)
    generator = FrameGenerator(graphs, Options(steps=1, reference="fixed"))
    frame = torch.from_numpy(portrait)
    shown = generator.prepare(frame, 0.0, 0, lambda time_s: windows[0])
    assert shown is not None
    face = shown.found
    noise, reference = generator.begin(shown.crop, 0, face.refers, face.reference_share)
    meshes = []
    for part in windows.split(25):
        same = [value.expand(len(part), *value.shape[1:]) for value in (noise, shown.masked)]
        shared = reference.expand(len(part), *reference.shape[1:])
        latents = generator.sample(*same, shared, part)
        meshes.append(graphs.run("shape_head", latents)[0])
    return 300 * torch.cat(meshes).numpy() + 300


@pytest.mark.slow  # half a minute of one core: the packaged checkpoint generates 45 faces
def test_the_packaged_model_knows_when_generated_lips_are_late(
    scorer: SyncScorer, astronaut: np.ndarray, read_aloud: np.ndarray
) -> None:
    """The portrait reads the packaged recording; neither was trained on."""
    times = np.arange(45) * 0.08
    mesh = generated_lips(astronaut, read_aloud, times)
    true = scorer.score(mesh, times, read_aloud)
    assert abs(true.lag_ms) <= 40
    assert true.confidence > 0.2
    for by in (-3, 4):
        found = scorer.score(late(mesh, by), times, read_aloud)
        assert found.lag_ms == pytest.approx(true.lag_ms + 80 * by, abs=40)
    backwards = scorer.score(mesh[::-1].copy(), times, read_aloud)
    assert backwards.confidence < 0.6 * true.confidence
    assert backwards.distance > true.distance


@pytest.mark.slow  # 150 frames to follow
def test_the_packaged_model_knows_recorded_speech_it_was_not_trained_on(
    shared_footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sentences that are held out for validation, of the man of whom there is most."""
    clips = sorted((shared_footage / "grid_s1" / "clips").glob("*.mp4"))[4:6]  # who say enough
    sources = [Source(path, "s1", "validation", sound_delay_ms=60.0) for path in clips]
    prepare(sources, tmp_path, preset("tiny"), workers=1)
    assert accuracy.main(["--data", str(tmp_path), "--seconds", "2.9"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["pieces"] >= 2
    ours = figures["model_by_limit"]["0.20"]
    assert ours["lag_found"] == ours["true_kept"] == ours["shifted_rejected"] == 1
    assert accuracy.main(["--data", str(tmp_path), "--seconds", "9"]) == 1
    assert "fewer than two clips" in capsys.readouterr().err
