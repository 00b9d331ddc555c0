"""The ``crop_smoother`` graph: smooths the crop's placement and the blend's outline over time with
a one-euro filter (Casiez et al., CHI 2012)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dithead.config import FaceConfig
from dithead.face.crop import (
    BLEND_ANCHORS,
    blend_anchors,
    blend_polygon,
    placement_from_mesh,
    stable_template,
    transform_from_placement,
)

_TRACKED = 4 + BLEND_ANCHORS

STATE_SIZE = 2 * _TRACKED + 1
"""Length of the state vector: smoothed placement (4) and blend anchors, their smoothed speeds, and
a flag that is 1 once started."""


class CropSmoother(nn.Module):
    """Mesh and previous state -> smoothed crop transform, smoothed blend outline, new state.
    Causal, no weights."""

    template: Tensor

    def __init__(self, config: FaceConfig) -> None:
        super().__init__()
        self.cutoff_hz = config.smoothing_cutoff_hz
        self.speed_gain = config.smoothing_speed_gain
        self.register_buffer("template", stable_template(), persistent=False)

    @staticmethod
    def initial_state(device: torch.device | None = None) -> Tensor:
        """The state before the first face: zeros (STATE_SIZE,)."""
        return torch.zeros(STATE_SIZE, device=device)

    def forward(
        self, mesh: Tensor, state: Tensor, elapsed_s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Advance by one frame.

        Args:
            mesh: (468, 2 or 3) in frame pixels. state: (STATE_SIZE,). elapsed_s: scalar, seconds
                since the last frame.

        Returns:
            Transform (2, 3) from crop units to frame pixels; polygon (P, 2) in crop units, the
            outline of what is replaced; new state (STATE_SIZE,).
        """
        placement = placement_from_mesh(mesh[None], self.template)  # (1, 4)
        raw = torch.cat([placement, blend_anchors(mesh[None], placement)], dim=1)[0]  # (8,)
        previous, speed, started = state[:_TRACKED], state[_TRACKED:-1], state[-1]
        elapsed = elapsed_s.clamp(min=1e-3)
        turn = torch.remainder(raw[3] - previous[3] + math.pi, 2 * math.pi) - math.pi
        raw = torch.cat([raw[:3], (previous[3] + turn)[None], raw[4:]])
        side = torch.exp(raw[2])
        scale = torch.cat([side.expand(2), torch.ones_like(raw[2:])])  # (8,)
        new_speed = (raw - previous) / elapsed
        new_speed = speed + _alpha(elapsed, torch.ones_like(elapsed)) * (new_speed - speed)
        cutoff = self.cutoff_hz + self.speed_gain * (new_speed / scale).abs()
        smoothed = previous + _alpha(elapsed, cutoff) * (raw - previous)
        fresh = torch.cat([raw, torch.zeros_like(speed), torch.ones_like(started)[None]])
        going = torch.cat([smoothed, new_speed, torch.ones_like(started)[None]])
        new_state = torch.where(started > 0, going, fresh)
        transform = transform_from_placement(new_state[None, :4])[0]
        return transform, blend_polygon(new_state[None, 4:_TRACKED])[0], new_state


def _alpha(elapsed_s: Tensor, cutoff_hz: Tensor) -> Tensor:
    return 1.0 / (1.0 + 1.0 / (2 * math.pi * cutoff_hz * elapsed_s))
