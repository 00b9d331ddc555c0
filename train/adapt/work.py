"""What an adaptation has done so far, on disk, so that an interrupted one goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from torch import Tensor

from dithead import checkpoint
from dithead.errors import CheckpointError, ConfigError
from dithead.filehash import hash_file
from dithead.train.adapt.settings import Adaptation
from dithead.train.data import write_json

VERSION = 2
"""Increases when what is learnt, or how, changes."""
LOCK = "lock"


class Work:
    """A folder beside the file that is being made, and the time spent so far.

    Args:
        out: the file that is being made.
        videos, base, others: what it is made from. If they or the settings differ from what the
            folder was begun with, it begins anew.

    Raises:
        ConfigError: another run is at work there.
    """

    def __init__(
        self,
        out: Path,
        videos: Sequence[Path],
        base: Path,
        training: Adaptation,
        others: object,
    ) -> None:
        self.folder = out.with_name(f".{out.stem}.adapting")
        self.seconds = 60.0 * training.minutes
        self._note = self.folder / "made_from.json"
        self._from = {
            "version": VERSION,
            "videos": [hash_file(video) for video in videos],
            "base": hash_file(base),
            "training": asdict(training),
            "others": repr(others),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder)
        self._before_s = self._noted()
        self._since = time.monotonic()
        self.note()

    def _noted(self) -> float:
        """The seconds that earlier runs have spent; what they left is removed if it is of no
        use."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self._note.read_text())
            if noted["from"] == json.loads(json.dumps(self._from)):
                return float(noted["spent_s"])
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        return 0.0

    @property
    def spent_s(self) -> float:
        """Seconds spent so far, in earlier runs, too."""
        return self._before_s + time.monotonic() - self._since

    @property
    def share(self) -> float:
        """How far the whole is, 0 to 1."""
        return min(1.0, self.spent_s / self.seconds)

    def left_minutes(self, least_share: float) -> float:
        """Minutes left; at least a share of all."""
        return max(least_share * self.seconds, self.seconds - self.spent_s) / 60.0

    def note(self) -> None:
        """Store the time spent."""
        write_json(self._note, {"from": self._from, "spent_s": self.spent_s})

    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Store tensors, and the time spent."""
        checkpoint.save(self._path(name), tensors, {}, dtype=None)
        self.note()

    def kept(self, name: str) -> dict[str, Tensor] | None:
        """The tensors stored under a name, if there are any."""
        try:
            return checkpoint.load(self._path(name))[0]
        except CheckpointError:  # none, or one that was damaged
            return None

    def remove(self) -> None:
        """Remove the folder: the file is made, or nothing can be."""
        self.close()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Let another run have the folder."""
        self._lock.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def _locked(folder: Path) -> TextIO:
    """A file that only one run may hold."""
    file = (folder / LOCK).open("w")
    try:
        import fcntl  # where there is none, two runs are not kept apart

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        raise ConfigError(
            f"another run is at work in {folder}", hint="wait for it, or write another file"
        ) from None
    return file
