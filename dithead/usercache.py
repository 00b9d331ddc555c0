"""The folder in the user's cache for what is made once and kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache() -> Path:
    """``dithead`` in the user's cache. Raises RuntimeError: there is no home folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    if cache.is_absolute():  # the XDG specification: others are to be ignored
        return cache / "dithead"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "dithead"
    caches = Path("Library", "Caches") if sys.platform == "darwin" else Path(".cache")
    return Path.home() / caches / "dithead"


def short_stem(path: Path) -> str:
    """A file's name without suffix, in at most 100 bytes."""
    return path.stem.encode()[:100].decode(errors="ignore")
