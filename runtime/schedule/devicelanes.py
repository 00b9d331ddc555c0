"""The lanes of a device."""

from __future__ import annotations

import torch

from dithead.runtime.schedule.host import HostLanes
from dithead.runtime.schedule.lanes import Lanes


def make_lanes(device: torch.device, replays: bool) -> Lanes:
    """The lanes of a device; ``replays`` says whether they may capture work once and replay it."""
    if device.type == "cuda":
        from dithead.runtime.schedule.cuda import CudaLanes

        return CudaLanes(device, replays)
    return HostLanes()
