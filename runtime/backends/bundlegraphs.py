"""A bundle opened on a device: the base of every back end that runs one."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from dithead.bundle.manifest import GraphEntry, read_manifest
from dithead.bundle.ports import usable_device
from dithead.config import DitHeadConfig
from dithead.controls import HABIT_SIZE
from dithead.errors import ExportError
from dithead.face.cropsmoother import STATE_SIZE

log = logging.getLogger(__name__)

_STATES = {"crop_smoother": ("state", STATE_SIZE), "face_shape": ("habit", HABIT_SIZE)}
"""Inputs that a stream passes from frame to frame, and their lengths in this version."""


class BundleGraphs:
    """A bundle opened on a device; a back end adds ``run``.

    Raises:
        BackendUnavailable: there is no such device.
        ExportError: the bundle cannot be used.
    """

    def __init__(self, bundle: Path, device: torch.device) -> None:
        self._bundle = bundle
        self.device = usable_device(device)
        """Where inputs must be and where outputs are."""
        self._manifest = read_manifest(bundle)
        self.config: DitHeadConfig = self._manifest.model_config()
        """The model's configuration."""
        self.face_models = self._manifest.face_networks()
        """Which networks find faces."""
        self.precision = self._manifest.precision
        """The precision of the weights."""
        self._entries = {entry.name: entry for entry in self._manifest.graphs}
        for name, (state, size) in _STATES.items():
            ports = self._entries[name].inputs if name in self._entries else ()
            if any(port.name == state and port.shape != (size,) for port in ports):
                raise ExportError(
                    f"graph '{name}' of {bundle} was made by another version of DiT-Head",
                    hint="export again",
                )
        self.random_weights = not self._manifest.checkpoint_sha256
        """Whether they were drawn, and never trained."""
        if self.random_weights:
            log.warning(
                "%s holds %s: it says how fast the model is, not how good",
                bundle,
                self._manifest.checkpoint,
            )

    def _entry(self, name: str) -> GraphEntry:
        """A graph's entry in the manifest. Raises ExportError: the bundle has no such graph."""
        return self._entries.get(name) or self._manifest.graph(name)

    def sizes_to_preload(self) -> dict[str, dict[str, int]]:
        """The graphs that every stream runs, whatever the size of frame and face: by name, with the
        sizes of their open dimensions."""
        found = {}
        for entry in self._manifest.graphs:
            open_names = {n for port in entry.inputs for n in port.shape if isinstance(n, str)}
            if not entry.name.rpartition(".")[2].isdigit() and open_names <= {"B"}:
                found[entry.name] = dict.fromkeys(open_names, 1)
        return found

    @property
    def largest_rectangle(self) -> int:
        """Side in pixels of the largest rectangle round a face for which there are graphs."""
        return self._manifest.largest_rectangle
