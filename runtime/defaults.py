"""Defaults of a run that depend only on the machine."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal

IN_FLIGHT = 6
"""Frames in progress at a time: fewer cost throughput, more cost latency."""

WAITING = 24
"""Pushed frames that may wait for their sound: up to 0.38 s of it with `tiny`, 0.74 s (23 frames at
30 fps) with other presets."""


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads(overlap: bool) -> int:
    """CPU threads of each stage. If stages run in parallel, a quarter of the cores, as the slowest
    stage does about a third of a run's work and others run beside it. (Measured on two cores, where
    one thread is best.)"""
    cores = available_cores()
    return max(1, cores // 4) if overlap else cores


def default_backend(device: str) -> Literal["torch", "onnxruntime"]:
    """What runs a checkpoint where no back end was asked for: on a CPU ONNX Runtime, if it is
    installed, as it is faster."""
    return "onnxruntime" if device == "cpu" and find_spec("onnxruntime") else "torch"
