"""One measurement: what is measured, and how it runs in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dithead.errors import ConfigError, StreamError
from dithead.runtime.backends import Backend
from dithead.runtime.defaults import IN_FLIGHT

Kind = Literal["file", "sessions", "talk"]

PAPER_STEPS = 250
"""Denoising steps of the DiT-Head paper, one stage after the other."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured.

    Attributes:
        label: its name in a report.
        video, audio: repeated for as many frames as requested.
        frames: number of measured frames, after the ``warm_up`` frames.
        overlap: whether stages run in parallel.
        threads: CPU threads of each stage.
        batch: number of frames denoised together: of one stream, or, for ``sessions``, of several.
        streams: number of streams of one session at the same time (``sessions`` only).
        pace: whether a session's frames are pushed at the clip's rate instead of as fast as
            possible; for ``talk``, whether speech comes as it is spoken instead of all at once.
    """

    kind: Kind
    label: str
    video: str
    audio: str
    backend: Backend = "torch"
    checkpoint: str = "tiny"
    bundle: str | None = None
    audio_weights: str | None = None
    device: str = "cpu"
    steps: int | None = None
    frames: int = 120
    warm_up: int = 20
    overlap: bool = True
    threads: int = 1
    in_flight: int = IN_FLIGHT
    interpolate: int = 1
    generate_every: int = 1
    reference: Literal["previous", "fixed"] = "fixed"
    batch: int = 1
    streams: int = 1
    pace: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "threads", "in_flight", "batch", "streams"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.warm_up < 1:
            raise ConfigError(f"at least one frame must warm up, not {self.warm_up}")


def run_case(case: Case, timeout_s: float = 3600.0) -> dict[str, Any]:
    """Measure a case in a process of its own, so that no case warms up or slows down another.

    Returns:
        The figures; see :mod:`dithead.bench.measure`.

    Raises:
        StreamError: the process failed; the message has its error.
    """
    command = [sys.executable, "-m", "dithead.bench.measure", json.dumps(asdict(case))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise StreamError(f"'{case.label}' took more than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise StreamError(f"'{case.label}' failed: {lines[-1]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
