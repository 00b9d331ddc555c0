"""Makes times that exist and increase, whatever a file's clock does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Generic, TypeVar

# Two limits in seconds: sound that lags by more than the first one starts a new clock; and so does
# a leap forward by more than the second, where new clocks are possible (sound, and containers in
# which time may start anew). A new clock goes on from there.
BACK_S, FORWARD_S = Fraction(1), Fraction(60)
# An audio track's times may be off by less than this (rounded time stamps).
JITTER_S = Fraction(1, 10)

T = TypeVar("T")


class Ahead(Iterator[T], Generic[T]):
    """An iterator whose next item can be looked at before it is taken."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._seen: list[T] = []

    def __next__(self) -> T:
        return self._seen.pop() if self._seen else next(self._items)

    def peek(self) -> T | None:
        """The next item, None at the end."""
        if not self._seen:
            for item in self._items:
                self._seen.append(item)
                break
        return self._seen[0] if self._seen else None


class VideoClock:
    """Gives every decoded frame a time that exists and is later than the one before.

    A missing time is derived from the decoding times, or else from the rate. A clock that goes back
    and stays behind, by however little, is a new one, as in recordings that were joined; it
    continues where the old one stopped. If only a single frame's time does not increase, the frame
    comes one tick after the last.

    Args:
        start: the stream's time that counts as zero, in ticks.
        period: ticks between frames at the average rate.
        time_base: seconds in one tick.
        forward_s: a larger leap forward also starts a new clock; None if any leap may be intended.

    Attributes:
        repaired: whether any time was not the file's own.
        restarts: how often a new clock began.
    """

    def __init__(
        self, start: int, period: Fraction, time_base: Fraction, forward_s: Fraction | None = None
    ) -> None:
        self.repaired = False
        self.restarts = 0
        self._shift = -start
        self._period = period
        self._forward = None if forward_s is None else forward_s / time_base
        self._last: Fraction | None = None
        self._last_dts: int | None = None

    def goes_back(self, pts: int | None) -> bool:
        """Whether a frame's time, in ticks, is before the last by more than rounding: the time of
        the frame after it then tells what that means."""
        if pts is None or self._last is None:
            return False
        return self._last - (pts + self._shift) >= self._period / 2

    def stamp(self, pts: int | None, dts: int | None, following_pts: int | None = None) -> int:
        """Return the time of the next frame in ticks.

        Args:
            pts: the frame's own time, and dts: its decoding time; None if missing.
            following_pts: the time of the frame after it, needed if this one's goes back.
        """
        last = self._last
        if pts is not None:
            now = Fraction(pts + self._shift)
        elif last is None:
            now = Fraction(0)
        elif dts is not None and self._last_dts is not None and dts > self._last_dts:
            now = last + (dts - self._last_dts)
        else:
            now = last + self._period
        if last is None:
            if round(now) < 0:
                self._shift -= round(now)
                self.repaired, now = True, Fraction(0)
        elif self._anew(now, last, pts, following_pts):
            self._shift += round(last + self._period - now)
            self.restarts += 1
            self.repaired, now = True, last + self._period
        elif round(now) <= round(last):
            self.repaired, now = True, Fraction(round(last) + 1)
        self.repaired |= pts is None
        self._last, self._last_dts = now, dts
        return round(now)

    def _anew(
        self, now: Fraction, last: Fraction, pts: int | None, following_pts: int | None
    ) -> bool:
        if self._forward is not None and now - last > self._forward:
            return True
        if not self.goes_back(pts):
            return False
        return following_pts is None or following_pts + self._shift <= last


class SampleClock:
    """Gives the position of decoded sound, in samples from time zero.

    Args:
        rate_hz: samples per second.

    Attributes:
        written: samples so far, silence included.
        restarts: how often a new clock began.
    """

    def __init__(self, rate_hz: int) -> None:
        self.written = 0
        self.restarts = 0
        self._rate_hz = rate_hz
        self._shift = 0  # correction of a new clock
        self._due: int | None = None  # where the next sound is expected

    def goes_back(self, start: int) -> bool:
        """Whether sound is said to start well before the end of the sound before it: the start of
        the sound after it then tells what that means."""
        return (
            self._due is not None and self._due - (start + self._shift) > JITTER_S * self._rate_hz
        )

    def place(self, start: int, count: int, following: int | None = None) -> int:
        """How many samples of silence come before a piece of sound; if negative, how many samples
        of the piece are left out.

        Args:
            start: sample at which the piece starts, according to the file.
            count: its number of samples.
            following: where the piece after it starts, needed if this one's goes back.
        """
        rate_hz, back = self._rate_hz, self.goes_back(start)
        due = start + self._shift
        late = due - self.written
        if back and self.written and following is not None:
            ahead = following + self._shift - (due + count)
            if ahead > JITTER_S * rate_hz:  # only one has a wrong time
                self._due = self.written + count
                return 0
        if self.written and (back or not -BACK_S * rate_hz <= late <= FORWARD_S * rate_hz):
            self._shift -= late
            self.restarts += 1
            late = 0
        elif self.written and abs(late) <= JITTER_S * rate_hz:
            late = 0
        self._due = start + self._shift + count
        return late
