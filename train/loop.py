"""Code shared by all training stages: the clock, the learning rate, the moving average of the
weights, the log."""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.filehash import hash_file
from dithead.train.settings import Execution, Precision
from dithead.train.sharding import own_part

log = logging.getLogger(__name__)

WARMUP_STEPS = 200
"""Of a stage that has no such setting."""
RATE_FLOOR = 0.05
"""What is left of the learning rate at a stage's end. *Assumed*: LDM and DiT keep the rate; a fall
takes the place of training on with a lower one, and a little is left, so that no step is wasted."""


class Stage:
    """One stage of training: bounded in time or in steps, logged to a JSON-lines file.

    Args:
        minutes: maximum duration, infinite if only the steps count. steps: maximum number of steps,
            if given. writes: whether this process writes the log.
    """

    def __init__(
        self, log_path: Path, minutes: float, steps: int | None = None, writes: bool = True
    ) -> None:
        self.writes = writes
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = log_path
        self.seconds = minutes * 60.0
        self.steps = steps
        self.step = 0
        self.samples = 0
        self._start = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    def go_on(self, step: int, samples: int, elapsed_s: float) -> None:
        """Go on where an earlier run of the same stage was."""
        self.step, self.samples = step, samples
        self._start = time.monotonic() - elapsed_s

    @property
    def progress(self) -> float:
        """How far the stage is, 0 to 1."""
        by_time = self.elapsed_s / self.seconds
        by_step = self.step / self.steps if self.steps else 0.0
        return min(1.0, max(by_time, by_step))

    @property
    def running(self) -> bool:
        return self.progress < 1.0

    def learning_rate(
        self, peak: float, warmup_steps: int = WARMUP_STEPS, floor: float = RATE_FLOOR
    ) -> float:
        """Linear warm-up, then a cosine down to ``floor`` times the peak at the stage's end."""
        warm = min(1.0, (self.step + 1) / warmup_steps)
        fall = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return peak * warm * fall

    def log(self, **values: Any) -> None:
        """Append a line to the stage's file, and report it."""
        if not self.writes:
            return
        row = {
            "step": self.step,
            "minutes": round(self.elapsed_s / 60, 2),
            "samples": self.samples,
            "samples_per_s": round(self.samples / max(self.elapsed_s, 1e-9), 1),
            **{k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()},
        }
        with self.log_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        log.info("%s", json.dumps(row))


class Due:
    """Says when the next state is due.

    Args:
        stage: whose steps and time count, those of earlier runs included.
    """

    def __init__(self, execution: Execution, stage: Stage) -> None:
        self.execution, self.stage = execution, stage
        self._saved_s = stage.elapsed_s

    def now(self) -> bool:
        """Whether a state is due after this step."""
        if self.execution.save_steps is not None:
            return self.stage.step % self.execution.save_steps == 0
        if self.stage.elapsed_s - self._saved_s <= 60.0 * self.execution.save_minutes:
            return False
        self._saved_s = self.stage.elapsed_s
        return True


class MovingAverage:
    """Exponential moving average of a module's parameters; buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = module
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        floats, sources = [], []
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                floats.append(own_part(self.values[name]))
                sources.append(own_part(value))
            else:
                self.values[name].copy_(value)
        torch._foreach_lerp_(floats, sources, 1 - decay)


T = TypeVar("T")


def ahead(make: Callable[[], T], count: int = 3) -> Generator[T, None, None]:
    """The results of ``make``, called on a separate thread up to ``count`` calls ahead. The thread
    ends when the iterator is closed; an error in ``make`` is raised here."""
    made: queue.Queue[Future[T]] = queue.Queue(count)
    closed = threading.Event()

    def work() -> None:
        while not closed.is_set():
            result: Future[T] = Future()
            try:
                result.set_result(make())
            except Exception as error:
                result.set_exception(error)
            while not closed.is_set():
                try:
                    made.put(result, timeout=0.1)
                    break
                except queue.Full:
                    continue

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            yield made.get().result()
    finally:
        closed.set()
        thread.join()


def descend(loss: Tensor, optimiser: torch.optim.Optimizer, trained: Sequence[Tensor]) -> None:
    """One step of an optimiser, with the gradient of the trained parameters limited to length 1."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def single_thread() -> None:
    """Initialise a worker process: several of them share the cores, with one thread each."""
    torch.set_num_threads(1)


def precision(device: torch.device, name: Precision = "bf16") -> torch.autocast:
    """Autocast to bfloat16, about twice as fast on CPUs with AMX and on GPUs; or none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def hash_weights(path: Path | None) -> str | None:
    """The hash of a file of weights, by which a run that goes on knows it; None for none.

    Raises:
        CheckpointError: there is no such file.
    """
    if path is None:
        return None
    if not path.is_file():
        raise CheckpointError(
            f"no weights at {path}", hint="give the .safetensors file of an earlier stage"
        )
    return hash_file(path)


PART = "part"
"""Field of a stage's weights that names the part of the model, see :func:`load_part`."""


def check_part(path: Path, part: str) -> None:
    """Raise CheckpointError if a stage's weights are of another part than is wanted; two parts may
    have equal shapes. Those of earlier versions do not say."""
    found = checkpoint.load_provenance(path).get(PART, part)
    if found != part:
        raise CheckpointError(
            f"{path} holds the weights of {found}, not of {part}",
            hint="give those of the stage that trains it",
        )


def load_part(path: Path, part: str, of_any_part: bool = False) -> dict[str, Tensor]:
    """Weights to start a stage from: those of an earlier stage, or that part of a packed
    checkpoint.

    Args:
        part: ``dit``, ``face_vqgan``, ``masked_vqgan`` or ``shape_head``.
        of_any_part: take a stage's weights whatever part they say they are of.

    Raises:
        CheckpointError: there are none, or they are of another part.
    """
    if not of_any_part:
        check_part(path, part)
    tensors, _ = checkpoint.load(path)
    inside = {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
    return inside or tensors
