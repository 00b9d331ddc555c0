"""The bundle for this machine's CPU: made once for each checkpoint, and kept in the user's
cache."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

from dithead import checkpoint as checkpoints
from dithead.bundle.graphspecs import NETWORKS
from dithead.bundle.manifest import MANIFEST
from dithead.errors import ExportError
from dithead.export.reuse import EarlierBundle, hash_of, source_hash, versions
from dithead.filehash import hash_file

KEPT = 4
"""How many bundles the cache holds; the one that was not used for the longest time goes."""


def cache_folder() -> Path:
    """Where bundles are kept: ``dithead/bundles`` in the user's cache."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "dithead" / "bundles"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "dithead" / "bundles"
    caches = Path("Library", "Caches") if sys.platform == "darwin" else Path(".cache")
    try:
        return Path.home() / caches / "dithead" / "bundles"
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
    the checkpoint, DiT-Head, or a package that it is made with has changed. If another process is
    making it, this one waits.

    Args:
        checkpoint: name of a packaged checkpoint, or a .safetensors file.
        begin: called with the folder before a bundle is made, which takes half a minute.
        progress: called with what is being made, and how far the whole is: 0 to 1.

    Raises:
        CheckpointError: no such checkpoint, or it cannot be used.
        BackendUnavailable: onnx, onnxscript or onnxruntime is not installed.
        ExportError: the export failed, or the cache cannot be written to.
    """
    source = checkpoints.resolve(os.fspath(checkpoint))
    key = hash_of(hash_file(source), source_hash(), repr(versions()))[:16]
    folder = cache_folder() / f"{source.stem}-{key}"
    if _is_whole(folder):
        with suppress(OSError):  # a cache that cannot be written to
            (folder / MANIFEST).touch()
        return folder
    from dithead.export.bundle import ExportOptions, export_bundle
    from dithead.export.onnx import require_onnx
    from dithead.torchgraphs import TorchGraphs

    require_onnx()
    if begin is not None:
        begin(folder)
    models = TorchGraphs.load(os.fspath(checkpoint))
    names = [n for n in NETWORKS if n != "shape_head" or models.config.shape_head]
    options = ExportOptions(targets=("cpu",), graphs=tuple(names))
    done = count()

    def told(what: str) -> None:
        if progress is not None:
            progress(what, next(done) / len(names))

    export_bundle(os.fspath(checkpoint), folder, options, models=models, progress=told, wait=True)
    _drop_unused(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a folder has a bundle, and all of its files as they were made."""
    earlier = EarlierBundle(folder)
    manifest = earlier.manifest
    return manifest is not None and earlier.whole.issuperset(f.path for f in manifest.files())


def _drop_unused(newest: Path) -> None:
    """Remove the bundles that were not used for the longest time."""

    def used(folder: Path) -> float:
        try:
            return (folder / MANIFEST).stat().st_mtime
        except OSError:  # another process is making it, or is removing it
            return float("inf")

    others = [path for path in newest.parent.iterdir() if path.is_dir() and path != newest]
    for folder in sorted(others, key=used, reverse=True)[KEPT - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
