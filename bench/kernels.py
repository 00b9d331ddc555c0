"""Times each Triton kernel against eager PyTorch, ``torch.compile`` and, for attention, the other
back ends, at the sizes of the presets; and a whole step of the denoiser through all of them, also
replayed from a CUDA graph.

A kernel is timed only after it equalled its reference. Figures are set beside what the device
itself reaches in this process: the bandwidth of a large copy, the arithmetic of a large product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from dithead.bench.counting import floor_s
from dithead.bench.kernelcases import Case, cases
from dithead.errors import BackendUnavailable, DitheadError
from dithead.kernels.choice import missing
from dithead.kernels.settings import Measured, difference, measuring, seconds_of
from dithead.runtime.schedule.cuda import CudaLane


@dataclass(slots=True)
class Figure:
    """What a case took in one way."""

    operation: str
    size: str
    way: str
    microseconds: float | None
    """Median; None where nothing was timed."""
    share_of_copy: float | None = None
    """Bandwidth, relative to a large copy's."""
    share_of_product: float | None = None
    """Arithmetic, relative to a large product's."""
    times_floor: float | None = None
    """How many times as long as its parts need at the copy's bandwidth and the product's
    arithmetic."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the device reaches in this process."""

    copy_bytes_per_s: float
    products_per_s: float


@dataclass(slots=True)
class Findings:
    """What was measured on a device."""

    ceiling: Ceiling | None
    """None where nothing was timed."""
    figures: list[Figure]


def tune(device: torch.device, small: bool = False) -> list[Measured]:
    """Find the fastest block sizes of every case, in float16 and in float32 (small: float16 alone).

    Raises:
        BackendUnavailable: the kernels do not run on this device.
    """
    _check(device)
    with torch.inference_mode(), measuring() as found:
        for numbers in (torch.float16,) if small else (torch.float16, torch.float32):
            for case in cases(device, small, numbers):
                if "triton" in case.ways:
                    case.ways["triton"]()
    return found


def measure(device: torch.device, small: bool = False, timed: bool = True) -> Findings:
    """Compare and time every case, in float16.

    Args:
        small: small sizes, without ``torch.compile``. timed: whether to time anything.

    Raises:
        BackendUnavailable: the kernels do not run on this device.
    """
    _check(device)
    found = Findings(_ceiling(device, small) if timed else None, [])
    lane = CudaLane("bench", device, False, True) if device.type == "cuda" else None
    with torch.inference_mode(), nullcontext() if lane is None else lane.active():
        for case in cases(device, small, lane=lane):
            expected = case.ways["eager"]()
            for way, run in case.ways.items():
                if way.startswith("compile") and small:
                    continue
                found.figures.append(_figure(case, way, run, expected, found.ceiling))
    return found


def failures(figures: Sequence[Figure]) -> list[Figure]:
    """Those of ours that differ from their references."""
    ours = ("triton", "folded", "triton, replayed")
    return [figure for figure in figures if figure.error and figure.way in ours]


def _check(device: torch.device) -> None:
    if (reason := missing(device)) is not None:
        raise BackendUnavailable(
            f"the Triton kernels cannot run on {device}: {reason}",
            hint="choose --device cuda on a machine with a GPU, or --dry-run",
        )


def _figure(
    case: Case, way: str, run: Callable[[], Any], expected: Any, ceiling: Ceiling | None
) -> Figure:
    figure = Figure(case.operation, case.size, way, None)
    try:
        made = run()
        _compare(made, expected)
    except DitheadError as error:
        figure.error = str(error)
        return figure
    except Exception as error:  # of another package: the other ways go on
        figure.error = f"{type(error).__name__}: {error}"
        return figure
    if ceiling is not None:
        seconds = seconds_of(run, _device_of(made))
        figure.microseconds = 1e6 * seconds
        figure.share_of_copy = case.bytes / seconds / ceiling.copy_bytes_per_s
        if case.operations:
            figure.share_of_product = case.operations / seconds / ceiling.products_per_s
        if case.parts:
            floor = floor_s(case.parts, ceiling.copy_bytes_per_s, ceiling.products_per_s)
            figure.times_floor = seconds / floor
    return figure


def _compare(found: Any, expected: Any) -> None:
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for ours, theirs in pairs:
        if (told := difference(ours, theirs)) is not None:
            raise DitheadError(f"differs from the reference by {told}")


def _device_of(made: Any) -> torch.device:
    return made[0].device if isinstance(made, tuple) else made.device


def _ceiling(device: torch.device, small: bool) -> Ceiling:
    length, side = (1 << 20, 128) if small else (1 << 29, 8192)
    source = torch.empty(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda: target.copy_(source), device)
    matrix = torch.randn(side, side, device=device).half()
    product_s = seconds_of(lambda: matrix @ matrix, device)
    return Ceiling(2 * length / copy_s, 2 * side**3 / product_s)


def as_line(figure: Figure) -> str:
    """A figure in one line."""
    if figure.error is not None:
        told = figure.error
    elif figure.microseconds is None:
        told = "equals the reference; not timed"
    else:
        told = f"{figure.microseconds:.1f} us, {figure.share_of_copy:.0%} of a copy's bandwidth"
        if figure.share_of_product is not None:
            told += f", {figure.share_of_product:.0%} of a product's arithmetic"
        if figure.times_floor is not None:
            told += f", {figure.times_floor:.1f} times its floor"
    return f"  {figure.operation}, {figure.size}, {figure.way}: {told}"
