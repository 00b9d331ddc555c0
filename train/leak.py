"""Tests that the mask hides the mouth: a regressor tries to read its opening from masked crops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import FaceConfig
from dithead.face.crop import fixed_mask, mask_out
from dithead.face.papermask import fade_out, paper_mask
from dithead.train.appearance import plain_appearance, render
from dithead.train.data import Clip, Footage
from dithead.train.metrics import fine_correlation, opening
from dithead.train.motion import crop_meshes

_INPUT_PX = 64


class _Regressor(nn.Module):
    """A small convolutional net: picture (B, 4, 64, 64) -> opening (B,)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 4
        for channels in (24, 32, 48, 64):
            layers += [nn.Conv2d(width, channels, 3, 2, 1), nn.GroupNorm(8, channels), nn.GELU()]
            width = channels
        layers += [nn.Flatten(), nn.Dropout(0.2), nn.Linear(width * (_INPUT_PX // 16) ** 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


@torch.inference_mode()
def _load(
    footage: Footage, clips: Sequence[Clip], config: FaceConfig, masked: bool
) -> tuple[list[Tensor], list[np.ndarray]]:
    pictures, openings = [], []
    for clip in clips:
        crops = torch.from_numpy(np.array(footage.crops(clip)))
        image = render(crops, plain_appearance(len(crops)), config.crop_px, config.view)
        if config.mask == "paper":
            mask = paper_mask(crop_meshes(footage.track(clip)), config)
        else:
            mask = fixed_mask(config)
        if masked:
            image = fade_out(image, mask) if config.mask == "paper" else mask_out(image, mask)
        both = torch.cat([image, mask.expand(len(image), -1, -1, -1)], dim=1)
        pictures.append(F.adaptive_avg_pool2d(both, _INPUT_PX))
        openings.append(opening(footage.track(clip)["mesh"]))
    return pictures, openings


def leak_correlation(
    footage: Footage,
    train: Sequence[Clip],
    held_out: Sequence[Clip],
    config: FaceConfig,
    masked: bool = True,
    steps: int = 1500,
    seed: int = 0,
) -> float:
    """Fine correlation of the predicted with the true opening on held-out clips.

    Args:
        train, held_out: clips of prepared footage. masked: with False the regressor sees the whole
            crop, which shows what it is capable of.
        steps: of AdamW on batches of 64.
    """
    torch.manual_seed(seed)
    pictures, openings = _load(footage, train, config, masked)
    x, y = torch.cat(pictures), torch.from_numpy(np.concatenate(openings)).float()
    mean, std = y.mean(), y.std()
    y = (y - mean) / std
    model = _Regressor()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = F.mse_loss(model(x[rows]), y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()
    true_pictures, true_openings = _load(footage, held_out, config, masked)
    with torch.inference_mode():
        guesses = [model(clip).numpy() for clip in true_pictures]
    return fine_correlation(list(zip(guesses, true_openings, strict=True)))
