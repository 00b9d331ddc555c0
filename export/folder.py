"""The folder of a bundle: one export at a time writes to it, and removes what is no longer
needed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dithead.bundle.manifest import MANIFEST, Manifest
from dithead.errors import ExportError
from dithead.jsontext import parse_json

_LOCK = ".export.lock"
_BUSY = "another export is at work in {}: wait for it, or choose another folder"
_ATTEMPTS = 10  # for a lock or folder that other exports keep removing
_MADE = re.compile(r"[\w.]+\.(fp32|fp16|bf16)\.[0-9a-f]{8}\.(onnx|onnx\.data|engine|log)")
"""Names of the files that an export makes."""
_LEFT = re.compile(r"\.[\w.]+\.(layers|widened)\.onnx|\.manifest\.json\.\d+\.tmp")
"""Names of the files that a killed export may have left."""
_KEPT = re.compile(r"\.export\.lock|\.\w+\.timing")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a folder, or take it over, for one export; no other export gets it until this one is
    done.

    If an export fails for which the folder was made, the folder is removed again.

    Raises:
        ExportError: it is a file, contains other things than a bundle, cannot be made, or another
            export is at work in it.
    """
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"{folder} is a file", hint="choose a folder for the bundle")
    if folder.is_dir() and not _is_free(folder):
        raise ExportError(
            f"{folder} is not empty and holds no bundle",
            hint="choose another folder or empty it",
        )
    lock, fresh = _locked(folder)
    done = False
    with lock:
        try:
            yield
            done = True
        finally:
            failed = fresh and not done
            if failed:
                _empty(folder)
            (folder / _LOCK).unlink(missing_ok=True)  # last: from now on another export may take it
            if failed:
                with suppress(OSError):  # another export may have begun
                    folder.rmdir()


def _locked(folder: Path) -> tuple[IO[str], bool]:
    """Hold the lock of a folder; yields whether the folder was made for it and is empty."""
    path, made = folder / _LOCK, False
    for _ in range(_ATTEMPTS):
        try:
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                made = True
            lock = path.open("w")
        except FileNotFoundError:  # the export that made the folder has removed it
            continue
        except OSError as error:
            raise ExportError(f"cannot write to the folder {folder} ({error.strerror})") from error
        try:
            _take(lock.fileno(), folder)
            # The previous holder may have removed it: then another export may hold a new file.
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
                return lock, made and not any(p.name != _LOCK for p in folder.iterdir())
        except FileNotFoundError:
            pass
        except BaseException:
            lock.close()
            raise
        lock.close()
    raise ExportError(_BUSY.format(folder))


def _take(descriptor: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: exports in one folder at once are not detected there
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ExportError(_BUSY.format(folder)) from error


def _empty(folder: Path) -> None:
    """Remove everything in a folder except its lock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            with suppress(OSError):
                path.unlink()


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, is a bundle, or has only what exports leave."""
    ours = (_MADE, _LEFT, _KEPT, re.compile(re.escape(MANIFEST)))
    names = [path.name for path in folder.iterdir()]
    only_ours = all(any(kind.fullmatch(name) for kind in ours) for name in names)
    try:
        values = parse_json((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return only_ours  # no manifest, or a damaged one, which may have been a bundle's
    return isinstance(values, dict) and {"schema", "graphs"} <= set(values)


def remove_stale(folder: Path, manifest: Manifest) -> None:
    """Remove files made by exports that the manifest does not name, and what killed exports
    left."""
    named = {file.path for file in manifest.files()}
    named |= {str(Path(name).with_suffix(".log")) for name in named if name.endswith(".engine")}
    for path in folder.iterdir():
        stale = _MADE.fullmatch(path.name) and path.name not in named
        if (stale or _LEFT.fullmatch(path.name)) and path.is_file():
            path.unlink()
