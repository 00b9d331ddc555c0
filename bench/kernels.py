"""Times each Triton kernel against eager PyTorch, ``torch.compile`` and, for attention, the other
back ends, at the sizes of the presets.

A kernel is timed only after it equalled its reference. Figures are set beside what the device
itself reaches in this process: the bandwidth of a large copy, the arithmetic of a large product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from dithead.kernels.settings import Measured, measuring, seconds_of
from dithead.kernels.upsampled_convolution import FoldedWeight, upsampled_convolution

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


def cases(
    device: torch.device, small: bool = False, numbers: torch.dtype = torch.float16
) -> Iterator[Case]:
    """The presets' sizes, in one type of number; small ones for a dry run."""
    torch.manual_seed(0)

    def made(*shape: int, dtype: torch.dtype = numbers) -> Tensor:
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
        yield _upsampled(x, made(channels, channels, 3, 3), made(channels))
    for channels, side in ((4, 8),) if small else ((16, 16), (4, 32), (4, 64)):
        yield _ddim(made(1, channels, side, side), made(1, channels, side, side))
    for side, rectangle in ((16, 32),) if small else ((128, 256), (256, 512)):
        face = made(1, 3, side, side, dtype=torch.float32).clamp(-1, 1)
        yield _composite(face, rectangle)


def _ways(
    run: Callable[[str], Any], names: tuple[str, ...] = (), ours: str = "triton"
) -> dict[str, Callable[[], Any]]:
    """The reference as it is and compiled, ours, and other ways by name."""
    compiled = torch.compile(lambda: run("reference"), dynamic=False)
    ways: dict[str, Callable[[], Any]] = {"eager": lambda: run("reference"), "compile": compiled}
    ways[ours] = lambda: run("triton")
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


def _upsampled(x: Tensor, weight: Tensor, bias: Tensor) -> Case:
    kept, weight = FoldedWeight(), weight / weight[0].numel() ** 0.5

    def run(impl: Any) -> Tensor:
        return upsampled_convolution(x, weight, bias, kept=kept, impl=impl)

    size = f"{x.shape[1]} channels, {x.shape[2]} x {x.shape[3]}"
    moved = (5 * x.numel() + 16 * x.shape[1] ** 2) * x.element_size()
    operations = 2 * 16 * x.numel() * x.shape[1]
    return Case("upsampled_convolution", size, moved, operations, _ways(run, ours="folded"))


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


def tune(device: torch.device, small: bool = False) -> list[Measured]:
    """Find the fastest block sizes of every case, in float16 and in float32.

    Raises:
        BackendUnavailable: the kernels do not run on this device.
    """
    _check(device)
    with torch.inference_mode(), measuring() as found:
        for numbers in (torch.float16, torch.float32):
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
    with torch.inference_mode():
        for case in cases(device, small):
            expected = case.ways["eager"]()
            for way, run in case.ways.items():
                if way == "compile" and small:
                    continue
                found.figures.append(_figure(case, way, run, expected, found.ceiling))
    return found


def failures(figures: Sequence[Figure]) -> list[Figure]:
    """Those of ours that differ from their references."""
    return [figure for figure in figures if figure.error and figure.way in ("triton", "folded")]


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
    if ceiling is not None:
        seconds = seconds_of(run, _device_of(made))
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
    return f"  {figure.operation}, {figure.size}, {figure.way}: {told}"
