"""One deterministic step of DDIM (eta = 0; arXiv 2010.02502, eq. 12)."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from dithead.errors import ConfigError
from dithead.kernels.choice import Impl, triton_is_chosen
from dithead.kernels.ddim_step import reference
from dithead.kernels.ddim_step.reference import Prediction, split

__all__ = ["Prediction", "ddim_step", "split"]


def ddim_step(
    noisy: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    following: Tensor,
    predicts: Prediction,
    *,
    out: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The next latent, computed in float32.

    Args:
        noisy, prediction: (B, C, S, S), the latent and the network's output.
        signal, sigma: (T,) float32, square roots of the schedule's signal and noise levels.
        timestep, following: (B,) int64, where the step starts and where it leads; -1 is the clean
            latent. The kernel gives NaN for a step that is not in the tables.
        predicts: what the network's output is.
        out: takes the result in its own type; may be ``noisy`` itself, but not overlap it
            otherwise. None: a new float32 tensor.

    Returns:
        (B, C, S, S): ``out``.

    Raises:
        ConfigError: unknown prediction.
    """
    if predicts not in get_args(Prediction):
        raise ConfigError(
            f"unknown prediction {predicts!r}",
            hint=f"choose one of {', '.join(get_args(Prediction))}",
        )
    tensors = noisy, prediction, signal, sigma, timestep, following
    if triton_is_chosen(impl, *tensors):
        from dithead.kernels.ddim_step import triton

        return triton.ddim_step(*tensors, predicts, out)
    made = reference.ddim_step(*tensors, predicts)
    return made if out is None else out.copy_(made)
