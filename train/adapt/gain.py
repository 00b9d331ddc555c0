"""What an adaptation gained, on footage that it did not learn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioEncoder
from dithead.face.mesh import INNER_LOWER, INNER_UPPER
from dithead.graphs import Noise
from dithead.model import DitHead
from dithead.train.adapt.person import encoded_pictures
from dithead.train.appearance import plain_appearance, render
from dithead.train.data import Footage
from dithead.train.latents import ENCODED_AT_ONCE
from dithead.train.motion import crop_meshes
from dithead.train.picture import save_grid
from dithead.train.pictures import mouth_weights
from dithead.train.windows import windows_at

SHEET_COLUMNS = 8
TELLING_S = 1.0
"""Less footage than this tells nothing: on 0.2 s of one clip both measures fell, and the finished
frames were better all the same."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What an adaptation gained, in crops of the face."""

    held_out_s: float
    """Length of the footage that it was measured on."""
    mouth_db_before: float
    """PSNR round the mouth."""
    lips_off_before: float
    """Mean distance of the lips from the true ones, in hundredths of a crop."""
    mouth_db: float
    lips_off: float

    @property
    def is_loss(self) -> bool:
        """Whether the adapted model is worse by both measures, and enough was measured to tell."""
        worse = self.mouth_db < self.mouth_db_before and self.lips_off > self.lips_off_before
        return worse and self.held_out_s >= TELLING_S

    def __str__(self) -> str:
        return (
            f"mouth {self.mouth_db_before:.1f} -> {self.mouth_db:.1f} dB, lips off by "
            f"{self.lips_off_before:.1f} -> {self.lips_off:.1f} % of the crop, in the last "
            f"{self.held_out_s:.1f} s, which were not learnt from"
        )


class Held:
    """Frames that were not learnt from, and how well a model generates them."""

    def __init__(
        self, footage: Footage, model: DitHead, encoder: AudioEncoder, reference: Tensor
    ) -> None:
        self.config = model.config
        self.reference = reference
        face, look = self.config.face, plain_appearance
        true, masked, windows, meshes, times = [], [], [], [], []
        for clip in footage.split("validation"):
            crops, track = torch.from_numpy(np.array(footage.crops(clip))), footage.track(clip)
            picture = render(crops, look(len(crops)), face.crop_px, face.view)
            true.append(picture)
            mesh, plain = crop_meshes(track), look(len(crops))
            hidden = encoded_pictures(model, picture, plain, mesh, torch.Generator(), 0.0)[1]
            masked.append(hidden.float())
            heard = windows_at(encoder, track["audio"].astype(np.float32), track["time_s"])
            windows.append(heard.half().float())  # as they are learnt from
            meshes.append(mesh)
            times.append(track["time_s"][-1] - track["time_s"][0])
        self.true, self.masked, self.windows = (torch.cat(t) for t in (true, masked, windows))
        self.meshes, self.seconds = torch.cat(meshes), float(sum(times))
        self.before = self.generate(model)

    @torch.inference_mode()
    def generate(self, model: DitHead) -> tuple[Tensor, Tensor]:
        """All frames as a model generates them: pictures (T, 3, S, S), meshes (T, 468, 2)."""
        seed = torch.zeros(1, dtype=torch.int64)
        noise = Noise(self.config.diffusion, model.noise)(seed, seed)
        pictures, meshes = [], []
        for rows in torch.arange(len(self.true)).split(ENCODED_AT_ONCE):
            masked, heard = self.masked[rows], self.windows[rows]
            start, reference = noise.expand_as(masked), self.reference.expand_as(masked)

            def predict(
                noisy: Tensor,
                timestep: Tensor,
                given: tuple[Tensor, Tensor, Tensor] = (masked, reference, heard),
            ) -> Tensor:
                return model.dit(noisy, given[0], given[1], timestep, given[2])

            latents = model.diffusion.sample(predict, start, self.config.diffusion.steps)
            pictures.append(model.face_vqgan.decode(latents))
            assert model.shape_head is not None
            meshes.append(model.shape_head(latents))
        return torch.cat(pictures), torch.cat(meshes)

    def compare(self, model: DitHead, sheet: Path) -> Gain:
        """What a model gained, and a sheet: true, before, after."""
        after = self.generate(model)
        rows = torch.linspace(0, len(self.true) - 1, SHEET_COLUMNS).long()
        save_grid(
            torch.cat([self.true[rows], self.before[0][rows], after[0][rows]]), sheet, SHEET_COLUMNS
        )
        return Gain(self.seconds, *self._scores(*self.before), *self._scores(*after))

    def _scores(self, pictures: Tensor, meshes: Tensor) -> tuple[float, float]:
        face = self.config.face
        weights = mouth_weights(face.crop_px, 1.0, face.view) - 1.0
        error = (pictures - self.true).square().mean(1, keepdim=True) / 4
        error = (error * weights).sum((1, 2, 3)) / weights.sum()
        lips = [*INNER_UPPER, *INNER_LOWER]
        off = (meshes[:, lips] - self.meshes[:, lips]).norm(dim=2).mean()
        return float(-10 * torch.log10(error).mean()), 100 * float(off)
