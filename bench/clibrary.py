"""The C library against Python: ``python -m dithead.bench.clibrary REVOICE BUNDLE``.

Both re-voice the same raw frames, each in a process of its own, in turn, and write raw frames. C is
the example program ``revoice``; Python is a session's stream with every graph in ONNX Runtime, as
in C, and once more with PyTorch for the graphs without weights, as ``dithead stream`` runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from dithead import footage
from dithead.bench.machine import describe
from dithead.bench.measure import write_speech
from dithead.errors import StreamError

RATE = Fraction(30_000, 1_001)


@dataclass(frozen=True, slots=True)
class Figures:
    """One run."""

    fps: float
    """From the first frame that came out to the last."""
    first_frame_s: float
    """From the start of the process to the first frame."""
    peak_mib: float
    """The most memory that the process held."""
    sha256: str
    """Of all frames."""


def write_inputs(folder: Path, width: int, height: int, frames: int) -> tuple[Path, Path]:
    """Raw frames of the packaged clip, again and again, and as much of the packaged speech."""
    pictures = folder / "frames.rgb"
    with av.open(str(footage.carphone())) as container:
        decoded = [
            frame.to_ndarray(width=width, height=height, format="rgb24")
            for frame in container.decode(video=0)
        ]
    with pictures.open("wb") as file:
        for image in islice(cycle(decoded), frames):
            file.write(np.ascontiguousarray(image).tobytes())
    return pictures, write_speech(footage.speech(), folder / "speech.wav", frames / RATE)


def run(command: list[str], size: int, frames: int) -> Figures:
    """Run a program that writes frames of so many bytes to standard output.

    Raises:
        StreamError: it failed, or gave another number of frames.
    """
    digest, began_s, first_s, count = hashlib.sha256(), time.perf_counter(), 0.0, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        while len(pixels := process.stdout.read(size)) == size:
            count += 1
            first_s = first_s or time.perf_counter()
            digest.update(pixels)
        last_s = time.perf_counter()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or count != frames:
        raise StreamError(f"{command[0]} ended with {process.returncode} after {count} frames")
    fps = (count - 1) / (last_s - first_s)
    return Figures(fps, first_s - began_s, used.ru_maxrss / 1024, digest.hexdigest())


def compare(
    revoice: Path, bundle: Path, *, width: int, height: int, frames: int, rounds: int
) -> dict[str, Any]:
    """Medians of each program over rounds in turn, and C against both Pythons."""
    found: dict[str, list[Figures]] = {"c": [], "python": [], "python_mixed": []}
    with tempfile.TemporaryDirectory() as folder:
        pictures, speech = write_inputs(Path(folder), width, height, frames)
        size = ["--size", f"{width}x{height}", "--rate", str(RATE)]
        size += ["--steps", "1", "--threads", "1"]
        python = [sys.executable, "-m", "dithead.bench.rawframes", str(bundle), str(speech)]
        python += [str(pictures), *size]
        commands = {
            "c": [str(revoice), *size, "--in", str(pictures), str(bundle), str(speech)],
            "python": python,
            "python_mixed": [*python, "--mixed"],
        }
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(run(command, width * height * 3, frames))
    medians = {
        name: {
            what: statistics.median(getattr(one, what) for one in all_of)
            for what in ("fps", "first_frame_s", "peak_mib")
        }
        for name, all_of in found.items()
    }
    c = medians["c"]
    return {
        "machine": describe(torch.device("cpu")),
        "same_frames": len({one.sha256 for name in ("c", "python") for one in found[name]}) == 1,
        "medians": medians,
        "fps_against": {n: c["fps"] / medians[n]["fps"] for n in ("python", "python_mixed")},
        "first_frame_against": {
            n: c["first_frame_s"] / medians[n]["first_frame_s"] for n in ("python", "python_mixed")
        },
        "runs": {name: [asdict(one) for one in all_of] for name, all_of in found.items()},
    }


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(prog="python -m dithead.bench.clibrary")
    parser.add_argument("revoice", type=Path, help="the example, built by make capi")
    parser.add_argument("bundle", type=Path, help="all graphs for a CPU, from dithead-export")
    parser.add_argument("--size", default="360x288")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    measured = {"width": width, "height": height, "frames": args.frames, "rounds": args.rounds}
    print(json.dumps(compare(args.revoice, args.bundle, **measured), indent=1))


if __name__ == "__main__":
    main()
