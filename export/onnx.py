"""Exports one graph to one ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dithead.bundle.graphspecs import GraphSpec
from dithead.errors import BackendUnavailable, ExportError
from dithead.export.layers import spell_out

OPSETS = {"fp32": 20, "fp16": 20, "bf16": 22}
"""Opset by precision: 22 is the first in which convolutions accept bfloat16."""


class _Positional(nn.Module):
    """Takes any inputs in order, so that every graph is exported the same way."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Any:
        return self.inner(*inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's output; its exceptions say what went wrong."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def require_onnx() -> None:
    """Raise BackendUnavailable if the packages that write ONNX files are missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            "exporting needs the packages onnx and onnxscript",
            hint="pip install 'dithead[export]'",
        ) from error


def export_onnx(
    module: nn.Module,
    spec: GraphSpec,
    inputs: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSETS["fp32"],
) -> None:
    """Export a graph. Weights that are too large for a protobuf go into :func:`weights_file`.

    Args:
        module: takes ``spec.inputs`` in order and returns ``spec.outputs`` in order.
        inputs: examples by name.
        metadata: text fields to write into the file.

    Raises:
        BackendUnavailable: onnx or onnxscript is not installed.
        ExportError: PyTorch cannot trace or translate the graph, or its names came out wrong.
    """
    require_onnx()
    axes = {
        axis.name: torch.export.Dim(axis.name, min=axis.least, max=axis.most)
        for open_axes in spec.dynamic.values()
        for axis in open_axes.values()
    }
    shapes = tuple(
        {i: axes[axis.name] for i, axis in spec.dynamic.get(name, {}).items()} or None
        for name in spec.inputs
    )
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                _Positional(spell_out(module)).eval(),
                tuple(inputs[name] for name in spec.inputs),
                dynamo=True,
                opset_version=opset,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                dynamic_shapes=(shapes,) if any(shapes) else None,
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # the exporter raises many kinds of errors, its own and torch's
        raise ExportError(f"graph '{spec.name}' cannot be exported to ONNX: {error}") from error
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    weights_file(path).unlink(missing_ok=True)  # from an earlier export that was killed
    program.save(str(path))
    check_names(path, spec)


def weights_file(path: Path) -> Path:
    """The file beside an ONNX file that holds its weights, if they are too large for it."""
    return path.with_name(f"{path.name}.data")


def check_names(path: Path, spec: GraphSpec) -> None:
    """Raise ExportError if a file's inputs or outputs differ from those of its spec: engines and
    runtimes bind by name."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    for kind, found, expected in (
        ("inputs", [v.name for v in graph.input], list(spec.inputs)),
        ("outputs", [v.name for v in graph.output], list(spec.outputs)),
    ):
        if found != expected:
            raise ExportError(
                f"graph '{spec.name}': its {kind} are {found}, expected {expected}: the file "
                "does not keep the contract of docs/architecture.md"
            )
