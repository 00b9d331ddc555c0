"""Runs every engine of a bundle on a machine with a GPU and compares it with the graph's ONNX file:
the float32 one, or if the bundle has none, the one that the engine was built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dithead.bundle.engines import Engines
from dithead.bundle.graphspecs import graph_specs
from dithead.bundle.manifest import check_onnx, read_manifest, write_manifest
from dithead.bundle.ports import usable_device
from dithead.errors import ExportError
from dithead.export.folder import claimed
from dithead.export.inputs import example_inputs
from dithead.export.validate import TOLERANCES, onnx_session, relative_error, runnable, to_arrays

CASES = 3
SEED = 7


def verify_bundle(folder: Path, device: str = "cuda") -> dict[str, float]:
    """Load, run and compare every engine, and record this in the manifest.

    Returns:
        Largest relative error by graph.

    Raises:
        BackendUnavailable: no GPU, or the TensorRT flavour is not installed.
        ExportError: the bundle has no engines, or one does not open, run or agree.
    """
    read_manifest(folder)  # leaves a folder alone that is not a bundle
    with claimed(folder):
        return _verify(folder, torch.device(device))


def _verify(folder: Path, device: torch.device) -> dict[str, float]:
    manifest = read_manifest(folder)
    flavours = {engine.flavour for entry in manifest.graphs for engine in entry.engines}
    if not flavours:
        raise ExportError(f"{folder} holds no engines: export with --engines tensorrt-rtx")
    device = usable_device(device)
    engines = Engines(folder, device, flavours.pop())
    config, faces = manifest.model_config(), manifest.face_networks()
    known = graph_specs(manifest.largest_rectangle, config.shape_head)
    specs = {spec.name: spec for spec in known}
    generator = torch.Generator().manual_seed(SEED)
    errors: dict[str, float] = {}
    entries = []
    for entry in manifest.graphs:
        if not entry.engines:
            entries.append(entry)
            continue
        source = entry.onnx_for("fp32") or entry.onnx[0]
        with runnable(check_onnx(folder, source), source.precision) as file:
            session = onnx_session(file)
        worst = 0.0
        for batch in [engine.batch for engine in entry.engines for _ in range(CASES)]:
            inputs = example_inputs(specs[entry.name], config, generator, batch, faces)
            expected = session.run([port.name for port in entry.outputs], to_arrays(inputs))
            found = engines.run(entry, [inputs[port.name].to(device) for port in entry.inputs])
            pairs = zip(found, expected, strict=True)
            worst = max(worst, *(relative_error(a.cpu().numpy(), b) for a, b in pairs))
        tolerance = TOLERANCES[entry.engines[0].precision]
        if worst > tolerance:
            raise ExportError(
                f"graph '{entry.name}': its engine is off by {worst:.2e} relative, "
                f"{tolerance:.0e} is allowed"
            )
        errors[entry.name] = worst
        verified = tuple(replace(e, executed=True, error=worst) for e in entry.engines)
        entries.append(replace(entry, engines=verified))
    write_manifest(folder, replace(manifest, graphs=tuple(entries)))
    return errors
