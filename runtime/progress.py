"""Shows how far a run is: one line that is updated on a terminal, or lines of JSON for a
program."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Literal, TextIO, get_args

Wanted = Literal["auto", "none", "json"]
WANTED: tuple[Wanted, ...] = get_args(Wanted)

_EVERY_S = 0.5
_CLEARED = "\r" + " " * 60 + "\r"


def _write(to: TextIO, text: str) -> None:
    """Write, whether or not anybody reads it."""
    with suppress(OSError, ValueError):
        to.write(text)
        to.flush()


class Progress:
    """Shows progress on a stream, at most twice a second, and at the end.

    Args:
        to: usually stderr; if nobody reads it any more, the run goes on.
        as_json: write a line of JSON each time, with ``frames`` done, their ``total`` (null if
            unknown), ``time_s``, the time in the video that they reach, ``fps`` since the start,
            and ``eta_s``, the seconds left (null if unknown). Otherwise one line of text.
    """

    def __init__(self, to: TextIO, as_json: bool) -> None:
        self._to = to
        self._total: int | None = None
        self._as_json = as_json
        self._start = self._last = time.monotonic()
        self._done: tuple[int, float] | None = None  # not shown yet

    def show(self, frames: int, total: int | None, time_s: float) -> None:
        """Report the number of frames done, their total, and the time that they reach. 0 frames
        start the clock."""
        self._total = total
        now = time.monotonic()
        if frames == 0:
            self._start = self._last = now
            return
        self._done = frames, time_s
        if now - self._last >= _EVERY_S:
            self._last = now
            self._print()

    def end(self) -> None:
        """Show what was not shown yet, and move to a new line on a terminal."""
        if self._as_json and self._done is not None:
            self._print()
        if not self._as_json:
            _write(self._to, _CLEARED)

    def _print(self) -> None:
        assert self._done is not None
        (frames, time_s), self._done = self._done, None
        fps = frames / max(1e-6, time.monotonic() - self._start)
        total = self._total
        eta_s = None if total is None else max(0, total - frames) / fps
        if self._as_json:
            told = {
                "frames": frames,
                "total": total,
                "time_s": round(time_s, 3),
                "fps": round(fps, 2),
                "eta_s": None if eta_s is None else round(eta_s, 1),
            }
            _write(self._to, json.dumps(told) + "\n")
            return
        of = "" if total is None else f" of {total}"
        left = "" if eta_s is None else f", {eta_s:.0f} s left"
        _write(self._to, f"\r{frames}{of} frames, {fps:.1f} fps{left}   ")


class TaskProgress:
    """Shows on a terminal what a long task is doing, in one line that is updated."""

    def __init__(self, to: TextIO) -> None:
        self._to = to
        self._start = time.monotonic()
        self._last = 0.0

    def show(self, what: str, share: float) -> None:
        """Report what is being done, and how far the whole is: 0 to 1."""
        now = time.monotonic()
        if now - self._last < _EVERY_S:
            return
        self._last = now
        left_s = (now - self._start) * (1.0 - share) / max(share, 1e-3)
        left = f", {left_s:.0f} s left" if share > 0.02 else ""
        _write(self._to, f"\r{what}: {100 * share:.0f} %{left}   ")

    def end(self) -> None:
        """Clear the line."""
        _write(self._to, _CLEARED)
