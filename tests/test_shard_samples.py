"""What of a video becomes a sample, and what is left out and why."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from fanfaces import drawn_networks
from shardwork import contents

from dithead import checkpoint
from dithead.config import PRESETS, DitHeadConfig, preset
from dithead.errors import ConfigError, MediaError
from dithead.face.choice import FaceChoice
from dithead.face.networks import FaceNetworks
from dithead.runtime.media.sources import SPEECH_RATE_HZ, VideoSource
from dithead.train import cli
from dithead.train.data import STORED_MARGIN, Footage
from dithead.train.prepare import delayed
from dithead.train.shards.lists import Part
from dithead.train.shards.rules import Match, ShotRule, SyncRule
from dithead.train.shards.run import make_shards, on_processes, one_thread
from dithead.train.shards.samples import SampleMaking, choice_of, read_sound, timed
from dithead.train.shards.shots import ShotFinder
from dithead.train.shards.store import read_array, read_shards
from dithead.train.shards.sync import matched
from dithead.train.vqgan import PictureSampler, VQGANTraining
from dithead.train.windows import windows_at

FPS = 10
ANY_SOUND = SyncRule(min_confidence=0.0, max_lag_ms=1000.0)


COMMAND = ["prepare", "--shards", "--preset=test", "--workers=1", "--min-side-px=40"]


@pytest.fixture(scope="session")
def small() -> DitHeadConfig:
    tiny = preset("tiny")
    return replace(tiny, face=replace(tiny.face, crop_px=64))


def write_video(path: Path, pictures: Sequence[np.ndarray], sound: np.ndarray | None) -> Path:
    """Pictures (240, 240, 3) at ten a second, and sound (S,) at 16 kHz."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=FPS, options={"crf": "12"})
        video.width, video.height, video.pix_fmt = *pictures[0].shape[1::-1], "yuv420p"
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("pcm_s16le", rate=SPEECH_RATE_HZ, layout="mono")
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            samples = np.round(32767 * np.clip(sound, -1, 1)).astype(np.int16)[None]
            voice = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            voice.sample_rate, voice.pts = SPEECH_RATE_HZ, 0
            voice.time_base = Fraction(1, SPEECH_RATE_HZ)
            container.mux(audio.encode(voice))
            container.mux(audio.encode(None))
    return path


@pytest.fixture
def portraits(astronaut: np.ndarray) -> Callable[[int], list[np.ndarray]]:
    """So many pictures of the portrait, moving a little."""

    def make(count: int) -> list[np.ndarray]:
        return [astronaut[20 + i % 4 : 260 + i % 4, 104:344].copy() for i in range(count)]

    return make


@pytest.fixture
def carphone(carphone_clip: Path) -> Callable[[int], list[np.ndarray]]:
    """So many pictures of the carphone clip, enlarged to the same size."""

    def make(count: int) -> list[np.ndarray]:
        with VideoSource(carphone_clip) as video:
            frames = [frame.rgb() for frame, _ in zip(video, range(count), strict=False)]
        wide = torch.from_numpy(np.stack(frames)[:, 2:142, 18:158]).movedim(-1, 1).float()
        large = torch.nn.functional.interpolate(wide, (240, 240), mode="bilinear")
        return list(large.round().byte().movedim(1, -1).numpy())

    return make


def found(
    path: Path,
    config: DitHeadConfig,
    rule: ShotRule,
    choice: FaceChoice = "largest",
    cuts: int = 0,
) -> tuple[list[Any], dict[str, float]]:
    finder = ShotFinder(FaceNetworks.load(), config.face, rule, choice)
    with one_thread(), VideoSource(path) as video:
        stretches = [(finder.person(s), s) for s in finder.stretches(timed(video))]
    assert finder.cuts == cuts
    return stretches, {reason: round(s, 2) for reason, s in finder.left_out.items()}


def test_cuts_gaps_and_other_faces_end_a_stretch(
    portraits: Callable[[int], list[np.ndarray]],
    carphone: Callable[[int], list[np.ndarray]],
    small: DitHeadConfig,
    tmp_path: Path,
) -> None:
    grey = [np.full((240, 240, 3), 90, np.uint8)] * 3
    both = [np.concatenate([p[::2, ::2], p[::2, ::2]], 1) for p in portraits(4)]
    both = [np.concatenate([pair, np.full_like(pair, 60)]) for pair in both]
    pictures = [*portraits(6), *grey, *portraits(5), *carphone(6), *portraits(2), *both]
    path = write_video(tmp_path / "v.mkv", pictures, None)
    stretches, left_out = found(path, small, ShotRule(min_s=0.4, min_side_px=40), cuts=5)
    assert [(who, len(s.times_s), round(s.times_s[0], 2)) for who, s in stretches] == [
        (0, 6, 0.0),
        (0, 5, 0.9),
        (1, 6, 1.4),
    ]
    assert left_out == {"no face": 0.3, "too short": 0.2, "several faces": 0.4}
    assert sum(s.length_s for _, s in stretches) == pytest.approx(1.7)


def test_a_window_says_which_of_two_faces_speaks(
    portraits: Callable[[int], list[np.ndarray]], small: DitHeadConfig, tmp_path: Path
) -> None:
    pairs = [np.concatenate([p, p[:, ::-1]], 1) for p in portraits(3)]
    path, rule = write_video(tmp_path / "v.mkv", pairs, None), ShotRule(0.1, 40)
    stretches, left_out = found(path, small, rule)
    assert (stretches, left_out) == ([], {"several faces": 0.3})
    (only,), left_out = found(path, small, rule, (240.0, 0.0, 480.0, 240.0))
    assert left_out == {}
    assert np.stack(only[1].meshes)[:, :, 0].min() > 240


def test_small_faces_are_left_out(
    portraits: Callable[[int], list[np.ndarray]], small: DitHeadConfig, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "v.mkv", portraits(3), None)
    stretches, left_out = found(path, small, ShotRule(min_s=0.1, min_side_px=400))
    assert stretches == []
    assert left_out == {"face too small": 0.3}


def speech(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with syllables (S,) at 16 kHz, and their loudness at 25 a second."""
    random = np.random.default_rng(seed)
    level = np.interp(
        np.arange(round(seconds * 100)) / 100,
        np.arange(0, seconds + 1, 0.12),
        random.random(len(np.arange(0, seconds + 1, 0.12))),
    )
    fine = np.repeat(level, SPEECH_RATE_HZ // 100)
    return 0.3 * fine * random.standard_normal(len(fine)), level[::4]


def test_a_rule_says_why_a_stretch_is_left_out() -> None:
    rule = SyncRule()
    assert rule.refusal(Match(40.0, 0.5, 0.8)) is None
    assert rule.refusal(Match(40.0, 0.1, 0.8)) == "sound does not fit"
    assert rule.refusal(Match(-160.0, 0.5, 0.8)) == "out of sync"
    assert rule.refusal(Match(0.0, None)) == "silent"
    assert rule.refusal(None) is None


def test_what_is_silent_or_does_not_move_is_no_match() -> None:
    times, (sound, _) = np.arange(75) / 25, speech(3, 1)
    random = np.random.default_rng(0)
    still = np.tile(random.random((1, 468, 2), np.float32), (75, 1, 1))
    moving = still + 0.01 * random.random((75, 468, 2), np.float32)
    assert matched(still, times, sound, 2.0) == Match(0.0, None)
    assert matched(moving, times, 0 * sound, 2.0) == Match(0.0, None)
    judged = matched(moving, times, sound, 2.0)
    assert judged is not None and judged.confidence is not None
    assert SyncRule().refusal(judged) is not None  # noise is no speech
    assert matched(moving[:40], times[:40], sound, 0.0) is None
    assert matched(moving, times, sound, 4.0) is None


@pytest.mark.slow  # 230 frames to follow
def test_recorded_speech_fits_and_another_sound_does_not(
    shared_footage: Path, small: DitHeadConfig
) -> None:
    video = shared_footage / "clips" / "elo_02_T1_matrix0507.mp4"
    (stretch,) = [s for _, s in found(video, small, ShotRule())[0]]
    mesh, times, rule = np.stack(stretch.meshes), np.array(stretch.times_s), SyncRule()

    def refusal(sound: np.ndarray) -> str | None:
        return rule.refusal(matched(mesh, times, sound, rule.min_s))

    own, _ = read_sound(Part("own", str(video), "elo"))
    assert refusal(own) is None
    assert refusal(delayed(own, -400)) == "out of sync"
    other, _ = read_sound(Part("other", str(video.with_name("elo_01_T1_matrix1306.mp4")), "elo"))
    assert refusal(other) is not None


def test_a_video_becomes_samples_with_all_that_training_needs(
    portraits: Callable[[int], list[np.ndarray]],
    random_models: Any,
    tmp_path: Path,
) -> None:
    config = random_models.dithead.config
    weights = tmp_path / "w.safetensors"
    checkpoint.save(weights, random_models.dithead.state_dict(), config.to_dict())
    sound, _ = speech(2.0, 2)
    video = write_video(tmp_path / "ann.mkv", portraits(12), sound)
    mute = write_video(tmp_path / "mute.mkv", portraits(2), None)
    making = SampleMaking(
        config,
        weights,
        weights,
        max_s=0.5,
        held_out=0.0,
        shots=ShotRule(min_s=0.3, min_side_px=40),
        sync=ANY_SOUND,
    )
    parts = [
        Part("ann", str(video), "ann", 0.2, 1.1),
        Part("gone", str(tmp_path / "gone.mp4"), "bob"),
        Part("mute", str(mute), "carl"),
    ]
    out = tmp_path / "out"
    placed = make_shards(parts, out, making, making.settings(), on_processes(1))
    assert [(p.entry.name, p.entry.frames) for p in placed] == [("ann_0000", 4), ("ann_0001", 5)]
    text = (out / "report.txt").read_text().splitlines()
    assert "gone.mp4 is missing" in text[2]
    assert "no audio track" in text[3]
    side = round(config.face.crop_px * STORED_MARGIN)
    assert read_array(out, "ann_0001", "crops.npy").shape == (5, side, side, 3)
    latent = config.vqgan.latent_channels
    for kind in ("face.npy", "masked.npy"):
        assert read_array(out, "ann_0001", kind).shape == (5, latent, 16, 16)
    times = read_array(out, "ann_0001", "time_s.npy")
    assert np.allclose(np.diff(times), 0.1)
    audio = read_array(out, "ann_0001", "audio.npy").astype(np.float32)
    at = round(0.6 * SPEECH_RATE_HZ) - round(times[0] * SPEECH_RATE_HZ)
    assert np.allclose(audio[:8000], sound[at : at + 8000], atol=1e-3)
    with one_thread():
        windows = windows_at(random_models.audio, audio, np.array(times)).half().numpy()
    assert np.array_equal(windows, read_array(out, "ann_0001", "windows.npy"))


def test_what_was_made_before_damage_is_kept_and_reported(
    portraits: Callable[[int], list[np.ndarray]],
    small: DitHeadConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound, _ = speech(1.0, 2)
    grey = [np.full((240, 240, 3), 90, np.uint8)] * 3
    video = write_video(tmp_path / "v.mkv", [*portraits(4), *grey], sound)
    whole = ShotFinder.stretches

    def broken(self: ShotFinder, frames: Any) -> Iterator[Any]:
        yield from whole(self, frames)
        raise MediaError("the rest is gone")

    monkeypatch.setattr(ShotFinder, "stretches", broken)
    making = SampleMaking(small, held_out=0.0, shots=ShotRule(min_s=0.3, min_side_px=40))
    parts, out = [Part("v", str(video), "ann")], tmp_path / "out"
    placed = make_shards(parts, out, making, {}, on_processes(1))
    (row,) = json.loads((out / "report.json").read_text())["parts"]
    assert (len(placed), row["samples"], row["kept_s"], row["cuts"]) == (1, 1, 0.4, 1)
    assert row["error"] == "the rest is gone"
    assert row["unjudged_s"] == 0.4


def test_the_command_makes_shards_that_stages_train_from(
    portraits: Callable[[int], list[np.ndarray]],
    small: DitHeadConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(PRESETS, "test", small)
    sound, _ = speech(1.0, 2)
    for person in ("ann", "bob"):
        (tmp_path / "v" / person).mkdir(parents=True)
        write_video(tmp_path / "v" / person / "a.mkv", portraits(4), sound)
    out = tmp_path / "out"
    command = [*COMMAND, f"--videos={tmp_path / 'v'}", f"--out={out}", "--min-s=0.2"]
    assert cli.main([*command, "--held-out=0"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "samples": 2,
        "frames": 8,
        "shards": 1,
        "people": 2,
        "report": str(out / "report.txt"),
    }
    footage = Footage(out)
    assert {clip.person for clip in footage.split("train")} == {"ann", "bob"}
    clip = footage.split("train")[0]
    assert footage.crops(clip).shape[0] == len(footage.track(clip)["time_s"]) == clip.frames == 4
    sampler = PictureSampler(footage, small, VQGANTraining(steps=1, batch=3))
    assert sampler.sample(3).shape == (3, 3, 64, 64)
    assert cli.main([*command, "--held-out=0.1"]) == 1
    assert "other held_out" in capsys.readouterr().err
    assert cli.main([*COMMAND, f"--out={out}"]) == 1
    assert "nothing to prepare" in capsys.readouterr().err


def test_the_papers_networks_find_faces_for_shards(
    portraits: Callable[[int], list[np.ndarray]],
    small: DitHeadConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(PRESETS, "test", small)
    sound, _ = speech(1.0, 2)
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "ann.mkv", portraits(4), sound)
    folder = tmp_path / "weights"
    command = [*COMMAND, f"--videos={tmp_path / 'v'}", "--min-s=0.2", "--held-out=0"]
    with_fan = ["--face-models=fan", f"--face-weights={folder}"]
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    assert cli.main([*command, *with_fan, f"--out={theirs}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no weights of S3FD at {folder / 's3fd.safetensors'}" in line
    assert f"fetch them with dithead train convert fan -o {folder}" in line
    assert not theirs.exists()

    folder.mkdir()
    (folder / "s3fd.safetensors").write_bytes(b"stands for weights")
    load_packaged = FaceNetworks.load

    def load(models: str = "mediapipe", weights: object = None) -> FaceNetworks:
        assert (models, weights) in (("mediapipe", None), ("fan", folder))
        return drawn_networks() if models == "fan" else load_packaged()

    monkeypatch.setattr(FaceNetworks, "load", load)
    assert cli.main([*command, *with_fan, f"--out={theirs}"]) == 0
    assert cli.main([*command, f"--out={out}"]) == 0
    (name,) = read_shards(out)
    ours, other = read_array(out, name, "mesh.npy"), read_array(theirs, name, "mesh.npy")
    assert ours.shape == other.shape == (4, 468, 2)
    off = np.abs(ours - other).max()
    assert 0.5 < off < 20  # the same face of 120 px, of which FAN gives 68 points

    capsys.readouterr()
    assert cli.main([*command, f"--out={theirs}"]) == 1
    assert "was begun with other face_models, face_weights" in capsys.readouterr().err
    (folder / "s3fd.safetensors").write_bytes(b"stands for other weights")
    assert cli.main([*command, *with_fan, f"--out={theirs}"]) == 1
    assert "was begun with other face_weights:" in capsys.readouterr().err


@pytest.mark.slow  # half a minute: four processes import PyTorch and load the face networks
def test_a_command_that_is_killed_goes_on(
    portraits: Callable[[int], list[np.ndarray]], tmp_path: Path
) -> None:
    sound, _ = speech(2.0, 2)
    (tmp_path / "v").mkdir()
    for number in range(6):
        write_video(tmp_path / "v" / f"v{number}.mkv", portraits(6 + number), sound)
    rest = [f"--videos={tmp_path / 'v'}", "--min-side-px=40", "--min-s=0.2", "--shard-mb=2"]
    command = ["prepare", "--shards", *rest, "--workers=2", f"--out={tmp_path / 'killed'}"]
    program = "import sys; from dithead.train.cli import main; sys.exit(main())"
    children = []
    for pages in (1, 3):  # kill it once so many parts are finished
        with subprocess.Popen([sys.executable, "-c", program, *command]) as process:
            while len(list((tmp_path / "killed").glob("work/*.json"))) < pages:
                assert process.poll() is None, "it ended too early"
                time.sleep(0.01)
            children += Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            process.kill()
    assert not (tmp_path / "killed" / "shards.json").exists()
    assert cli.main(command) == 0
    assert cli.main([*command[:-2], "--workers=1", f"--out={tmp_path / 'whole'}"]) == 0
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == whole
    assert len([name for name in whole if name.endswith(".tar")]) >= 2
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_a_window_is_scaled_to_the_video(
    portraits: Callable[[int], list[np.ndarray]], tmp_path: Path
) -> None:
    path = write_video(tmp_path / "v.mkv", portraits(1), None)
    part = Part("v", str(path), "v", window=(412, 3, 1011, 602), window_height=720)
    with VideoSource(path) as video:
        assert choice_of(part, video) == pytest.approx((412 / 3, 1, 337, 602 / 3))


def test_sound_is_cut_to_the_part(
    portraits: Callable[[int], list[np.ndarray]], tmp_path: Path
) -> None:
    sound = np.linspace(-0.9, 0.9, 12 * SPEECH_RATE_HZ)
    path = write_video(tmp_path / "v.mkv", portraits(120), sound)
    piece, at_s = read_sound(Part("v", str(path), "v", 4.0, 6.0))
    assert (at_s, len(piece)) == (2.0, 7 * SPEECH_RATE_HZ)
    assert np.allclose(piece, sound[2 * SPEECH_RATE_HZ :][: len(piece)], atol=1e-4)


def test_impossible_settings_are_refused(small: DitHeadConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        SampleMaking(small, tmp_path / "w")
    with pytest.raises(ConfigError, match="held-out"):
        SampleMaking(small, held_out=1.0)
    with pytest.raises(ConfigError, match="limit"):
        SampleMaking(small, max_s=0.5)
    with pytest.raises(ConfigError):
        ShotRule(min_s=0)
    with pytest.raises(ConfigError):
        SyncRule(min_confidence=-1)
