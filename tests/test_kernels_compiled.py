"""The Triton kernels compile for every architecture without a GPU, and fit into registers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dithead.errors import BackendUnavailable
from dithead.kernels.compiled import ARCHITECTURES, SHARED_BYTES, compile_for, launches, main

KERNELS = Path(__file__).resolve().parents[1] / "kernels"


def compiled(*options: str) -> list[dict[str, Any]]:
    """The table, from a process in which Triton's interpreter is off."""
    ran = subprocess.run(
        [sys.executable, "-m", "dithead.kernels.compiled", "--json", *options],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stderr
    found: list[dict[str, Any]] = json.loads(ran.stdout)
    return found


def test_every_kernel_compiles_without_spills() -> None:
    found = compiled()
    assert {needs["architecture"] for needs in found} == set(ARCHITECTURES)
    launched = {launch.kernel.__name__.removeprefix("_") for _, launch in launches()}
    assert {needs["kernel"] for needs in found} == launched
    spilled = [needs for needs in found if needs["spilled_bytes"]]
    assert spilled == []
    for needs in found:
        assert needs["shared_bytes"] <= SHARED_BYTES[needs["architecture"]], needs
        # A block of these warps must fit into the 65,536 registers of a multiprocessor.
        assert needs["registers"] * needs["warps"] * 32 <= 65536, needs


@pytest.mark.slow
def test_what_tuning_tries_compiles_without_spills() -> None:
    """On the architecture with the least shared memory; 120 compilations."""
    found = compiled("--candidates", "--architectures", "120")
    assert [needs for needs in found if needs["spilled_bytes"]] == []
    assert max(needs["shared_bytes"] for needs in found) <= SHARED_BYTES[120]


def test_no_kernel_is_left_out() -> None:
    """Those that are not launched by themselves are parts of others."""
    parts = {"dot", "_bilinear", "_blend"}
    written = set()
    for path in KERNELS.rglob("*.py"):
        lines = path.read_text().splitlines()
        jitted = (i for i, line in enumerate(lines) if line == "@triton.jit")
        written |= {lines[i + 1].removeprefix("def ").partition("(")[0] for i in jitted}
    assert written - parts == {launch.kernel.__name__ for _, launch in launches()}


@pytest.mark.skipif("TRITON_INTERPRET" not in os.environ, reason="the interpreter is not on")
def test_the_interpreter_compiles_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    case, launch = next(iter(launches()))
    with pytest.raises(BackendUnavailable, match="unset TRITON_INTERPRET"):
        compile_for(launch, case, 90)
    assert main([]) == 1
    assert "unset TRITON_INTERPRET" in capsys.readouterr().err
