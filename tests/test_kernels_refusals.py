"""What the kernels refuse, and who is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exactness import DEVICE, numbers
from torch import nn

from dithead.errors import BackendUnavailable, ConfigError
from dithead.kernels.attention import attention, audio_attention
from dithead.kernels.choice import interpreted, triton_is_chosen
from dithead.kernels.composite import composite
from dithead.kernels.ddim_step import ddim_step
from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.modulated_layer_norm import modulated_layer_norm
from dithead.kernels.upsampled_convolution import upsampled_convolution
from dithead.runtime import doctor
from dithead.torchgraphs import TorchGraphs


def test_the_kernels_run_here() -> None:
    assert interpreted() or DEVICE.type == "cuda"
    assert triton_is_chosen("triton", numbers(1))


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
    refused(
        ValueError,
        r"gate: expected the shape \(2, 1, 32\), found \(\)",
        lambda: norm(x, branch=x, gate=line[0], impl="triton"),
    )
    refused(ValueError, "1 to 8192 numbers", lambda: norm(x[..., :0], impl="triton"))
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
    refused(
        ConfigError,
        "unknown prediction 'Noise': choose one of noise, velocity",
        lambda: ddim_step(latent, latent, table, table, now, now, "Noise"),  # type: ignore[arg-type]
    )
    refused(
        ValueError,
        r"weight: expected the shape \(O, 4, 3, 3\), found \(2, 4, 1, 1\)",
        lambda: upsampled_convolution(latent, numbers(2, 4, 1, 1), numbers(2)),
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
        "face: expected at least one pixel",
        lambda: composite(face[..., :0, :0], matrix, rectangle, weight, impl="triton"),
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
    with pytest.raises(ConfigError, match="DITHEAD_KERNELS is 'quick'"):
        TorchGraphs.load("no-such-checkpoint")  # before it is looked for
    (found,) = (one for one in doctor.examine() if one.name == "triton")
    assert found.state == "unusable" and "set DITHEAD_KERNELS to one of" in found.remedy


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the kernels run on this device")
def test_triton_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(BackendUnavailable, match="cannot run on cpu: they are made for NVIDIA's"):
        modulated_layer_norm(numbers(1, 3, 8), impl="triton")
    monkeypatch.setattr("dithead.kernels.choice.INSTALLED", False)
    with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[triton\]'"):
        attention(*[numbers(1, 1, 3, 32)] * 3, "triton")
