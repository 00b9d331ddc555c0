"""Reads the weights and the operator order from a TensorFlow Lite file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from dithead.errors import BackendUnavailable, CheckpointError

_FILE_IDENTIFIER = b"TFL3"  # at byte 4
_DTYPES = {"FLOAT32": np.float32, "FLOAT16": np.float16, "INT32": np.int32, "INT64": np.int64}


@dataclass(frozen=True, slots=True)
class Operator:
    """One step of the graph.

    Attributes:
        kind: TensorFlow Lite's name, for example ``"CONV_2D"``.
        inputs: tensor names, in order.
        outputs: tensor names, in order.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TfliteFile:
    """The contents of a file.

    Attributes:
        constants: the stored tensors by name, as they are stored (channels last).
        operators: in order of execution.
    """

    constants: Mapping[str, np.ndarray]
    operators: tuple[Operator, ...]


def read_tflite(path: Path) -> TfliteFile:
    """Read the first subgraph of an unquantised ``.tflite`` file.

    Raises:
        BackendUnavailable: the package ``tflite`` is not installed.
        CheckpointError: the file is missing, is not a TensorFlow Lite file, or has an unknown type.
    """
    schema = _schema()
    if not path.is_file():
        raise CheckpointError(f"no file at {path}: give the path of a .tflite file")
    content = path.read_bytes()
    if content[4:8] != _FILE_IDENTIFIER:
        raise CheckpointError(
            f"{path} is not a TensorFlow Lite file: "
            f"expected {_FILE_IDENTIFIER!r} at byte 4, found {content[4:8]!r}"
        )
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    names = [graph.Tensors(i).Name().decode() for i in range(graph.TensorsLength())]

    dtype_names = _value_names(schema.TensorType)
    constants = {}
    for i, name in enumerate(names):
        tensor = graph.Tensors(i)
        buffer = model.Buffers(tensor.Buffer())
        if buffer.DataLength() == 0:  # computed, not stored
            continue
        dtype_name = dtype_names[tensor.Type()]
        if dtype_name not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {name} has type {dtype_name}; readable: {', '.join(_DTYPES)}"
            )
        shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
        constants[name] = buffer.DataAsNumpy().view(_DTYPES[dtype_name]).reshape(shape)

    kinds = _value_names(schema.BuiltinOperator)
    operators = []
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        code = model.OperatorCodes(operator.OpcodeIndex())
        # Old files fill only the deprecated 8-bit field, new ones both.
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        inputs = tuple(names[j] for j in operator.InputsAsNumpy() if j >= 0)  # -1: left out
        outputs = tuple(names[j] for j in operator.OutputsAsNumpy())
        operators.append(Operator(kind, inputs, outputs))
    return TfliteFile(constants, tuple(operators))


def torch_kernel(file: TfliteFile, name: str) -> Tensor:
    """Convolution kernel ``name`` of ``file`` in PyTorch's order (out, in, height, width)."""
    kernel = torch.from_numpy(file.constants[name].copy())
    depthwise = any(
        op.kind == "DEPTHWISE_CONV_2D" and _reads(op, name, file) for op in file.operators
    )
    # Stored as (out, height, width, in), or as (1, height, width, channels) if depthwise.
    return kernel.permute(3, 0, 1, 2) if depthwise else kernel.permute(0, 3, 1, 2)


def _reads(operator: Operator, constant: str, file: TfliteFile) -> bool:
    """Whether an operator reads a constant, directly or widened from float16 by a DEQUANTIZE."""
    if constant in operator.inputs:
        return True
    return any(
        op.kind == "DEQUANTIZE" and op.inputs == (constant,) and op.outputs[0] in operator.inputs
        for op in file.operators
    )


def _value_names(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def _schema() -> ModuleType:
    try:
        return importlib.import_module("tflite")
    except ImportError as error:
        raise BackendUnavailable(
            "reading .tflite files needs the package tflite: pip install tflite"
        ) from error
