"""Compiles every kernel for every architecture, without a GPU, and tells what each needs.

``python -m dithead.kernels.compiled`` prints the table. The shapes are those of the presets, the
block sizes what a launch with them would use.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable
from dithead.kernels.choice import interpreted
from dithead.kernels.launch import Launch
from dithead.kernels.settings import Settings

ARCHITECTURES = {80: "A100", 89: "RTX 40, L4", 90: "H100, H200", 120: "RTX 50"}
"""Compute capabilities that are compiled for, and cards that have them."""
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Shared memory that a block may have (CUDA C++ Programming Guide, technical specifications)."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a kernel needs of an architecture."""

    kernel: str
    case: str
    architecture: int
    warps: int
    registers: int
    """Of a thread."""
    spilled_bytes: int
    """Of a thread, written and read again: what did not fit into registers."""
    shared_bytes: int
    """Of a block."""


def _on_meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def launches(candidates: bool = False) -> Iterator[tuple[str, Launch]]:
    """What the presets launch, and a name of each case.

    Args:
        candidates: with the settings that tuning tries, at the sizes of ``paper``, instead of the
            fixed ones.
    """
    for case, plan, tried in _cases(candidates):
        for settings in tried if candidates else (None,):
            name = case if settings is None else f"{case}, {settings}"
            for launch in plan(settings):
                yield name, launch


_Case = tuple[str, Callable[[Settings | None], list[Launch]], Sequence[Settings]]


def _cases(paper_alone: bool) -> Iterator[_Case]:
    from dithead.kernels.attention import triton as attention
    from dithead.kernels.attention import tritonaudio
    from dithead.kernels.composite import triton as composite
    from dithead.kernels.ddim_step import triton as ddim_step
    from dithead.kernels.group_norm_silu import triton as group_norm_silu
    from dithead.kernels.modulated_layer_norm import triton as modulated_layer_norm

    def planned(plan: Callable[..., list[Launch]], *given: object) -> Any:
        return lambda settings: plan(*given, settings)

    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        if paper_alone and dtype == torch.bfloat16:
            continue
        narrow = dtype == torch.float32
        tried = attention.CANDIDATES_FLOAT32 if narrow else attention.CANDIDATES
        sizes = ((256, 16, 64), (64, 4, 64), (1024, 16, 64), (256, 8, 128))
        for tokens, heads, width in sizes[:1] if paper_alone else sizes:
            qkv = _on_meta(1, tokens, 3, heads, width, dtype=dtype)
            out = _on_meta(1, tokens, heads * width, dtype=dtype)
            case = f"{tokens} tokens, {heads} heads of {width}, {kind}"
            yield case, planned(attention.plan, *qkv.unbind(2), out), tried
        tried = tritonaudio.CANDIDATES_FLOAT32 if narrow else tritonaudio.CANDIDATES
        hearing = ((256, 16, 1), (64, 4, 11), (1024, 16, 1))
        for tokens, heads, keys in hearing[:1] if paper_alone else hearing:
            x = _on_meta(1, tokens, 64 * heads, dtype=dtype)
            context = _on_meta(1, heads, keys, 64, dtype=dtype)
            weight = _on_meta(64 * heads, 64 * heads, dtype=dtype)
            gate = x[:, :1] if keys > 1 else None
            given = x, x, context, context, gate, weight, weight[0], x
            case = f"{tokens} tokens, {heads} heads, {keys} keys, {kind}"
            yield case, planned(tritonaudio.plan, *given), tried
        rows = ((256, 1024), (64, 256), (1024, 1024))
        for tokens, width in rows[:1] if paper_alone else rows:
            x = _on_meta(1, tokens, width, dtype=dtype)
            row, line = x[:, :1], x[0, 0]
            adaptive = x, x, row, None, None, row, row, 1e-6, x, x
            affine = x, x, None, line, line, None, None, 1e-6, x, x
            tried = modulated_layer_norm.CANDIDATES
            for name, tensors in (("adaptive", adaptive), ("affine", affine)):
                case = f"{tokens} tokens of {width}, {name}, {kind}"
                yield case, planned(modulated_layer_norm.plan, *tensors), tried
    pictures = ((256, 128), (128, 256), (512, 32), (128, 1))
    for channels, side in pictures[:1] if paper_alone else pictures:
        x = _on_meta(1, channels, side, side, dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last)
        line = _on_meta(channels, dtype=torch.float16)
        case = f"{channels} channels, {side} x {side}, float16"
        plan = planned(group_norm_silu.plan, x, 32, line, line, 1e-6, True, x)
        yield case, plan, group_norm_silu.CANDIDATES
    for side, density in ((128, 1), (256, 2)):
        face = _on_meta(1, 3, side, side, dtype=torch.float32)
        rectangle = _on_meta(256, 256, 3, dtype=torch.uint8)
        weight = _on_meta(256, 256, dtype=torch.float32)
        matrix = _on_meta(1, 2, 3, dtype=torch.float32)
        case = f"face of {side}, rectangle of 256, density {density}"
        plan = planned(composite.plan, face, matrix, rectangle, weight, density, rectangle)
        yield case, plan, composite.CANDIDATES
    for channels, side in ((4, 32), (16, 16)):
        latent = _on_meta(1, channels, side, side, dtype=torch.float16)
        table = _on_meta(1000, dtype=torch.float32)
        now = _on_meta(1, dtype=torch.int64)
        step = partial(ddim_step.plan, latent, latent, table, table, now, now, "velocity", latent)
        yield f"{channels} x {side} x {side}, float16", lambda _, step=step: step(), ()  # type: ignore[misc]


def compile_for(launch: Launch, case: str, architecture: int) -> Needs:
    """Compile a kernel as a launch would, and read what it needs.

    Raises:
        BackendUnavailable: Triton's interpreter is on.
    """
    if interpreted():
        raise BackendUnavailable(
            "Triton's interpreter is on, and compiles nothing", hint="unset TRITON_INTERPRET"
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, divisible = launch.signature()
    source = ASTSource(launch.kernel, types, constants, divisible)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    made = triton.compile(source, GPUTarget("cuda", architecture, 32), options=options)
    told = _assembled(made.asm["ptx"], architecture)
    (registers,) = re.findall(r"Used (\d+) registers", told)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    return Needs(
        kernel=launch.kernel.__name__.removeprefix("_"),
        case=case,
        architecture=architecture,
        warps=launch.num_warps,
        registers=int(registers),
        spilled_bytes=sum(map(int, spilled)),
        shared_bytes=made.metadata.shared,
    )


def _assembled(ptx: str, architecture: int) -> str:
    """What the assembler tells of a kernel; Triton's own, which is part of its package."""
    from triton.backends.nvidia.compiler import get_ptxas

    tool = get_ptxas(architecture)
    (target,) = re.findall(r"\.target (sm_\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={target}", str(source), "-o", str(result)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m dithead.kernels.compiled", description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--candidates",
        action="store_true",
        help="the settings that dithead bench kernels --tune tries",
    )
    parser.add_argument(
        "--architectures",
        type=int,
        nargs="+",
        choices=ARCHITECTURES,
        default=list(ARCHITECTURES),
        metavar="SM",
        help="such as 90 (default: all)",
    )
    args = parser.parse_args(arguments)
    try:
        found = [
            compile_for(launch, case, architecture)
            for case, launch in launches(args.candidates)
            for architecture in args.architectures
        ]
    except BackendUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([asdict(needs) for needs in found]))
        return 0
    print("| kernel | case | sm | warps | registers | spilled bytes | shared bytes |")
    print("|---|---|---|---|---|---|---|")
    for needs in found:
        print("| " + " | ".join(map(str, asdict(needs).values())) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
