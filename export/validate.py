"""Checks that an exported file computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dithead.bundle.graphspecs import GraphSpec
from dithead.bundle.libraries import load_onnxruntime
from dithead.errors import ExportError

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto

TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2}
"""Largest relative error allowed, by precision."""
SMALLEST_SCALE = 1e-2
"""An output's error is relative to its largest value, or to this if that is smaller."""

Arrays = dict[str, np.ndarray]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference relative to the largest value; infinite if a value is not finite.

    Pictures in 8 bits may differ by one level where a value is at the edge of rounding: for them
    the mean difference counts.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    if found.dtype == np.uint8:
        return float(difference.max() if difference.max() > 1 else difference.mean()) / 255
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max() / max(np.abs(expected).max(), SMALLEST_SCALE))


def onnx_session(path: Path, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU.

    Raises:
        BackendUnavailable: onnxruntime is not installed.
        ExportError: it cannot open the file.
    """
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own classes, which are undocumented
        raise ExportError(f"ONNX Runtime cannot open {path.name}: {error}") from error


def run_torch(module: nn.Module, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> Arrays:
    """PyTorch's results, by output."""
    with torch.inference_mode():
        outputs = module(*(inputs[name] for name in spec.inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: o.numpy() for name, o in zip(spec.outputs, outputs, strict=True)}


def to_arrays(inputs: Mapping[str, Tensor]) -> Arrays:
    """Inputs as NumPy arrays."""
    return {name: value.detach().cpu().numpy() for name, value in inputs.items()}


def validate(
    path: Path,
    module: nn.Module,
    spec: GraphSpec,
    cases: Iterable[Mapping[str, Tensor]],
    tolerance: float,
    reference: Path | None = None,
    precision: str = "fp32",
) -> float:
    """Run a file and compare it with PyTorch.

    Args:
        module: the graph in float32.
        cases: inputs by name.
        reference: the same graph in float32 as ONNX, to find where a file in another precision
            starts to differ.
        precision: precision of the file.

    Returns:
        The largest relative error.

    Raises:
        ExportError: an output is not finite or too far off; the message names the graph, the error
            and the layer where it first appears.
    """
    worst = 0.0
    with runnable(path, precision) as file:
        session = onnx_session(file)
        for inputs in cases:
            expected, arrays = run_torch(module, spec, inputs), to_arrays(inputs)
            found = dict(zip(spec.outputs, session.run(list(spec.outputs), arrays), strict=True))
            name, error = _largest_error(found, expected)
            if error > tolerance:
                true_layers = {} if reference is None else layer_outputs(reference, arrays)
                raise ExportError(
                    f"graph '{spec.name}' is refused: output '{name}' of {path.name} "
                    + _how_far(found[name], error, tolerance)
                    + _first_off(layer_outputs(file, arrays), true_layers, tolerance)
                )
            worst = max(worst, error)
    return worst


def validate_precision(
    module: nn.Module,
    reduced: nn.Module,
    spec: GraphSpec,
    cases: Iterable[Mapping[str, Tensor]],
    tolerance: float,
) -> None:
    """Run a module of reduced precision in PyTorch and compare it with the float32 one.

    ONNX Runtime computes float16 in float32 on a CPU and so hides an overflow; PyTorch rounds as a
    GPU does.

    Raises:
        ExportError: as :func:`validate`.
    """
    for inputs in cases:
        expected, found = (run_torch(m, spec, inputs) for m in (module, reduced))
        name, error = _largest_error(found, expected)
        if error > tolerance:
            layers, true_layers = (_traced(m, spec, inputs) for m in (reduced, module))
            raise ExportError(
                f"graph '{spec.name}' is refused: in reduced precision output '{name}' "
                + _how_far(found[name], error, tolerance)
                + _first_off(layers, true_layers, tolerance)
            )


def _largest_error(found: Arrays, expected: Arrays) -> tuple[str, float]:
    """The output with the largest relative error, and that error."""
    errors = {name: relative_error(found[name], value) for name, value in expected.items()}
    return max(errors.items(), key=lambda item: item[1])


def _traced(module: nn.Module, spec: GraphSpec, inputs: Mapping[str, Tensor]) -> Arrays:
    """The output of every innermost module, by name, in order of computation."""
    values: Arrays = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                values.pop(name, None)
                values[name] = output.detach().float().numpy()

        return hook

    handles = [
        part.register_forward_hook(keep(_plain_name(name)))
        for name, part in module.named_modules()
        if not list(part.children())
    ]
    try:
        run_torch(module, spec, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return values


def _plain_name(name: str) -> str:
    """A module's name without the wrappers that the export adds."""
    return ".".join(part for part in name.split(".") if part not in ("inner", ""))


def _first_off(found: Arrays, expected: Arrays, tolerance: float) -> str:
    """A phrase that names the layer in which values first go wrong; empty if none is found."""
    for layer, value in found.items():
        true, value = expected.get(layer, value).astype(np.float32), value.astype(np.float32)
        off = true.shape == value.shape and relative_error(value, true) > tolerance
        if off or not np.isfinite(value).all():
            return f"; first in layer '{layer}'"
    return ""


def _how_far(found: np.ndarray, error: float, tolerance: float) -> str:
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        return "holds NaN or infinite values"
    return f"is off by {error:.2e} relative, {tolerance:.0e} is allowed"


def layer_outputs(path: Path, inputs: Arrays) -> Arrays:
    """The last floating output of every PyTorch module in a file, by the module's name, in order of
    computation."""
    import onnx
    from onnx import helper

    # Weights in a separate file stay there: only their shapes matter here.
    graph = onnx.load(str(path), load_external_data=False)
    model = onnx.shape_inference.infer_shapes(graph)
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    last: dict[str, str] = {}
    for node in model.graph.node:
        name = _module_of(node)
        output = node.output[0]
        if name and kinds.get(output) in floats:
            last.pop(name, None)  # a module's last output determines its place in the order
            last[name] = output
    exposed = {output: name for name, output in last.items()}
    if not exposed:
        return {}
    have = {v.name for v in model.graph.output}
    for output in exposed:
        if output not in have:
            model.graph.output.append(helper.make_tensor_value_info(output, kinds[output], None))
    beside = path.with_name(f".{path.stem}.layers.onnx")
    try:
        onnx.save(model, str(beside))
        values = onnx_session(beside).run(list(exposed), inputs)
    finally:
        beside.unlink(missing_ok=True)
    return dict(zip(exposed.values(), values, strict=True))


def _module_of(node: Any) -> str:
    """The PyTorch module that a node comes from, such as ``dit.blocks.3.mlp_in``."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = [s.strip(" '\"") for s in entry.value.strip("[]").split(",")]
            path = scopes[-2] if len(scopes) > 1 else scopes[-1]
            return _plain_name(path)
    return ""


@contextmanager
def runnable(path: Path, precision: str) -> Iterator[Path]:
    """A file that ONNX Runtime can run on a CPU: the same one, or for bfloat16 a copy in float32.

    ONNX Runtime has no bfloat16 convolutions on a CPU. The copy checks the file's structure, its
    names and its rounded weights; :func:`validate_precision` checks the rounding of the
    computation. The copy is removed at the end.
    """
    if precision != "bf16":
        yield path
        return
    import onnx

    model = onnx.load(str(path))
    _widen(model.graph)
    copy = path.with_name(f".{path.stem}.widened.onnx")
    try:
        onnx.save(model, str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _widen(graph: GraphProto) -> None:
    """Convert every bfloat16 type of a graph to float32."""
    from onnx import TensorProto

    del graph.value_info[:]
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            elif attribute.HasField("g"):
                _widen(attribute.g)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: TensorProto) -> None:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.BFLOAT16:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
