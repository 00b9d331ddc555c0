"""What the C library's example ``revoice`` does, in Python: raw RGB frames in, raw frames out.

Run by :mod:`dithead.bench.clibrary` as ``python -m dithead.bench.rawframes``.
"""

from __future__ import annotations

import argparse
import sys
import threading
import wave
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from dithead.options import Options
from dithead.runtime.backends import RuntimeGraphs, open_graphs
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.runtime.session import Session
from dithead.runtime.stream import Stream


def opened(bundle: Path, threads: int, mixed: bool) -> RuntimeGraphs:
    """A bundle's graphs on the CPU: all in ONNX Runtime, as in C, or only the networks."""
    torch.set_num_threads(1)
    if mixed:
        return open_graphs("onnxruntime", bundle=bundle, threads=threads)
    graphs = OnnxGraphs(bundle, "cpu", threads)
    graphs.preload()
    return graphs


def feed(stream: Stream, frames: BinaryIO, width: int, height: int, rate: Fraction) -> None:
    """Push all frames of a file."""
    index = 0
    while len(pixels := frames.read(width * height * 3)) == width * height * 3:
        image = np.frombuffer(bytearray(pixels), np.uint8).reshape(height, width, 3)
        pts_us = round(index / rate * 1_000_000)
        stream.push_frame(image, Fraction(pts_us, 1_000_000))
        index += 1
    stream.finish()


def main() -> None:
    """Re-voice standard input onto standard output."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--size", required=True)
    parser.add_argument("--rate", type=Fraction, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--mixed", action="store_true")
    args = parser.parse_args()
    width, height = (int(side) for side in args.size.split("x"))
    session = Session(opened(args.bundle, args.threads, args.mixed))
    with wave.open(str(args.speech)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
    with session.open_stream(Options(steps=args.steps)) as stream, args.frames.open("rb") as frames:
        stream.push_audio(samples)
        stream.finish_audio()
        thread = threading.Thread(target=feed, args=(stream, frames, width, height, args.rate))
        thread.start()
        for frame in stream.frames():
            sys.stdout.buffer.write(frame.image.tobytes())
            sys.stdout.buffer.flush()
        thread.join()


if __name__ == "__main__":
    main()
