"""The whole job on inputs and outputs of every kind."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import LISTENER, all_samples, beside, free_address, raw_times, said

from dithead import checkpoint
from dithead.errors import ConfigError, MediaError
from dithead.options import Options
from dithead.runtime.media.inputs import Input
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.media.videoframe import planes
from dithead.runtime.pipeline import Summary, stream_file
from dithead.torchgraphs import TorchGraphs

TIMES = [Fraction(i, 25) for i in range(14)]
RUN = "import sys; from dithead.runtime.cli import main; sys.exit(main())"


@pytest.fixture
def job(random_models: TorchGraphs, tone_file: Callable[..., Path]) -> Callable[..., Summary]:
    """Runs the main job with the small random model: (video, output, audio, options of the job)."""

    def run(video: Any, output: Any, audio: Any = None, **settings: Any) -> Summary:
        sound = audio if audio is not None else tone_file(0.56)
        return stream_file(video, sound, output, random_models, Options(steps=1), **settings)

    return run


def with_sound(video: Path, audio: Path, path: Path) -> Path:
    """Both tracks, as they are, in one file."""
    with av.open(str(path), "w") as target:
        inputs = [(av.open(str(video)), "video"), (av.open(str(audio)), "audio")]
        streams = [target.add_stream_from_template(getattr(c.streams, k)[0]) for c, k in inputs]
        packets = []
        for (container, kind), stream in zip(inputs, streams, strict=True):
            for packet in container.demux(**{kind: 0}):
                if packet.dts is not None:
                    packets.append((packet.dts * packet.time_base, stream, packet))
        for _, stream, packet in sorted(packets, key=lambda p: p[0]):
            packet.stream = stream
            target.mux(packet)
        for container, _ in inputs:
            container.close()
    return path


def turned(clip: Path, path: Path, rotation_deg: int, pix_fmt: str = "yuv420p") -> Path:
    """A clip stored turned, with the rotation that puts it upright, as phones write it."""
    with VideoSource(clip) as source, av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25, options={"crf": "1", "bf": "0"})
        frames = [np.rot90(frame.rgb(), -rotation_deg // 90) for frame in source]
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.set_display_rotation(rotation_deg)
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with VideoSource(path) as source:
        return [frame.rgb() for frame in source]


@pytest.mark.parametrize("rotation_deg", [90, 180, 270])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le"])
def test_a_face_is_found_in_a_turned_video(
    rotation_deg: int,
    pix_fmt: str,
    portrait_clip: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = portrait_clip("in.mp4", TIMES, size=(160, 120))
    video = turned(clip, tmp_path / "phone.mov", rotation_deg, pix_fmt)
    summary = job(video, tmp_path / "out.mkv", encoding=Encoding(video_codec="ffv1"))
    assert summary.faces == summary.frames == 14
    with VideoSource(tmp_path / "out.mkv") as result, VideoSource(video) as source:
        assert (source.info.rotation_deg - rotation_deg) % 360 == 0
        assert result.info.rotation_deg == source.info.rotation_deg
        for new, old in zip(result, source, strict=True):
            changed = np.abs(new.rgb().astype(int) - old.rgb()).max(axis=2) > 0
            assert changed[40:].any()
            assert not changed[:12].any()  # above the face, seen upright
            for plane, before in zip(planes(new.picture), planes(old.picture), strict=True):
                assert (plane == before).mean() > 0.5
    job(video, tmp_path / "out.ts")
    upright = frames_of(tmp_path / "out.ts")[0]
    assert upright.shape == (120, 160, 3)
    assert np.abs(upright[:12].astype(int) - frames_of(clip)[0][:12]).mean() < 8


@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", "30", "50", "60"])
def test_rates_are_exact(
    rate: str,
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    times = [n / Fraction(rate) for n in range(16)]
    video = portrait_clip("in.mp4", [round(time * 90000) / Fraction(90000) for time in times])
    job(video, tmp_path / "aus gabe ü.mp4", tone_file(1.0))
    assert raw_times(tmp_path / "aus gabe ü.mp4") == raw_times(video)


def test_a_still_picture_is_held_for_as_long_as_there_is_sound(
    astronaut: np.ndarray,
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    portrait = av.VideoFrame.from_ndarray(np.ascontiguousarray(astronaut[:301, 100:401]), "rgb24")
    portrait.save(tmp_path / "portrait.png")
    summary = job(tmp_path / "portrait.png", tmp_path / "out.mp4", tone_file(0.81))
    assert (summary.frames, summary.faces) == (21, 21)
    assert raw_times(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(21)]
    with av.open(str(tmp_path / "out.mp4")) as result:
        assert result.streams.video[0].pix_fmt == "yuv420p"
    job(Input(tmp_path / "portrait.png", fps=Fraction(30)), tmp_path / "30.mp4", tone_file(0.5))
    assert len(raw_times(tmp_path / "30.mp4")) == 15
    assert job(tmp_path / "portrait.png", tmp_path / "one.mp4", extend="trim").frames == 1


def test_an_avif_is_held_like_any_picture(
    astronaut: np.ndarray,
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    images = pytest.importorskip("PIL.Image", reason="writes AVIF")
    if not pytest.importorskip("PIL.features", reason="knows it").check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    images.fromarray(astronaut[:300, 100:400]).save(tmp_path / "portrait.avif")
    summary = job(tmp_path / "portrait.avif", tmp_path / "out.mp4", tone_file(0.41))
    assert (summary.frames, summary.faces, summary.notes) == (11, 11, [])
    assert raw_times(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(11)]


def test_numbered_pictures(
    portrait_clip: Callable[..., Path], job: Callable[..., Summary], tmp_path: Path
) -> None:
    with VideoSource(portrait_clip("in.mp4", TIMES)) as source:
        for frame in source:
            frame.picture.save(tmp_path / f"{frame.index + 3:03d}.png")
    pictures = Input(tmp_path / "%03d.png", fps=Fraction(50))
    assert job(pictures, tmp_path / "out.mp4").faces == 14
    assert raw_times(tmp_path / "out.mp4") == [Fraction(i, 50) for i in range(14)]


def test_transparency_goes_through(
    portrait_clip: Callable[..., Path], job: Callable[..., Summary], tmp_path: Path
) -> None:
    clip = tmp_path / "in.webm"
    with VideoSource(portrait_clip("in.mp4", TIMES)) as source, av.open(str(clip), "w") as target:
        stream: Any = target.add_stream("libvpx-vp9", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 160, "yuva420p"
        for frame in source:
            picture = frame.picture.reformat(format="yuva420p")
            planes(picture)[3][:] = np.arange(160)
            picture.pts, picture.time_base = frame.index, Fraction(1, 25)
            target.mux(stream.encode(picture))
        target.mux(stream.encode(None))
    assert job(clip, tmp_path / "out.webm").notes == []
    with VideoSource(tmp_path / "out.webm") as result:
        for frame in result:
            alpha = planes(frame.picture)[3]
            assert np.abs(alpha.astype(int) - np.arange(160)).mean() < 3
    notes = job(clip, tmp_path / "out.mp4").notes
    assert any("transparency was left out" in note for note in notes)


def test_a_pipe_gives_both_tracks(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    both = with_sound(portrait_clip("in.mp4", TIMES), tone_file(0.4), tmp_path / "both.mkv")
    # x264 gives other bytes for the same frames now and then; without loss it gives the frames.
    lossless = Encoding(crf=0)
    wanted = job(both, tmp_path / "file.mkv", both, encoding=lossless)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(both.read_bytes()), daemon=True)
    feeder.start()
    found = job(pipe, tmp_path / "pipe.mkv", pipe, encoding=lossless)
    feeder.join(5)
    assert (found.frames, found.faces, found.video_s) == (10, 10, wanted.video_s)
    pairs = zip(frames_of(tmp_path / "file.mkv"), frames_of(tmp_path / "pipe.mkv"), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_piped_soundtrack_is_kept_to_the_end_of_a_long_frame(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    with VideoSource(portrait_clip("in.mp4", TIMES[:3])) as source:
        for frame in source:
            frame.picture.save(tmp_path / f"{frame.index}.png")
    video = Input(tmp_path / "%d.png", fps=Fraction(2, 5))
    audio, pipe = tone_file(7.5), tmp_path / "pipe"
    job(video, tmp_path / "file.mkv", audio)
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(audio.read_bytes()), daemon=True)
    feeder.start()
    job(video, tmp_path / "pipe.mkv", pipe)
    feeder.join(5)
    wanted = all_samples(AudioSource(tmp_path / "file.mkv"))
    assert np.abs(wanted[:, -4800:]).max() > 0.1  # there is sound to lose
    assert np.array_equal(all_samples(AudioSource(tmp_path / "pipe.mkv")), wanted)


def test_a_sound_of_a_pipe_that_nobody_takes_does_not_pile_up(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = with_sound(portrait_clip("in.mp4", TIMES), tone_file(0.56), tmp_path / "both.mkv")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(both.read_bytes()), daemon=True).start()
    monkeypatch.setattr("dithead.runtime.media.inputs._APART_BYTES", 20_000)  # the sound has 24,000
    assert job(pipe, tmp_path / "out.mp4").frames == 14


def test_what_can_be_read_once_cannot_be_repeated(
    job: Callable[..., Summary], tmp_path: Path
) -> None:
    for extend in ("loop", "pingpong"):
        with pytest.raises(
            ConfigError, match="can be read only once, so it cannot be played again"
        ):
            job("-", tmp_path / "out.mp4", extend=extend)


def test_output_onto_an_input_is_refused(
    portrait_clip: Callable[..., Path], job: Callable[..., Summary], tmp_path: Path
) -> None:
    video = portrait_clip("in.mp4", TIMES)
    before = video.read_bytes()
    (tmp_path / "link.mp4").symlink_to(video)
    for name in ("in.mp4", "link.mp4", "./in.mp4"):
        with pytest.raises(MediaError, match="is one of the inputs"):
            job(Input(video), f"{tmp_path}/{name}")
    assert video.read_bytes() == before


def test_interlaced_video_is_said_to_be(
    portrait_clip: Callable[..., Path], job: Callable[..., Summary], tmp_path: Path
) -> None:
    path = tmp_path / "interlaced.mkv"
    with VideoSource(portrait_clip("in.mp4", TIMES)) as source, av.open(str(path), "w") as target:
        stream: Any = target.add_stream("libx264", rate=25, options={"x264opts": "tff=1:bframes=0"})
        stream.width, stream.height, stream.pix_fmt = 160, 160, "yuv420p"
        for frame in source:
            frame.picture.pts, frame.picture.time_base = frame.index, Fraction(1, 25)
            target.mux(stream.encode(frame.picture))
        target.mux(stream.encode(None))
    summary = job(path, tmp_path / "out.mp4")
    assert (summary.frames, summary.faces) == (14, 14)
    assert any("interlaced" in note for note in summary.notes)


def test_a_truncated_video_is_used_and_said_to_be_truncated(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    video, audio = portrait_clip("in.mkv", TIMES), tone_file(0.4)
    video.write_bytes(video.read_bytes()[:-1000])
    audio.write_bytes(audio.read_bytes()[:-100])
    notes = job(video, tmp_path / "out.mp4", audio).notes
    assert f"{video}: the file is truncated: 1,000 bytes are missing at its end" in notes
    assert f"{audio}: the file is truncated: 100 bytes are missing at its end" in notes


def test_what_is_beside_the_picture_is_carried_or_named(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    clip, rich = portrait_clip("in.mp4", TIMES), tmp_path / "rich.mkv"
    with av.open(str(clip)) as source, av.open(str(rich), "w") as target:
        target.metadata["title"] = "A title"
        video = target.add_stream_from_template(source.streams.video[0])
        sounds: list[Any] = [target.add_stream("aac", rate=16000, layout="mono") for _ in range(2)]
        sounds[1].metadata["language"] = "deu"
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        for sound in sounds:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 9000), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 16000, 0
            target.mux([*sound.encode(frame), *sound.encode(None)])
    found = {}
    for name, settings in (("out.mp4", {}), ("out.webm", {}), ("bare.mp4", {"keep_tracks": False})):
        summary = job(rich, tmp_path / name, **settings)
        with av.open(str(tmp_path / name)) as result:
            languages = [stream.metadata.get("language") for stream in result.streams.audio]
            found[name] = (languages, result.metadata.get("title"), summary.notes)
    assert found["out.mp4"] == (["und", "deu"], "A title", [])
    no_room = f"left out of {tmp_path / 'out.webm'}: audio track 2 (aac, deu)"
    assert found["out.webm"] == ([None], "A title", [no_room])
    assert found["bare.mp4"] == (["und"], None, [])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=lambda: pipe.write_bytes(rich.read_bytes()), daemon=True).start()
    job(pipe, tmp_path / "piped.mp4")
    with (
        av.open(str(tmp_path / "piped.mp4")) as piped,
        av.open(str(tmp_path / "out.mp4")) as result,
    ):
        both = [[bytes(p) for p in c.demux(c.streams.audio[1]) if p.size] for c in (piped, result)]
        assert len(both[1]) > 5
        assert both[0][: len(both[1]) - 2] == both[1][:-2]
        assert piped.metadata["title"] == "A title"


def test_recordings_that_were_joined_follow_each_other_and_it_is_said(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    job: Callable[..., Summary],
    tmp_path: Path,
) -> None:
    part = portrait_clip("part.ts", TIMES).read_bytes()
    (tmp_path / "joined.ts").write_bytes(2 * part)
    summary = job(tmp_path / "joined.ts", tmp_path / "out.mp4", tone_file(2.0))
    assert raw_times(tmp_path / "out.mp4") == [Fraction(i, 25) for i in range(28)]
    wanted = "the clock of the video goes back, or starts anew, once: the pieces follow each other"
    assert wanted in summary.notes


def test_a_server_gets_the_video_at_the_pace_of_playing(
    portrait_clip: Callable[..., Path], job: Callable[..., Summary], tmp_path: Path
) -> None:
    video, taken = portrait_clip("in.mp4", TIMES), tmp_path / "taken.mkv"
    address = free_address()
    with beside(LISTENER, address, str(taken)):
        end = time.monotonic() + 30
        while True:
            try:
                summary = job(video, address)
                break
            except MediaError:
                assert time.monotonic() < end
                time.sleep(0.1)
    assert summary.frames == 14
    assert summary.seconds >= 13 / 25
    assert len(raw_times(taken)) == 14


def test_standard_input_and_output(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    random_models: TorchGraphs,
    tmp_path: Path,
) -> None:
    both = with_sound(portrait_clip("in.mp4", TIMES), tone_file(0.56), tmp_path / "both.mkv")
    weights = tmp_path / "random.safetensors"
    model = random_models.dithead
    checkpoint.save(weights, model.state_dict(), model.config.to_dict())
    command = [sys.executable, "-c", RUN, "-", "-", "-o", "-", "--format", "mp4", "--json"]
    command += ["--checkpoint", str(weights), "--steps", "1", "--threads", "1", "--crf", "0"]
    with both.open("rb") as given:
        done = subprocess.run(command, stdin=given, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b'"faces": 14' in done.stderr
    out = tmp_path / "out.mp4"
    out.write_bytes(done.stdout)
    assert said(out)["synthetic_media"] == "yes"
    command[3:9] = [str(both), str(both), "-o", str(tmp_path / "file.mkv")]
    subprocess.run([*command, "--quiet"], check=True, timeout=120)
    pairs = itertools.zip_longest(frames_of(out), frames_of(tmp_path / "file.mkv"))
    assert all(np.array_equal(a, b) for a, b in pairs)
