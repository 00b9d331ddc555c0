"""A bundle's manifest: what its files are, what they were made of, and how far they were proven.

A bundle is a folder: ``manifest.json`` and the files that it names. It is written last and in one
piece, and files bear part of their key in their names, so whatever interrupts an export leaves the
bundle as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dithead.config import DitHeadConfig
from dithead.errors import ConfigError, ExportError
from dithead.jsontext import parse_json

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph."""

    name: str
    dtype: str
    """In NumPy's words: ``float32``, ``uint8``, ``int64``."""
    shape: tuple[int | str, ...]
    """A word stands for an open dimension."""


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file of a bundle."""

    path: str
    """Name in the bundle's folder."""
    sha256: str
    bytes: int
    key: str
    """Hash of all that the file was made from: the same key, the same file."""

    def __post_init__(self) -> None:
        if not (isinstance(self.path, str) and self.path and Path(self.path).name == self.path):
            raise ValueError(f"{self.path!r} is not the name of a file in the bundle")


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A graph as ONNX in one precision."""

    precision: str
    file: BundleFile
    weights: BundleFile | None
    """Weights beside the graph, where they are too large for it."""
    error: float
    """Largest relative error against PyTorch in float32 that was found."""
    tolerance: float
    validated_on: tuple[str, ...]
    """``random`` inputs, ``real`` ones, or both."""


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A graph as a TensorRT engine."""

    flavour: str
    """``tensorrt-rtx`` or ``tensorrt``."""
    version: str
    """Of the library that built it; another one cannot open it."""
    precision: str
    compute_capability: str
    """Such as ``8.9``; ``portable`` where it was not narrowed."""
    batch: int
    """Streams that it works for at once: the size of dimension ``B`` where the graph has it."""
    file: BundleFile
    inputs: tuple[Port, ...]
    """As the parsed network had them."""
    outputs: tuple[Port, ...]
    executed: bool = False
    """Whether it was loaded, run and compared, which takes a GPU: ``dithead-export --verify``."""
    error: float | None = None
    """Largest relative error against PyTorch, once executed."""


@dataclass(frozen=True, slots=True)
class GraphEntry:
    """One graph of the table in docs/architecture.md."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    engine: bool
    """Whether it becomes an engine."""
    onnx: tuple[OnnxFile, ...]
    engines: tuple[EngineFile, ...] = ()

    def onnx_for(self, precision: str) -> OnnxFile | None:
        """The file to run in a precision; a graph that is always float32 has just that one."""
        by_precision = {file.precision: file for file in self.onnx}
        if list(by_precision) == ["fp32"]:
            return by_precision["fp32"]
        return by_precision.get(precision)


@dataclass(frozen=True, slots=True)
class Manifest:
    """All of a bundle."""

    config: dict[str, Any]
    """The model's configuration (:class:`dithead.config.DitHeadConfig`)."""
    checkpoint: str
    """What the weights came from, in words."""
    checkpoint_sha256: str
    """Empty for random weights."""
    precision: str
    """Of the graphs that run on a GPU; those for a CPU are float32."""
    targets: tuple[str, ...]
    largest_rectangle: int
    made_with: dict[str, str]
    graphs: tuple[GraphEntry, ...]
    schema: int = SCHEMA

    def graph(self, name: str) -> GraphEntry:
        """Raises ExportError: there is no such graph."""
        for entry in self.graphs:
            if entry.name == name:
                return entry
        _, _, side = name.partition(".")
        if side.isdigit() and int(side) > self.largest_rectangle:
            raise ExportError(
                f"the bundle has no graph '{name}': its largest rectangle round a face is "
                f"{self.largest_rectangle} px",
                hint=f"export with --largest-rectangle {side}",
            )
        raise ExportError(
            f"the bundle has no graph '{name}': it is of another version of DiT-Head, or one of "
            "some graphs",
            hint="export again, without --graphs",
        )

    def model_config(self) -> DitHeadConfig:
        """The configuration as an object. Raises ExportError: it does not fit this version."""
        try:
            return DitHeadConfig.from_dict(self.config)
        except (ConfigError, TypeError, AttributeError) as error:
            raise ExportError(
                f"the bundle's configuration does not fit this version of DiT-Head ({error})",
                hint="export again",
            ) from error

    def files(self) -> Iterator[BundleFile]:
        """Every file, in the manifest's order."""
        for entry in self.graphs:
            for onnx in entry.onnx:
                yield onnx.file
                if onnx.weights is not None:
                    yield onnx.weights
            for engine in entry.engines:
                yield engine.file


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_of(*parts: str) -> str:
    """A key from what a file is made of."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def as_json(manifest: Manifest) -> str:
    """A manifest as it is written."""
    return json.dumps(asdict(manifest), indent=1) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in place in one piece."""
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    try:
        temporary.write_text(as_json(manifest))
        os.replace(temporary, folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest; its files are not looked at.

    Raises:
        ExportError: there is none, it is damaged, or it is of another schema version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError(
            f"{folder} is no bundle: it has no {MANIFEST}",
            hint=f"make one with dithead-export -o {folder}",
        )
    try:
        values = parse_json(path.read_text())
        schema = values["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is damaged ({error})", hint="export again") from error
    if schema != SCHEMA:
        raise ExportError(
            f"{path} is of schema version {schema}, this version of DiT-Head reads {SCHEMA}",
            hint="export again",
        )
    try:
        return _manifest(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(f"{path} is damaged ({error!r})", hint="export again") from error


def check_file(folder: Path, file: BundleFile) -> Path:
    """The path of a file of a bundle, once it is known to be whole.

    Raises:
        ExportError: it is missing or is not the file that the manifest names.
    """
    path = folder / file.path
    if not path.is_file():
        raise ExportError(f"{path} is missing from the bundle", hint="export again")
    size = path.stat().st_size
    if size != file.bytes:
        raise ExportError(
            f"{path} is damaged: {size} bytes, the manifest says {file.bytes}",
            hint="export again",
        )
    if hash_file(path) != file.sha256:
        raise ExportError(
            f"{path} is damaged: its hash is not the manifest's",
            hint="export again",
        )
    return path


def _ports(values: list[Mapping[str, Any]]) -> tuple[Port, ...]:
    return tuple(Port(v["name"], v["dtype"], tuple(v["shape"])) for v in values)


def _onnx_file(values: Mapping[str, Any]) -> OnnxFile:
    weights = values["weights"]
    return OnnxFile(
        **{
            **values,
            "file": BundleFile(**values["file"]),
            "weights": None if weights is None else BundleFile(**weights),
            "validated_on": tuple(values["validated_on"]),
        }
    )


def _engine_file(values: Mapping[str, Any]) -> EngineFile:
    return EngineFile(
        **{
            **values,
            "file": BundleFile(**values["file"]),
            "inputs": _ports(values["inputs"]),
            "outputs": _ports(values["outputs"]),
        }
    )


def _graph_entry(values: Mapping[str, Any]) -> GraphEntry:
    return GraphEntry(
        name=values["name"],
        inputs=_ports(values["inputs"]),
        outputs=_ports(values["outputs"]),
        engine=values["engine"],
        onnx=tuple(_onnx_file(v) for v in values["onnx"]),
        engines=tuple(_engine_file(v) for v in values["engines"]),
    )


def _manifest(values: Mapping[str, Any]) -> Manifest:
    kinds = {"targets": list, "largest_rectangle": int, "precision": str, "checkpoint": str}
    for name, kind in (kinds | {"checkpoint_sha256": str, "config": dict}).items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} is {values[name]!r}")
    return Manifest(
        **{
            **values,
            "targets": tuple(values["targets"]),
            "graphs": tuple(_graph_entry(v) for v in values["graphs"]),
        }
    )
