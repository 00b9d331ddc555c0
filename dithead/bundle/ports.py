"""A graph's inputs and outputs as tensors, checked against the manifest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dithead.bundle.manifest import GraphEntry
from dithead.errors import BackendUnavailable, StreamError


def usable_device(device: torch.device) -> torch.device:
    """A device with its number. Raises BackendUnavailable: it is a GPU, and PyTorch sees none."""
    if device.type != "cuda":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            f"the device {device} needs a GPU, its driver and a CUDA build of torch: "
            "torch.cuda.is_available() is False"
        )
    number = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", number)


def check_inputs(entry: GraphEntry, inputs: Sequence[Tensor], device: torch.device) -> None:
    """Raise StreamError if an input has another shape or type than the graph expects."""
    if len(inputs) != len(entry.inputs):
        raise StreamError(
            f"graph '{entry.name}' takes {len(entry.inputs)} inputs, found {len(inputs)}"
        )
    for port, value in zip(entry.inputs, inputs, strict=True):
        dtype = str(value.dtype).removeprefix("torch.")
        fits = len(port.shape) == value.dim() and all(
            isinstance(n, str) or n == m for n, m in zip(port.shape, value.shape, strict=True)
        )
        if dtype != port.dtype or not fits or value.device != device:
            batched = list(port.shape[1:]) == list(value.shape[1:]) and port.shape[:1] == (1,)
            remedy = "; for batches export again with --batch" if batched else ""
            raise StreamError(
                f"graph '{entry.name}', input '{port.name}': expected {port.dtype} "
                f"{list(port.shape)} on {device}, found {dtype} {list(value.shape)} on "
                f"{value.device}{remedy}"
            )


def open_sizes(entry: GraphEntry, inputs: Sequence[Tensor]) -> dict[str, int]:
    """The sizes of a graph's open dimensions in its inputs, by name."""
    return {
        n: m
        for port, value in zip(entry.inputs, inputs, strict=True)
        for n, m in zip(port.shape, value.shape, strict=True)
        if isinstance(n, str)
    }


def allocate(entry: GraphEntry, inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Empty outputs; their open dimensions have the sizes of the inputs'."""
    sizes = open_sizes(entry, inputs)
    return [
        torch.empty(
            [sizes[n] if isinstance(n, str) else n for n in port.shape],
            dtype=getattr(torch, port.dtype),
            device=device,
        )
        for port in entry.outputs
    ]
