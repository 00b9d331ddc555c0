"""The schedule of a stream: what guards each buffer, and what happens without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import BLANK, TIMES, collect

from dithead.pipeline import Options
from dithead.runtime.schedule.recording import Entry, RecordingLanes, races
from dithead.runtime.session import Session


@given(
    in_flight=st.integers(3, 8),
    every=st.sampled_from([1, 2]),
    interpolate=st.sampled_from([1, 2]),
)
@settings(max_examples=12)
def test_every_buffer_is_guarded_by_an_event(
    session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    in_flight: int,
    every: int,
    interpolate: int,
) -> None:
    lanes = RecordingLanes()
    options = Options(steps=1, generate_every=every)
    with session.open_stream(
        options, in_flight=in_flight, interpolate=interpolate, lanes=lanes
    ) as stream:
        collect(stream, pictures, [sound])
    accesses = sum(entry.act in ("read", "write") for entry in lanes.log.entries)
    assert accesses > 20 * (len(TIMES) - 1)
    assert races(lanes.log.entries) == []


@pytest.mark.parametrize("interpolate", [1, 2])
@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_no_event_can_be_left_out(
    session: Session,
    pictures: list[np.ndarray],
    sound: np.ndarray,
    in_flight: int,
    interpolate: int,
) -> None:
    lanes = RecordingLanes()
    faces = [pictures[0] if i == BLANK else image for i, image in enumerate(pictures)]
    with session.open_stream(
        Options(steps=1), in_flight=in_flight, interpolate=interpolate, lanes=lanes
    ) as stream:
        collect(stream, faces, [sound])
    entries = lanes.log.entries
    assert races(entries) == []
    waits = [i for i, entry in enumerate(entries) if entry.act == "wait"]
    stages = 10 + (interpolate == 2)
    assert len(waits) == len(TIMES) * (stages - 1) + len(TIMES) - in_flight
    idle = [entries[i] for i in waits if not races(entries[:i] + entries[i + 1 :])]
    # The last stage reads no buffer here: its event guards the slot's next use, if there is one.
    last = range(len(TIMES) - in_flight + 1, len(TIMES) + 1)
    unused = {f"composite#{n}" for n in last} if interpolate == 1 else set()
    assert {entry.what for entry in idle} == unused


def test_races_are_found() -> None:
    def run(*acts: tuple[str, Any, str]) -> list[str]:
        return races([Entry(lane, act, what) for lane, act, what in acts])

    write, record, read = ("a", "write", "x"), ("a", "record", "a#1"), ("b", "read", "x")
    wait, done = ("b", "wait", "a#1"), ("b", "record", "b#1")
    assert run(write, record, wait, read) == []
    assert "b reads x, which a may still use" in run(write, record, read)[0]
    assert len(run(write, record, wait, read, write)) == 1  # used again too early
    assert run(write, record, wait, read, done, ("a", "wait", "b#1"), write) == []
    assert run(write, ("a", "read", "x"), write) == []
