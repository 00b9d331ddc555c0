"""Checks on what users of the library pass in, and conversion to the types that the rest
expects."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from numbers import Rational
from threading import TIMEOUT_MAX
from typing import SupportsFloat

import numpy as np
import torch

from dithead.errors import BackendUnavailable, ConfigError, DitheadError, StreamError


def checked_device(name: torch.device | str) -> torch.device:
    """A device that exists.

    Raises:
        ConfigError: it is neither cpu, cuda nor cuda:N.
        BackendUnavailable: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}: expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ConfigError(f"unknown device {str(name)!r}: expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise BackendUnavailable(
                f"device {str(name)!r} was asked for and this PyTorch sees {count} CUDA devices",
                hint="install a CUDA build of torch and the driver, or choose the device cpu",
            )
    return device


def checked_picture(image: np.ndarray, raises: type[DitheadError] = StreamError) -> np.ndarray:
    """A picture, contiguous. Raises the given error type: another shape or type."""
    fits = (
        isinstance(image, np.ndarray)
        and image.ndim == 3
        and image.shape[2] == 3
        and image.dtype == np.uint8
        and min(image.shape[:2]) >= 2
    )
    if not fits:
        found = getattr(image, "shape", type(image)), getattr(image, "dtype", "")
        raise raises(f"expected a picture (H, W, 3) uint8 RGB, found {found[0]} {found[1]}")
    return np.ascontiguousarray(image)


def checked_number(
    value: object, expected: str, raises: type[DitheadError] = StreamError
) -> Fraction:
    """The exact value of a number of any type, Python's, NumPy's or PyTorch's.

    Raises:
        DitheadError: not a number, or not finite; of the given type.
    """
    try:
        if isinstance(value, Rational):  # NumPy's integers would overflow in a Fraction
            return Fraction(int(value.numerator), int(value.denominator))
        if isinstance(value, Decimal):
            return Fraction(value)
        if not isinstance(value, SupportsFloat):  # strings are not numbers
            raise TypeError("no number")
        return Fraction(float(value))
    except (TypeError, ValueError, OverflowError) as error:
        raise raises(f"expected {expected}, found {value!r}") from error


def checked_time(time_s: object) -> Fraction:
    """A time in seconds. Raises StreamError: not a time."""
    return checked_number(time_s, "a time in seconds")


def checked_wait(timeout_s: object) -> float | None:
    """A timeout in seconds; None means no limit. Raises StreamError: neither."""
    if timeout_s is None:
        return None
    return min(float(checked_number(timeout_s, "a timeout in seconds or None")), TIMEOUT_MAX)


def checked_rate(sample_rate_hz: object, raises: type[DitheadError] = StreamError) -> int:
    """A sample rate in Hz. Raises the given error type: not a whole number above 0."""
    expected = "a sample rate in Hz, a whole number above 0"
    rate_hz = checked_number(sample_rate_hz, expected, raises)
    if rate_hz < 1 or rate_hz.denominator != 1:
        raise raises(f"expected {expected}, found {sample_rate_hz!r}")
    return int(rate_hz)
