"""Long runs: memory stays where it is, no frame is lost, nothing drifts."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest

# Memory of the process's own: pages that are mapped from files come and go with the page cache. The
# median of each hundred frames, as what is held depends on how far each stage is at that moment.
# Matroska, as an MP4 must keep its index until the end: 0.2 kB a frame (docs/architecture.md).
SOAK = """
import json, re, statistics, sys
from pathlib import Path
import torch
from dithead.torchgraphs import TorchGraphs
from dithead.options import Options
from dithead.runtime.pipeline import stream_file

torch.set_num_threads(1)
hundred, medians = [], []

def watch(frames, time_s):
    status = open("/proc/self/status").read()
    hundred.append(int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]))
    if len(hundred) == 100:
        medians.append(statistics.median(hundred))
        hundred.clear()

video, audio, output = map(Path, sys.argv[1:])
summary = stream_file(
    video, audio, output, TorchGraphs.load("tiny"), Options(steps=1), extend="loop", progress=watch
)
print(json.dumps([summary.frames, summary.faces, summary.fps, medians]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "frames",
    [
        pytest.param(2_000, marks=pytest.mark.slow),
        pytest.param(36_000, marks=pytest.mark.soak),
    ],
)
def test_a_long_run(
    frames: int, carphone_clip: Path, tone_file: Callable[..., Path], tmp_path: Path
) -> None:
    rate, output = Fraction(30000, 1001), tmp_path / "out.mkv"
    audio = tone_file(float((frames - Fraction(1, 2)) / rate))
    command = [sys.executable, "-c", SOAK, str(carphone_clip), str(audio), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    made, faces, fps, held = json.loads(done.stdout)
    print(f"{frames} frames, {fps:.1f} fps, median memory of each hundred in kB: {held}")
    assert (made, faces) == (frames, frames)
    with av.open(str(output)) as container:
        video = container.streams.video[0]
        times = [packet.pts * video.time_base for packet in container.demux(video) if packet.size]
    with av.open(str(output)) as container:
        ends = [f.time + f.samples / f.sample_rate for f in container.decode(audio=0)]
    period = 1 / rate
    assert len(times) == frames
    assert max(abs(at - n * period) for n, at in enumerate(sorted(times))) < period / 2
    assert abs(ends[-1] - float(frames * period)) <= float(period)
    settled = held[10:]
    assert len(settled) == frames // 100 - 10
    # Memory that the allocator gives back is no fault: only what is held beyond the usual counts.
    assert max(settled) <= 1.02 * statistics.median(settled), held
    first, last = settled[: len(settled) // 3], settled[-len(settled) // 3 :]
    assert statistics.median(last) <= 1.02 * statistics.median(first), held
