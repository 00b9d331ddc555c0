"""What the benchmark of the kernels computes, in several ways: each operation at the sizes of the
presets, and a whole step of the denoiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dithead.bench.counting import Cost, count
from dithead.config import DiTConfig, DitHeadConfig, FaceConfig, preset
from dithead.diffusion import Diffusion
from dithead.graphs import DiTContext, DiTStep, DiTTimestep
from dithead.kernels.attention import ATTENTION_BACKENDS, audio_attention, self_attention
from dithead.kernels.choice import Impl, preferring
from dithead.kernels.composite import composite
from dithead.kernels.ddim_step import ddim_step
from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.modulated_layer_norm import modulated_layer_norm
from dithead.kernels.upsampled_convolution import FoldedWeight, upsampled_convolution
from dithead.model import build_dit, draw_what_is_zero
from dithead.runtime.schedule.cuda import CudaLane


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
    parts: Sequence[Cost] = ()
    """With the kernels, if it is made of several operations."""


def cases(
    device: torch.device,
    small: bool = False,
    numbers: torch.dtype = torch.float16,
    lane: CudaLane | None = None,
) -> Iterator[Case]:
    """The presets' sizes, in one type of number; small ones for a dry run. With a lane, a step of
    the denoiser is replayed there, too."""
    torch.manual_seed(0)

    def made(*shape: int, dtype: torch.dtype = numbers) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    shapes = ((64, 4, 11, "tiny"), (256, 16, 1, "paper"), (1024, 16, 1, "paper-512"))
    for tokens, heads, keys, name in ((16, 2, 3, "small"),) if small else shapes:
        d = 64 * heads
        yield _attention(name, made(1, tokens, 3 * d), heads)
        yield _audio(name, made, tokens, heads, keys)
        yield _layer_norm(name, made, tokens, d)
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
    for config in (_small(),) if small else (preset("tiny"), preset("paper")):
        yield _step(config, made, lane)


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
    outs: dict[str, Tensor] = {}
    given = prediction, levels.sqrt(), (1 - levels).sqrt(), now, now - 500, "velocity"

    def run(impl: Any) -> Tensor:
        # Each way its own: none is to look like another.
        out = outs.setdefault(impl, torch.full_like(noisy, float("nan")))
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


def _small() -> DitHeadConfig:
    dit = DiTConfig(width=64, depth=1, heads=2, conditioning="tokens")
    return replace(preset("tiny"), preset="small", dit=dit, face=FaceConfig(crop_px=64))


def _step(config: DitHeadConfig, made: Callable[..., Tensor], lane: CudaLane | None) -> Case:
    """A step of the denoiser with random weights, of one frame."""
    latent = made(1, config.vqgan.latent_channels, config.latent_size, config.latent_size)
    dit = build_dit(config).eval().requires_grad_(False)
    draw_what_is_zero(dit)
    dit.to(latent.device, latent.dtype)
    step = DiTStep(dit, Diffusion(config.diffusion).to(latent.device))  # whose tables are float32
    now = torch.tensor([500], device=latent.device)
    context = DiTContext(dit)(made(1, *config.audio.window_shape))
    latents = latent, made(*latent.shape), made(*latent.shape)
    given = *latents, context, DiTTimestep(dit)(now), now, now - 250

    def by(impl: Impl, run: Callable[..., Tensor] = step) -> Callable[..., Tensor]:
        def work(*inputs: Tensor) -> Tensor:
            with preferring(impl):
                return run(*inputs)

        return work

    works = {"eager": by("reference"), "triton": by("triton")}
    works["compile"] = by("reference", torch.compile(step, dynamic=False))
    ways: dict[str, Callable[[], Any]] = {n: partial(work, *given) for n, work in works.items()}
    if lane is not None:
        ways |= {f"{n}, replayed": partial(lane.replay, w, *given) for n, w in works.items()}
    parts = list(count(config, "triton")["dit_step"].values())
    moved, operations = (sum(getattr(p, name) for p in parts) for name in ("bytes", "operations"))
    size = f"{config.preset}: {dit.grid**2} tokens, {config.dit.depth} blocks"
    return Case("dit_step", size, moved, operations, ways, parts)
