"""The conditions of a measurement: hardware, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dithead
from dithead.runtime.defaults import available_cores

_PACKAGES = ["dithead", "torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"]
_PACKAGES += ["triton", "flash-attn", "xformers", "av", "numpy"]


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and everything on it that a figure depends on."""
    return {
        "taken_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages / 2**30, 1)


def _gpu(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_properties(device)
    return {
        "name": gpu.name,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "memory_gib": round(gpu.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def _commit() -> str | None:
    """The commit of a checkout, with + if files differ from it; None for an installed wheel."""
    root = Path(dithead.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        name, changed = (
            subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changed else "")
