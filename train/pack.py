"""``dithead-train pack``: one checkpoint from the parts that the stages have trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.errors import ConfigError
from dithead.model import DitHead
from dithead.train.loop import load_part


def pack(
    config: DitHeadConfig,
    out: Path,
    face: Path,
    masked: Path,
    dit: Path,
    shape: Path | None,
    provenance: Mapping[str, str],
) -> None:
    """Write a checkpoint.

    Args:
        face, masked, dit, shape: weights of each part, from its stage or a packed checkpoint.
        provenance: ``origin`` and ``licence``.

    Raises:
        ConfigError: the model has a shape head, and none is given.
        CheckpointError: a part does not fit the configuration.
    """
    model = DitHead(config)
    parts = [("face_vqgan", face), ("masked_vqgan", masked), ("dit", dit)]
    if model.shape_head is not None:
        if shape is None:
            raise ConfigError(f"the preset {config.preset} has a shape head: give --shape")
        parts.append(("shape_head", shape))
    for name, path in parts:
        checkpoint.load_into(getattr(model, name), load_part(path, name), path)
    checkpoint.save(out, model.state_dict(), config.to_dict(), dict(provenance))
