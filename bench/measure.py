"""Measures one case and prints its figures as JSON: ``python -m dithead.bench.measure CASE``.

Run by :func:`dithead.bench.case.run_case`. A frame's latency is the time from the start of its
decoding (or its push) until the encoder has it (or it is pulled). The real-time factor is the time
spent on a second of video: below 1 is faster than real time.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import tempfile
import threading
import time
import wave
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from fractions import Fraction
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dithead.bench.case import Case
from dithead.errors import DitheadError, MediaError
from dithead.options import Options
from dithead.runtime.backends import RuntimeGraphs, limit_threads, open_graphs
from dithead.runtime.defaults import WAITING, available_cores
from dithead.runtime.media.sources import SPEECH_RATE_HZ, AudioSource, VideoSource
from dithead.runtime.pipeline import stream_file
from dithead.runtime.schedule.trace import Span, Trace
from dithead.runtime.session import Session
from dithead.runtime.stream import Stream

TALK_FRAMES = 15
"""Frames of each speech before it is interrupted."""

SHOWN_FRAMES = 12
"""Number of frames for which the report draws when each stage worked on them."""


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile and mean, in milliseconds."""
    values = 1000 * np.asarray(seconds, float)
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "mean": float(values.mean())}


def measure(case: Case) -> dict[str, Any]:
    """Load the model, run the case, and return its figures.

    Raises:
        DitheadError: the run's own error.
    """
    start = time.perf_counter()
    limit_threads(case.backend, case.threads)
    graphs = open_graphs(
        case.backend,
        checkpoint=case.checkpoint,
        bundle=case.bundle,
        device=case.device,
        audio_weights=case.audio_weights,
        threads=case.threads,
    )
    loaded_s = time.perf_counter() - start
    meter = _Meter(graphs.device)
    with tempfile.TemporaryDirectory() as folder:
        run = {"file": _run_file, "sessions": _run_sessions, "talk": _run_talk}[case.kind]
        figures = run(case, graphs, Path(folder), meter)
    figures |= meter.figures()
    figures["load_s"] = loaded_s
    figures["precision"] = graphs.precision
    figures["case"] = asdict(case)
    return figures


class _Meter:
    """Memory, energy and processor load, from the end of the warm-up to the end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._nvml, self._handle = _nvml(device)
        self._started: tuple[float, float, float | None] | None = None
        self._stopped: tuple[float, float, float | None] | None = None

    def start(self) -> None:
        if self._started is None:
            self._started = self._now()

    def stop(self) -> None:
        self._stopped = self._now()

    def figures(self) -> dict[str, Any]:
        assert self._started is not None
        assert self._stopped is not None
        wall, cpu = (b - a for a, b in zip(self._started[:2], self._stopped[:2], strict=True))
        joules = None
        if self._started[2] is not None and self._stopped[2] is not None:
            joules = self._stopped[2] - self._started[2]
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "wall_s": wall,
            "cores_busy": cpu / wall,
            "cores": available_cores(),
            "host_peak_mib": peak_kb / (1024 if sys.platform != "darwin" else 2**20),
            "device_peak_mib": self._device_peak_mib(),
            "gpu_joules": joules,
        }

    def _now(self) -> tuple[float, float, float | None]:
        joules = None
        if self._nvml is not None:
            try:
                joules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000
            except self._nvml.NVMLError:
                self._nvml = None
        return time.perf_counter(), time.process_time(), joules

    def _device_peak_mib(self) -> float | None:
        """The most memory that PyTorch reserved; with engines, what is in use on the whole
        device."""
        if self._device.type != "cuda":
            return None
        reserved = torch.cuda.max_memory_reserved(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        return max(reserved, total - free) / 2**20


def _nvml(device: torch.device) -> tuple[Any, Any]:
    """NVML and its handle of a GPU, if the package and the GPU are there."""
    if device.type != "cuda":
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None, None


class _Timed:
    """Graphs of which one is timed: how long the judgement of a frame takes within its stage (on a
    CUDA device, until the work is queued).

    Attributes:
        seconds: duration of each run.
    """

    def __init__(self, graphs: RuntimeGraphs, name: str) -> None:
        self.seconds: list[float] = []
        self._graphs = graphs
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graphs, name)

    def run(self, name: str, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run a graph."""
        start = time.perf_counter()
        outputs = self._graphs.run(name, *inputs)
        if name == self._name:
            self.seconds.append(time.perf_counter() - start)
        return outputs


def _run_file(case: Case, graphs: RuntimeGraphs, folder: Path, meter: _Meter) -> dict[str, Any]:
    """From a file to a file: everything from decoding to encoding."""
    frames = case.warm_up + case.frames
    with VideoSource(case.video) as source:
        rate = source.info.average_rate
    audio = write_speech(Path(case.audio), folder / "audio.wav", (frames - Fraction(1, 2)) / rate)
    done_s: list[float] = []

    def progress(number: int, _: float) -> None:
        done_s.append(time.perf_counter())
        if number == case.warm_up:
            meter.start()

    trace = Trace()
    judged = _Timed(graphs, "face_judge")
    start = time.perf_counter()
    summary = stream_file(
        case.video,
        audio,
        folder / "out.mp4",
        judged,
        _options(case),
        backend=case.backend,
        interpolate=case.interpolate,
        extend="loop",
        in_flight=case.in_flight,
        batch=case.batch,
        overlap=case.overlap,
        progress=progress,
        trace=trace,
    )
    meter.stop()
    if summary.frames != frames:
        raise MediaError(f"expected {frames} frames, {summary.frames} came")
    spans = [span for span in trace.spans if case.warm_up <= span.frame < frames]
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    stages = defaultdict(list)
    for span in spans:
        begun[span.frame] = min(begun.get(span.frame, math.inf), span.start_s)
        ended[span.frame] = max(ended.get(span.frame, 0.0), span.end_s)
        stages[span.stage].append(span.end_s - span.start_s)
    seconds = done_s[-1] - done_s[case.warm_up - 1]
    return {
        "frames": case.frames,
        "faces": summary.faces,
        "size": [source.info.width, source.info.height],
        "video_fps": float(rate),
        "steps": summary.steps,
        "fps": case.frames / seconds,
        "real_time_factor": seconds * float(rate) / case.frames,
        "first_frame_s": done_s[0] - start,
        "latency_ms": percentiles([ended[n] - begun[n] for n in begun]),
        "stages_ms": {name: percentiles(times) for name, times in stages.items()},
        "judge_ms": percentiles(judged.seconds),
        "left_alone": dict(summary.left_alone),
        "spans": _shown(spans, case.warm_up),
        "chrome": trace.to_chrome(),
    }


def _run_sessions(case: Case, graphs: RuntimeGraphs, folder: Path, meter: _Meter) -> dict[str, Any]:
    """Streams of one session in parallel: from a pushed picture to a pulled one.

    Frames count if they are pulled after the last stream is warm; for latencies they must also be
    pushed after that.
    """
    with VideoSource(case.video) as source:
        rate, pictures = float(source.info.average_rate), [frame.rgb() for frame in source]
    length = case.warm_up + case.frames
    samples = _samples(Path(case.audio), math.ceil((length / rate + 1) * SPEECH_RATE_HZ))
    session = Session(graphs, case.batch)
    pushed_s, pulled_s = ([[0.0] * length for _ in range(case.streams)] for _ in range(2))
    warming = threading.Semaphore(case.streams - 1)
    failed: list[BaseException] = []

    def feed(stream: Stream, at_s: list[float]) -> None:
        try:
            said = 0
            if not case.pace:
                stream.push_audio(samples)
            start = time.perf_counter()
            for number, picture in enumerate(islice(cycle(pictures), length)):
                due_s = start + number / rate
                if case.pace:  # the sound, too, comes as it is spoken
                    time.sleep(max(0.0, due_s - time.perf_counter()))
                    spoken = round(number / rate * SPEECH_RATE_HZ)
                    stream.push_audio(samples[said:spoken])
                    said = spoken
                # A frame that has to wait for room still counts as late.
                at_s[number] = due_s if case.pace else time.perf_counter()
                stream.push_frame(picture, number / rate)
            stream.finish()
        except BaseException as error:
            failed.append(error)

    def speak(index: int) -> None:
        try:
            with session.open_stream(
                _options(case),
                interpolate=case.interpolate,
                in_flight=case.in_flight,
                waiting=WAITING if case.pace else 1,
            ) as stream:
                feeder = threading.Thread(target=feed, args=(stream, pushed_s[index]), daemon=True)
                feeder.start()
                for frame in stream.frames():
                    if frame.between:
                        continue
                    pulled_s[index][frame.index] = time.perf_counter()
                    last_to_be_warm = frame.index == case.warm_up - 1 and not warming.acquire(False)
                    if last_to_be_warm:
                        meter.start()
                feeder.join()
        except BaseException as error:
            failed.append(error)

    speakers = [threading.Thread(target=speak, args=(n,)) for n in range(case.streams)]
    for thread in speakers:
        thread.start()
    for thread in speakers:
        thread.join()
    meter.stop()
    if failed:
        raise failed[0]
    start_s = max(times[case.warm_up - 1] for times in pulled_s)
    pairs = zip(chain(*pushed_s), chain(*pulled_s), strict=True)
    counted = [pair for pair in pairs if pair[1] > start_s]
    seconds = max(end for _, end in counted) - start_s
    # None if frames were late from before the start.
    begun_since = [(begun, end) for begun, end in counted if begun > start_s] or counted
    return {
        "frames": len(counted),
        "size": list(pictures[0].shape[1::-1]),
        "video_fps": rate,
        "steps": case.steps or graphs.config.diffusion.steps,
        "fps": len(counted) / seconds,
        "real_time_factor": seconds * rate * case.streams / len(counted),
        "first_frame_s": max(b[0] - a[0] for a, b in zip(pushed_s, pulled_s, strict=True)),
        "latency_ms": percentiles([end - begun for begun, end in begun_since]),
    }


def _run_talk(case: Case, graphs: RuntimeGraphs, folder: Path, meter: _Meter) -> dict[str, Any]:
    """A stream that shows a clip at its own pace and is interrupted repeatedly: from
    ``flush_audio()`` to the first frame of the speech that is pushed at once."""
    samples = _samples(Path(case.audio), 10 * SPEECH_RATE_HZ)
    piece = SPEECH_RATE_HZ // 50
    session = Session(graphs)
    flushed_s: list[float] = []
    answered_s: list[float] = []
    with session.open_stream(
        _options(case),
        loop=case.video,
        idle="rest",
        in_flight=case.in_flight,
        interpolate=case.interpolate,
    ) as stream:

        def pull(count: int) -> None:
            for _ in range(count):
                stream.pull()

        def speak(stopped: threading.Event, begun_s: float) -> None:
            for number in range(samples.size // piece):
                if case.pace:
                    wait_s = begun_s + (number + 1) / 50 - time.perf_counter()
                    if wait_s > 0 and stopped.wait(wait_s):
                        return
                if stopped.is_set():
                    return
                stream.push_audio(samples[number * piece : (number + 1) * piece])

        pull(case.warm_up)
        meter.start()
        start_s, frames = time.perf_counter(), 0
        while frames < case.frames:
            begun_s = time.perf_counter()
            stream.flush_audio()
            flushed_s.append(time.perf_counter() - begun_s)
            stream.mark("speech")
            stopped = threading.Event()
            speaker = threading.Thread(target=speak, args=(stopped, begun_s))
            speaker.start()
            while True:
                frame = stream.pull()
                assert frame is not None
                frames += 1
                if any(event.kind == "began" for event in frame.events):
                    break
            answered_s.append(time.perf_counter() - begun_s)
            pull(TALK_FRAMES)
            frames += TALK_FRAMES
            stopped.set()
            speaker.join()
        seconds = time.perf_counter() - start_s
        meter.stop()
    with VideoSource(case.video) as source:
        rate, size = float(source.info.average_rate), [source.info.width, source.info.height]
    return {
        "frames": frames,
        "size": size,
        "video_fps": rate,
        "steps": case.steps or graphs.config.diffusion.steps,
        "fps": frames / seconds,
        "real_time_factor": seconds * rate / frames,
        "first_frame_s": answered_s[0],
        "latency_ms": percentiles(answered_s),
        "flush_ms": percentiles(flushed_s),
        "sound_ahead_ms": graphs.config.audio.longest_wait_ms,
    }


def _options(case: Case) -> Options:
    return Options(steps=case.steps, reference=case.reference, generate_every=case.generate_every)


def _samples(audio: Path, count: int) -> np.ndarray:
    """So many samples of a recording, repeated as needed: (S,) float32 at 16 kHz."""
    samples = np.concatenate(list(AudioSource(audio).blocks()))
    return np.resize(samples, count)


def write_speech(audio: Path, target: Path, seconds: Fraction) -> Path:
    """A recording of a given length, made from another."""
    samples = _samples(audio, round(seconds * SPEECH_RATE_HZ))
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SPEECH_RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return target


def _shown(spans: Sequence[Span], first: int) -> list[dict[str, Any]]:
    """When each stage worked on a few frames in the middle of a run, in milliseconds."""
    wanted = range(first + 5, first + 5 + SHOWN_FRAMES)
    kept = [span for span in spans if span.frame in wanted]
    origin = min((span.start_s for span in kept), default=0.0)
    return [
        {
            "stage": span.stage,
            "frame": span.frame,
            "start": round(1000 * (span.start_s - origin), 3),
            "end": round(1000 * (span.end_s - origin), 3),
        }
        for span in kept
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure the case given as JSON."""
    case = Case(**json.loads((argv or sys.argv[1:])[0]))
    try:
        figures = measure(case)
    except DitheadError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
