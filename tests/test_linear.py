"""Linear layers through oneDNN against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dithead.linear import Linear


@pytest.mark.parametrize("shape", [(40,), (1, 40), (3, 7, 40), (0, 40)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_a_linear_layer_is_pytorchs(shape, bias, gelu):
    torch.manual_seed(0)
    layer, x = Linear(40, 24, bias, gelu), torch.randn(shape)
    expected = F.linear(x, layer.weight, layer.bias)
    if gelu is not None:
        expected = F.gelu(expected, approximate=gelu)
    learnt = layer(x)
    with torch.inference_mode():
        found = layer(x)
    assert torch.equal(learnt, expected) and learnt.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)  # float32
    assert layer.double()(x.double()).dtype == torch.float64


def test_rows_do_not_depend_on_how_they_lie():
    torch.manual_seed(0)
    layer, x = Linear(40, 24), torch.randn(5, 80)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x[:, ::2]), layer(x[:, ::2].contiguous()))


def test_a_weight_that_changes_counts_at_once():
    torch.manual_seed(0)
    layer, x = Linear(40, 24, bias=False), torch.randn(2, 40)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2.0)
        torch.testing.assert_close(layer(x), 2.0 * before)
