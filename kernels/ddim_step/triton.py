"""One step of DDIM in one pass, in place where that is asked for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dithead.kernels.checks import (
    check_device,
    check_float,
    check_no_gradients,
    check_shape,
    check_type,
)
from dithead.kernels.ddim_step.reference import Prediction
from dithead.kernels.launch import Launch

BLOCK = 1024


@triton.jit
def _ddim_step(
    noisy_ptr,  # (B, E), E numbers of each latent side by side
    prediction_ptr,  # (B, E)
    signal_ptr,  # (T,) float32
    sigma_ptr,  # (T,) float32
    timestep_ptr,  # (B,) int64
    following_ptr,  # (B,) int64
    out_ptr,  # (B, E), may be noisy_ptr
    count,  # E
    steps,  # T
    VELOCITY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    offset = batch.to(tl.int64) * count + at
    now = tl.load(timestep_ptr + batch)
    following = tl.load(following_ptr + batch)
    after = tl.maximum(following, 0)
    # Outside the tables there is nothing: NaN comes of it.
    known, known_after = (now >= 0) & (now < steps), after < steps
    nothing = float("nan")
    level = tl.load(signal_ptr + now, mask=known, other=nothing)
    deviation = tl.load(sigma_ptr + now, mask=known, other=nothing)
    level_after = tl.load(signal_ptr + after, mask=known_after, other=nothing)
    deviation_after = tl.load(sigma_ptr + after, mask=known_after, other=nothing)
    x = tl.load(noisy_ptr + offset, mask=there, other=0.0).to(tl.float32)
    found = tl.load(prediction_ptr + offset, mask=there, other=0.0).to(tl.float32)
    if VELOCITY:
        clean = level * x - deviation * found
        noise = deviation * x + level * found
    else:
        clean = (x - deviation * found) / level
        noise = found
    moved = level_after * clean + deviation_after * noise
    made = tl.where(following < 0, clean, moved)
    tl.store(out_ptr + offset, made.to(out_ptr.dtype.element_ty), mask=there)


def plan(
    noisy: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    following: Tensor,
    predicts: Prediction,
    out: Tensor,
) -> list[Launch]:
    """What is launched; all tensors dense."""
    batch, count = noisy.shape[0], noisy[0].numel()
    arguments: dict[str, Tensor | int | float | None] = {
        "noisy_ptr": noisy,
        "prediction_ptr": prediction,
        "signal_ptr": signal,
        "sigma_ptr": sigma,
        "timestep_ptr": timestep,
        "following_ptr": following,
        "out_ptr": out,
        "count": count,
        "steps": len(signal),
    }
    constants = {"VELOCITY": predicts == "velocity", "BLOCK": BLOCK}
    grid = triton.cdiv(count, BLOCK), batch
    return [Launch(_ddim_step, grid, arguments, constants)]


@torch.library.custom_op("dithead::ddim_step", mutates_args=("out",))
def _operation(
    noisy: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    following: Tensor,
    velocity: bool,
    out: Tensor,
) -> None:
    predicts: Prediction = "velocity" if velocity else "noise"
    tensors = noisy.contiguous(), prediction.contiguous(), signal, sigma, timestep, following
    for launch in plan(*tensors, predicts, out):
        launch.run()


@torch.library.custom_op("dithead::ddim_step_", mutates_args=("latent",))
def _in_place(
    latent: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    following: Tensor,
    velocity: bool,
) -> None:
    predicts: Prediction = "velocity" if velocity else "noise"
    tensors = latent, prediction.contiguous(), signal, sigma, timestep, following
    for launch in plan(*tensors, predicts, latent):
        launch.run()


def _fake(*_: object) -> None:
    """Nothing is returned, only written."""


_operation.register_fake(_fake)
_in_place.register_fake(_fake)


def ddim_step(
    noisy: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    following: Tensor,
    predicts: Prediction,
    out: Tensor | None,
) -> Tensor:
    """As :func:`dithead.kernels.ddim_step.ddim_step`. ``out`` must be dense.

    Raises:
        TypeError, ValueError: the tensors do not fit; each says what was expected.
    """
    check_shape("noisy", noisy, ("B", "C", "H", "W"))
    check_shape("prediction", prediction, noisy.shape)
    check_no_gradients("ddim_step", noisy, prediction)
    check_shape("signal", signal, ("T",))
    check_shape("sigma", sigma, signal.shape)
    for name, steps in (("timestep", timestep), ("following", following)):
        check_shape(name, steps, noisy.shape[:1])
    if out is None:
        out = torch.empty(noisy.shape, dtype=torch.float32, device=noisy.device)
    check_shape("out", out, noisy.shape)
    if not out.is_contiguous():
        raise ValueError(f"out: expected a dense tensor, found strides {out.stride()}")
    check_float(noisy=noisy, prediction=prediction, out=out)
    check_type(torch.float32, signal=signal, sigma=sigma)
    check_type(torch.int64, timestep=timestep, following=following)
    others = {"prediction": prediction, "signal": signal, "sigma": sigma, "out": out}
    check_device(noisy.device, **others, timestep=timestep, following=following)
    tables = signal.contiguous(), sigma.contiguous(), timestep.contiguous(), following.contiguous()
    if out.numel() == 0:
        return out
    if out is noisy:
        _in_place(out, prediction, *tables, predicts == "velocity")
    else:
        _operation(noisy, prediction, *tables, predicts == "velocity", out)
    return out
