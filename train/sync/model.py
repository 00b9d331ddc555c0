"""The sync model: lips and sound of the same moment lie close together, others do not.

The idea is SyncNet's (Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016).
Network, inputs, loss and weights are ours, so no figure of it can be compared with one of SyncNet:
it sees points of the mesh in the place of pictures, and features of Whisper in the place of a
spectrogram.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from dithead import checkpoint
from dithead.audio import AudioConfig
from dithead.errors import CheckpointError, ConfigError
from dithead.train.evaluation.motion import LIPS

LIP_POINTS: tuple[int, ...] = (*LIPS, 152, 199, 175)
"""Mesh points that the model sees: those of the lips, and three of the chin."""
_TAPS = 5
_CONVOLUTIONS = 3
WINDOW_FRAMES = _CONVOLUTIONS * (_TAPS - 1) + 1
"""Frames at 25 a second that an embedding sees: 13, 0.52 s."""


def _heard() -> AudioConfig:
    # Chunks with little context: cheap, and what is far away says nothing of the lips.
    return AudioConfig(
        layers=(2, 4),
        hop_ms=1000,
        left_context_ms=500,
        right_context_ms=500,
        window_frames=1,
    )


@dataclass(frozen=True, slots=True)
class SyncConfig:
    """Sizes of the model, and the speech features that it hears."""

    width: int = 96
    embedding: int = 64
    dropout: float = 0.1
    """While training."""
    audio: AudioConfig = field(default_factory=_heard)
    """A window of one frame: the features that lie within 40 ms."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.embedding < 1:
            raise ConfigError(
                f"sync: width and embedding are at least 1, not {self.width} and {self.embedding}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"sync: dropout is from 0 to below 1, not {self.dropout:g}")
        if self.audio.window_frames != 1:
            raise ConfigError(
                f"sync: the audio's window has 1 frame, not {self.audio.window_frames}"
            )

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SyncConfig:
        """What :meth:`to_dict` gave.

        Raises:
            ConfigError: a setting is unknown, missing or out of range.
        """
        try:
            return cls(**{**values, "audio": AudioConfig(**values["audio"])})
        except (TypeError, KeyError) as error:
            raise ConfigError(f"expected the settings of a sync model: {error}") from error


class Tower(nn.Module):
    """Embeds a series: each embedding sees :data:`WINDOW_FRAMES` of it."""

    def __init__(self, features: int, config: SyncConfig, norm: bool) -> None:
        super().__init__()
        width = config.width
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        self.first = nn.Linear(features, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, _TAPS) for _ in range(_CONVOLUTIONS))
        self.last = nn.Linear(width, config.embedding)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, features) -> (B, T - WINDOW_FRAMES + 1, embedding), of length 1."""
        x = self.dropout(self.first(self.norm(x))).transpose(1, 2)  # (B, width, T)
        edge = _TAPS // 2
        for number, conv in enumerate(self.convs):
            y = F.gelu(conv(x))  # (B, width, T - 4)
            x = y if number == 0 else y + x[:, :, edge:-edge]
            if number == 0:
                x = self.dropout(x)
        return F.normalize(self.last(x.transpose(1, 2)), dim=-1)


class SyncModel(nn.Module):
    """A tower for lips and one for sound, into one space."""

    def __init__(self, config: SyncConfig | None = None) -> None:
        super().__init__()
        self.config = config or SyncConfig()
        audio = self.config.audio
        self.lips = Tower(2 * len(LIP_POINTS), self.config, norm=False)
        self.sound = Tower(audio.window_shape[1], self.config, norm=True)

    def forward(self, lips: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of both.

        Args:
            lips: (B, T, points, 2), as :func:`normalised` gives them.
            sound: (B, T, features) at the same times.

        Returns:
            (B, T - WINDOW_FRAMES + 1, embedding) of each.
        """
        return self.lips(lips.flatten(2)), self.sound(sound)


def normalised(lips: Tensor) -> Tensor:
    """Motion of lips (..., T, points, 2) in crop units, without their mean shape and in units of
    its root mean square: nobody's mouth is larger, or moves further, than another's."""
    moved = lips - lips.mean(-3, keepdim=True)
    size = moved.square().mean((-3, -2, -1), keepdim=True).sqrt()
    return moved / size.clamp(min=1e-3)


def save_sync_model(path: Path, model: SyncModel, provenance: Mapping[str, str]) -> None:
    """Write a model, in float16."""
    checkpoint.save(path, model.state_dict(), {"sync": model.config.to_dict()}, provenance)


def load_sync_model(path: Path | None = None) -> SyncModel:
    """A trained model, frozen: the packaged one, or one that ``dithead train sync`` wrote.

    Raises:
        CheckpointError: the file is missing, or holds something else.
    """
    path = checkpoint.asset_path("sync") if path is None else path
    tensors, config = checkpoint.load(path)
    if "sync" not in config:
        raise CheckpointError(
            f"{path} holds no sync model", hint="give a file that dithead train sync wrote"
        )
    try:
        model = SyncModel(SyncConfig.from_dict(config["sync"]))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    checkpoint.load_into(model, tensors, path)
    return model.eval().requires_grad_(False)
