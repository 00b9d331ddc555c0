"""libFuzzer on the C library: damaged manifests, and calls in any order, on a pretended model."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dithead.bundle.manifest import MANIFEST

BUILD = Path(os.environ.get("DITHEAD_CAPI_FUZZ", "none")).resolve() / "fuzz"
SECONDS = int(os.environ.get("DITHEAD_FUZZ_SECONDS", "20"))

pytestmark = pytest.mark.skipif(
    not BUILD.is_dir(), reason="no fuzz targets in DITHEAD_CAPI_FUZZ: make fuzz-capi builds them"
)


def fuzz(target: str, folder: Path, *options: str) -> None:
    """Fuzz for so long, in a folder with what to begin with; findings are left there."""
    ran = subprocess.run(
        [BUILD / target, f"-max_total_time={SECONDS}", "-timeout=60", *options, "corpus"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert ran.returncode == 0, ran.stderr[-8000:]
    assert "Done " in ran.stderr  # it ran for its time


def test_manifests(tmp_path: Path, small_bundle: Path) -> None:
    (tmp_path / "corpus").mkdir()
    shutil.copy(small_bundle / MANIFEST, tmp_path / "corpus")
    fuzz("fuzz_bundle", tmp_path, "-max_len=70000")


def test_calls(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    fuzz("fuzz_calls", tmp_path)
