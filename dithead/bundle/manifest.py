"""A bundle's manifest: which files it has, what they were made from, and how they were tested.

A bundle is a folder: ``manifest.json`` and the files that it names. The manifest is written last
and in one piece, and each file has a part of its key in its name. So an interrupted export leaves
the bundle as it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from dithead.config import DitHeadConfig
from dithead.errors import ConfigError, ExportError
from dithead.face.networks import FaceModels, checked_face_models
from dithead.filehash import hash_file
from dithead.jsontext import parse_json

SCHEMA = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph."""

    name: str
    dtype: str
    """As NumPy writes it: ``float32``, ``uint8``, ``int64``."""
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
    """Hash of everything that the file was made from: the same key, the same file."""

    def __post_init__(self) -> None:
        if not self.path or Path(self.path).name != self.path:
            raise ValueError(f"{self.path!r} is not the name of a file in the bundle")


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A graph as ONNX in one precision."""

    precision: str
    file: BundleFile
    weights: BundleFile | None
    """Weights beside the graph, if they are too large for it."""
    error: float
    """Largest relative error found against PyTorch in float32."""
    tolerance: float
    validated_on: tuple[str, ...]
    """``random`` inputs, ``real`` ones, or both."""

    def files(self) -> list[BundleFile]:
        """The graph, and its weights if they have a file of their own."""
        return [self.file] if self.weights is None else [self.file, self.weights]


@dataclass(frozen=True, slots=True)
class EngineFile:
    """A graph as a TensorRT engine."""

    flavour: str
    """``tensorrt-rtx`` or ``tensorrt``."""
    version: str
    """Version of the library that built it; no other version can open it."""
    precision: str
    compute_capability: str
    """Such as ``8.9``; ``portable`` if it was not restricted."""
    batch: int
    """How many streams it serves at once: the size of dimension ``B`` if the graph has it."""
    file: BundleFile
    inputs: tuple[Port, ...]
    """As in the parsed network."""
    outputs: tuple[Port, ...]
    executed: bool = False
    """Whether it was loaded, run and compared, which needs a GPU: ``dithead-export --verify``."""
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
        """The file to run for a precision; a graph that is always float32 has only that one."""
        by_precision = {file.precision: file for file in self.onnx}
        if list(by_precision) == ["fp32"]:
            return by_precision["fp32"]
        return by_precision.get(precision)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of a manifest."""

    config: dict[str, object]
    """The model's configuration (:class:`dithead.config.DitHeadConfig`)."""
    checkpoint: str
    """Where the weights came from, in words."""
    checkpoint_sha256: str
    """Empty for random weights."""
    precision: str
    """Precision of the graphs that run on a GPU; those for a CPU are float32."""
    targets: tuple[str, ...]
    largest_rectangle: int
    made_with: dict[str, str]
    graphs: tuple[GraphEntry, ...]
    face_models: str = "mediapipe"
    """Which networks find faces; a bundle without this field has MediaPipe's."""
    schema: int = SCHEMA

    def graph(self, name: str) -> GraphEntry:
        """The entry of a graph. Raises ExportError: there is no such graph."""
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
            f"the bundle has no graph '{name}': it was made by another version of DiT-Head, or "
            "holds only some of the graphs",
            hint="export again, without --graphs",
        )

    def model_config(self) -> DitHeadConfig:
        """The configuration as an object. Raises ExportError: it does not fit this version."""
        try:
            return DitHeadConfig.from_dict(self.config)
        except (ConfigError, TypeError, AttributeError) as error:
            raise _unusable(
                f"the bundle's configuration does not fit this version of DiT-Head ({error})"
            ) from error

    def face_networks(self) -> FaceModels:
        """Which networks find faces. Raises ExportError: this version has no such networks."""
        try:
            return checked_face_models(self.face_models)
        except ConfigError as error:
            raise _unusable(
                f"the bundle's face models do not fit this version of DiT-Head ({error})"
            ) from error

    def files(self) -> Iterator[BundleFile]:
        """Every file, in the manifest's order."""
        for entry in self.graphs:
            for onnx in entry.onnx:
                yield from onnx.files()
            for engine in entry.engines:
                yield engine.file


def as_json(manifest: Manifest) -> str:
    """A manifest as written to the file."""
    return json.dumps(asdict(manifest), indent=1) + "\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest in one piece."""
    temporary = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    try:
        temporary.write_text(as_json(manifest))
        os.replace(temporary, folder / MANIFEST)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest, without checking its files.

    Raises:
        ExportError: there is none, it is damaged, or it has another schema version.
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
        if schema == SCHEMA:
            manifest = _object(Manifest, values)
            assert isinstance(manifest, Manifest)
            return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(f"{path} is damaged ({error})") from error
    raise _unusable(
        f"{path} has schema version {schema}, and this version of DiT-Head reads {SCHEMA}"
    )


def check_file(folder: Path, file: BundleFile) -> Path:
    """The path of a file of a bundle, after a check that it is intact.

    Raises:
        ExportError: it is missing or is not the file that the manifest names.
    """
    path = folder / file.path
    if not path.is_file():
        raise _unusable(f"{path} is missing from the bundle")
    size = path.stat().st_size
    if size != file.bytes:
        raise _unusable(f"{path} is damaged: {size} bytes, and the manifest says {file.bytes}")
    if hash_file(path) != file.sha256:
        raise _unusable(f"{path} is damaged: its hash differs from the manifest's")
    return path


def check_onnx(folder: Path, file: OnnxFile) -> Path:
    """The path of a graph's ONNX file, after a check that it and its weights are intact.

    Raises:
        ExportError: as :func:`check_file`.
    """
    path, *_ = [check_file(folder, part) for part in file.files()]
    return path


def _unusable(message: str) -> ExportError:
    return ExportError(message, hint="export again")


@cache
def _hints(kind: type) -> dict[str, object]:
    return get_type_hints(kind)


def _object(kind: type, values: Mapping[str, object]) -> object:
    """A dataclass from the JSON of its fields; keys without a field are ignored.

    Raises:
        TypeError: a field is missing or has the wrong type.
        ValueError: its value is refused.
    """
    fields = _hints(kind).items()
    return kind(**{n: _value(n, hint, values[n]) for n, hint in fields if n in values})


def _value(name: str, hint: object, value: object) -> object:
    """A field's value, converted by its type hint."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(name, inside[0], item) for item in value)
    if origin is UnionType:
        fitting = type(value) if type(value) in inside else inside[0]
        return _value(name, fitting, value)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return _object(hint, value)
    kind = int | float if hint is float else origin or hint
    if not isinstance(kind, type | UnionType) or not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r}")
    return value
