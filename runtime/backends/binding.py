"""What back ends that run a bundle share: opening it, checking inputs against its manifest, making
room for outputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dithead.config import DitHeadConfig
from dithead.controls import HABIT_SIZE
from dithead.errors import BackendUnavailable, ExportError, StreamError
from dithead.export.manifest import GraphEntry, read_manifest
from dithead.face.tracker import STATE_SIZE

log = logging.getLogger(__name__)

_STATES = {"face_tracker": ("state", STATE_SIZE), "face_shape": ("habit", HABIT_SIZE)}
"""Inputs that a stream hands from frame to frame, and how long this version makes them."""


class BundleGraphs:
    """A bundle that is open on a device; a back end adds ``run``.

    Raises:
        BackendUnavailable: there is no such device.
        ExportError: the bundle cannot be used.
    """

    def __init__(self, bundle: Path, device: torch.device) -> None:
        self._bundle = bundle
        self._device = torch.device("cpu")
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise BackendUnavailable(
                    f"the device {device} needs a GPU, its driver and a CUDA build of torch: "
                    "torch.cuda.is_available() is False"
                )
            number = torch.cuda.current_device() if device.index is None else device.index
            self._device = torch.device("cuda", number)
        self._manifest = read_manifest(bundle)
        self._config = self._manifest.model_config()
        self._entries = {entry.name: entry for entry in self._manifest.graphs}
        for name, (state, size) in _STATES.items():
            ports = self._entries[name].inputs if name in self._entries else ()
            if any(port.name == state and port.shape != (size,) for port in ports):
                raise ExportError(
                    f"graph '{name}' of {bundle} is of another version of DiT-Head",
                    hint="export again",
                )
        if not self._manifest.checkpoint_sha256:
            log.warning(
                "%s holds %s: it says how fast the model is, not how good",
                bundle,
                self._manifest.checkpoint,
            )

    def _entry(self, name: str) -> GraphEntry:
        """A graph's entry in the manifest. Raises ExportError: the bundle has no such graph."""
        return self._entries.get(name) or self._manifest.graph(name)

    def sizes_to_preload(self) -> dict[str, dict[str, int]]:
        """Graphs that every stream runs, whatever the size of frame and face, by name: the sizes
        of their open dimensions."""
        found = {}
        for entry in self._manifest.graphs:
            open_names = {n for port in entry.inputs for n in port.shape if isinstance(n, str)}
            if not entry.name.rpartition(".")[2].isdigit() and open_names <= {"B"}:
                found[entry.name] = dict.fromkeys(open_names, 1)
        return found

    @property
    def config(self) -> DitHeadConfig:
        """The model's configuration."""
        return self._config

    @property
    def largest_rectangle(self) -> int:
        """Side in pixels of the largest rectangle round a face that there are graphs for."""
        return self._manifest.largest_rectangle

    @property
    def device(self) -> torch.device:
        """Where inputs must be and outputs are."""
        return self._device


def check_inputs(entry: GraphEntry, inputs: Sequence[Tensor], device: torch.device) -> None:
    """Raise StreamError where an input is not of the shape and type that the graph takes."""
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
    """The sizes that a graph's open dimensions have in its inputs, by name."""
    return {
        n: m
        for port, value in zip(entry.inputs, inputs, strict=True)
        for n, m in zip(port.shape, value.shape, strict=True)
        if isinstance(n, str)
    }


def allocate(entry: GraphEntry, inputs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Empty outputs, open dimensions taken from the inputs."""
    sizes = open_sizes(entry, inputs)
    return [
        torch.empty(
            [sizes[n] if isinstance(n, str) else n for n in port.shape],
            dtype=getattr(torch, port.dtype),
            device=device,
        )
        for port in entry.outputs
    ]
