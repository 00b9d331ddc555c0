"""Inputs that graphs meet in practice, taken from a clip."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dithead import footage
from dithead.errors import MediaError
from dithead.export.specs import graph_specs
from dithead.export.validate import Recorder
from dithead.pipeline import Options, revoice
from dithead.runtime.media.sources import AudioSource, VideoSource
from dithead.torchgraphs import TorchGraphs

FRAMES = 12
SPEECH_S = 2.0


def record_real_inputs(
    models: TorchGraphs, clip: Path, largest_rectangle: int
) -> dict[str, list[dict[str, Tensor]]]:
    """Re-voice the beginning of a clip with the packaged speech and keep what each graph met.

    Returns:
        Inputs by name, by graph.

    Raises:
        MediaError: the clip cannot be read or shows no face.
    """
    recorder = Recorder(models, graph_specs(largest_rectangle, models.config.shape_head))
    with VideoSource(clip) as video:
        frames = [
            (torch.from_numpy(frame.rgb()), float(frame.time_s)) for frame in islice(video, FRAMES)
        ]
    if len(frames) < 2:
        raise MediaError(f"{clip} has but {len(frames)} frame: give a --clip with at least two")
    samples = np.concatenate(list(AudioSource(footage.speech()).blocks()))[
        : round(SPEECH_S * 16000)
    ]
    pictures = list(revoice(iter(frames), torch.from_numpy(samples), recorder, Options(steps=4)))
    if "dit_step" not in recorder.cases:
        raise MediaError(f"no face in the first {FRAMES} frames of {clip}: give another --clip")
    with torch.inference_mode():
        first, second = (p.permute(2, 0, 1)[None].float() / 255.0 for p in pictures[:2])
        recorder.run("interpolator", first, second, torch.tensor(0.5))
    return recorder.cases
