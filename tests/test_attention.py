"""Attention by name: the same numbers from each, and one clear error where one is not to be had."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exactness import DTYPES, close, exact_attention, numbers
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError
from dithead.kernels.attention import ATTENTION_BACKENDS, attention, check_attention, flash
from dithead.runtime.backends import open_graphs
from dithead.runtime.doctor import look_at_torch
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

MODULES = {"flash": "flash_attn", "xformers": "xformers.ops"}


def heads(count: int = 5) -> Tensor:
    return torch.randn(2, 4, count, 16)  # (B, heads, N, D)


def test_a_model_gives_the_same_with_either(checkpoint_file: Path) -> None:
    made = []
    for name in ("sdpa", "math"):
        graphs = TorchGraphs.load(str(checkpoint_file), attention=name)
        assert {block.attention_backend for block in graphs.dithead.dit.blocks} == {name}
        torch.manual_seed(1)
        dit, size = graphs.dithead.dit, graphs.config.latent_size
        latents = torch.randn(3, 1, graphs.config.vqgan.latent_channels, size, size)
        window = torch.randn(1, *graphs.config.audio.window_shape)
        made.append(dit(*latents, torch.tensor([300]), window))
    assert made[0].abs().max() > 0.01
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=1e-5)


def test_a_session_opens_with_it(checkpoint_file: Path, pictures: list[np.ndarray]) -> None:
    images = []
    for name in ("sdpa", "math"):
        session = Session.open(checkpoint=str(checkpoint_file), attention=name)
        with session.open_stream() as stream:
            stream.finish_audio()
            stream.push_frame(pictures[0], 0)
            stream.finish()
            images += [frame.image.astype(int) for frame in stream.frames()]
    assert np.abs(images[0] - images[1]).max() <= 1  # of 255


def halves_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As flash-attn: (B, N, heads, D), in half precision alone."""
    assert {x.dtype for x in (q, k, v)} in ({torch.float16}, {torch.bfloat16})
    return any_type(q, k, v)


def any_type(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As xFormers: (B, N, heads, D)."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.fixture(autouse=True)
def looked_for_anew() -> Iterator[None]:
    """Which FlashAttention there is, is found once in a process."""
    flash.flash_attention.cache_clear()
    yield
    flash.flash_attention.cache_clear()


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the packages: they show how each is called, not how it computes."""
    package = SimpleNamespace(flash_attn_func=halves_only, memory_efficient_attention=any_type)
    for module in MODULES.values():
        monkeypatch.setitem(sys.modules, module.partition(".")[0], package)
        monkeypatch.setitem(sys.modules, module, package)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["auto", "sdpa", "math", *MODULES])
def test_each_back_end_is_held_to_the_same_definition(name: str, dtype: torch.dtype) -> None:
    """In float64; Triton's kernels are held to it in test_kernels_attention.py."""
    for queries, keys in ((5, 7), (64, 11), (3, 1)):
        q = numbers(2, 4, queries, 16, dtype=dtype)
        k, v = numbers(2, 2, 4, keys, 16, dtype=dtype)
        found = attention(q, k, v, name)
        assert found.dtype == dtype
        expected = exact_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        kept = torch.float16 if (name, dtype) == ("flash", torch.float32) else dtype
        close(found.transpose(1, 2).flatten(2), expected, kept)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", MODULES)
def test_a_package_needs_its_device(name: str) -> None:
    check_attention(name, torch.device("cuda"))
    with pytest.raises(BackendUnavailable, match=f"'{name}' runs on a CUDA device, not on cpu"):
        check_attention(name, torch.device("cpu"))


@pytest.mark.parametrize("name", ["flash", "xformers"])
def test_an_absent_package_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(BackendUnavailable, match=rf"pip install 'dithead\[{name}\]'"):
        attention(heads(), heads(), heads(), name)
    with pytest.raises(BackendUnavailable, match=rf"pip install 'dithead\[{name}\]'"):
        Session.open(attention=name)  # before anything is loaded, not at the first frame


FLASH = {2: "flash_attn", 3: "flash_attn_interface", 4: "flash_attn.cute"}
Installs = Callable[..., list[int]]


@pytest.fixture
def installs(monkeypatch: pytest.MonkeyPatch) -> Installs:
    """Puts stand-ins for versions of FlashAttention in place: (the GPU's compute capability,
    versions) -> the list to which each call adds its version."""
    called: list[int] = []

    def stand_in(version: int) -> SimpleNamespace:
        def flash_attn_func(q: Tensor, k: Tensor, v: Tensor) -> Any:
            called.append(version)
            out = halves_only(q, k, v)
            return out if version == 2 else (out, out.new_zeros(*q.shape[:3]))

        return SimpleNamespace(flash_attn_func=flash_attn_func)

    def install(capability: tuple[int, int], *versions: int) -> list[int]:
        for version, module in FLASH.items():
            there = stand_in(version) if version in versions else None
            if version == 2 and there is None and 4 in versions:
                there = SimpleNamespace()  # the folder that 4 lies in, alone
            monkeypatch.setitem(sys.modules, module, there)
        for module in ("dithead.kernels.attention", "dithead.kernels.attention.reference"):
            monkeypatch.setattr(f"{module}.capability", lambda _: capability)
        return called

    return install


@pytest.mark.parametrize(
    ("capability", "versions", "width", "chosen"),
    [
        ((8, 0), (2, 3, 4), 64, 2),
        ((9, 0), (2, 3, 4), 64, 3),
        ((9, 0), (2, 4), 64, 4),
        ((9, 0), (2, 4), 32, 2),
        ((9, 0), (4,), 128, 4),
        ((9, 0), (2,), 64, 2),
        ((10, 0), (2, 3, 4), 64, 4),
        ((10, 3), (2, 3), 64, 2),
        ((12, 0), (2, 3, 4), 64, 2),
    ],
)
def test_the_flash_attention_made_for_a_gpu_comes_first(
    installs: Installs,
    capability: tuple[int, int],
    versions: tuple[int, ...],
    width: int,
    chosen: int,
) -> None:
    called = installs(capability, *versions)
    check_attention("flash", torch.device("cuda"))
    q, k, v = numbers(2, 4, 5, width), numbers(2, 4, 7, width), numbers(2, 4, 7, width)
    found = attention(q, k, v, "flash")
    expected = exact_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    close(found.transpose(1, 2).flatten(2), expected, torch.float16)
    assert called == [chosen]


def test_what_was_looked_for_is_said(installs: Installs) -> None:
    installs((9, 0))
    names = r"flash_attn_interface \(FlashAttention 3\), flash_attn\.cute .*, flash_attn \("
    with pytest.raises(BackendUnavailable, match=names):
        check_attention("flash", torch.device("cuda"))
    installs((8, 9), 3, 4)
    with pytest.raises(BackendUnavailable, match=r"8\.9; looked for flash_attn \(Fl[^,]*: pip"):
        check_attention("flash", torch.device("cuda"))


def test_the_doctor_names_the_versions_that_are_there(installs: Installs) -> None:
    installs((9, 0), 3, 4)
    found = {finding.name: finding for finding in look_at_torch()}["flash-attn"]
    assert "FlashAttention 3 (flash_attn_interface); FlashAttention 4" in found.detail
    assert "FlashAttention 2" not in found.detail


def test_others_are_refused() -> None:
    with pytest.raises(ConfigError, match=f"'fast': choose one of {', '.join(ATTENTION_BACKENDS)}"):
        Session.open(attention="fast")
    with pytest.raises(ConfigError, match="takes its attention from the bundle"):
        open_graphs("onnxruntime", bundle=Path("bundle"), attention="math")
