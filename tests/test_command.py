"""The command ``dithead``: every command under one name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

import dithead
from dithead.__main__ import COMMANDS, main
from dithead.runtime import cli

TIMES = [Fraction(i, 25) for i in range(6)]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_reached_under_its_name(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: dithead {command} ")
    assert f"usage: dithead-{command}" not in shown


def test_stream_through_the_one_command(
    portrait_clip: Callable[..., Path],
    tone_file: Callable[..., Path],
    checkpoint_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(portrait_clip("in.mp4", TIMES)), str(tone_file(0.24))]
    arguments += ["-o", str(tmp_path / "out.mp4"), "--checkpoint", str(checkpoint_file)]
    arguments += ["--attention", "math", "--steps", "1"]
    assert main(["stream", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 6
    assert main(["stream", *arguments, "--bundle", "b"]) == 2
    assert capsys.readouterr().err.startswith("dithead stream: a bundle holds its own weights: ")
    assert cli.main([*arguments, "--device", "npu"]) == 2
    assert capsys.readouterr().err.startswith("dithead-stream: unknown device 'npu'")


def test_the_one_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "--version"):
        with pytest.raises(SystemExit) as ended:
            main([option])
        assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"dithead {dithead.__version__}\n" in shown
    for command, (_, about) in COMMANDS.items():
        assert command in shown
        assert about in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "expected a command"),
        (["revoice"], "unknown command 'revoice', expected one of stream, export, train, eval"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_misuse_is_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"dithead: {told}")
    assert printed.count("\n") == 1


def test_python_m_dithead_is_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "dithead", "doctor", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"torch", "tiny"} <= {finding["name"] for finding in json.loads(done.stdout)}
