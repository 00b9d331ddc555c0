"""Times each Triton kernel against eager PyTorch, ``torch.compile`` and, for attention, the other
back ends, at the sizes of the presets.

A kernel is timed only after it equalled its reference. Figures are set beside what the device
itself reaches in this process: the bandwidth of a large copy, the arithmetic of a large product.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dithead.errors import BackendUnavailable, DitheadError
from dithead.kernels.attention import ATTENTION_BACKENDS, audio_attention, self_attention
from dithead.kernels.choice import missing
from dithead.kernels.composite import composite
from dithead.kernels.ddim_step import ddim_step
from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.modulated_layer_norm import modulated_layer_norm

REPEATS, IN_A_ROW = 20, 10
"""Timings of a case, of which the median counts; calls in one of them."""
TOLERANCE = 2e-2
"""Of float16 against the reference, relative to the largest number."""


@dataclass(slots=True)
class Case:
    """One operation at one size."""

    operation: str
    size: str
    bytes: int
    """That must be read and written."""
    operations: int
    """Of products, two a multiplication."""
    ways: dict[str, Callable[[], Any]]
    """What computes it, by name; the first is the reference."""


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
    error: str | None = None


@dataclass(slots=True)
class Ceiling:
    """What the device reaches in this process."""

    copy_bytes_per_s: float
    products_per_s: float
    figures: list[Figure] = field(default_factory=list)


def cases(device: torch.device, small: bool = False) -> Iterator[Case]:
    """The presets' sizes in float16; small ones for a dry run."""
    torch.manual_seed(0)

    def made(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    shapes = ((64, 4, 11, "tiny"), (256, 16, 1, "paper"), (1024, 16, 1, "paper-512"))
    for tokens, heads, keys, preset in ((16, 2, 3, "small"),) if small else shapes:
        d = 64 * heads
        yield _attention(preset, made(1, tokens, 3 * d), heads)
        yield _audio(preset, made, tokens, heads, keys)
        yield _layer_norm(preset, made, tokens, d)
    pictures = ((128, 256), (256, 128), (512, 32))
    for channels, side in ((16, 8),) if small else pictures:
        x = made(1, channels, side, side).to(memory_format=torch.channels_last)
        yield _group_norm(x, made(channels), made(channels))
    for channels, side in ((4, 8),) if small else ((16, 16), (4, 32), (4, 64)):
        yield _ddim(made(1, channels, side, side), made(1, channels, side, side))
    for side, rectangle in ((16, 32),) if small else ((128, 256), (256, 512)):
        face = made(1, 3, side, side, dtype=torch.float32).clamp(-1, 1)
        yield _composite(face, rectangle)


def _ways(run: Callable[[str], Any], names: tuple[str, ...] = ()) -> dict[str, Callable[[], Any]]:
    """The reference as it is and compiled, the kernel, and other ways by name."""
    compiled = torch.compile(lambda: run("reference"), dynamic=False)
    ways: dict[str, Callable[[], Any]] = {"eager": lambda: run("reference"), "compile": compiled}
    ways["triton"] = lambda: run("triton")
    return ways | {name: (lambda name=name: run(name)) for name in names}


def _attention(preset: str, qkv: Tensor, heads: int) -> Case:
    others = tuple(name for name in ATTENTION_BACKENDS if name not in ("auto", "math", "triton"))

    def run(name: str) -> Tensor:
        return self_attention(qkv, heads, "math" if name == "reference" else name)  # type: ignore[arg-type]

    tokens, width = qkv.shape[1], qkv.shape[2] // 3
    size = f"{preset}: {tokens} tokens, {heads} heads of {width // heads}"
    moved = 4 * tokens * width * qkv.element_size()
    return Case("attention", size, moved, 4 * tokens * tokens * width, _ways(run, others))


def _audio(preset: str, made: Callable[..., Tensor], tokens: int, heads: int, keys: int) -> Case:
    d = 64 * heads
    x, q, gate = made(1, tokens, d), made(1, tokens, d), made(1, 1, d)
    k, v = made(2, 1, heads, keys, 64)
    out = nn.Linear(d, d).to(x.device, x.dtype).requires_grad_(False)

    def run(name: str) -> Tensor:
        return audio_attention(x, q, k, v, out, gate, "sdpa" if name == "reference" else "triton")

    moved = (3 * tokens * d + d * d + 2 * keys * d) * x.element_size()
    operations = 4 * tokens * keys * d + 2 * tokens * d * d
    size = f"{preset}: {tokens} tokens, {heads} heads, {keys} keys"
    return Case("audio_attention", size, moved, operations, _ways(run))


def _layer_norm(preset: str, made: Callable[..., Tensor], tokens: int, d: int) -> Case:
    x, branch = made(1, tokens, d), made(1, tokens, d)
    gate, scale, shift = made(1, 1, d), made(1, 1, d), made(1, 1, d)

    def run(impl: Any) -> Any:
        return modulated_layer_norm(
            x, branch=branch, gate=gate, scale=scale, shift=shift, impl=impl
        )

    moved = (4 * tokens * d + 3 * d) * x.element_size()
    size = f"{preset}: {tokens} tokens of {d}"
    return Case("modulated_layer_norm", size, moved, 0, _ways(run))


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Case:
    groups = min(32, x.shape[1] // 4)

    def run(impl: Any) -> Tensor:
        return group_norm_silu(x, groups, weight, bias, impl=impl)

    size = f"{x.shape[1]} channels, {x.shape[2]} x {x.shape[3]}"
    return Case("group_norm_silu", size, 3 * x.numel() * x.element_size(), 0, _ways(run))


def _ddim(noisy: Tensor, prediction: Tensor) -> Case:
    levels = torch.linspace(0.99, 0.01, 1000, device=noisy.device)
    now = torch.tensor([999], device=noisy.device)
    out = torch.empty_like(noisy)
    given = prediction, levels.sqrt(), (1 - levels).sqrt(), now, now - 500, "velocity"

    def run(impl: Any) -> Tensor:
        return ddim_step(noisy, *given, out=out, impl=impl)  # type: ignore[arg-type]

    size = " x ".join(map(str, noisy.shape[1:]))
    return Case("ddim_step", size, 3 * noisy.numel() * noisy.element_size(), 0, _ways(run))


def _composite(face: Tensor, side: int) -> Case:
    device = face.device
    rectangle = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, device=device)
    weight = torch.ones(side, side, device=device)
    scale = face.shape[2] / side
    matrix = torch.tensor([[[scale, 0.0, 0.0], [0.0, scale, 0.0]]], device=device)

    def run(impl: Any) -> Tensor:
        return composite(face, matrix, rectangle, weight, impl=impl)

    moved = 2 * rectangle.numel() + 4 * (weight.numel() + face.numel())
    size = f"face of {face.shape[2]}, rectangle of {side}"
    return Case("composite", size, moved, 0, _ways(run))


def measure(device: torch.device, small: bool = False, timed: bool = True) -> Ceiling:
    """Compare and time every case.

    Args:
        small: small sizes, without ``torch.compile``. timed: whether to time anything.

    Raises:
        BackendUnavailable: the kernels do not run on this device.
    """
    if (reason := missing(device)) is not None:
        raise BackendUnavailable(
            f"the Triton kernels cannot run on {device}: {reason}",
            hint="choose --device cuda on a machine with a GPU, or --dry-run",
        )
    ceiling = _ceiling(device) if timed else Ceiling(0.0, 0.0)
    with torch.inference_mode():
        for case in cases(device, small):
            expected = case.ways["eager"]()
            for way, run in case.ways.items():
                if way == "compile" and small:
                    continue
                ceiling.figures.append(_figure(case, way, run, expected, ceiling, timed))
    return ceiling


def _figure(
    case: Case, way: str, run: Callable[[], Any], expected: Any, ceiling: Ceiling, timed: bool
) -> Figure:
    figure = Figure(case.operation, case.size, way, None)
    try:
        _compare(run(), expected)
    except DitheadError as error:
        figure.error = str(error)
        return figure
    if timed:
        seconds = _seconds(run)
        figure.microseconds = 1e6 * seconds
        figure.share_of_copy = case.bytes / seconds / ceiling.copy_bytes_per_s
        if case.operations:
            figure.share_of_product = case.operations / seconds / ceiling.products_per_s
    return figure


def _compare(found: Any, expected: Any) -> None:
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    for ours, theirs in pairs:
        off, most = (ours.double() - theirs.double()).abs().max(), theirs.double().abs().max()
        if not off <= TOLERANCE * most:
            raise DitheadError(f"differs from the reference by {off:.2g}, of {most:.2g} at most")


def _ceiling(device: torch.device) -> Ceiling:
    source = torch.empty(1 << 29, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _seconds(lambda: target.copy_(source))
    matrix = torch.randn(8192, 8192, device=device).half()
    product_s = _seconds(lambda: matrix @ matrix)
    return Ceiling(2 * source.numel() / copy_s, 2 * 8192**3 / product_s)


def _seconds(run: Callable[[], Any]) -> float:
    """Median time of a call on the current stream, several calls in a row."""
    for _ in range(3):
        run()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(IN_A_ROW):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / IN_A_ROW)
    return statistics.median(times)


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
    return f"  {figure.operation}, {figure.size}, {figure.way}: {told}"
