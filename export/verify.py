"""Running every engine of a bundle on a machine with a GPU, and comparing it with the graph's ONNX
file: the float32 one, or where the bundle has none, the one that the engine was built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from dithead.errors import ExportError
from dithead.export import manifest as mf
from dithead.export.folder import claimed
from dithead.export.specs import example_inputs, graph_specs
from dithead.export.validate import TOLERANCES, onnx_session, relative_error, to_arrays
from dithead.export.widen import runnable

CASES = 3
SEED = 7


def verify_bundle(folder: Path, device: str = "cuda") -> dict[str, float]:
    """Load, run and compare every engine, and write down in the manifest that it was done.

    Returns:
        Largest relative error by graph.

    Raises:
        BackendUnavailable: no GPU, or the TensorRT flavour is not installed.
        ExportError: the bundle has no engines, or one does not open, run or agree.
    """
    mf.read_manifest(folder)  # a folder that is no bundle is left alone
    with claimed(folder):
        return _verify(folder, device)


def _verify(folder: Path, device: str) -> dict[str, float]:
    from dithead.runtime.backends.tensorrt import EngineGraphs

    manifest = mf.read_manifest(folder)
    flavours = {engine.flavour for entry in manifest.graphs for engine in entry.engines}
    if not flavours:
        raise ExportError(f"{folder} holds no engines: export with --engines tensorrt-rtx")
    graphs = EngineGraphs(folder, device, flavours.pop())  # type: ignore[arg-type]
    config = manifest.model_config()
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
        path = mf.check_file(folder, source.file)
        if source.weights is not None:
            mf.check_file(folder, source.weights)
        with runnable(path, source.precision) as file:
            session = onnx_session(file)
        worst = 0.0
        for engine in [engine for engine in entry.engines for _ in range(CASES)]:
            inputs = example_inputs(specs[entry.name], config, generator, engine.batch)
            names = [port.name for port in entry.outputs]
            expected = session.run(names, to_arrays(inputs))
            moved = [inputs[port.name].to(graphs.device) for port in entry.inputs]
            found = [value.cpu().numpy() for value in graphs.run(entry.name, *moved)]
            pairs = zip(found, expected, strict=True)
            worst = max(worst, *(relative_error(a, b) for a, b in pairs))
        tolerance = TOLERANCES[entry.engines[0].precision]
        if worst > tolerance:
            raise ExportError(
                f"graph '{entry.name}': its engine is off by {worst:.2e} relative, "
                f"{tolerance:.0e} is allowed"
            )
        errors[entry.name] = worst
        engines = tuple(replace(e, executed=True, error=worst) for e in entry.engines)
        entries.append(replace(entry, engines=engines))
    mf.write_manifest(folder, replace(manifest, graphs=tuple(entries)))
    return errors
