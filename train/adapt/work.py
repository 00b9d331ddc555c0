"""What an adaptation has done so far, on disk, so that an interrupted one goes on."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from dithead import checkpoint
from dithead.face.choice import FaceChoice
from dithead.train.adapt.settings import Adaptation
from dithead.train.data import write_json


class Work:
    """A folder beside the file that is being made, and the time spent so far.

    Args:
        out: the file that is being made.
        videos, base, face: what it is made from. If they or the settings differ from what the
            folder was begun with, it begins anew.
    """

    def __init__(
        self,
        out: Path,
        videos: Sequence[Path],
        base: Path,
        training: Adaptation,
        face: FaceChoice,
    ) -> None:
        self.folder = out.with_name(f".{out.stem}.adapting")
        self.seconds = 60.0 * training.minutes
        self._note = self.folder / "made_from.json"
        self._from = {
            "videos": [checkpoint.sha256(video) for video in videos],
            "base": checkpoint.sha256(base),
            "training": asdict(training),
            "face": face,
        }
        self._before_s = 0.0
        noted = json.loads(self._note.read_text()) if self._note.is_file() else {}
        if noted.get("from") == json.loads(json.dumps(self._from)):
            self._before_s = float(noted["spent_s"])
        elif self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._since = time.monotonic()

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
        path = self._path(name)
        return checkpoint.load(path)[0] if path.is_file() else None

    def remove(self) -> None:
        """Remove the folder: the file is made."""
        shutil.rmtree(self.folder)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
