"""Which implementation of an operation runs.

``reference`` is plain PyTorch, the specification. ``triton`` is the Triton kernel, or an error that
says why there is none. ``auto`` is the kernel where it is made for the device, and the reference
everywhere else: on other devices, where gradients are needed (the kernels' recompute the forward
pass), and in exported graphs. A kernel that fails raises; it is never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError
from dithead.kernels.checks import needs_gradients

Impl = Literal["auto", "reference", "triton"]
IMPLEMENTATIONS: tuple[Impl, ...] = get_args(Impl)

VARIABLE = "DITHEAD_KERNELS"
"""Environment variable that says what ``auto`` means in this process."""
INSTALLED = find_spec("triton") is not None
LEAST_CAPABILITY = (8, 0)
"""Of a CUDA device: Ampere, the oldest architecture that the kernels are compiled for in tests."""


def triton_is_chosen(impl: Impl, *tensors: Tensor | None) -> bool:
    """Whether the Triton kernel is to run on these tensors.

    Args:
        impl: the caller's choice.
        tensors: what the operation reads; the first says on which device.

    Raises:
        ConfigError: unknown implementation. BackendUnavailable: ``triton`` was asked for and cannot
            run on that device.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    wanted = _meaning(impl)
    if impl == "auto" and (_exporting() or _forward_mode()):
        return False
    if wanted == "triton":
        _require(given[0].device)
        return True
    on_cuda = given[0].device.type == "cuda" and not interpreted()
    if wanted == "reference" or not on_cuda:
        return False
    return not needs_gradients(given) and missing(given[0].device) is None


def inference_form_is_chosen(impl: Impl, *tensors: Tensor) -> bool:
    """Whether plain PyTorch in a form that costs less is to take the reference's place, which
    training and exported graphs use. It runs on every device.

    Raises:
        ConfigError: unknown implementation.
    """
    wanted = _meaning(impl)
    if impl == "auto" and _exporting():
        return False
    return wanted == "triton" or (wanted == "auto" and not needs_gradients(tensors))


def check_preference(device: torch.device) -> None:
    """Refuse what :data:`VARIABLE` asks for and cannot be, before anything is loaded.

    Raises:
        ConfigError: no such implementation. BackendUnavailable: it cannot run on this device.
    """
    if _meaning("auto") == "triton":
        _require(device)


def _require(device: torch.device) -> None:
    if (reason := missing(device)) is not None:
        raise BackendUnavailable(
            f"the Triton kernels cannot run on {device}: {reason}",
            hint=f"choose the implementation auto or reference ({VARIABLE}=auto)",
        )


def missing(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None if they can. On PyTorch's device ``meta`` only
    their shapes are followed."""
    if not INSTALLED:
        return "the package triton is not installed (pip install 'dithead[triton]')"
    if interpreted() or device.type == "meta":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return "they are made for NVIDIA's GPUs"
    return _too_old(device.index if device.index is not None else torch.cuda.current_device())


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on any device and very slowly: for tests
    (``TRITON_INTERPRET=1``, before triton is imported)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@contextmanager
def preferring(impl: Impl) -> Iterator[None]:
    """What ``auto`` means in this process meanwhile."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = impl
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _meaning(impl: str) -> str:
    if impl not in IMPLEMENTATIONS:
        raise ConfigError(
            f"unknown implementation {impl!r}", hint=f"choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    if impl != "auto":
        return impl
    meant = os.environ.get(VARIABLE) or "auto"
    if meant not in IMPLEMENTATIONS:
        raise ConfigError(
            f"{VARIABLE} is {meant!r}", hint=f"set it to one of {', '.join(IMPLEMENTATIONS)}"
        )
    return meant


def _too_old(index: int) -> str | None:
    found = torch.cuda.get_device_capability(index)
    if found >= LEAST_CAPABILITY:
        return None
    wanted = ".".join(map(str, LEAST_CAPABILITY))
    return f"they need compute capability {wanted}, and this GPU has {found[0]}.{found[1]}"


def _forward_mode() -> bool:
    """Whether derivatives are carried forward: the kernels would drop them."""
    return getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


def _exporting() -> bool:
    exporting = getattr(torch.compiler, "is_exporting", None)  # since PyTorch 2.7
    return torch.jit.is_tracing() or (exporting is not None and exporting())
