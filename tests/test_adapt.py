"""A checkpoint that is fitted to one person's footage: what it gains, what is stored, and what an
interrupted run, bad footage or another base does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from streams import RATE, moving, voice

from dithead import checkpoint
from dithead.__main__ import stream
from dithead.errors import BackendUnavailable, CheckpointError, ConfigError, MediaError
from dithead.model import DitHead
from dithead.train import losses
from dithead.train.adapt import Adaptation, adapt, adapted_to, person, run
from dithead.train.adapt.gain import Gain
from dithead.train.cli import main

FRAMES = 40
SHORT = Adaptation(steps=3, batch=4)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little speech to practise with."""
    monkeypatch.setattr(run, "practice_windows", lambda _: np.zeros((9, 11, 768), np.float32))


@pytest.fixture
def talker(tmp_path: Path, astronaut: np.ndarray) -> Callable[..., Path]:
    """Writes a video of a moving portrait with sound: (name, pictures, sound) -> its path."""

    def write(
        name: str = "talker.mp4",
        pictures: list[np.ndarray] | None = None,
        sound: np.ndarray | None = None,
    ) -> Path:
        if pictures is None:
            pictures = [image for image in moving(astronaut, FRAMES // 4) for _ in range(4)]
        sound = voice(FRAMES / 25) if sound is None else sound
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            video = container.add_stream("libx264", rate=25, options={"crf": "12"})
            video.height, video.width = pictures[0].shape[:2]
            audio = container.add_stream("aac", rate=RATE, layout="mono") if sound.size else None
            for image in pictures:
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            container.mux(video.encode())
            if audio is not None:
                frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
                frame.sample_rate = RATE
                container.mux(audio.encode(frame))
                container.mux(audio.encode())
        return path

    return write


def test_only_what_changed_is_stored(talker: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "me.safetensors"
    gain = adapt([talker()], out, Adaptation(steps=20, batch=8))
    assert gain.mouth_db > gain.mouth_db_before
    assert gain.lips_off < gain.lips_off_before
    assert out.stat().st_size < 8e6
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "me.adapted.png",
        "me.safetensors",
        "talker.mp4",
    ]
    base, adapted = (DitHead.load(source).state_dict() for source in ("tiny", out))
    changed = {name for name, value in base.items() if not torch.equal(value, adapted[name])}
    assert {name.split(".")[0] for name in changed} == {"dit", "face_vqgan", "shape_head"}
    assert all(".decoder." in name for name in changed if name.startswith("face_vqgan"))
    assert all(name.endswith(".weight") for name in changed if name.startswith("dit"))


@pytest.mark.parametrize(
    ("interrupted", "left"),
    [
        ("learning the lips", {"learning the lips", "learning the picture"}),
        ("learning the picture", {"learning the picture"}),
    ],
)
def test_an_interrupted_run_goes_on(
    interrupted: str, left: set[str], talker: Callable[..., Path], tmp_path: Path
) -> None:
    video, out = talker(), tmp_path / "me.safetensors"
    told: list[str] = []

    def tell(what: str, share: float) -> None:
        told.append(what)
        if told.count(interrupted) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt([video], out, SHORT, tell=tell)
    assert not out.exists()
    assert (tmp_path / ".me.adapting").is_dir()
    again: list[tuple[str, float]] = []
    adapt([video], out, SHORT, tell=lambda what, share: again.append((what, share)))
    assert {what for what, _ in again} == left
    assert again[0][1] > 0
    assert out.is_file()
    assert not (tmp_path / ".me.adapting").exists()


def test_without_the_perceptual_distance_it_says_so(
    talker: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def missing(device: torch.device) -> None:
        raise BackendUnavailable("stlpips-pytorch is not installed")

    monkeypatch.setattr(losses, "perceptual_metric", missing)
    adapt([talker()], tmp_path / "me.safetensors", Adaptation(steps=1, batch=4))
    assert "less sharp: stlpips-pytorch is not installed" in caplog.text


def test_other_settings_begin_anew(talker: Callable[..., Path], tmp_path: Path) -> None:
    video, out = talker(), tmp_path / "me.safetensors"

    def stop(what: str, share: float) -> None:
        if what == "learning the shape":
            raise KeyboardInterrupt

    for batch in (6, 8):
        told: list[str] = []

        def tell(what: str, share: float, told: list[str] = told) -> None:
            told.append(what)
            stop(what, share)

        with pytest.raises(KeyboardInterrupt):
            adapt([video], out, Adaptation(batch=batch), tell=tell)
        assert told[0] == "looking at the footage"


def test_footage_that_nothing_can_be_learnt_from(
    talker: Callable[..., Path], astronaut: np.ndarray, tmp_path: Path
) -> None:
    out, grey = tmp_path / "me.safetensors", [np.full((128, 128, 3), 90, np.uint8)] * 30
    for video, message in [
        (talker("faceless.mp4", grey), "shows no face"),
        (talker("mute.mp4", sound=np.zeros(0, np.float32)), "audio"),
        (talker("silent.mp4", sound=np.zeros(RATE, np.float32)), "no sound to learn from"),
        (talker("short.mp4", moving(astronaut, 20)), "17 frames with a face to learn from"),
        (tmp_path / "missing.mp4", "is no file"),
        (tmp_path, "is no file"),
    ]:
        with pytest.raises(MediaError, match=message):
            adapt([video], out, SHORT)
        assert not (tmp_path / ".me.adapting").exists()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        adapt([talker()], out, SHORT, base=str(damaged))
    with pytest.raises(ConfigError, match="minutes must be above 0"):
        Adaptation(minutes=0)


def test_frames_without_a_face_are_left_out(
    talker: Callable[..., Path], astronaut: np.ndarray, tmp_path: Path
) -> None:
    pictures = moving(astronaut, FRAMES)
    for number in (0, 17, 18):
        pictures[number] = np.full_like(pictures[0], 90)
    adapt([talker(pictures=pictures)], tmp_path / "me.safetensors", Adaptation(steps=1, batch=4))


def test_what_an_adapted_checkpoint_changes_must_be_there(
    checkpoint_file: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    base.write_bytes(checkpoint_file.read_bytes())
    tensors, _ = checkpoint.load(base)
    name = "dit.patch_out.weight"
    rows, columns = tensors[name].shape
    up, down = torch.randn(rows, 2), torch.randn(2, columns)
    out = tmp_path / "adapted.safetensors"
    changes = {f"{name}.up": up, f"{name}.down": down, "dit.patch_out.bias": torch.ones(rows)}
    checkpoint.save_adapted(out, changes, base)
    found, _ = checkpoint.load(out)
    assert found.keys() == tensors.keys()
    assert torch.allclose(found[name], tensors[name] + up @ down, atol=1e-2)
    assert torch.equal(found["dit.patch_out.bias"], torch.ones(rows))
    base.write_bytes(base.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=r"changes another version of .*base\.safetensors"):
        checkpoint.load(out)
    base.unlink()
    with pytest.raises(CheckpointError, match="which is not there: adapt again"):
        checkpoint.load(out)
    base.write_bytes(checkpoint_file.read_bytes())
    checkpoint.save_adapted(out, {f"{name}.up": up, f"{name}.down": down[:, 1:]}, base)
    with pytest.raises(CheckpointError, match="does not fit the checkpoint that it changes"):
        checkpoint.load(out)
    for broken in ({f"{name}.up": up}, {f"{name}.down": down}, {f"{name}.up": up[0]}, {"x": up}):
        checkpoint.save_adapted(out, broken, base)
        with pytest.raises(CheckpointError, match="does not fit the checkpoint that it changes"):
            checkpoint.load(out)


def test_a_checkpoint_is_never_lost(checkpoint_file: Path, tmp_path: Path) -> None:
    base = tmp_path / "models" / "base.safetensors"
    base.parent.mkdir()
    base.write_bytes(checkpoint_file.read_bytes())
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    bias = torch.ones_like(checkpoint.load(base)[0]["dit.patch_out.bias"])
    checkpoint.save_adapted(first, {"dit.patch_out.bias": bias}, base)
    checkpoint.save_adapted(second, {"dit.patch_out.bias": 2 * bias}, first)
    assert torch.equal(checkpoint.load(second)[0]["dit.patch_out.bias"], 2 * bias)
    for path in (base, first, tmp_path / "models" / ".." / "first.safetensors"):
        with pytest.raises(ConfigError, match="choose another name for the result"):
            checkpoint.save_adapted(path, {"dit.patch_out.bias": bias}, first)
    with pytest.raises(ConfigError, match="choose another name"):
        adapt([checkpoint_file], base, SHORT, base=str(base))


def test_one_run_at_a_time(talker: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    video, out = talker(), tmp_path / "me.safetensors"

    def tell(what: str, share: float) -> None:
        with pytest.raises(ConfigError, match="another run is at work"):
            adapt([video], out, SHORT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt([video], out, SHORT, tell=tell)
    (tmp_path / ".me.adapting" / "made_from.json").write_text("damaged")
    adapt([video], out, SHORT)
    assert out.is_file()


def test_nothing_is_searched_for_long(
    talker: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(person, "GRACE_S", 0.0)
    grey = [np.full((128, 128, 3), 90, np.uint8)] * 200
    told: list[str] = []
    with pytest.raises(MediaError, match="shows no face"):
        adapt(
            [talker(pictures=grey)],
            tmp_path / "me.safetensors",
            Adaptation(minutes=0.001),
            tell=lambda what, share: told.append(what),
        )
    assert len(told) < 20


def test_the_command(
    talker: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, out = str(talker()), tmp_path / "me.safetensors"
    assert main(["adapt", video, "-o", str(out), "--minutes", "0.05", "--threads", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"] == str(out)
    assert told["bytes"] == out.stat().st_size
    assert told["held_out_s"] == pytest.approx(0.15 * FRAMES / 25, abs=0.05)
    assert main(["adapt", video, "-o", str(tmp_path / "no" / "me.safetensors")]) == 1
    assert "in a folder that exists" in capsys.readouterr().err


def test_what_is_lost_is_said_and_not_used(
    talker: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def worse(videos: list[Path], out: Path, *_: object, **__: object) -> Gain:
        made.append(out)
        out.write_bytes(b"a checkpoint")
        return Gain(1.2, 24.5, 1.1, 21.9, 1.4)

    monkeypatch.setattr("dithead.train.adapt.cached.adapt", worse)
    video = talker()
    given = {"base": "tiny", "audio_weights": None, "face": "largest", "tell": None}
    lost = r"came out worse \(mouth 24.5 -> 21.9 dB, lips off by 1.1 -> 1.4 % of the crop"
    with pytest.raises(MediaError, match=lost):
        adapted_to(video, 1.0, **given)
    with pytest.raises(MediaError, match=lost + ".* made before"):
        adapted_to(video, 1.0, **given)
    assert len(made) == 1
    assert not Gain(0.2, 24.5, 1.1, 21.9, 1.4).is_loss  # that says nothing
    made[0].with_suffix(".json").write_text("{}")
    assert adapted_to(video, 1.0, **given) == (made[0], "what it gained is not known, made before")


def test_a_stream_adapts_first(
    talker: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(talker())

    def notes(*arguments: str) -> list[str]:
        out = str(tmp_path / "out.mp4")
        assert stream([*arguments, "-o", out, "--json", "--backend", "torch"]) == 0
        found: list[str] = json.loads(capsys.readouterr().out)["notes"]
        return found

    first = notes(video, video, "--adapt", "0.05")
    assert "adapted, " in first[0]
    assert " in the last 0.2 s, which were not learnt from" in first[0]
    assert notes(video, video, "--adapt", "0.05")[0] == f"{first[0]}, made before"
    assert len(list((tmp_path / "dithead-adapted").glob("talker.0.05min.*.safetensors"))) == 1
    assert stream([video, str(tmp_path / "none.wav"), "--adapt", "1"]) == 1  # before it adapts
    assert "no such file" in capsys.readouterr().err
    mute = str(talker("mute.mp4", sound=np.zeros(0, np.float32)))
    assert notes(mute, video, "--adapt", "0.05")[0].startswith("not adapted: ")
    assert stream([video, video, "--adapt", "1", "--backend", "tensorrt"]) == 2
    assert "--adapt adapts a checkpoint" in capsys.readouterr().err
