"""States of a run on disk, from which an interrupted run goes on: safetensors with JSON in the
header, never pickles."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dithead.errors import CheckpointError, ConfigError
from dithead.train.data import write_json

log = logging.getLogger(__name__)

KEPT = 2
"""States on disk: should the newest be damaged, the one before is there."""
_KEY = "dithead_state"
_FINISHED = "finished.json"


class SavedState:
    """One state, opened. Its tensors are read one by one, as a whole state may not fit in memory
    beside the model.

    Raises:
        CheckpointError: the file is damaged, or is no state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            header = json.loads((self._file.metadata() or {})[_KEY])
            self.made_from, self.values = header["made_from"], header["values"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is not a readable state ({type(error).__name__}: {error})",
                hint="remove it; the run goes on from an older one, or begins",
            ) from error
        self.names: list[str] = list(self._file.keys())

    def tensor(self, name: str) -> Tensor:
        """A tensor as it was saved, on the CPU."""
        if name not in self.names:
            raise CheckpointError(
                f"{self.path} holds no {name!r}",
                hint="it was written by another version: remove it, and begin again",
            )
        return self._file.get_tensor(name)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with ``prefix`` and a dot, without it."""
        start = f"{prefix}."
        return {n.removeprefix(start): self.tensor(n) for n in self.names if n.startswith(start)}


class States:
    """The states of one run in a folder.

    Args:
        folder: made when the first state is saved.
        made_from: JSON-able settings and inputs. A state of a run with others is refused.
        resume: go on from the newest state; without it, a folder with one is refused.
        writes: whether this process writes the states; the others only read them.

    Raises:
        ConfigError: there is a state, and it may not be used.
    """

    def __init__(
        self, folder: Path, made_from: Mapping[str, Any], resume: bool, writes: bool = True
    ) -> None:
        self.folder, self.writes = folder, writes
        self.made_from = json.loads(json.dumps(made_from))  # as it is when read again
        self.newest = self._newest()
        if self.newest is not None and not resume:
            raise ConfigError(
                f"{folder} holds an unfinished run, at step {self.newest.values['step']}",
                hint="go on with --resume, remove the folder, or choose another --out",
            )
        if self.newest is not None:
            _check_alike(folder, self.newest.made_from, self.made_from)
        self.finished = resume and self.newest is None and self._finished()

    def save(self, step: int, tensors: Iterable[tuple[str, Tensor]], values: Any) -> None:
        """Write a state under a temporary name, rename it, and remove old ones.

        Args:
            tensors: read to the end by every process, as making one may take all of them.
        """
        if not self.writes:
            for _ in tensors:
                pass
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"made_from": self.made_from, "values": values})
        path = self.folder / f"{step:09}.safetensors"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            held = {name: tensor.contiguous() for name, tensor in tensors}
            save_file(held, temporary, metadata={_KEY: header})
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # or a machine that fails may keep the name alone
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        for old in self._paths()[KEPT:]:
            old.unlink()
        for partial in self._partial():
            partial.unlink(missing_ok=True)

    def finish(self) -> None:
        """The run is done: remove its states, and note that it is done, so that ``--resume`` does
        not begin it again."""
        if not self.writes or not self.folder.is_dir():
            return
        write_json(self.folder / _FINISHED, self.made_from)
        for path in [*self._paths(), *self._partial()]:
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("*.safetensors"), reverse=True)

    def _partial(self) -> list[Path]:
        """What a run that was killed was writing: safetensors writes under a name of its own."""
        return [*self.folder.glob("*.tmp"), *self.folder.glob(".tmp*")]

    def _newest(self) -> SavedState | None:
        for path in self._paths():
            try:
                return SavedState(path)
            except CheckpointError as error:
                log.warning("%s", error)
        return None

    def _finished(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(json.loads((self.folder / _FINISHED).read_text()) == self.made_from)
        return False


def _check_alike(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise ConfigError, with what differs, if a state is one of another run."""
    others = sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))
    if not others:
        return
    shown = [f"{k} was {found.get(k)!r}, is {expected.get(k)!r}" for k in others[:3]]
    raise ConfigError(
        f"{folder} holds a run that was begun differently: {'; '.join(shown)}",
        hint="give it what it was begun with, or choose another --out",
    )
