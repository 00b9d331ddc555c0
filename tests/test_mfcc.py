"""Cepstral coefficients against those of python_speech_features."""

from __future__ import annotations

import numpy as np
import pytest

from dithead.train.evaluation.mfcc import COEFFICIENTS, mfcc

# What python_speech_features 0.6 answers for 1000 samples of :func:`noise`: windows 0 and 4.
FIRST = (
    *(24.580159, -36.011216, -11.191843, -13.41999, -8.488317, -4.226012, 1.591683),
    *(-4.070437, -4.100241, -7.728165, -0.031229, -2.077528, -3.077963),
)
LAST = (
    *(24.574874, -34.739078, -5.943859, -6.331329, -2.982734, -1.085818, -1.462231),
    *(-1.331888, 2.232068, -8.390879, -7.721361, -3.015532, 0.660789),
)


def noise(count: int) -> np.ndarray:
    """The same with every version of numpy."""
    return (np.random.RandomState(3).uniform(-1, 1, count) * 20000).round()


def test_they_are_what_syncnet_was_trained_on() -> None:
    found = mfcc(noise(1000))
    assert found.shape == (5, COEFFICIENTS)
    assert np.allclose(found[[0, -1]], [FIRST, LAST], rtol=0, atol=1e-6)  # as written


@pytest.mark.parametrize("count", [1, 399, 400, 401, 560, 561, 16000])
def test_any_length_gives_what_the_package_gives(count: int) -> None:
    reason = "python_speech_features is not installed: pip install 'dithead[dev]'"
    package = pytest.importorskip("python_speech_features", reason=reason)
    samples = noise(count)
    samples[4000:9000] = 0  # digital silence
    expected = package.mfcc(samples.astype(np.int16), 16000)
    assert np.allclose(mfcc(samples), expected, rtol=0, atol=1e-10)  # float64
