"""The specification, and the file runtime against it: frames, planes, times, faceless frames."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from clips import raw_times
from safetensors.torch import save_file

from dithead.config import DitHeadConfig
from dithead.diffusion import InitialNoise
from dithead.errors import CheckpointError, ConfigError, MediaError, StreamError
from dithead.generator import FrameGenerator
from dithead.graphs import Noise
from dithead.model import DitHead
from dithead.options import Options
from dithead.patch import Patch, cut_rectangle, inside
from dithead.pipeline import revoice
from dithead.runtime import pipeline as runtime
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.media.videoframe import VideoFrame, planes
from dithead.runtime.pipeline import stream_file
from dithead.runtime.schedule import stages
from dithead.torchgraphs import TorchGraphs

RATES: dict[str, list[Fraction]] = {
    "25": [Fraction(i, 25) for i in range(14)],
    "29.97": [Fraction(1001 * i, 30000) for i in range(16)],
    "50": [Fraction(i, 50) for i in range(20)],
    "variable": list(itertools.accumulate([Fraction(0), *[Fraction(1, 25), Fraction(1, 10)] * 6])),
}


def written(monkeypatch: pytest.MonkeyPatch) -> list[VideoFrame]:
    """Collects the frames that reach the encoder."""
    frames: list[VideoFrame] = []
    write = runtime.VideoSink.write

    def record(self: Any, frame: VideoFrame) -> None:
        frames.append(frame)
        write(self, frame)

    monkeypatch.setattr(runtime.VideoSink, "write", record)
    return frames


def audio_end_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return max(f.time + f.samples / f.sample_rate for f in container.decode(audio=0))


def pictures_of(path: Path) -> list[tuple[torch.Tensor, float]]:
    with VideoSource(path) as video:
        return [(torch.from_numpy(f.rgb()), float(f.time_s)) for f in video]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("interpolate", [1, 2])
def test_every_frame_keeps_its_time(
    rate: str,
    interpolate: int,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> None:
    video, out = portrait_clip("in.mp4", RATES[rate]), tmp_path / "out.mp4"
    expected = raw_times(video)
    summary = stream_file(
        video, tone_file(4.0), out, random_models, Options(steps=1), interpolate=interpolate
    )
    n = len(expected)
    found = raw_times(out)
    assert (summary.frames, summary.faces) == (n, n)
    assert summary.frames_written == len(found) == (n if interpolate == 1 else 2 * n - 1)
    assert found[::interpolate] == expected
    if interpolate == 2:
        assert found[1::2] == [(a + b) / 2 for a, b in itertools.pairwise(expected)]
    with VideoSource(video) as source:
        last = list(source)[-1]
    assert abs(audio_end_s(out) - float(last.end_s)) <= float(last.end_s - last.time_s)


def test_length_is_that_of_the_shorter(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> None:
    video, out = portrait_clip("in.mp4", RATES["25"]), tmp_path / "out.mp4"
    for seconds, frames in ((0.3, 8), (0.555, 14), (2.0, 14)):
        summary = stream_file(video, tone_file(seconds), out, random_models, Options(steps=1))
        assert len(raw_times(out)) == frames
        assert bool(summary.notes) == (seconds != 0.555)


@pytest.mark.parametrize("mode", ["loop", "pingpong", "freeze"])
def test_video_is_extended_to_the_audio(
    mode: Any,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> None:
    video, out = portrait_clip("in.mp4", RATES["25"]), tmp_path / "out.mp4"
    stream_file(video, tone_file(1.0), out, random_models, Options(steps=1), extend=mode)
    assert raw_times(out) == [Fraction(i, 25) for i in range(25)]


@pytest.mark.parametrize("reference", ["previous", "fixed"])
def test_stream_equals_the_specification_bit_for_bit(
    reference: Any,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video, audio = portrait_clip("in.mp4", RATES["29.97"], {5}), tone_file(1.0)
    options = Options(steps=2, seed=3, reference=reference)
    samples = torch.from_numpy(np.concatenate(list(AudioSource(audio).blocks())))
    frames = pictures_of(video)
    expected = list(revoice(frames, samples, random_models, options))

    found: list[torch.Tensor] = []
    lay_on = stages.lay_on

    def record(frame: VideoFrame, patch: Any) -> VideoFrame:
        x, y, image, _ = inside(patch, frame.width, frame.height)
        whole = torch.from_numpy(frame.rgb()).clone()
        whole[y : y + image.shape[0], x : x + image.shape[1]] = image
        found.append(whole)
        return lay_on(frame, patch)

    monkeypatch.setattr(stages, "lay_on", record)
    stream_file(video, audio, tmp_path / "out.mp4", random_models, options)
    assert len(found) == len(expected) - 1
    faces = [image for i, image in enumerate(expected) if i != 5]
    assert all(torch.equal(a, b) for a, b in zip(found, faces, strict=True))
    assert torch.equal(expected[5], frames[5][0])
    assert any(not torch.equal(a, b[0]) for a, b in zip(expected, frames, strict=True))


def test_reset_equals_a_fresh_generator(
    portrait_clip: Callable[..., Path], random_models: TorchGraphs
) -> None:
    frames = pictures_of(portrait_clip("in.mp4", RATES["25"][:4]))
    silence = torch.zeros(16000)
    generate = FrameGenerator(random_models, Options(steps=1))
    window = torch.randn(11, 768)

    def run() -> list[torch.Tensor]:
        patches = [generate(f, t, i, lambda _: window) for i, (f, t) in enumerate(frames)]
        return [p.image for p in patches if p is not None]

    first = run()
    carried_on = run()
    generate.reset()
    again = run()
    assert len(first) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, carried_on, strict=True))
    assert len(list(revoice(frames, silence, random_models, Options(steps=1)))) == 4


def test_audio_and_seed_change_the_mouth(
    portrait_clip: Callable[..., Path], random_models: TorchGraphs
) -> None:
    frames = pictures_of(portrait_clip("in.mp4", RATES["25"][:3]))

    def run(samples: torch.Tensor, seed: int = 0) -> torch.Tensor:
        return torch.stack(list(revoice(frames, samples, random_models, Options(1, seed))))

    speech = 0.1 * torch.randn(16000)
    base = run(speech)
    assert torch.equal(base, run(speech))
    assert not torch.equal(base, run(torch.zeros(16000)))
    assert not torch.equal(base, run(speech, seed=1))


def test_untouched_means_untouched(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    video = portrait_clip("in.mp4", RATES["25"], blank={4, 5, 9})
    frames, masks = written(monkeypatch), []
    lay_on = stages.lay_on

    def record(frame: VideoFrame, patch: Any) -> VideoFrame:
        x, y, _, mask = inside(patch, frame.width, frame.height)
        whole = np.zeros((frame.height, frame.width), bool)
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = (mask > 0).numpy()
        masks.append((frame.index, whole))
        return lay_on(frame, patch)

    monkeypatch.setattr(stages, "lay_on", record)
    summary = stream_file(
        video, tone_file(1.0), tmp_path / "out.mp4", random_models, Options(steps=1)
    )
    where = dict(masks)
    assert summary.frames == 14
    assert summary.faces == len(where) == 11
    with VideoSource(video) as source:
        for true, made in zip(source, frames, strict=True):
            mask = where.get(true.index, np.zeros((160, 160), bool))
            changed = 0
            for a, b in zip(planes(true.picture), planes(made.picture), strict=True):
                f = 160 // a.shape[0]
                cover = mask.reshape(160 // f, f, 160 // f, f).any((1, 3))
                assert np.array_equal(a[~cover], b[~cover])
                changed += int((a != b).sum())
            assert (changed > 0) == (true.index in where)


def test_faceless_frames_can_be_refused(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> None:
    video, out = portrait_clip("in.mp4", RATES["25"], blank={4}), tmp_path / "out.mp4"
    with pytest.raises(StreamError, match="frame 4"):
        stream_file(video, tone_file(1.0), out, random_models, Options(1, on_no_face="error"))
    empty = portrait_clip("empty.mp4", RATES["25"], blank=range(20))
    with pytest.raises(MediaError, match="no face in any of the 14 frames"):
        stream_file(empty, tone_file(1.0), out, random_models, Options(steps=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audio.wav", "empty.mp4", "in.mp4"]


def test_a_failing_stage_is_named_and_leaves_nothing(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    video, audio = portrait_clip("in.mp4", RATES["25"]), tone_file(1.0)
    monkeypatch.setattr(FrameGenerator, "sample", fail)
    with pytest.raises(StreamError, match="'denoise' failed at frame 0: out of memory"):
        stream_file(video, audio, tmp_path / "out.mp4", random_models, Options(steps=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audio.wav", "in.mp4"]


def test_the_input_is_never_overwritten(
    portrait_clip: Callable[..., Path], tone_file: Callable[..., Path], random_models: TorchGraphs
) -> None:
    video = portrait_clip("in.mp4", RATES["25"])
    before = video.read_bytes()
    with pytest.raises(MediaError, match="one of the inputs"):
        stream_file(video, tone_file(1.0), video, random_models, Options(steps=1))
    assert video.read_bytes() == before


def test_rectangle_beyond_the_frame_repeats_its_edge() -> None:
    frame = torch.randint(0, 255, (20, 30, 3), dtype=torch.uint8)
    cut = cut_rectangle(frame, -4, 14, 12)
    assert torch.equal(cut[:6, 4:], frame[14:20, :8])
    assert torch.equal(cut[:6, 0], frame[14:20, 0])
    assert torch.equal(cut[11, 4:], frame[19, :8])


@pytest.mark.parametrize(
    "options",
    [
        {"reference": "last"},
        {"on_no_face": "skip"},
        {"seed": -1},
        {"seed": 2**32},
        {"face": -2},
        {"steps": 0},
    ],
)
def test_bad_options(options: dict[str, Any], random_models: TorchGraphs) -> None:
    with pytest.raises(ConfigError):
        FrameGenerator(random_models, Options(**options))


def test_checkpoint_round_trip_and_misfits(random_models: TorchGraphs, tmp_path: Path) -> None:
    from dithead import checkpoint

    model, path = random_models.dithead, tmp_path / "model.safetensors"
    checkpoint.save(path, model.state_dict(), model.config.to_dict(), dtype=None)
    loaded = DitHead.load(path)
    assert loaded.config == model.config
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())

    wider = replace(model.config, dit=replace(model.config.dit, width=64))
    checkpoint.save(path, model.state_dict(), wider.to_dict())
    with pytest.raises(CheckpointError, match="does not fit"):
        DitHead.load(path)
    values: dict[str, Any] = {**DitHeadConfig().to_dict(), "colour": 1}
    checkpoint.save(path, model.state_dict(), values)
    with pytest.raises(ConfigError, match=r"model\.safetensors is no checkpoint .*'colour'"):
        DitHead.load(path)
    with pytest.raises(ConfigError, match=r"face_mesh\.safetensors is no checkpoint of this model"):
        DitHead.load(checkpoint.asset_path("face_mesh"))
    broken = dict(model.state_dict())
    broken["dit.patch_in.bias"] = broken["dit.patch_in.bias"] * float("nan")
    checkpoint.save(path, broken, model.config.to_dict())
    with pytest.raises(CheckpointError, match="NaN"):
        DitHead.load(path)
    for damaged in ("[" * 100_000 + "]" * 100_000, "[]", "{"):
        save_file(model.state_dict(), path, {"dithead_config": damaged})
        with pytest.raises(CheckpointError, match="carries a damaged configuration"):
            DitHead.load(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        DitHead.load(path)
    with pytest.raises(CheckpointError, match="packaged"):
        DitHead.load("no-such-checkpoint")


def test_noise_mode_decides_whether_frames_share_their_noise(random_models: TorchGraphs) -> None:
    config = random_models.dithead.config
    for mode, shared in (("stream", True), ("frame", False)):
        noise = Noise(replace(config.diffusion, noise=mode), InitialNoise(4, 8))
        five, six, zero, nine = (torch.tensor([i]) for i in (5, 6, 0, 9))
        assert torch.equal(noise(five, zero), noise(five, nine)) == shared
        assert not torch.equal(noise(five, zero), noise(six, zero))


def test_a_face_elsewhere_starts_afresh(random_models: TorchGraphs, astronaut: np.ndarray) -> None:
    face = torch.from_numpy(astronaut[20:260, 104:344].copy())
    left, shifted, right = (torch.full((240, 700, 3), 90, dtype=torch.uint8) for _ in range(3))
    left[:, :240], shifted[:, 10:250], right[:, 460:] = face, face, face.flip(1)
    generate = FrameGenerator(random_models, Options())
    assert generate.track(left, 0.0) is not None
    moved = generate.track(shifted, 0.04)
    assert moved is not None
    assert not moved.fresh
    assert moved.transform[0, 2] < 130  # smoothed: it lags behind the face
    found = generate.track(right, 0.08)
    assert found is not None
    assert found.fresh
    assert 500 < float(found.transform[0, 2]) < 660


def test_a_patch_outside_the_frame_has_no_part_in_it() -> None:
    image, mask = torch.zeros(64, 64, 3, dtype=torch.uint8), torch.zeros(64, 64)
    for left, top in ((170, 0), (0, 170), (-70, 10), (10, -70), (170, 170)):
        x, y, part, _ = inside(Patch(left, top, image, mask), 160, 160)
        assert part.numel() == 0
        assert 0 <= x <= 160
        assert 0 <= y <= 160


def test_sound_does_not_pile_up_while_there_is_no_face(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = [Fraction(i, 5) for i in range(60)]
    video = portrait_clip("in.mp4", times, blank=range(1, 60))
    held, run = [], stages.AlignAudio.run

    def record(self: stages.AlignAudio, item: Any, lane: Any) -> Any:
        passed = run(self, item, lane)
        held.append(len(self.features.state.features))
        return passed

    monkeypatch.setattr(stages.AlignAudio, "run", record)
    summary = stream_file(
        video, tone_file(12.0), tmp_path / "out.mp4", random_models, Options(steps=1)
    )
    assert summary.faces == 1
    assert len(held) == 60
    assert max(held) < 12  # hops; 12 s are 37


def test_initial_noise_is_scaled_as_configured(random_models: TorchGraphs) -> None:
    config = random_models.dithead.config
    initial, five = InitialNoise(4, 8), torch.tensor([5])
    whole = Noise(replace(config.diffusion, noise_scale=1.0), initial)
    half = Noise(replace(config.diffusion, noise_scale=0.5), initial)
    assert torch.equal(half(five, five), 0.5 * whole(five, five))
    with pytest.raises(ConfigError, match="noise_scale"):
        replace(config.diffusion, noise_scale=1.5)
