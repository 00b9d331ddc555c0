"""Finds the libraries that run a bundle: ONNX Runtime and the flavours of TensorRT."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Literal

from dithead.errors import BackendUnavailable, ConfigError

Flavour = Literal["tensorrt-rtx", "tensorrt"]
MODULES: dict[Flavour, str] = {"tensorrt-rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
"""The Python module of each flavour; the first one is preferred."""
_ADVICE = {
    "tensorrt-rtx": "pip install 'dithead[tensorrt-rtx]'",
    "tensorrt": "pip install 'dithead[tensorrt]' with NVIDIA's own package index added (what PyPI "
    "has is a placeholder)",
}


def load_onnxruntime() -> ModuleType:
    """The module onnxruntime, with its telemetry off unless ORT_DISABLE_TELEMETRY says otherwise.
    Raises BackendUnavailable: it is not installed, or is damaged."""
    # Its wheels collect events of the process in the user's cache, from the import on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            "ONNX Runtime is not installed",
            hint="pip install 'dithead[cpu]', or 'dithead[gpu]' for CUDA (never both)",
        ) from error
    except ImportError as error:
        raise BackendUnavailable(
            f"ONNX Runtime cannot be imported ({error})",
            hint="pip install --force-reinstall onnxruntime, or onnxruntime-gpu",
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendUnavailable(
            "ONNX Runtime is damaged, as when one of onnxruntime and onnxruntime-gpu was removed "
            "beside the other",
            hint="pip install --force-reinstall the one that is wanted",
        )
    return onnxruntime


def load_flavour(flavour: str) -> ModuleType:
    """The Python module of a TensorRT flavour.

    Raises:
        ConfigError: unknown flavour.
        BackendUnavailable: it is not installed.
    """
    module = next((module for name, module in MODULES.items() if name == flavour), None)
    if module is None:
        raise ConfigError(
            f"unknown TensorRT flavour {flavour!r}",
            hint=f"choose one of {', '.join(MODULES)}",
        )
    try:
        library = importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"{flavour} is not installed", hint=_ADVICE[flavour]) from error
    if not hasattr(library, "Builder"):
        raise BackendUnavailable(f"the installed {flavour} is a placeholder", hint=_ADVICE[flavour])
    return library


def installed_flavour() -> Flavour | None:
    """TensorRT-RTX if it is installed, otherwise TensorRT, otherwise None."""
    for flavour in MODULES:
        try:
            load_flavour(flavour)
        except BackendUnavailable:
            continue
        return flavour
    return None
