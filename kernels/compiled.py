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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable
from dithead.kernels.choice import interpreted
from dithead.kernels.launch import Launch

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


def launches() -> Iterator[tuple[str, Launch]]:
    """What the presets launch, and a name of each case."""
    from dithead.kernels.attention import triton as attention
    from dithead.kernels.attention import tritonaudio
    from dithead.kernels.composite import triton as composite
    from dithead.kernels.ddim_step import triton as ddim_step
    from dithead.kernels.group_norm_silu import triton as group_norm_silu
    from dithead.kernels.modulated_layer_norm import triton as modulated_layer_norm

    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        for tokens, heads, width in ((64, 4, 64), (256, 16, 64), (1024, 16, 64), (256, 8, 128)):
            qkv = _on_meta(1, tokens, 3, heads, width, dtype=dtype)
            out = _on_meta(1, tokens, heads * width, dtype=dtype)
            q, k, v = qkv.unbind(2)
            for launch in attention.plan(q, k, v, out):
                yield f"{tokens} tokens, {heads} heads of {width}, {kind}", launch
        for tokens, heads, keys in ((64, 4, 11), (256, 16, 1), (1024, 16, 1)):
            x = _on_meta(1, tokens, 64 * heads, dtype=dtype)
            context = _on_meta(1, heads, keys, 64, dtype=dtype)
            weight = _on_meta(64 * heads, 64 * heads, dtype=dtype)
            gate = x[:, :1] if keys > 1 else None
            given = x, x, context, context, gate, weight, weight[0], x
            for launch in tritonaudio.plan(*given):
                yield f"{tokens} tokens, {heads} heads, {keys} keys, {kind}", launch
        for tokens, width in ((64, 256), (256, 1024), (1024, 1024)):
            x = _on_meta(1, tokens, width, dtype=dtype)
            row, line = x[:, :1], x[0, 0]
            adaptive = x, x, row, None, None, row, row, 1e-6, x, x
            affine = x, x, None, line, line, None, None, 1e-6, x, x
            for name, tensors in (("adaptive", adaptive), ("affine", affine)):
                for launch in modulated_layer_norm.plan(*tensors):
                    yield f"{tokens} tokens of {width}, {name}, {kind}", launch
    for channels, side in ((128, 256), (256, 128), (512, 32)):
        x = _on_meta(1, channels, side, side, dtype=torch.float16)
        x = x.to(memory_format=torch.channels_last)
        line = _on_meta(channels, dtype=torch.float16)
        for launch in group_norm_silu.plan(x, 32, line, line, 1e-6, True, x):
            yield f"{channels} channels, {side} x {side}, float16", launch
    for channels, side in ((4, 32), (16, 16)):
        latent = _on_meta(1, channels, side, side, dtype=torch.float16)
        table = _on_meta(1000, dtype=torch.float32)
        now = _on_meta(1, dtype=torch.int64)
        for launch in ddim_step.plan(latent, latent, table, table, now, now, "velocity", latent):
            yield f"{channels} x {side} x {side}, float16", launch
    for side, density in ((128, 1), (256, 2)):
        face = _on_meta(1, 3, side, side, dtype=torch.float32)
        rectangle = _on_meta(256, 256, 3, dtype=torch.uint8)
        weight = _on_meta(256, 256, dtype=torch.float32)
        matrix = _on_meta(1, 2, 3, dtype=torch.float32)
        for launch in composite.plan(face, matrix, rectangle, weight, density, rectangle):
            yield f"face of {side}, rectangle of 256, density {density}", launch


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
    args = parser.parse_args(arguments)
    try:
        found = [
            compile_for(launch, case, architecture)
            for case, launch in launches()
            for architecture in ARCHITECTURES
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
