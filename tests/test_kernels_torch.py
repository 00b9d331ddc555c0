"""The kernels as operations of PyTorch: their gradients, and how torch.library has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import DEVICE, numbers
from torch import Tensor, nn

from dithead.config import DiTConfig
from dithead.dit import DiT
from dithead.kernels.attention import audio_attention, self_attention
from dithead.kernels.choice import preferring
from dithead.kernels.ddim_step import ddim_step
from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.modulated_layer_norm import modulated_layer_norm
from dithead.model import draw_what_is_zero

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan")


def gradients(make: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(True) for x in inputs]
    outputs = make(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = torch.stack(
        [(out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum() for out in outputs]
    ).sum()
    return list(torch.autograd.grad(loss, leaves))


def same_gradients(make: Callable[..., Any], *inputs: Tensor) -> None:
    found = gradients(lambda *x: make("triton", *x), *inputs)
    expected = gradients(lambda *x: make("reference", *x), *inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
        assert theirs.any()


def test_gradients_of_the_layer_norm() -> None:
    rows = [numbers(2, 1, 24) for _ in range(3)]
    x, branch, weight, bias = numbers(2, 5, 24), numbers(2, 5, 24), numbers(24), numbers(24)

    def make(
        impl: Any, x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, *rows: Tensor
    ) -> Any:
        scale, shift, gate = rows
        return modulated_layer_norm(
            x,
            branch=branch,
            gate=gate,
            weight=weight,
            bias=bias,
            scale=scale,
            shift=shift,
            impl=impl,
        )

    same_gradients(make, x, branch, weight, bias, *rows)
    same_gradients(lambda impl, x: modulated_layer_norm(x, impl=impl)[1], x)


def test_gradients_of_the_group_norm() -> None:
    same_gradients(
        lambda impl, x, weight, bias: group_norm_silu(x, 4, weight, bias, impl=impl),
        numbers(2, 16, 5, 6),
        numbers(16),
        numbers(16),
    )


def test_gradients_of_attention() -> None:
    def itself(impl: str, qkv: Tensor) -> Tensor:
        return self_attention(qkv, 2, "triton" if impl == "triton" else "math")

    same_gradients(itself, numbers(2, 9, 3 * 64))
    out = nn.Linear(64, 64).to(DEVICE)

    def audio(impl: str, x: Tensor, q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
        return audio_attention(x, q, k, v, out, gate, "triton" if impl == "triton" else "math")

    x, q, (k, v) = numbers(2, 9, 64), numbers(2, 9, 64), numbers(2, 2, 2, 11, 32)
    same_gradients(audio, x, q, k, v, numbers(2, 1, 64))
    audio("triton", x, q, k, v, numbers(2, 1, 64)).sum().backward()
    assert out.weight.grad is not None and out.weight.grad.any()


def test_derivatives_that_the_kernels_lack_are_refused() -> None:
    x, latent = numbers(1, 2, 8).requires_grad_(True), numbers(1, 4, 3, 3).requires_grad_(True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(
            modulated_layer_norm(x, impl="triton")[1].square().sum(), x, create_graph=True
        )
    table, now = torch.ones(5, device=DEVICE), torch.tensor([2], device=DEVICE)
    given = latent, latent, table, table, now, now, "noise"
    with pytest.raises(ValueError, match="ddim_step: the kernel has no gradients"):
        ddim_step(*given, impl="triton")
    with torch.no_grad():
        ddim_step(*given, impl="triton")


def test_derivatives_carried_forward_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHEAD_KERNELS", "triton")
    x, tangent = numbers(1, 2, 8), numbers(1, 2, 8)
    _, found = torch.func.jvp(lambda x: modulated_layer_norm(x)[1], (x,), (tangent,))
    by_reference = lambda x: modulated_layer_norm(x, impl="reference")[1]  # noqa: E731
    torch.testing.assert_close(found, torch.func.jvp(by_reference, (x,), (tangent,))[1])


@pytest.mark.parametrize("conditioning", ["tokens", "paper"])
def test_a_denoiser_under_autocast(conditioning: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training generates: parameters of float32, products of bfloat16, no gradients."""
    monkeypatch.setattr("dithead.linear._ONEDNN", False)  # as on a GPU
    dit = DiT(DiTConfig(64, 2, 2, conditioning=conditioning), 4, 8, 3, 5).to(DEVICE)
    draw_what_is_zero(dit)
    latents = [numbers(2, 4, 8, 8) for _ in range(3)]
    now, window = torch.tensor([5, 900], device=DEVICE), numbers(2, 3, 5)
    made = {}
    for impl in ("reference", "triton"):
        with preferring(impl), torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            made[impl] = dit(*latents, now, window)
    assert made["triton"].dtype == made["reference"].dtype
    off = (made["triton"] - made["reference"]).float()
    assert off.abs().max() < 0.05 * made["reference"].float().std()


def test_exported_graphs_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITHEAD_KERNELS", "triton")

    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            normed = modulated_layer_norm(x)[1]
            return self_attention(torch.cat([normed] * 3, -1), 2, "auto")

    x = numbers(1, 4, 32)
    exported = torch.export.export(Block(), (x,))
    assert not any("dithead" in str(node.target) for node in exported.graph.nodes)
    torch.jit.trace(Block(), (x,))


def test_operations_are_declared_as_they_are() -> None:
    from dithead.kernels.attention import triton as of_attention
    from dithead.kernels.attention import tritonaudio
    from dithead.kernels.composite import triton as of_composite
    from dithead.kernels.ddim_step import triton as of_ddim_step
    from dithead.kernels.group_norm_silu import triton as of_group_norm
    from dithead.kernels.modulated_layer_norm import triton as of_layer_norm

    x, row, line = numbers(2, 5, 32), numbers(2, 1, 32), numbers(32)
    keys, square = numbers(2, 2, 3, 16), numbers(32, 32)
    learnt = x.clone().requires_grad_(True)
    latent, table = numbers(2, 3, 4, 4), torch.linspace(0.9, 0.1, 10, device=DEVICE)
    now = torch.tensor([5, 3], device=DEVICE)
    rectangle = torch.zeros(6, 7, 3, dtype=torch.uint8, device=DEVICE)
    q = numbers(2, 5, 2, 16)
    declared: list[tuple[Any, tuple[Any, ...]]] = [
        (of_layer_norm._norm, (learnt, line, line, row, row, 1e-6)),
        (of_layer_norm._added_norm, (learnt, x, row, None, None, row, row, 1e-6)),
        (of_attention._operation, (q.clone().requires_grad_(True), q, q)),
        (tritonaudio._operation, (learnt, x, keys, keys, row, square, line)),
        (of_group_norm._operation, (latent, 3, line[:3], line[:3], 1e-6, True)),
        (of_ddim_step._operation, (latent, latent, table, table, now, now, True, latent.clone())),
        (of_ddim_step._in_place, (latent, latent.clone(), table, table, now, now, False)),
        (
            of_composite._operation,
            (numbers(1, 3, 8, 8), numbers(1, 2, 3), rectangle, numbers(6, 7), 1),
        ),
    ]
    for operation, arguments in declared:
        torch.library.opcheck(operation, arguments)


def test_they_are_single_nodes_of_a_traced_graph() -> None:
    x, gate = numbers(1, 6, 32), numbers(1, 1, 32)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def run(x: Tensor, gate: Tensor) -> Tensor:
        total, normed = modulated_layer_norm(x, branch=x, gate=gate, impl="triton")
        return total + normed

    torch._dynamo.reset()
    with torch.inference_mode():
        found = torch.compile(run, backend=backend, fullgraph=True)(x, gate)
        torch.testing.assert_close(found, run(x, gate))
    (graph,) = graphs
    assert [str(node.target) for node in graph.graph.nodes].count(
        "dithead.added_layer_norm.default"
    ) == 1
