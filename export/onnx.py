"""One graph to one ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dithead.errors import BackendUnavailable, ExportError
from dithead.export.specs import GraphSpec
from dithead.export.spelt import spelt_out

if TYPE_CHECKING:
    import onnx

OPSETS = {"fp32": 20, "fp16": 20, "bf16": 22}
"""Opset by precision: 22 is the first in which convolutions take bfloat16."""
EXTERNAL_DATA_BYTES = 1_800_000_000
"""Weights beyond this go into a file beside the graph: a protobuf ends at 2 GiB."""


class _Positional(nn.Module):
    """Takes any inputs in order, so that every graph is exported alike."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Any:
        return self.inner(*inputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own chatter away; its exceptions say what went wrong."""
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
    """Raise BackendUnavailable where the packages that write ONNX files are missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendUnavailable(
            "exporting needs the packages onnx and onnxscript",
            hint="pip install 'dithead[export]'",
        ) from error


def load_onnxruntime() -> Any:
    """The module onnxruntime. Raises BackendUnavailable: it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            "ONNX Runtime is not installed",
            hint="pip install 'dithead[cpu]', or 'dithead[gpu]' for CUDA (never both)",
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendUnavailable(
            "ONNX Runtime is damaged, as when one of onnxruntime and onnxruntime-gpu was removed "
            "beside the other",
            hint="pip install --force-reinstall the one that is wanted",
        )
    return onnxruntime


def export_onnx(
    module: nn.Module,
    spec: GraphSpec,
    inputs: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSETS["fp32"],
) -> None:
    """Export a graph.

    Args:
        module: takes ``spec.inputs`` in order and gives ``spec.outputs`` in order.
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
    examples = tuple(inputs[name] for name in spec.inputs)
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                _Positional(spelt_out(module)).eval(),
                examples,
                dynamo=True,
                opset_version=opset,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                dynamic_shapes=(shapes,) if any(shapes) else None,
                verbose=False,
                optimize=True,
            )
    except Exception as error:  # the exporter raises its own and torch's errors of many kinds
        raise ExportError(f"graph '{spec.name}' cannot be exported to ONNX: {error}") from error
    assert program is not None
    program.model.metadata_props.update(metadata or {})
    weights = sum(
        value.const_value.nbytes
        for value in program.model.graph.initializers.values()
        if value.const_value is not None
    )
    program.save(str(path), external_data=weights > EXTERNAL_DATA_BYTES)
    check_names(path, spec)


def load_graph(path: Path) -> onnx.ModelProto:
    """An ONNX file without its external weights. Raises ExportError: not readable."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ExportError(
            f"{path} is not a readable ONNX file ({error})",
            hint="export again",
        ) from error


def check_names(path: Path, spec: GraphSpec) -> None:
    """Raise ExportError where a file's inputs or outputs are not those of its spec: engines and
    runtimes bind by name."""
    graph = load_graph(path).graph
    for kind, found, expected in (
        ("inputs", [v.name for v in graph.input], list(spec.inputs)),
        ("outputs", [v.name for v in graph.output], list(spec.outputs)),
    ):
        if found != expected:
            raise ExportError(
                f"graph '{spec.name}': its {kind} are {found}, expected {expected}: the file "
                "does not keep the contract of docs/architecture.md"
            )


def external_files(path: Path) -> list[Path]:
    """The files beside an ONNX file that hold its weights."""
    names = {
        entry.value
        for tensor in load_graph(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path.parent / name for name in sorted(names)]
