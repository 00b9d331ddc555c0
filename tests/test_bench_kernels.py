"""The benchmark of the kernels, without a GPU: it compares, and times nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emulated_cuda import EmulatedCuda

from dithead.bench import cli, kernelcases, kernels
from dithead.bench.kernelcases import Case, cases
from dithead.kernels import settings
from dithead.kernels.compiled import launches

ROOT = Path(__file__).resolve().parents[1]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_a_dry_run_compares_every_kernel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the command sets it for good
    assert cli.main(["kernels", "--dry-run", "-o", str(tmp_path / "k.json")]) == 0
    written = json.loads((tmp_path / "k.json").read_text())
    figures = [f for f in written["figures"] if f["way"] == "triton"]
    of_a_group_norm = {"channel_moments", "group_moments", "normalise"}
    launched = {launch.kernel.__name__.removeprefix("_") for _, launch in launches()}
    figures += [f for f in written["figures"] if f["way"] == "folded"]
    operations = launched - of_a_group_norm | {"group_norm_silu"}
    operations |= {"upsampled_convolution", "dit_step"}
    assert {f["operation"] for f in figures} == operations
    assert all(f["error"] is None and f["microseconds"] is None for f in figures)
    assert "equals the reference; not timed" in capsys.readouterr().out


@without_gpu
def test_every_kernel_is_timed_on_the_emulated_device(
    emulated_cuda: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(settings, "REPEATS", 2)
    monkeypatch.setattr(settings, "IN_A_ROW", 1)
    found = kernels.measure(torch.device("cuda"), small=True)
    ours = [figure for figure in found.figures if figure.way in ("triton", "folded")]
    assert {figure.operation for figure in ours} == {case.operation for case in small_cases()}
    for figure in ours:
        assert figure.error is None
        assert figure.microseconds > 0 and figure.share_of_copy > 0
        assert (figure.times_floor is not None) == (figure.operation == "dit_step")
    assert emulated_cuda.replays > 0
    assert not kernels.failures(found.figures)


def small_cases() -> Iterator[Case]:
    return cases(torch.device("cpu"), small=True)


@without_gpu
def test_a_kernel_that_differs_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    right = kernelcases.ddim_step

    def wrong(*args: object, **kwargs: object) -> torch.Tensor:
        made = right(*args, **kwargs)  # type: ignore[arg-type]
        return made + 1 if kwargs["impl"] == "triton" else made

    monkeypatch.setattr(kernelcases, "ddim_step", wrong)
    assert cli.main(["kernels", "--dry-run", "-o", str(tmp_path / "k.json")]) == 1
    told = capsys.readouterr()
    assert "differs from the reference by 1" in told.out
    assert "a kernel differs" in told.err


@without_gpu
def test_without_a_gpu_nothing_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert cli.main(["kernels", "-o", str(tmp_path / "k.json")]) == 1
    assert "choose --device cuda on a machine with a GPU, or --dry-run" in capsys.readouterr().err
    assert not (tmp_path / "k.json").exists()


@without_gpu
def test_a_kernel_that_writes_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr("dithead.kernels.ddim_step.triton.plan", lambda *_: [])
    found = kernels.measure(torch.device("cpu"), small=True, timed=False)
    assert {figure.operation for figure in kernels.failures(found.figures)} >= {"ddim_step"}


def test_a_device_that_does_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["kernels", "--device", "nonsense", "-o", str(tmp_path / "k.json")]
    assert cli.main(given) == 2
    assert "PyTorch knows no such device" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gpu_session_without_a_gpu(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu_session.sh", tmp_path / "out"],
        env={**os.environ, "DRY_RUN": "1", "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("kernels.json", "stream_tiny.json", "doctor.log", "counts.log"):
        assert (tmp_path / "out" / name).stat().st_size > 0
