"""What the tests of bundles share."""

from __future__ import annotations

import pytest
import torch

from dithead.bundle.graphspecs import GraphSpec, graph_specs, select
from dithead.bundle.libraries import installed_flavour
from dithead.export.inputs import example_inputs
from dithead.torchgraphs import TorchGraphs

SMALL = ("dit_step", "dit_context", "noise")
HAS_RTX = installed_flavour() == "tensorrt-rtx"
needs_rtx = pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed")


def spec_of(name: str) -> GraphSpec:
    return select(graph_specs(128), [name])[0]


def cases(name: str, models: TorchGraphs, count: int = 2) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [example_inputs(spec_of(name), models.config, generator) for _ in range(count)]
