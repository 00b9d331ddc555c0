"""Several processes that train one model: one for each GPU, on one machine or many.

``accelerate launch`` or ``torchrun`` starts them. accelerate connects them and averages gradients;
without a launcher there is one process, and accelerate is not needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dithead.errors import BackendUnavailable, ConfigError
from dithead.runtime.checked import checked_device
from dithead.train.settings import DiTTraining, Execution, VQGANTraining
from dithead.train.sharding import is_sharded, shard
from dithead.train.states import States

Training = TypeVar("Training", DiTTraining, VQGANTraining)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process, and how it reaches the others."""

    device: torch.device
    rank: int = 0
    count: int = 1
    accelerator: Any = None
    """accelerate's Accelerator; None for a single process."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def connect(self, model: nn.Module, sharded: bool) -> nn.Module:
        """Share a model on this process's device: from then on, a backward pass leaves the mean of
        all processes' gradients.

        Args:
            sharded: each process keeps a part of every parameter (FSDP2), otherwise all of it. The
                model's parameters are replaced: make the optimiser afterwards.

        Returns:
            What to call in the forward pass.
        """
        if self.accelerator is None:
            return model
        if sharded:
            shard(model, self.device)
            return model
        connected: nn.Module = self.accelerator.prepare_model(model)
        return connected

    @contextmanager
    def unsynchronised(self, connected: nn.Module, wanted: bool) -> Iterator[None]:
        """Add up gradients without averaging them, if ``wanted``: a later backward pass does."""
        if self.accelerator is None or not wanted:
            yield
        elif is_sharded(connected):
            connected.set_requires_gradient_sync(False)  # type: ignore[operator]
            yield
            connected.set_requires_gradient_sync(True)  # type: ignore[operator]
        else:
            with self.accelerator.no_sync(connected):
                yield

    def gather(self, rows: Tensor) -> Tensor:
        """(B, ...) of each process -> (count, B, ...), by rank."""
        if self.accelerator is None:
            return rows[None]
        gathered: Tensor = self.accelerator.gather(rows.contiguous())
        return gathered.unflatten(0, (self.count, -1))

    def by_place(self, rows: Tensor) -> Tensor:
        """(B, ...) of each process -> (count B, ...), by place in the whole batch: the sample at
        place p is process p modulo their number's."""
        return self.gather(rows).transpose(0, 1).flatten(0, 1)

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their means over the processes, where no backward pass does it:
        those of models that are not connected. All must have the same ones."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.accelerator is None or not gradients:
            return
        joined = torch.cat([gradient.flatten() for gradient in gradients])
        mean = self.accelerator.reduce(joined, reduction="mean")
        parts = mean.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        return float(self.gather(torch.tensor([value], device=self.device)).mean())

    def agreed(self, value: bool) -> bool:
        """What the main process says."""
        if self.accelerator is None:
            return value
        return bool(self.gather(torch.tensor([value], device=self.device))[0].item())

    def end(self) -> None:
        """Wait until every process is here, and part."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()


def started_together() -> int:
    """How many processes a launcher has started, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process of a launcher's that speaks for all, or the only one."""
    return started_together() == 1 or int(os.environ.get("RANK", "0")) == 0


def refuse_several(stage: str) -> None:
    """Raise ConfigError if a launcher has started several processes for a stage that is trained by
    one: each would train a model of its own, and write the same files."""
    if started_together() > 1:
        raise ConfigError(
            f"{stage} is trained by one process, and a launcher has started {started_together()}",
            hint="start the command itself, without a launcher",
        )


def this_process(execution: Execution) -> Processes:
    """This process, connected to the others that a launcher has started with it.

    Raises:
        BackendUnavailable: accelerate is not installed, or the device is not there. ConfigError:
            there is no such device, or sharding is asked for without a launcher.
    """
    device = checked_device(execution.device)
    if started_together() == 1:
        if execution.shard:
            raise ConfigError(
                "one process has nobody to share the weights with",
                hint="start several with accelerate launch or torchrun, or leave --shard out",
            )
        return Processes(device)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise BackendUnavailable(
            "several processes need accelerate, which is not installed: "
            "pip install 'dithead[scale]'"
        ) from error
    # Otherwise accelerate sets the number of threads itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    return Processes(
        accelerator.device, accelerator.process_index, accelerator.num_processes, accelerator
    )


def for_several(training: Training, processes: int, parts: int = 1) -> Training:
    """The settings of a stage as so many processes need them.

    Args:
        parts: of each process's batch.

    Raises:
        ConfigError: they cannot have them.
    """
    if training.batch % (processes * parts):
        each = f" in {parts} parts each" if parts > 1 else ""
        raise ConfigError(
            f"a batch of {training.batch} cannot be shared between {processes} processes{each}",
            hint=f"choose a multiple of {processes * parts}",
        )
    if processes == 1:
        return training
    if training.steps is None or math.isfinite(training.minutes):
        raise ConfigError(
            "the clocks of several processes differ: bound the stage by steps alone",
            hint="give --steps",
        )
    return replace(training, keyed=True)


def open_states(
    folder: Path, made_from: Mapping[str, Any], resume: bool, processes: Processes
) -> States:
    """The states of a run, the same for all processes. If one may not go on, none does.

    Raises:
        ConfigError: see :class:`~dithead.train.states.States`; or another process may not go on, or
            would from another state.
    """
    states, refusal = None, None
    try:
        states = States(folder, made_from, resume, processes.main)
    except ConfigError as error:
        refusal = error
    newest = None if states is None else states.newest
    step = -1 if newest is None else newest.values["step"]
    seen = [[refusal is not None, step, states is not None and states.finished]]
    found = processes.gather(torch.tensor(seen, device=processes.device)).flatten(0, 1).tolist()
    if refusal is not None:
        raise refusal
    hint = "choose an --out that all machines share, and give all of them the same options"
    if refused := [rank for rank, row in enumerate(found) if row[0]]:
        raise ConfigError(
            f"process {refused[0]} may not go on in {folder}: its own message says why", hint=hint
        )
    assert states is not None
    if any(row != found[0] for row in found):
        steps = ["the end" if finished else step for _, step, finished in found]
        raise ConfigError(
            f"the processes see states of different steps in {folder}: {steps}", hint=hint
        )
    return states
