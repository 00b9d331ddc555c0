"""Inputs of every kind: numbered pictures, clocks that start anew, tracks, names."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    all_samples,
    tone,
    write_clip,
    write_wav,
)

from dithead.errors import ConfigError, MediaError
from dithead.runtime.media.inputs import Input
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource


def write_pictures(folder: Path, first: int, count: int) -> Path:
    """Numbered PNGs; their pattern."""
    folder.mkdir()
    for number in range(first, first + count):
        image = av.VideoFrame.from_ndarray(
            np.full((48, 64, 3), 20 * (number - first) + 30, np.uint8), "rgb24"
        )
        image.save(folder / f"Bild {number:04d}.png")
    return folder / "Bild %04d.png"


def test_pictures_in_a_row(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path / "Bilder", 7, 5)
    with VideoSource(Input(pattern, fps=Fraction(10))) as source:
        frames = list(source)
        assert not source.info.still
        assert source.info.average_rate == 10
        assert [frame.time_s for frame in source] == [Fraction(i, 10) for i in range(5)]
    levels = [int(frame.rgb().mean()) for frame in frames]
    assert np.abs(np.subtract(levels, [30, 50, 70, 90, 110])).max() <= 1
    with VideoSource(pattern) as source:
        assert [frame.time_s for frame in source] == [Fraction(i, 25) for i in range(5)]


def test_a_number_that_is_missing_is_named(tmp_path: Path) -> None:
    pattern = write_pictures(tmp_path / "frames", 4, 6)
    (pattern.parent / "Bild 0006.png").unlink()
    with pytest.raises(MediaError, match=r"no number 6, and 9 is the last: .* without gaps"):
        VideoSource(Input(pattern))


def test_ffmpegs_own_pictures() -> None:
    with VideoSource(Input("testsrc=duration=0.2:size=64x48:rate=25", "lavfi")) as source:
        assert len(list(source)) == 5


@pytest.mark.parametrize("starts_s", [0, 300])
def test_a_stream_whose_clock_starts_anew_goes_on(tmp_path: Path, starts_s: int) -> None:
    options = {"output_ts_offset": str(starts_s)}
    sound = tone(44100, 1.6)
    parts = [
        write_clip(tmp_path / "a.ts", sound=sound),
        write_clip(tmp_path / "b.ts", sound=sound, container_options=options),
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoSource(joined) as source:
        frames = list(source)
    assert len(frames) == 80
    assert frames[-1].end_s == pytest.approx(3.2, abs=0.05)
    assert float(AudioSource(joined).duration_s) == pytest.approx(3.2, abs=0.1)


def test_a_clock_that_goes_back_a_little_goes_on(tmp_path: Path) -> None:
    part = write_clip(tmp_path / "a.ts", count=20, sound=tone(44100, 0.8)).read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(3 * part)
    with VideoSource(joined) as source:
        frames = list(source)
        assert source.restarts == 2
    assert [frame.time_s for frame in frames] == [
        frames[0].time_s + Fraction(i, 25) for i in range(60)
    ]
    sound = AudioSource(joined)
    samples = all_samples(sound)[0]
    assert sound.restarts == 2
    assert len(samples) / 44100 == pytest.approx(2.4, abs=0.15)  # blocks of AAC
    bursts = np.abs(samples[: len(samples) // 256 * 256]).reshape(-1, 256).max(1) > 0.4
    assert np.diff(bursts.astype(int)).clip(0).sum() == 6  # two in each part, none cut


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda folder: Input(folder), "a folder; expected a media file, or a pattern"),
        (lambda folder: Input(folder / "%04d.png"), "no picture of that pattern"),
        (lambda folder: Input(folder / "%d" / "a.png"), "belongs in its name"),
        (lambda folder: Input(folder / "in.mp4", fps=Fraction(10)), "a frame rate of its own, 25"),
        (lambda folder: Input(folder / "in.mp4", "rawvideo"), "not a readable"),
        (lambda folder: Input("rtmp://127.0.0.1:9/live"), "not a readable"),
    ],
)
def test_inputs_that_cannot_be(tmp_path: Path, given: Callable[[Path], Input], reason: str) -> None:
    write_clip(tmp_path / "in.mp4", count=2)
    with pytest.raises(MediaError, match=reason):
        VideoSource(given(tmp_path))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="FFmpeg knows no format 'nonsense'"):
        Input("in.mp4", "nonsense")
    with pytest.raises(ConfigError, match="audio tracks count from 0"):
        Input("in.mp4", audio_track=-1)
    with pytest.raises(ConfigError, match="frame rate must be above 0"):
        Input("in.mp4", fps=Fraction(0))


def test_an_audio_track_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in range(3)]
        for number, stream in enumerate(streams):
            samples = np.full((1, 1600), 1000 * (number + 1), np.int16)
            frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
            frame.sample_rate, frame.pts = 16000, 0
            container.mux(stream.encode(frame))
    for number in range(3):
        samples = all_samples(AudioSource(Input(path, audio_track=number)))
        assert np.allclose(samples, 1000 * (number + 1) / 32768, atol=1e-4)
    with pytest.raises(MediaError, match="no audio track 3; it has 3, counted from 0"):
        AudioSource(Input(path, audio_track=3))


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "take 1.mp4", count=3).rename("take:1.mp4")
    write_wav(tmp_path / "ton.wav", tone(16000, 0.6)).rename("rtmp:ton.wav")
    with VideoSource("take:1.mp4") as source:
        assert len(list(source)) == 3
        with VideoSink("out:1.mp4", source.info, encoding=Encoding(crf=30)) as sink:
            for frame in source:
                sink.write(frame)
    assert Path("out:1.mp4").is_file()
    assert AudioSource("rtmp:ton.wav").sample_rate_hz == 16000
