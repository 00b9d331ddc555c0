"""Gradients of the Triton kernels: the reference is computed again, and differentiated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def differentiate(
    operation: torch.library.CustomOpDef, reference: Callable[..., Tensor | tuple[Tensor, ...]]
) -> None:
    """Give a custom operation the gradients of its reference, which takes the same arguments in the
    same order."""

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]

    def backward(ctx: Any, *wanted: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the kernels have first derivatives only: choose the implementation reference"
            )
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        learnt = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        with torch.enable_grad():
            for i in learnt:
                inputs[i] = inputs[i].detach().requires_grad_(True)
            outputs = reference(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        used = [(out, grad) for out, grad in zip(outputs, wanted, strict=True) if grad is not None]
        found = torch.autograd.grad(
            [out for out, _ in used],
            [inputs[i] for i in learnt],
            [grad for _, grad in used],
            allow_unused=True,
        )
        gradients: list[Tensor | None] = [None] * len(inputs)
        for i, gradient in zip(learnt, found, strict=True):
            gradients[i] = gradient
        return tuple(gradients)

    operation.register_autograd(backward, setup_context=remember)
