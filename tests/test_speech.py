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


def ones(seconds: float) -> np.ndarray:
    return np.ones(round(RATE * seconds), np.float32)


def told(speech: Speech, end_s: Fraction) -> list[tuple[str, str, float]]:
    return [(e.kind, e.piece, float(e.time_s)) for e in speech.give(end_s)[1]]


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


def test_an_empty_piece_at_the_end_of_a_frame_is_told_once() -> None:
    speech = Speech()
    speech.push(ones(0.04), RATE)
    speech.mark("empty")
    speech.mark("full")
    speech.push(ones(0.2), RATE)
    assert told(speech, Fraction(1, 25)) == []
    assert told(speech, Fraction(2, 25)) == [
        ("began", "empty", 0.04),
        ("ended", "empty", 0.04),
        ("began", "full", 0.04),
    ]


def test_a_second_drop_does_not_hide_the_first() -> None:
    speech = Speech()
    speech.mark("hello")
    speech.push(ones(0.4), RATE)
    assert told(speech, Fraction(1, 25)) == [("began", "hello", 0.0)]
    assert speech.cut() == ["hello"]
    assert speech.cut() == []
    speech.push(ones(0.4), RATE)
    assert told(speech, Fraction(2, 25)) == [("interrupted", "hello", 0.04)]


def test_a_piece_begins_with_its_first_sample() -> None:
    speech = Speech(patience_s=0, clock=lambda: 1.0)
    speech.mark("hello")
    assert speech.read(picture(0)) is not None
    speech.push(ones(0.4), RATE)
    assert told(speech, Fraction(2, 25)) == [("began", "hello", 0.02)]


def test_a_gap_is_filled_at_once() -> None:
    speech = Speech(patience_s=0, clock=lambda: 1.0)
    late = PushedPicture(0, Fraction(50), np.zeros((2, 2, 3), np.uint8))
    found = speech.read(late)
    assert found is not None
    assert found.numel() == RATE  # it is heard a second at a time
    assert speech.length_s == 50


def test_what_the_model_may_hear_again_is_kept_where_frames_are_long() -> None:
    speech, sound = Speech(memory=2_000), warble(2.0)
    for start in range(0, sound.size, 1_600):
        speech.push(sound[start : start + 1_600], RATE)
    heard = 0
    while heard < 8_000:
        found = speech.read(picture(0.0))
        assert found is not None
        heard += found.numel()
    speech.give(Fraction(2))  # one frame lasts longer than what the model has read
    speech.cut()
    again = speech.before(speech.kept, 2_000)
    assert np.array_equal(again.numpy(), sound[speech.kept - 2_000 : speech.kept])
