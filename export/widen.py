"""A bfloat16 graph in float32, to run where nothing computes in bfloat16.

ONNX Runtime has no bfloat16 convolutions on a CPU. With every bfloat16 type made float32 the file
runs there: its structure, names and (rounded) weights are proven so, and the rounding of what is
computed by PyTorch (:func:`dithead.export.validate.validate_precision`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto


@contextmanager
def runnable(path: Path, precision: str) -> Iterator[Path]:
    """A file that ONNX Runtime can run on a CPU: the same one, or a widened copy of a bfloat16 one
    for as long as it is needed."""
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
