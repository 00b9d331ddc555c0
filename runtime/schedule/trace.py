"""Records when each stage worked on each frame."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """One stage's work on one frame."""

    stage: str
    frame: int
    """Index of the frame."""
    start_s: float
    """On the clock of ``time.perf_counter``."""
    end_s: float


class Trace:
    """Collects spans from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    @property
    def spans(self) -> list[Span]:
        """The spans so far, in the order in which they ended."""
        with self._lock:
            return list(self._spans)

    def add(self, stage: str, frame: int, start_s: float, end_s: float) -> None:
        """Record a span."""
        with self._lock:
            self._spans.append(Span(stage, frame, start_s, end_s))

    def to_chrome(self) -> dict[str, object]:
        """The spans as Chrome's trace events, one row a stage (chrome://tracing, Perfetto)."""
        rows: dict[str, int] = {}
        events: list[dict[str, object]] = []
        origin = min((span.start_s for span in self.spans), default=0.0)
        for span in self.spans:
            row = rows.setdefault(span.stage, len(rows))
            events.append(
                {
                    "name": f"frame {span.frame}",
                    "cat": span.stage,
                    "ph": "X",
                    "pid": 0,
                    "tid": row,
                    "ts": (span.start_s - origin) * 1e6,
                    "dur": (span.end_s - span.start_s) * 1e6,
                }
            )
        names: list[dict[str, object]] = [
            {"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": stage}}
            for stage, row in rows.items()
        ]
        return {"traceEvents": names + events, "displayTimeUnit": "ms"}
