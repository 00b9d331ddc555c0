"""Frames that are denoised together, of a stream or of several, are what they are alone."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import close, collect, rows_denoised, threads_of_streams

from dithead.errors import ConfigError
from dithead.options import Options
from dithead.runtime.outputframe import OutputFrame
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs


@given(
    batch=st.integers(2, 5), spare=st.integers(0, 3), every=st.sampled_from([1, 2]), data=st.data()
)
@settings(max_examples=10)
def test_frames_denoised_together_equal_those_alone(
    session: Session,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    batch: int,
    spare: int,
    every: int,
    data: st.DataObject,
) -> None:
    torch.set_num_threads(1)
    options = Options(steps=2, seed=3, generate_every=every)
    in_flight = batch * every + (every == 2) + spare
    with pytest.MonkeyPatch.context() as patch:
        rows = rows_denoised(patch)
        with session.open_stream(options, batch=batch, in_flight=in_flight) as stream:
            found = collect(stream, pictures, [sound])
    assert close(found, specification(options))
    assert max(rows) == min(batch, {1: 8, 2: 5}[every])
    assert [frame.face for frame in found].count(False) == 1


def test_streams_denoised_together_equal_those_alone(
    random_models: TorchGraphs,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    rows = rows_denoised(monkeypatch)
    session = Session(random_models, batch=4, batch_wait_s=0.5)
    asked = [
        Options(steps=2, seed=3),
        Options(steps=2, seed=9, reference="previous"),
        Options(steps=2, seed=4, generate_every=2),
        Options(steps=1, seed=3),  # another number of steps cannot share a batch
    ]
    results: dict[int, list[OutputFrame]] = {}

    def run(number: int, options: Options) -> None:
        with session.open_stream(options) as stream:
            results[number] = collect(stream, pictures, [sound])

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(asked)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
    for number, options in enumerate(asked):
        assert close(results[number], specification(options)), options
    assert max(rows) >= 2
    assert max(rows) <= 4


def test_a_closed_stream_leaves_the_batch_to_the_others(
    random_models: TorchGraphs,
    specification: Callable[[Options], list[np.ndarray]],
    pictures: list[np.ndarray],
    sound: np.ndarray,
) -> None:
    torch.set_num_threads(1)
    session, options = Session(random_models, batch=2, batch_wait_s=0.01), Options(steps=2, seed=3)
    first = session.open_stream(options)
    first.push_audio(sound)
    first.finish_audio()
    first.push_frame(pictures[0], 0)
    first.pull(60)
    with session.open_stream(options) as second:
        first.close()
        assert session._batcher is not None
        assert session._batcher._members[2] == 1
        assert close(collect(second, pictures, [sound]), specification(options))
    assert not threads_of_streams()


def test_a_stream_that_cannot_be_is_not_waited_for(random_models: TorchGraphs) -> None:
    session = Session(random_models, batch=2)
    with pytest.raises(ConfigError, match="frames in flight"):
        session.open_stream(Options(steps=2, generate_every=2), in_flight=1)
    assert session._batcher is not None
    assert session._batcher._members[2] == 0


def test_batches_that_cannot_be(session: Session, random_models: TorchGraphs) -> None:
    with pytest.raises(ConfigError, match="batch must be 1, or reference 'fixed'"):
        session.open_stream(Options(reference="previous"), batch=2)
    with pytest.raises(ConfigError, match="needs at least 4 frames in flight"):
        session.open_stream(batch=4, in_flight=3)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        session.open_stream(batch=0)
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        Session(random_models, batch=0)
