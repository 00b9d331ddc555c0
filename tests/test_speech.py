"""The queue of pushed speech by itself: silence, cuts, and what goes out again."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np
import torch
from streams import RATE, voice, warble

from dithead.runtime.pictures import PushedPicture
from dithead.runtime.speech import Speech


def picture(arrived_s: float) -> PushedPicture:
    return PushedPicture(0, Fraction(0), np.zeros((2, 2, 3), np.uint8), arrived_s=arrived_s)


def test_silence_comes_when_patience_ends() -> None:
    now = [10.0]
    speech = Speech(patience_s=0.5, clock=lambda: now[0])
    speech.push(voice(0.1), RATE)
    found = speech.read(picture(10.0))
    assert found is not None
    assert found.numel() == 1600
    now[0] = 10.5
    found = speech.read(picture(10.0))
    assert found is not None
    assert torch.equal(found, torch.zeros(320))
    speech.push(voice(0.1), RATE)
    samples, _ = speech.give(Fraction(1))
    assert np.array_equal(
        samples, np.concatenate([voice(0.1), np.zeros(320, np.float32), voice(0.1)])
    )


def test_speech_that_comes_as_it_is_spoken_is_not_torn_apart() -> None:
    speech = Speech(patience_s=30, clock=lambda: 100.0)
    late = picture(10.0)  # its patience ended long ago
    found = speech.read(late)
    assert found is not None
    assert not found.any()  # nobody has spoken yet: silence
    speech.push(voice(0.02), RATE)
    assert speech.read(late) is not None
    heard_next: list[torch.Tensor | None] = []
    reader = threading.Thread(target=lambda: heard_next.append(speech.read(late)))
    reader.start()
    speech.push(warble(0.02), RATE)
    reader.join(30)
    assert heard_next[0] is not None
    assert np.array_equal(heard_next[0].numpy(), warble(0.02))
    speech.push(voice(0.02), RATE)
    assert speech.read(late) is not None
    speech.cut()
    found = speech.read(late)
    assert found is not None
    assert not found.any()  # what was dropped is not waited for


def test_what_was_cut_is_not_heard() -> None:
    speech = Speech(memory=1000)
    first, second = voice(0.5), warble(0.5)
    speech.push(first, RATE)
    assert speech.read(picture(0)) is not None
    speech.give(Fraction(1, 10))
    speech.cut()
    assert speech.kept == 1600
    assert torch.equal(
        speech.before(1600, 2000), torch.from_numpy(np.r_[np.zeros(400, np.float32), first[:1600]])
    )
    speech.push(second, RATE)
    found = speech.read(picture(0))
    assert found is not None
    assert np.array_equal(found.numpy(), second)
    speech.finish()
    speech.cut()
    assert speech.read(picture(0)) is None
