"""Times that exist and increase, whatever a file's clock does."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from dithead.runtime.media.clock import SampleClock, VideoClock


@pytest.mark.parametrize(
    ("given_pts", "expected"),
    [
        ([100, 140, 180], [0, 40, 80]),  # counted from the start
        ([100, 140, 140, 180], [0, 40, 41, 80]),  # repeated
        ([100, 140, 130, 180], [0, 40, 41, 80]),  # in the wrong order
        ([None, None, None], [0, 40, 80]),
        ([100, None, 180], [0, 40, 80]),
        ([5100, 5140, 100, 140], [5000, 5040, 5080, 5120]),  # the clock was set back
        ([60, 100], [0, 40]),  # before the start
        ([100, 140, 95_140, 95_180], [0, 40, 80, 120]),  # set forward, by more than a minute
        ([100, 140, 40_140, 40_180], [0, 40, 40_040, 40_080]),  # a still scene
        ([900, 940, 100, 140], [800, 840, 880, 920]),  # set back by less than a second
        ([100, 140, 180, 100, 140, 180, 100], [0, 40, 80, 120, 160, 200, 240]),  # again and again
        ([5100, 5140, 100, 5220], [5000, 5040, 5041, 5120]),  # a single wrong time
    ],
)
def test_times_always_increase(given_pts: list[int | None], expected: list[int]) -> None:
    clock = VideoClock(100, Fraction(40), Fraction(1, 1000), forward_s=Fraction(60))
    following = [*given_pts[1:], None]
    found = [clock.stamp(*pts) for pts in zip(given_pts, itertools.repeat(None), following)]
    assert found == expected


@pytest.mark.parametrize(
    ("starts", "restarts", "expected"),
    [
        ([0, 100, 200, 300], 0, [0, 0, 0, 0]),
        ([300, 400], 0, [300, 0]),  # begins late
        ([-30, 70], 0, [-30, 0]),  # begins before time zero
        ([0, 100, 700, 800], 0, [0, 0, 500, 0]),  # a gap
        ([0, 100, 0, 100, 0], 2, [0, 0, 0, 0, 0]),  # set back by 0.2 s
        ([0, 100, 5000, 0, 100], 1, [0, 0, 4800, 0, 0]),  # and by 5 s
        ([0, 100, 30, 300], 0, [0, 0, 0, 0]),  # a single wrong time
        ([0, 99, 198, 297, 396], 0, [0, 0, 0, 0, 0]),  # rounded
    ],
)
def test_sound_has_its_place(starts: list[int], restarts: int, expected: list[int]) -> None:
    clock, found = SampleClock(1000), []
    for start, following in itertools.zip_longest(starts, starts[1:]):
        late = clock.place(start, 100, following)
        clock.written += 100 + late
        found.append(late)
    assert (found, clock.restarts) == (expected, restarts)
