"""Which model is judged and where it runs, what is checked of it first, and how it re-voices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from dithead.audio import load_audio_encoder
from dithead.checkpoint import random_preset
from dithead.config import DitHeadConfig, preset
from dithead.face.networks import FaceModels, FaceNetworks
from dithead.kernels.attention import AttentionBackend, check_attention
from dithead.model import DitHead
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.backends import check_face_models
from dithead.runtime.checked import checked_device
from dithead.torchgraphs import TorchGraphs


@dataclass(frozen=True, slots=True)
class JudgedModel:
    """A checkpoint, the networks beside it, and where they run."""

    checkpoint: str = "tiny"
    audio_weights: Path | None = None
    """Of the speech encoder, if it is not the packaged one."""
    device: str = "cpu"
    attention: AttentionBackend = "auto"
    face_models: FaceModels = "mediapipe"
    """These also measure the lips of the finished frames."""
    face_weights: Path | None = None
    """Folder of S3FD's and FAN's weights; None takes the one in the user's cache."""

    def __post_init__(self) -> None:
        check_face_models(self.face_models, self.face_weights, from_bundle=False)

    def check(self) -> DitHeadConfig:
        """Load each part once, on the host, and let go of it, so that what is missing is said
        before any other process begins.

        Returns:
            The checkpoint's configuration.

        Raises:
            ConfigError: unknown device, attention or preset.
            CheckpointError: weights are missing or do not fit.
            BackendUnavailable: the device or a package is not there.
        """
        check_attention(self.attention, checked_device(self.device))
        drawn = random_preset(self.checkpoint)
        config = DitHead.load(self.checkpoint).config if drawn is None else preset(drawn)
        if drawn is None or self.audio_weights is not None:
            load_audio_encoder(config.audio, self.audio_weights)
        FaceNetworks.load(self.face_models, self.face_weights)
        return config


@cache
def load_models(model: JudgedModel) -> TorchGraphs:
    """A model, loaded once per process, on one thread."""
    torch.set_num_threads(1)
    faces = FaceNetworks.load(model.face_models, model.face_weights)
    return TorchGraphs.load(
        model.checkpoint, model.device, model.audio_weights, model.attention, faces
    )


def revoiced(
    frames: Iterable[tuple[Tensor, float]], samples: Tensor, models: TorchGraphs, options: Options
) -> Iterator[Tensor]:
    """As :func:`dithead.pipeline.revoice`, of frames on the host and back there."""
    given = ((frame.to(models.device), time_s) for frame, time_s in frames)
    for made in revoice(given, samples, models, options):
        yield made.cpu()
