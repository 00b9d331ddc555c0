"""Block sizes that were measured on a GPU, and fixed ones on every other.

Nothing is measured while a stream runs, so no frame waits for it. ``dithead bench kernels --tune``
measures inside :func:`measuring` and keeps what was fastest in the user's cache, for this GPU, this
version of Triton and these kernels. Elsewhere the fixed sizes run.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead.errors import DitheadError
from dithead.kernels.launch import Launch
from dithead.usercache import short_stem, user_cache

REPEATS, IN_A_ROW = 20, 10
"""Timings, of which the median counts; calls in one of them."""
TOLERANCE = 2e-2
"""How far a result may be from another way's, relative to the largest number: of float16."""
_SCHEMA = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a kernel is cut up."""

    blocks: tuple[int, ...]
    """Its block sizes, in the kernel's own order."""
    num_warps: int = 4
    num_stages: int = 2


Shape = tuple[int, ...]
Key = tuple[str, Shape, str]
"""Operation, sizes, element type."""
Plan = Callable[[Settings | None], Sequence[Launch]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was fastest, and what it was measured against."""

    operation: str
    shape: Shape
    dtype: str
    settings: Settings | None
    """None where nothing was faster than the fixed sizes."""
    microseconds: float
    fixed_microseconds: float


_measured: ContextVar[list[Measured] | None] = ContextVar("measured", default=None)


def launch(
    operation: str,
    shape: Shape,
    outs: tuple[Tensor, ...],
    plan: Plan,
    candidates: Sequence[Settings],
) -> None:
    """Run an operation with the settings that were measured for it here, or with its fixed ones.

    Args:
        operation: its name. shape: the sizes that decide which settings are best.
        outs: what it writes; nothing is launched if the last is empty.
        plan: what is launched with given settings, or with the fixed ones.
        candidates: settings that may be better.
    """
    out = outs[-1]
    if out.numel() == 0:
        return
    key = operation, shape, str(out.dtype).removeprefix("torch.")
    found = _measured.get()
    if found is None:
        settings = _chosen(key, out.device, candidates)
    else:
        before = {(one.operation, one.shape, one.dtype): one for one in found}
        if key not in before:
            found.append(_measure(key, outs, plan, candidates))
        settings = before.get(key, found[-1]).settings
    for one in plan(settings):
        one.run()


@contextmanager
def measuring() -> Iterator[list[Measured]]:
    """Measure every operation that is called on this thread, each size once; they are added to what
    is yielded."""
    found: list[Measured] = []
    token = _measured.set(found)
    try:
        yield found
    finally:
        _measured.reset(token)


def keep(found: Sequence[Measured], device: torch.device) -> Path:
    """Write what was measured where :func:`launch` finds it, in place of what was there.

    Returns:
        The file.

    Raises:
        DitheadError: there is no place for it.
    """
    try:
        path = table_path(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        entries = [_as_entry(one) for one in found if one.settings is not None]
        temporary.write_text(json.dumps({"schema": _SCHEMA, "settings": entries}, indent=1) + "\n")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise DitheadError(
            f"the settings cannot be kept ({error})", hint="set XDG_CACHE_HOME to a folder"
        ) from error
    _table.cache_clear()
    return path


def table_path(device: torch.device) -> Path:
    """Where the settings for a device are kept. Raises RuntimeError: there is no home folder."""
    import triton

    name = "interpreter"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = f"{torch.cuda.get_device_name(device)} sm{major}{minor}"
    name = "".join(letter if letter.isalnum() else "_" for letter in name)
    stem = short_stem(Path(f"{name}-triton{triton.__version__}".replace(".", "_")))
    return user_cache() / "kernels" / f"{stem}-{_sources()}.json"


def known(device: torch.device) -> int:
    """How many operations have measured settings on a device."""
    return len(_table(device))


def _chosen(key: Key, device: torch.device, candidates: Sequence[Settings]) -> Settings | None:
    settings = _table(device).get(key)
    return settings if settings in candidates else None


@functools.cache
def _table(device: torch.device) -> Mapping[Key, Settings]:
    """What was measured on a device; empty if nothing was, or if it cannot be read."""
    if device.type not in ("cuda", "cpu"):
        return {}
    try:
        path = table_path(device)
    except RuntimeError:  # no home folder
        return {}
    try:
        if not path.is_file():
            return {}
        values = json.loads(path.read_text())
        if values["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {values['schema']}, not {_SCHEMA}")
        return dict(map(_from_entry, values["settings"]))
    except (ArithmeticError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        _log.warning(
            "%s cannot be read (%s: %s): the fixed block sizes run; "
            "`dithead bench kernels --tune` writes it again",
            path,
            type(error).__name__,
            error,
        )
        return {}


def _as_entry(one: Measured) -> dict[str, Any]:
    assert one.settings is not None
    return {
        "operation": one.operation,
        "shape": one.shape,
        "dtype": one.dtype,
        "blocks": one.settings.blocks,
        "num_warps": one.settings.num_warps,
        "num_stages": one.settings.num_stages,
        "microseconds": round(one.microseconds, 2),
        "fixed_microseconds": round(one.fixed_microseconds, 2),
    }


def _from_entry(entry: Mapping[str, Any]) -> tuple[Key, Settings]:
    key = str(entry["operation"]), tuple(map(int, entry["shape"])), str(entry["dtype"])
    blocks = tuple(map(int, entry["blocks"]))
    return key, Settings(blocks, int(entry["num_warps"]), int(entry["num_stages"]))


@functools.cache
def _sources() -> str:
    """Hash of the kernels: what was measured holds for these."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _measure(
    key: Key, outs: tuple[Tensor, ...], plan: Plan, candidates: Sequence[Settings]
) -> Measured:
    device = outs[0].device
    fixed = _timed(plan(None), device)
    expected = [out.clone() for out in outs]
    best, least = None, fixed
    for settings in candidates:
        launches = plan(settings)
        for out, kept in zip(outs, expected, strict=True):  # what it does not write is seen
            out.fill_(float("nan")) if out.is_floating_point() else out.copy_(kept ^ 255)
        try:
            seconds = _timed(launches, device)
        except _cannot_run() as error:
            _log.info("%s %s: %s cannot run (%s)", *key[:2], settings, error)
            continue
        if any(map(difference, outs, expected)):
            raise DitheadError(f"{key[0]} {key[1]}: with {settings} the result is another")
        if seconds < least:
            best, least = settings, seconds
    return Measured(*key, best, 1e6 * least, 1e6 * fixed)


def difference(found: Tensor, expected: Tensor) -> str | None:
    """By how much a result is another than what is expected; None within :data:`TOLERANCE`."""
    off = (found.double() - expected.double()).abs().max()
    most = expected.double().abs().max()
    return None if off <= TOLERANCE * most else f"{off:.2g}, of {most:.2g} at most"


def _cannot_run() -> tuple[type[Exception], ...]:
    """What Triton raises for block sizes that are too large for a GPU."""
    from triton.runtime.errors import OutOfResources, PTXASError

    return OutOfResources, PTXASError


def _timed(launches: Sequence[Launch], device: torch.device) -> float:
    def run() -> None:
        for one in launches:
            one.run()

    return seconds_of(run, device)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Median time of a call on a device's current stream, several calls in a row."""
    run()
    if device.type != "cuda":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    run()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(IN_A_ROW):
            run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / IN_A_ROW)
    return statistics.median(times)
