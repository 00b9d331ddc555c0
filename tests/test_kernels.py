"""The Triton kernels equal their references: under the interpreter, or on a GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dithead.errors import BackendUnavailable, ConfigError
from dithead.kernels.attention import attention, audio_attention, self_attention
from dithead.kernels.choice import interpreted, triton_is_chosen
from dithead.kernels.composite import composite
from dithead.kernels.ddim_step import ddim_step
from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.modulated_layer_norm import modulated_layer_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Against float64: half a unit in the last place of the result, and what sums of the inputs' size
# lose.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves out is seen."""
    torch.manual_seed(0)
    for name in ("empty", "empty_like", "empty_strided"):
        make = getattr(torch, name)

        def filled(*args: Any, make: Callable[..., Tensor] = make, **kwargs: Any) -> Tensor:
            made = make(*args, **kwargs)
            if made.device.type == "meta" or type(made) is not Tensor:
                return made
            return made.fill_(float("nan") if made.is_floating_point() else 171)

        monkeypatch.setattr(torch, name, filled)


def numbers(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(*shape)).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    assert found.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        found.double(), expected.double(), atol=tolerance * scale, rtol=tolerance
    )


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


def test_the_kernels_run_here() -> None:
    assert interpreted() or DEVICE.type == "cuda"
    assert triton_is_chosen("triton", numbers(1))


# Attention.


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v (B, N, heads, D), in float64 -> (B, N, heads * D)."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"),
    [(1, 64, 4, 64), (2, 1, 1, 32), (1, 77, 3, 40), (1, 200, 2, 128), (2, 33, 2, 72)],
)
def test_self_attention(
    batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    qkv = numbers(batch, tokens, 3 * heads * width, dtype=dtype)
    found = self_attention(qkv, heads, "triton")
    assert found.dtype == dtype
    parts = qkv.unflatten(2, (3, heads, width)).unbind(2)
    close(found, exact_attention(*parts), dtype)


def test_self_attention_of_many_tokens() -> None:
    qkv = numbers(1, 1024, 3 * 32, dtype=torch.float16)
    parts = qkv.unflatten(2, (3, 1, 32)).unbind(2)
    close(self_attention(qkv, 1, "triton"), exact_attention(*parts), torch.float16)


def test_attention_of_parts_that_are_not_dense_nor_aligned() -> None:
    memory = numbers(2, 3, 50, 41, dtype=torch.float16)
    q, k, v = (part[:, :, i : 37 + i, i : 32 + i] for i, part in enumerate([memory] * 3))
    found = attention(q, k, v, "triton")
    expected = exact_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    close(found.transpose(1, 2).flatten(2), expected, torch.float16)


def test_scores_that_are_large_and_alike() -> None:
    """The softmax is taken from the largest score, which may leave float16's range."""
    qkv = 30.0 + numbers(1, 40, 3 * 64, dtype=torch.float16)
    parts = qkv.unflatten(2, (3, 1, 64)).unbind(2)
    found = self_attention(qkv, 1, "triton")
    assert found.isfinite().all()
    close(found, exact_attention(*parts), torch.float16, scale=30.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width", "keys", "gated"),
    [(1, 64, 4, 64, 11, True), (2, 37, 3, 40, 1, False), (1, 5, 1, 32, 16, True)],
)
def test_audio_attention(
    batch: int, tokens: int, heads: int, width: int, keys: int, gated: bool, dtype: torch.dtype
) -> None:
    d = heads * width
    x, q = numbers(batch, tokens, d, dtype=dtype), numbers(batch, tokens, d, dtype=dtype)
    k, v = numbers(2, batch, heads, keys, width, dtype=dtype)
    gate = numbers(batch, 7, d, dtype=dtype)[:, 3:4] if gated else None
    out = nn.Linear(d, d).to(DEVICE, dtype).requires_grad_(False)
    found = audio_attention(x, q, k, v, out, gate, "triton")
    heard = exact_attention(q.unflatten(2, (heads, width)), k.transpose(1, 2), v.transpose(1, 2))
    sent = heard @ out.weight.double().T + out.bias.double()
    expected = x.double() + (sent if gate is None else gate.double() * sent)
    close(found, expected, dtype, scale=2.0)  # of a sum of three


def test_a_stream_in_float32_hears_in_half_precision() -> None:
    x = numbers(1, 16, 64)
    q, gate = numbers(1, 16, 64, dtype=torch.float16), numbers(1, 1, 64)
    k, v = numbers(2, 1, 2, 11, 32)
    out = nn.Linear(64, 64).to(DEVICE, torch.float16).requires_grad_(False)
    found = audio_attention(x, q, k, v, out, gate, "triton")
    assert found.dtype == torch.float32
    close(found, audio_attention(x, q, k, v, out, gate, "math"), torch.float16)


# Norms.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "width"), [(1, 64, 256), (2, 3, 1024), (3, 17, 40), (1, 1, 1), (1, 2, 3000)]
)
@pytest.mark.parametrize("kind", ["plain", "affine", "adaptive", "whole"])
def test_modulated_layer_norm(
    batch: int, tokens: int, width: int, kind: str, dtype: torch.dtype
) -> None:
    x = numbers(batch, tokens, width, dtype=dtype)
    given: dict[str, Tensor | None] = {}
    if kind in ("adaptive", "whole"):
        shift, scale, gate = numbers(batch, 3, width, dtype=dtype).chunk(3, dim=1)
        given |= {"shift": shift, "scale": scale, "gate": gate}
        given |= {"branch": numbers(batch, tokens, width, dtype=dtype)}
    if kind in ("affine", "whole"):
        weight, bias = numbers(2, width, dtype=dtype)
        given |= {"weight": weight, "bias": bias}
    if kind == "affine":
        given |= {"branch": numbers(batch, tokens, width, dtype=dtype)}
    found = modulated_layer_norm(x, **given, impl="triton")
    names, tensors = list(given), wide(*given.values())
    total = x.double()
    exact = dict(zip(names, tensors, strict=True))
    if exact.get("branch") is not None:
        gate = exact.get("gate")
        total = total + (exact["branch"] if gate is None else gate * exact["branch"])
    mean = total.mean(2, keepdim=True)
    normed = (total - mean) / ((total - mean).square().mean(2, keepdim=True) + 1e-6).sqrt()
    if exact.get("weight") is not None:
        normed = normed * exact["weight"] + exact["bias"]
    if exact.get("scale") is not None:
        normed = normed * (1 + exact["scale"]) + exact["shift"]
    close(found[0], total, dtype, scale=2.0)
    close(found[1], normed, dtype, scale=4.0)  # of a product and a sum


def test_statistics_of_a_layer_norm_leave_float16s_range() -> None:
    x = (numbers(1, 5, 300) * 2e4).clamp(-6e4, 6e4).half()
    found = modulated_layer_norm(x, impl="triton")[1]
    expected = torch.nn.functional.layer_norm(x.double(), (300,), eps=1e-6)
    close(found, expected, torch.float16)


def test_a_layer_norm_far_from_zero_keeps_its_digits() -> None:
    x = 1000.0 + numbers(1, 4, 512)
    found = modulated_layer_norm(x, impl="triton")[1]
    expected = torch.nn.functional.layer_norm(x.double(), (512,), eps=1e-6)
    close(found, expected, torch.float32, scale=10.0)  # the mean is rounded at 6e-5


def test_a_layer_norm_of_rows_that_are_not_dense() -> None:
    x, branch = numbers(2, 9, 130)[:, ::2, 1:97], numbers(2, 5, 200)[:, :, 3:99]
    gate = numbers(1, 1, 96)
    found = modulated_layer_norm(x, branch=branch, gate=gate, impl="triton")
    expected = modulated_layer_norm(x, branch=branch, gate=gate, impl="reference")
    close(found[0], expected[0], torch.float32)
    close(found[1], expected[1], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize(
    ("batch", "channels", "groups", "height", "width"),
    [(1, 128, 32, 16, 16), (2, 24, 6, 5, 7), (1, 8, 2, 1, 1), (1, 512, 32, 3, 90)],
)
def test_group_norm_silu(
    batch: int, channels: int, groups: int, height: int, width: int, last: bool, dtype: torch.dtype
) -> None:
    x = numbers(batch, channels, height, width, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    weight, bias = numbers(2, channels, dtype=dtype)
    for silu in (True, False):
        found = group_norm_silu(x, groups, weight, bias, silu=silu, impl="triton")
        assert found.dtype == dtype
        expected = torch.nn.functional.group_norm(
            x.double(), groups, weight.double(), bias.double(), 1e-6
        )
        expected = torch.nn.functional.silu(expected) if silu else expected
        close(found, expected, dtype, scale=4.0)


def test_statistics_of_a_group_norm_leave_float16s_range() -> None:
    x = (numbers(1, 16, 32, 33) * 1.5e4).clamp(-6e4, 6e4).half()
    weight, bias = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    found = group_norm_silu(x, 4, weight, bias, impl="triton")
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 4, eps=1e-6))
    close(found, expected, torch.float16)


def test_a_group_norm_far_from_zero_keeps_its_digits() -> None:
    x = 1000.0 + numbers(1, 8, 40, 40)
    weight, bias = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    found = group_norm_silu(x, 2, weight, bias, silu=False, impl="triton")
    expected = torch.nn.functional.group_norm(x.double(), 2, eps=1e-6)
    close(found, expected, torch.float32, scale=10.0)  # the mean is rounded at 6e-5


def test_a_group_norm_of_a_part_of_a_picture() -> None:
    x = numbers(2, 20, 12, 14)[:, 2:18, 1:10, ::2]
    weight, bias = numbers(2, 16)
    found = group_norm_silu(x, 4, weight, bias, impl="triton")
    close(found, group_norm_silu(x, 4, weight, bias, impl="reference"), torch.float32)


# The sampler's step, and the picture's last.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_ddim_step(predicts: Any, dtype: torch.dtype) -> None:
    levels = torch.linspace(0.99, 0.02, 20, dtype=torch.float64)
    signal, sigma = levels.sqrt().float().to(DEVICE), (1 - levels).sqrt().float().to(DEVICE)
    noisy, found = numbers(3, 4, 9, 9, dtype=dtype), numbers(3, 4, 9, 9, dtype=dtype)
    now = torch.tensor([19, 7, 3], device=DEVICE)
    following = torch.tensor([12, -1, 0], device=DEVICE)
    given = found, signal, sigma, now, following, predicts
    made = ddim_step(noisy, *given, impl="triton")
    expected = ddim_step(noisy.float(), found.float(), *given[1:], impl="reference")
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, atol=5e-6, rtol=5e-6)
    other = torch.empty_like(noisy)
    assert ddim_step(noisy, *given, out=other, impl="triton") is other
    kept = noisy.clone()
    assert ddim_step(noisy, *given, out=noisy, impl="triton") is noisy
    assert torch.equal(noisy, other) and not torch.equal(noisy, kept)
    close(noisy, expected, dtype, scale=4.0)


@pytest.mark.parametrize("density", [1, 2, 3])
def test_composite(density: int) -> None:
    face = numbers(1, 3, 24, 24, scale=0.5)
    rectangle = torch.randint(0, 256, (37, 45, 3), dtype=torch.uint8, device=DEVICE)
    weight = torch.rand(37, 45, device=DEVICE) * (torch.rand(37, 45, device=DEVICE) < 0.7)
    matrix = torch.tensor([[[0.6, 0.2, -3.0], [-0.2, 0.6, 2.0]]], device=DEVICE)
    given = face, matrix, rectangle, weight, density
    found = composite(*given, impl="triton")
    expected = composite(*given, impl="reference")
    off = (found.int() - expected.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 2e-3  # where a half is rounded
    assert torch.equal(found[weight == 0], rectangle[weight == 0])


def test_composite_of_a_part_of_a_frame() -> None:
    face = numbers(1, 3, 16, 16, dtype=torch.float16)
    rectangle = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, device=DEVICE)
    rectangle = rectangle[3:36, 5:70]
    weight = torch.ones(40, 80, device=DEVICE)[:33, 7:72]
    matrix = torch.tensor([[[0.3, 0.0, 0.0], [0.0, 0.4, 1.0]]], device=DEVICE)
    found = composite(face, matrix, rectangle, weight, impl="triton")
    expected = composite(face.float(), matrix, rectangle, weight, impl="reference")
    assert (found.int() - expected.int()).abs().max() <= 1


# Gradients.


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


# As torch.library has them.


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


# What is refused.


def refused(error: type[Exception], message: str, make: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message):
        make()


def test_tensors_that_do_not_fit_are_refused() -> None:
    x, line = numbers(2, 5, 32), numbers(32)
    norm = modulated_layer_norm
    refused(ValueError, r"x: expected the shape \(B, N, D\)", lambda: norm(line, impl="triton"))
    refused(
        ValueError,
        r"branch: expected the shape \(2, 5, 32\), found \(2, 4, 32\)",
        lambda: norm(x, branch=x[:, 1:], impl="triton"),
    )
    refused(TypeError, "x: expected float32, float16", lambda: norm(x.double(), impl="triton"))
    refused(
        ValueError,
        "x: expected the stride 1 in the last dimension",
        lambda: norm(x.transpose(1, 2), impl="triton"),
    )
    refused(ValueError, "expected both or none", lambda: norm(x, scale=x[:, :1], impl="triton"))
    refused(ValueError, "gate: expected None", lambda: norm(x, gate=x[:, :1], impl="triton"))
    refused(
        ValueError,
        f"weight: expected on {DEVICE}.*found on meta",
        lambda: norm(x, weight=line.to("meta"), bias=line, impl="triton"),
    )
    picture = numbers(1, 12, 4, 4)
    refused(
        ValueError,
        "groups: expected a divisor of 12 channels, found 5",
        lambda: group_norm_silu(picture, 5, line[:12], line[:12], impl="triton"),
    )
    refused(
        ValueError,
        r"bias: expected the shape \(12,\)",
        lambda: group_norm_silu(picture, 3, line[:12], line[:11], impl="triton"),
    )


def test_attention_that_does_not_fit_is_refused() -> None:
    q = numbers(1, 2, 5, 160)
    refused(ValueError, "at most 128 numbers, found 160", lambda: attention(q, q, q, "triton"))
    q = numbers(1, 2, 5, 32)
    refused(TypeError, "k: expected float32, found", lambda: attention(q, q.half(), q, "triton"))
    empty = q[:, :, :0]
    refused(ValueError, "at least one key", lambda: attention(q, empty, empty, "triton"))
    x, keys = numbers(1, 5, 64), numbers(1, 2, 17, 32)
    out = nn.Linear(64, 64).to(DEVICE).requires_grad_(False)
    refused(
        ValueError,
        "1 to 16 audio tokens, found 17",
        lambda: audio_attention(x, x, keys, keys, out, None, "triton"),
    )
    refused(
        TypeError,
        "out: expected a torch.nn.Linear, found Identity",
        lambda: audio_attention(x, x, keys, keys, nn.Identity(), None, "triton"),
    )
    refused(
        ValueError,
        "64 together, found 3 of 32",
        lambda: audio_attention(x, x, *[numbers(1, 3, 11, 32)] * 2, out, None, "triton"),
    )
    # More tokens than it takes: by itself, the reference.
    assert audio_attention(x, x, keys, keys, out, None, "auto").shape == x.shape


def test_steps_and_pictures_that_do_not_fit_are_refused() -> None:
    latent, table, now = numbers(1, 4, 8, 8), numbers(10), torch.tensor([3], device=DEVICE)
    step = (table, table, now, now, "noise")
    refused(
        TypeError,
        "timestep: expected int64, found int32",
        lambda: ddim_step(latent, latent, table, table, now.int(), now, "noise", impl="triton"),
    )
    refused(
        ValueError,
        "out: expected a dense tensor",
        lambda: ddim_step(latent, latent, *step, out=latent.transpose(2, 3), impl="triton"),
    )
    face, matrix = numbers(1, 3, 8, 8), numbers(1, 2, 3)
    rectangle = torch.zeros(9, 9, 3, dtype=torch.uint8, device=DEVICE)
    weight = numbers(9, 9)
    refused(
        TypeError,
        "rectangle: expected uint8, found float32",
        lambda: composite(face, matrix, rectangle.float(), weight, impl="triton"),
    )
    refused(
        ValueError,
        "density: expected 1 to 16 samples, found 0",
        lambda: composite(face, matrix, rectangle, weight, 0, impl="triton"),
    )
    refused(
        ValueError,
        r"face: expected the shape \(1, 3, 8, 8\), found \(1, 3, 8, 7\)",
        lambda: composite(face[..., :7], matrix, rectangle, weight, impl="triton"),
    )


def test_implementations_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    x = numbers(1, 3, 8)
    with pytest.raises(ConfigError, match="choose one of auto, reference, triton"):
        modulated_layer_norm(x, impl="fast")  # type: ignore[arg-type]
    assert not triton_is_chosen("reference", x)
    assert triton_is_chosen("auto", x) == (DEVICE.type == "cuda")
    assert not triton_is_chosen("auto", x, x.clone().requires_grad_(True))
    monkeypatch.setenv("DITHEAD_KERNELS", "triton")
    assert triton_is_chosen("auto", x)
    monkeypatch.setenv("DITHEAD_KERNELS", "quick")
    with pytest.raises(ConfigError, match="DITHEAD_KERNELS is 'quick'"):
        modulated_layer_norm(x)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the kernels run on this device")
def test_triton_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendUnavailable, match="cannot run on cpu: they are made for NVIDIA's"):
        modulated_layer_norm(numbers(1, 3, 8), impl="triton")
    monkeypatch.setattr("dithead.kernels.choice.INSTALLED", False)
    with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[triton\]'"):
        attention(*[numbers(1, 1, 3, 32)] * 3, "triton")
