"""Small clips for the tests of media, written by PyAV alone, so that nothing under test takes part,
and what they are compared by."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.runtime.media.videoframe import VideoFrame, planes

# Plays the server that an RTMP client expects: takes what is sent, and copies it into a file.
LISTENER = """
import sys, av
source = av.open(sys.argv[1], options={"listen": "1"}, timeout=30)
with av.open(sys.argv[2], "w") as target:
    streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
    try:
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    except av.error.OSError:  # the other side has gone, which is the end
        pass
"""
PUBLISHER = """
import sys, time, av
source = av.open(sys.argv[1])
end = time.monotonic() + 30
while True:
    try:
        target = av.open(sys.argv[2], "w", format="flv")
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        target.start_encoding()
        break
    except av.FFmpegError:
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
for packet in source.demux():
    if packet.dts is not None:
        packet.stream = streams[packet.stream_index]
        target.mux(packet)
target.close()
"""

Times = tuple[list[int], Fraction]

# Presentation times in ticks and the tick in seconds. The variable rate has 25, 40, 10 and 50 fps.
RATES: dict[str, tuple[Fraction, Times]] = {
    "25": (Fraction(25), (list(range(40)), Fraction(1, 25))),
    "29.97": (Fraction(30000, 1001), ([1001 * i for i in range(40)], Fraction(1, 30000))),
    "23.976": (Fraction(24000, 1001), ([1001 * i for i in range(40)], Fraction(1, 24000))),
    "30": (Fraction(30), ([512 * i for i in range(40)], Fraction(1, 15360))),
    "60": (Fraction(60), ([1500 * i for i in range(40)], Fraction(1, 90000))),
    "50": (Fraction(50), ([256 * i for i in range(40)], Fraction(1, 12800))),
    "variable": (
        Fraction(25),
        (list(itertools.accumulate([0, *[40, 25, 100, 20] * 8])), Fraction(1, 1000)),
    ),
    "late": (Fraction(25), ([250 + 40 * i for i in range(20)], Fraction(1, 1000))),
}


def picture(index: int, width: int, height: int, pix_fmt: str, seed: int | None = None) -> Any:
    """A gradient that moves with the index, or noise, at levels that any RGB conversion keeps."""
    result = av.VideoFrame(width, height, pix_fmt)
    shift = result.format.components[0].bits - 8
    rng = np.random.default_rng(seed)
    for number, plane in enumerate(planes(result)):
        rows, columns = np.indices(plane.shape)
        level = 60 + (rows + 3 * columns + 5 * index) % 120 if number == 0 else 118 + rows % 20
        if seed is not None:
            low, high = (60, 180) if number == 0 else (108, 148)
            level = rng.integers(low, high, plane.shape)
        plane[:] = (level << shift) + (rng.integers(0, 1 << shift) if shift else 0)
    return result


def tone(rate_hz: int, seconds: float) -> np.ndarray:
    """Short bursts of 900 Hz, one every half second from 0.25 s on: (S,) float32."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    bursts = [
        np.exp(-(((time_s - at) / 0.0008) ** 2)) * np.cos(2 * np.pi * 900 * (time_s - at))
        for at in np.arange(0.25, seconds, 0.5)
    ]
    return (0.8 * np.sum(bursts, axis=0)).astype(np.float32)


def write_clip(
    path: Path,
    *,
    rate: str = "25",
    count: int | None = None,
    size: tuple[int, int] = (64, 48),
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_rate_hz: int = 44100,
    sound_start_s: Fraction = Fraction(0),
    **stream_properties: Any,
) -> Path:
    """Write a test clip by PyAV alone, so that nothing under test takes part."""
    average, (times, time_base) = RATES[rate]
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        video: Any = container.add_stream(codec, rate=average, options=options or {})
        video.width, video.height, video.pix_fmt = *size, pix_fmt
        video.time_base = video.codec_context.time_base = time_base
        video.codec_context.max_b_frames = b_frames
        rotation = stream_properties.pop("rotation", 0)
        for name, value in stream_properties.items():
            setattr(video.codec_context, name, value)
        if rotation:
            video.set_display_rotation(rotation)
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("aac", rate=sound_rate_hz, layout="mono")
        container.start_encoding()
        for index, pts in enumerate(times[:count]):
            frame = picture(index, *size, pix_fmt)
            frame.pts, frame.time_base = pts, time_base
            following = times[index + 1] if index + 1 < len(times) else pts + times[1] - times[0]
            frame.duration = following - pts
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[None], "fltp", "mono")
            frame.sample_rate, frame.time_base = sound_rate_hz, Fraction(1, sound_rate_hz)
            frame.pts = round(sound_start_s * sound_rate_hz)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def declared_interlaced(image: av.VideoFrame) -> av.VideoFrame:
    """The same picture with FFmpeg's mark of an interlaced one."""
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=image.width, height=image.height, format=image.format, time_base=Fraction(1, 25)
    )
    mark, sink = graph.add("setfield", "mode=tff"), graph.add("buffersink")
    source.link_to(mark)
    mark.link_to(sink)
    graph.configure()
    graph.push(image)
    marked = graph.pull()
    assert isinstance(marked, av.VideoFrame)
    assert marked.interlaced_frame
    return marked


def write_gif(path: Path, count: int) -> Path:
    """Write a GIF of so many frames, ten a second, by PyAV alone."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("gif", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8"
        for index in range(count):
            frame = picture(index, 64, 48, "yuv420p").reformat(format="rgb8")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_wav(path: Path, sound: np.ndarray, rate_hz: int = 16000, layout: str = "mono") -> Path:
    """Write (S,) float32 as 16-bit PCM, the same on each channel."""
    channels = av.AudioLayout(layout).nb_channels
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=rate_hz, layout=layout)
        container.start_encoding()
        if len(sound):
            packed = np.repeat((sound * 32767).astype(np.int16), channels)[None]
            frame = av.AudioFrame.from_ndarray(packed, "s16", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def raw_times(path: Path) -> list[Fraction]:
    """Presentation times in seconds as PyAV alone decodes them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [frame.pts * stream.time_base for frame in container.decode(stream)]


def copy_through(source: VideoSource, path: Path, crf: int | None = None, **options: Any) -> Path:
    preset = None if path.suffix == ".webm" else "ultrafast"
    encoding = Encoding(crf=crf, preset=preset)
    with VideoSink(path, source.info, encoding=encoding, **options) as sink:
        for frame in source:
            sink.write(frame)
    return path


def same_planes(a: VideoFrame, b: VideoFrame) -> bool:
    pairs = zip(planes(a.picture), planes(b.picture), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def as_frame(image: Any) -> VideoFrame:
    return VideoFrame(index=0, pts=0, time_base=Fraction(1, 25), duration=1, picture=image)


def all_samples(source: AudioSource) -> np.ndarray:
    return np.concatenate([frame.to_ndarray() for frame in source.original()], axis=1)


def lag_s(found: np.ndarray, wanted: np.ndarray, rate_hz: int) -> float:
    """By how much one sound comes after another, from their cross-correlation within 0.2 s."""
    length = 1 << 18
    spectrum = np.fft.rfft(found, length) * np.conj(np.fft.rfft(wanted, length))
    near = round(0.2 * rate_hz)
    correlation = np.roll(np.fft.irfft(spectrum, length), near)[: 2 * near]
    return (int(np.argmax(correlation)) - near) / rate_hz


def said(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    with av.open(str(path)) as container:
        tags = dict(container.metadata)
        for program in container.streams.video[0].metadata, getattr(container, "programs", ()):
            tags.update(program if isinstance(program, dict) else {})
        return {name.lower(): value for name, value in tags.items()}


@contextmanager
def beside(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, waited for at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
    finally:
        process.kill()


def heed_interrupts() -> None:
    """For a new process: a test run in the background hands an ignored SIGINT down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"rtmp://127.0.0.1:{probe.getsockname()[1]}/live/clip"
