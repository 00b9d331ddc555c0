"""Mel-frequency cepstral coefficients (Davis and Mermelstein, 1980), with the constants of the
package python_speech_features 0.6, whose output SyncNet was trained on."""

from __future__ import annotations

import numpy as np

from dithead.runtime.media.sources import SPEECH_RATE_HZ

COEFFICIENTS = 13
STEP = SPEECH_RATE_HZ // 100
"""Samples from one window to the next: 10 ms."""
_WINDOW = SPEECH_RATE_HZ // 40
_FFT = 512
_FILTERS = 26
_PREEMPHASIS = 0.97
_LIFTER = 22
_SMALLEST = np.finfo(float).eps  # in the place of zeros, before the logarithm


def mfcc(samples: np.ndarray) -> np.ndarray:
    """Coefficients (T, 13) float64 of sound (S,), one row each 10 ms, of 25 ms without a taper.

    Args:
        samples: 16 kHz mono, in levels of 16 bits (-32768 to 32767); one at least. The last window
            is filled up with zeros.

    Returns:
        The first coefficient is the logarithm of the window's energy, which depends on the scale.
    """
    sound = samples.astype(np.float64)
    sharper = np.append(sound[0], sound[1:] - _PREEMPHASIS * sound[:-1])
    count = 1 + max(0, -(-(len(sharper) - _WINDOW) // STEP))
    padded = np.pad(sharper, (0, (count - 1) * STEP + _WINDOW - len(sharper)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::STEP]  # (T, 400)
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 / _FFT  # (T, 257)
    bands = _above_zero(power @ _filters().T)  # (T, 26)
    cepstra = np.log(bands) @ _cosines().T  # (T, 13)
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / _LIFTER)
    cepstra[:, 0] = np.log(_above_zero(power.sum(1)))
    return cepstra


def _above_zero(values: np.ndarray) -> np.ndarray:
    return np.where(values == 0, _SMALLEST, values)


def _filters() -> np.ndarray:
    """Triangles (26, 257) over the bins of the spectrum, their corners equally far apart in mel."""
    top = 2595 * np.log10(1 + SPEECH_RATE_HZ / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, top, _FILTERS + 2) / 2595) - 1)
    corners = np.floor((_FFT + 1) * corners_hz / SPEECH_RATE_HZ)
    left, peak, right = (corners[i : i + _FILTERS, None] for i in range(3))
    bins = np.arange(_FFT // 2 + 1)
    rising = np.where((bins >= left) & (bins < peak), (bins - left) / (peak - left), 0)
    falling = np.where((bins >= peak) & (bins < right), (right - bins) / (right - peak), 0)
    return rising + falling


def _cosines() -> np.ndarray:
    """The first rows (13, 26) of the orthogonal cosine transform (type II)."""
    rows = np.arange(COEFFICIENTS)[:, None]
    waves = np.cos(np.pi * rows * (2 * np.arange(_FILTERS) + 1) / (2 * _FILTERS))
    return waves * np.sqrt(np.where(rows == 0, 1, 2) / _FILTERS)
