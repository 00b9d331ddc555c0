"""``dithead-train pack``: one checkpoint from the parts that the stages have trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dithead import checkpoint
from dithead.config import DitHeadConfig
from dithead.errors import ConfigError
from dithead.model import DitHead
from dithead.train.loop import load_part

LEARNT = ("timesteps", "schedule", "prediction", "steps")
"""Settings of the diffusion that a denoiser's weights were trained for; the others are the
sampler's alone."""


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
        config: of the model; what the denoiser's weights say of their own diffusion counts before
            it (:data:`LEARNT`).
        face, masked, dit, shape: weights of each part, from its stage or a packed checkpoint.
        provenance: ``origin`` and ``licence``.

    Raises:
        ConfigError: the model has a shape head, and none is given.
        CheckpointError: a part does not fit the configuration, or is another one.
    """
    config = _as_learnt(config, dit)
    model = DitHead(config)
    parts = [("face_vqgan", face), ("masked_vqgan", masked), ("dit", dit)]
    if model.shape_head is not None:
        if shape is None:
            raise ConfigError(f"the preset {config.preset} has a shape head: give --shape")
        parts.append(("shape_head", shape))
    for name, path in parts:
        checkpoint.load_into(getattr(model, name), load_part(path, name), path)
    checkpoint.save(out, model.state_dict(), config.to_dict(), dict(provenance))


def _as_learnt(config: DitHeadConfig, dit: Path) -> DitHeadConfig:
    """The configuration with the diffusion that the denoiser's weights were trained for."""
    found = checkpoint.load_config(dit).get("diffusion", {})
    learnt = {name: found[name] for name in LEARNT if name in found}
    return replace(config, diffusion=replace(config.diffusion, **learnt))
