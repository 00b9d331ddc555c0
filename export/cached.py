"""The bundle for this machine's CPU: made once for each checkpoint, and kept in the user's
cache."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from dithead import checkpoint as checkpoints
from dithead.bundle.graphspecs import networks
from dithead.bundle.libraries import load_onnxruntime
from dithead.bundle.manifest import MANIFEST
from dithead.errors import CheckpointError, ExportError
from dithead.export.reuse import EarlierBundle, hash_of, source_hash, versions
from dithead.filehash import hash_file
from dithead.usercache import short_stem, user_cache

KEPT = 4
"""How many bundles the cache holds; the one that was not used for the longest time goes."""
LEFT_S = 3600.0
"""What a killed process has left goes after so many seconds."""
_BUNDLE = re.compile(r".+-[0-9a-f]{16}")
_UNFINISHED = re.compile(r"\..+-[0-9a-f]{16}\.making")


def cache_folder() -> Path:
    """Where bundles are kept: ``dithead/bundles`` in the user's cache."""
    try:
        return user_cache() / "bundles"
    except RuntimeError as error:
        raise ExportError(
            "there is no home folder to keep a bundle in", hint="set XDG_CACHE_HOME to a folder"
        ) from error


def cached_bundle(
    checkpoint: str | os.PathLike[str] = "tiny",
    *,
    begin: Callable[[Path], None] | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Path:
    """The folder of a checkpoint's bundle for the CPU; it is made if there is none yet.

    It holds the networks, which is all that ONNX Runtime runs on a CPU. A bundle is made again when
    it is damaged, or when the checkpoint, DiT-Head, or a package that it is made with has changed.
    If another process is making it, this one waits.

    Args:
        checkpoint: name of a packaged checkpoint, or a .safetensors file.
        begin: called with the folder before a bundle is made, which takes half a minute.
        progress: called with what is being made, and how far the whole is: 0 to 1.

    Raises:
        CheckpointError: no such checkpoint, or it cannot be used.
        BackendUnavailable: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the export failed, or the cache cannot be read or written.
    """
    load_onnxruntime()
    source = checkpoints.resolve(os.fspath(checkpoint))
    if not source.is_file():
        raise CheckpointError(
            f"no checkpoint at {source}", hint="give the path of a .safetensors file"
        )
    try:
        key = hash_of(hash_file(source), source_hash(), repr(versions()))[:16]
        folder = cache_folder() / f"{short_stem(source)}-{key}"
        if not _is_whole(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not _is_whole(folder):  # nobody else has made it meanwhile
                    _make(os.fspath(checkpoint), folder, begin, progress)
        with suppress(OSError):  # a cache that cannot be written to
            (folder / MANIFEST).touch()
    except OSError as error:
        raise ExportError(
            f"cannot keep a bundle in {cache_folder()}: {error}",
            hint="set XDG_CACHE_HOME to a folder that can be written",
        ) from error
    return folder


def _make(
    checkpoint: str,
    folder: Path,
    begin: Callable[[Path], None] | None,
    progress: Callable[[str, float], None] | None,
) -> None:
    """Make a bundle beside its place, and put it there."""
    from dithead.export.bundle import ExportOptions, export_bundle
    from dithead.export.onnx import require_onnx
    from dithead.torchgraphs import TorchGraphs

    require_onnx()
    if begin is not None:
        begin(folder)
    models = TorchGraphs.load(checkpoint)
    options = ExportOptions(targets=("cpu",), graphs=networks(models.config.shape_head))
    done, unfinished = count(), folder.with_name(f".{folder.name}.making")

    def told(what: str) -> None:
        if progress is not None:
            progress(what, next(done) / len(options.graphs))

    _remove(unfinished)  # left by a process that was killed
    try:
        export_bundle(checkpoint, unfinished, options, models=models, progress=told)
        _remove(folder)  # damaged
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _tidy(folder)


def _remove(path: Path) -> None:
    """Remove a folder, or whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_whole(folder: Path) -> bool:
    """Whether a folder has a bundle of all networks, and all of its files as they were made."""
    if not folder.is_dir():
        return False
    earlier = EarlierBundle(folder)
    if (manifest := earlier.manifest) is None:
        return False
    names = {entry.name for entry in manifest.graphs}
    expected = set(networks(manifest.model_config().shape_head))
    return expected <= names and earlier.whole.issuperset(f.path for f in manifest.files())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from making the same bundle. The lock's file stays: one that is removed
    may be locked by one process and made anew by another."""
    try:
        import fcntl
    except ImportError:  # Windows: each process that needs it makes it
        yield
        return
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield


def _tidy(newest: Path) -> None:
    """Remove the bundles that were not used for the longest time, and what killed processes
    left."""

    def age_s(path: Path) -> float:
        try:
            return time.time() - path.stat().st_mtime
        except OSError:  # another process is removing it
            return 0.0

    bundles = []
    for path in newest.parent.iterdir():
        if _UNFINISHED.fullmatch(path.name) and age_s(path) > LEFT_S:
            shutil.rmtree(path, ignore_errors=True)
        elif _BUNDLE.fullmatch(path.name) and path != newest and (path / MANIFEST).is_file():
            bundles.append(path)
    for folder in sorted(bundles, key=lambda path: age_s(path / MANIFEST))[KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.with_name(f".{folder.name}.lock").unlink()
