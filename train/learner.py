"""What a run has learnt so far, and its way into a state and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dithead.errors import CheckpointError
from dithead.train.loop import MovingAverage, Stage
from dithead.train.sharding import assign, whole
from dithead.train.states import SavedState


@dataclass(frozen=True, slots=True)
class Learner:
    """A model in training. In a state every tensor has a name, those of the optimiser that of their
    parameter, so it does not depend on an order."""

    model: nn.Module
    average: MovingAverage
    optimiser: torch.optim.Optimizer
    stage: Stage

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What :meth:`restore` needs, by name, whole, on the CPU. Every process must ask."""
        for name, value in self.model.state_dict().items():
            yield f"model.{name}", whole(value)
        for name, value in self.average.values.items():
            yield f"average.{name}", whole(value)
        yield from optimiser_tensors("optimiser", self.model, self.optimiser)

    def values(self) -> dict[str, Any]:
        """The numbers beside the tensors."""
        stage = self.stage
        return {
            "step": stage.step,
            "samples": stage.samples,
            "elapsed_s": stage.elapsed_s,
            "averaged": self.average.updates,
        }

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Be as it was when the state was saved.

        Raises:
            CheckpointError: a tensor is missing, or has another shape.
        """
        for name, value in self.model.state_dict().items():
            restore_tensor(value, saved, f"model.{name}")
        for name, value in self.average.values.items():
            restore_tensor(value, saved, f"average.{name}")
        restore_optimiser("optimiser", self.model, self.optimiser, saved)
        values = saved.values
        self.average.updates = values["averaged"]
        self.stage.go_on(values["step"], values["samples"], values["elapsed_s"])


def optimiser_tensors(
    prefix: str, model: nn.Module, optimiser: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """The moments of a model's parameters, by their names, whole, on the CPU."""
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            yield f"{prefix}.{key}.{name}", whole(value)


@torch.no_grad()
def restore_optimiser(
    prefix: str, model: nn.Module, optimiser: torch.optim.Optimizer, saved: SavedState
) -> None:
    """Inverse of :func:`optimiser_tensors`; a parameter without gradients so far has no moments."""
    fused = optimiser.defaults.get("fused")
    for name, parameter in model.named_parameters():
        if f"{prefix}.step.{name}" not in saved.names:
            continue
        own = optimiser.state[parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            own[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            restore_tensor(own[key], saved, f"{prefix}.{key}.{name}")
        step = saved.tensor(f"{prefix}.step.{name}")
        own["step"] = step.to(parameter.device) if fused else step


@torch.no_grad()
def restore_tensor(target: Tensor, saved: SavedState, name: str) -> None:
    """Copy a saved tensor into one that is there.

    Raises:
        CheckpointError: it is missing, or has another shape.
    """
    value = saved.tensor(name)
    if value.shape != target.shape:
        raise CheckpointError(
            f"{saved.path}: expected {name} of shape {tuple(target.shape)}, found "
            f"{tuple(value.shape)}",
            hint="it is a state of another model: choose another --out",
        )
    assign(target, value)


def random_states(device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """The states of PyTorch's own generators, as uint8 tensors by name."""
    yield "random.cpu", torch.get_rng_state()
    if device.type == "cuda":
        yield "random.cuda", torch.cuda.get_rng_state(device)


def restore_random_states(saved: SavedState, device: torch.device) -> None:
    """Inverse of :func:`random_states`."""
    torch.set_rng_state(saved.tensor("random.cpu"))
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved.tensor("random.cuda"), device)
