"""Baselines for a generated mouth, through the same crop, mask and seam correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dithead.generator import FrameGenerator
from dithead.graphs import own_light
from dithead.options import Options
from dithead.patch import put_patch
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation.clips import Clip


def frozen_frames(clip: Clip, models: TorchGraphs) -> Iterator[Tensor]:
    """The baseline: the first frame's lower face blended into every frame."""
    yield from _replaced(clip, models, lambda crop, first: first)


def ceiling_frames(clip: Clip, models: TorchGraphs) -> Iterator[Tensor]:
    """The ceiling: every frame's own lower face through stage 1 and back."""
    yield from _replaced(clip, models, lambda crop, first: through_stage_1(crop, models))


@torch.inference_mode()
def through_stage_1(crop: Tensor, models: TorchGraphs) -> Tensor:
    """A face crop (1, 3, S, S) in [-1, 1], encoded and decoded."""
    (latent,) = models.run("reference_encoder", crop)
    return models.run("face_decoder", latent, own_light(latent.device)[None])[0]


def _replaced(
    clip: Clip, models: TorchGraphs, face_from: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[Tensor]:
    """A clip with the face that ``face_from`` makes from a frame's crop and the first one's."""
    generator = FrameGenerator(models, Options(detail=False))
    first: Tensor | None = None
    for index, (frame, time_s) in enumerate(zip(clip.frames, clip.times_s, strict=True)):
        on_device = frame.to(models.device)
        prepared = generator.prepare(on_device, time_s, index, lambda time_s: torch.zeros(()))
        if prepared is None:
            yield frame
            continue
        first = prepared.crop if first is None else first
        face = face_from(prepared.crop, first)
        patch = generator.finish(prepared, (face, face.new_zeros(0, 2)))
        yield put_patch(on_device, patch).cpu()
