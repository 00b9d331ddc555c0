"""Makes a bundle from a checkpoint; files that have not changed since the last export are kept."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.bundle import manifest as mf
from dithead.bundle.graphspecs import GraphSpec, graph_specs, select, with_batch
from dithead.bundle.libraries import MODULES, Flavour, load_flavour
from dithead.errors import ConfigError, ExportError
from dithead.export.folder import claimed, remove_stale
from dithead.export.inputs import example_inputs
from dithead.export.layers import Precision, check_precision, reduce_precision
from dithead.export.onnx import OPSETS, export_onnx, require_onnx, weights_file
from dithead.export.reuse import (
    EarlierBundle,
    hash_of,
    hash_tensors,
    source_hash,
    versions,
    weights_read,
)
from dithead.export.tensorrt import PORTABLE, build_engine, compute_capability_name, this_gpu
from dithead.export.validate import TOLERANCES, run_torch, validate, validate_precision
from dithead.filehash import hash_file
from dithead.torchgraphs import TorchGraphs

log = logging.getLogger(__name__)

RANDOM_CASES = 2
"""Number of random inputs for the comparison of every file."""
SEED = 20231206
TARGETS = ("cpu", "gpu")

Progress = Callable[[str], None]
Cases = Mapping[str, Sequence[Mapping[str, Tensor]]]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What a bundle is to contain."""

    precision: Precision = "fp16"
    """Precision of the graphs for a GPU."""
    targets: tuple[str, ...] = TARGETS
    """``cpu``: every graph in float32. ``gpu``: in the precision, and as engines."""
    largest_rectangle: int = 1024
    """Side in pixels of the largest rectangle round a face for which there are graphs."""
    graphs: tuple[str, ...] = ()
    """Names of the graphs to export; empty for all. A bundle of only some graphs cannot be streamed
    from."""
    flavour: Flavour | None = None
    """Which TensorRT builds the engines; None for no engines."""
    compute_capability: str = PORTABLE
    """Such as ``8.9``: restricts engines to one kind of GPU."""
    batches: tuple[int, ...] = (1,)
    """How many streams an engine serves at once, besides one: each graph that streams can share
    gets an engine for each number."""

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ConfigError(
                f"targets must be one or more of {', '.join(TARGETS)}, "
                f"not {','.join(self.targets)!r}"
            )
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"batches must be one or more numbers from 1, not {self.batches}")


@dataclass(slots=True)
class ExportReport:
    """What an export did."""

    folder: Path
    built: list[str] = field(default_factory=list)
    """Names of the files that were made."""
    kept: int = 0
    """How many files of the earlier bundle were kept."""
    seconds: float = 0.0
    bytes: int = 0
    engines: int = 0
    real_inputs: bool = False
    """Whether the new files were also compared on real inputs, where the clip gave any."""


@dataclass(slots=True)
class _Exporter:
    """One export into one folder."""

    models: TorchGraphs
    folder: Path
    options: ExportOptions
    record: Callable[[], Cases] | None
    """Returns real inputs; called when the first file is made."""
    progress: Progress
    report: ExportReport
    earlier: EarlierBundle
    made: list[Path] = field(default_factory=list)
    real: Cases | None = None

    def real_inputs(self, name: str) -> list[Mapping[str, Tensor]]:
        """Real inputs of a graph."""
        if self.real is None:
            self.real = self.record() if self.record else {}
            self.report.real_inputs = bool(self.real)
        return list(self.real.get(name, ()))

    def precisions(self, spec: GraphSpec) -> list[Precision]:
        """The precisions in which a graph is needed."""
        targets, wanted = self.options.targets, self.options.precision
        on_cpu: list[Precision] = ["fp32"] if "cpu" in targets or not spec.reduced else []
        on_gpu = [wanted] if "gpu" in targets and spec.reduced else []
        return list(dict.fromkeys([*on_cpu, *on_gpu]))

    def graph(self, spec: GraphSpec) -> mf.GraphEntry:
        """Make the files of one graph."""
        module = self.models.module(spec.name)
        (inputs, outputs), read = weights_read(module, lambda: self._ports(spec, module))
        weights = hash_tensors(read)
        onnx: list[mf.OnnxFile] = []
        for precision in self.precisions(spec):  # float32 first: the others are compared with it
            onnx.append(self._onnx(spec, module, weights, precision, onnx[0] if onnx else None))
        engines: list[mf.EngineFile] = []
        if spec.engine and self.options.flavour and "gpu" in self.options.targets:
            for batch in sorted({1, *self.options.batches}) if spec.shared else (1,):
                engine = self._engine(spec, self.options.flavour, onnx[-1], batch)
                _check_ports(spec.name, "inputs", engine.inputs, inputs, batch)
                _check_ports(spec.name, "outputs", engine.outputs, outputs, batch)
                engines.append(engine)
        return mf.GraphEntry(spec.name, inputs, outputs, spec.engine, tuple(onnx), tuple(engines))

    def bundle(self, source: str | None) -> mf.Manifest:
        """Make everything that was requested, and write the manifest."""
        options, config = self.options, self.models.config
        if config.face.mask == "paper":
            raise ExportError(
                "the paper's mask (face.mask 'paper') is for comparison: no bundle has its graph",
                hint="run the checkpoint with --backend torch",
            )
        specs = graph_specs(options.largest_rectangle, config.shape_head)
        specs = select(specs, options.graphs) if options.graphs else specs
        if (most := max(options.batches)) > 1:
            specs = [with_batch(spec, config, most) for spec in specs]
        if options.graphs:
            self._keep_others({spec.name for spec in specs})
        graphs = tuple(self.graph(spec) for spec in specs)
        new = mf.Manifest(
            config=config.to_dict(),
            checkpoint=source or f"random weights, preset {config.preset}",
            checkpoint_sha256=hash_file(checkpoint.resolve(source)) if source else "",
            precision=options.precision if "gpu" in options.targets else "fp32",
            targets=options.targets,
            largest_rectangle=options.largest_rectangle,
            made_with=versions(),
            graphs=graphs,
            face_models=self.models.faces.models,
        )
        earlier = self.earlier.manifest
        if earlier is None or mf.as_json(new) != mf.as_json(earlier):
            mf.write_manifest(self.folder, new)
        return new

    def _keep_others(self, wanted: set[str]) -> None:
        """Refuse to replace a whole bundle with a part of one."""
        earlier, found = self.earlier.manifest, ""
        if earlier is None and (self.folder / mf.MANIFEST).is_file():
            found = f"what {self.folder} holds cannot be read"
        if earlier and (dropped := {entry.name for entry in earlier.graphs} - wanted):
            found = f"{self.folder} holds {len(dropped)} graphs that were not asked for, such as "
            found += f"'{min(dropped)}'"
        if found:
            raise ExportError(found, hint="choose another folder for a bundle of some graphs")

    def _ports(
        self, spec: GraphSpec, module: nn.Module
    ) -> tuple[tuple[mf.Port, ...], tuple[mf.Port, ...]]:
        generator = torch.Generator().manual_seed(SEED)
        inputs = example_inputs(spec, self.models.config, generator, 1, self.models.faces.models)
        outputs = run_torch(module, spec, inputs)

        def port(name: str, value: Any) -> mf.Port:
            axes = spec.dynamic.get(name, {})
            shape = tuple(axes[d].name if d in axes else n for d, n in enumerate(value.shape))
            return mf.Port(name, str(value.dtype).removeprefix("torch."), shape)

        ports_in = tuple(port(name, inputs[name]) for name in spec.inputs)
        ports_out = tuple(port(name, outputs[name]) for name in spec.outputs)
        return ports_in, ports_out

    def _onnx(
        self,
        spec: GraphSpec,
        module: nn.Module,
        weights: str,
        precision: Precision,
        reference: mf.OnnxFile | None,
    ) -> mf.OnnxFile:
        key = hash_of(
            spec.name,
            repr(self.models.config.to_dict()),
            self.models.faces.models,
            precision,
            weights,
            source_hash(),
            repr(versions()),
            repr(spec.dynamic),
        )
        if found := self.earlier.onnx.get(key):
            self.report.kept += len(found.files())
            return found
        real = self.real_inputs(spec.name)
        generator = torch.Generator().manual_seed(SEED)
        config = self.models.config
        # The graph is traced with the first one, and must not treat its batch of 1 as fixed.
        asked = self.options.batches if spec.shared else (1,)
        batches = [max(asked), *asked][:RANDOM_CASES]
        batches += [1] * (RANDOM_CASES - len(batches))
        faces = self.models.faces.models
        random = [example_inputs(spec, config, generator, batch, faces) for batch in batches]
        name = f"{spec.name}.{precision}.{key[:8]}.onnx"
        self.progress(f"{spec.name} ({precision}): ONNX")
        path = self.folder / name
        beside = weights_file(path)
        self.made += [path, beside]
        metadata = {"dithead_graph": spec.name, "dithead_precision": precision, "dithead_key": key}
        tolerance, reduced = TOLERANCES[precision], reduce_precision(module, precision)
        if reduced is not module:
            validate_precision(module, reduced, spec, [*random, *real], tolerance)
        export_onnx(reduced, spec, random[0], path, metadata, OPSETS[precision])
        fp32 = None if reference is None else self.folder / reference.file.path
        error = validate(path, module, spec, [*random, *real], tolerance, fp32, precision)
        self.report.built.append(name)
        return mf.OnnxFile(
            precision,
            self._file(path, key),
            self._file(beside, key) if beside.is_file() else None,
            error,
            tolerance,
            ("random", "real") if real else ("random",),
        )

    def _file(self, path: Path, key: str) -> mf.BundleFile:
        return mf.BundleFile(path.name, hash_file(path), path.stat().st_size, key)

    def _engine(
        self, spec: GraphSpec, flavour: Flavour, source: mf.OnnxFile, batch: int
    ) -> mf.EngineFile:
        library = str(load_flavour(flavour).__version__)
        capability = self.options.compute_capability
        if flavour == "tensorrt":  # its engines run only on the kind of GPU that they are built on
            capability = this_gpu()
        key = hash_of(
            *(file.sha256 for file in source.files()),
            flavour,
            library,
            capability,
            repr(spec.dynamic),
            str(batch),
            source_hash(),
        )
        self.report.engines += 1
        if found := self.earlier.engines.get(key):
            self.report.kept += 1
            return found
        of_streams = f" for {batch} streams" if batch > 1 else ""
        self.progress(f"{spec.name} ({source.precision}): {flavour} engine{of_streams}")
        name = f"{spec.name}.{source.precision}.{key[:8]}.engine"
        path = self.folder / name
        cache_path = self.folder / f".{MODULES[flavour]}.timing"
        sizes = {"B": batch} if spec.shared else None
        onnx = self.folder / source.file.path
        narrow = self.options.compute_capability
        built = build_engine(onnx, spec, flavour, narrow, cache_path, sizes)
        self.made += [path, path.with_suffix(".log")]
        path.write_bytes(built.data)
        path.with_suffix(".log").write_text("\n".join(built.log.lines) + "\n")
        self.report.built.append(name)
        return mf.EngineFile(
            flavour,
            library,
            source.precision,
            capability,
            batch,
            self._file(path, key),
            built.inputs,
            built.outputs,
        )

    def discard(self) -> None:
        """Remove what a failed export has written."""
        for path in self.made:
            if path.name not in self.earlier.whole:
                path.unlink(missing_ok=True)


def _check_ports(
    graph: str, kind: str, found: tuple[mf.Port, ...], wanted: tuple[mf.Port, ...], batch: int
) -> None:
    """Raise ExportError if an engine's ports differ from those of its graph for so many streams.
    They are compared by name; ``?`` stands for any size."""
    by_name = {port.name: port for port in found}
    for port in wanted:
        sizes = [batch if n == "B" else n for n in port.shape]
        other = by_name.get(port.name)
        if (
            other is None
            or other.dtype != port.dtype
            or len(other.shape) != len(sizes)
            or any(a not in (b, "?") for a, b in zip(other.shape, sizes, strict=True))
        ):
            raise ExportError(
                f"graph '{graph}': the engine's {kind} are {found}, expected {wanted} with B = "
                f"{batch}"
            )


def export_bundle(
    source: str | None,
    folder: Path,
    options: ExportOptions,
    *,
    models: TorchGraphs | None = None,
    real: Callable[[], Cases] | None = None,
    progress: Progress = log.info,
) -> ExportReport:
    """Write a bundle, or bring one up to date.

    Args:
        source: name of a packaged checkpoint, or a path; None if ``models`` have random weights.
        folder: the bundle's folder; created if necessary.
        models: the checkpoint, if it is already loaded, or random weights.
        real: returns real inputs by graph, for validation besides random ones; called only if a
            file is made.
        progress: called with what is being made.

    Raises:
        DitheadError: the export failed; the previous bundle is unchanged.
    """
    start = time.perf_counter()
    require_onnx()
    library = None if options.flavour is None else load_flavour(options.flavour)
    if options.compute_capability != PORTABLE:
        if options.flavour != "tensorrt-rtx" or "gpu" not in options.targets:
            raise ConfigError(
                "a compute capability narrows TensorRT-RTX engines, and none are to be built"
            )
        compute_capability_name(library, options.compute_capability)
    if models is None:
        if source is None:
            raise ConfigError("give a checkpoint or models to export")
        models = TorchGraphs.load(source)
    if refused := models.config.torch_only:
        raise ExportError(
            f"bundles hold no models with {', '.join(refused)}",
            hint="run the checkpoint itself, with the back end torch",
        )
    with claimed(folder):
        report, earlier = ExportReport(folder), EarlierBundle(folder)
        exporter = _Exporter(models, folder, options, real, progress, report, earlier)
        try:
            new = exporter.bundle(source)
        except BaseException as error:
            exporter.discard()
            if not isinstance(error, OSError):
                raise
            raise ExportError(
                f"cannot write the bundle to {folder} ({error.strerror or error}): "
                f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are free there"
            ) from error
        remove_stale(folder, new)
    report.seconds = time.perf_counter() - start
    report.bytes = sum(file.bytes for file in new.files())
    return report
