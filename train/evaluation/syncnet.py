"""SyncNet: embeds a fifth of a second of a face and of sound, so that they are close if they belong
together. Its weights do not ship.

Paper: Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016. Layers and names of
weights are those of the published file ``syncnet_v2.model``, so it loads by name.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.train.evaluation.mfcc import COEFFICIENTS

PUBLISHED = "syncnet_v2.model"
URL = f"http://www.robots.ox.ac.uk/~vgg/software/lipsync/data/{PUBLISHED}"
EMBEDDING = 1024
FRAMES = 5
"""Frames of a window, at 25 a second."""
STEPS = 20
"""Columns of sound of a window, 10 ms each."""
FACE_PX = 224


class SyncNet(nn.Module):
    """Two networks, one for pictures and one for sound, with outputs of the same size."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_stage(nn.Conv2d(1, 64, 3, padding=1), nn.Identity()),  # a pool of one pixel there
            *_stage(nn.Conv2d(64, 192, 3, padding=1), nn.MaxPool2d(3, (1, 2))),
            *_stage(nn.Conv2d(192, 384, 3, padding=1)),
            *_stage(nn.Conv2d(384, 256, 3, padding=1)),
            *_stage(nn.Conv2d(256, 256, 3, padding=1), nn.MaxPool2d(3, 2)),
            *_stage(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netfcaud = _head()
        self.netcnnlip = nn.Sequential(
            *_stage(nn.Conv3d(3, 96, (FRAMES, 7, 7), (1, 2, 2)), _flat_pool()),
            *_stage(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)), _flat_pool(1)),
            *_stage(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_stage(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_stage(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1)), _flat_pool()),
            *_stage(nn.Conv3d(256, 512, (1, 6, 6))),
        )
        self.netfclip = _head()

    def embed_faces(self, windows: Tensor) -> Tensor:
        """Windows (B, 3, 5, 224, 224) of faces, BGR in 0..255 -> (B, 1024)."""
        return self.netfclip(self.netcnnlip(windows).flatten(1))  # (B, 512, 1, 1, 1) between

    def embed_sound(self, windows: Tensor) -> Tensor:
        """Windows (B, 1, 13, 20) of :func:`~.mfcc.mfcc`, time last -> (B, 1024)."""
        if windows.shape[1:] != (1, COEFFICIENTS, STEPS):
            raise ValueError(f"expected windows (B, 1, 13, 20), found {tuple(windows.shape)}")
        return self.netfcaud(self.netcnnaud(windows).flatten(1))  # (B, 512, 1, 1) between


def _stage(convolution: nn.Conv2d | nn.Conv3d, *pool: nn.Module) -> list[nn.Module]:
    flat = isinstance(convolution, nn.Conv2d)
    norm = (nn.BatchNorm2d if flat else nn.BatchNorm3d)(convolution.out_channels)
    return [convolution, norm, nn.ReLU(), *pool]


def _flat_pool(padding: int = 0) -> nn.Module:
    """Halves height and width, never the number of frames."""
    return nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, padding, padding))


def _head() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING)
    )


def fetch_hint(path: Path) -> str:
    """The commands that make the file of weights."""
    return f"fetch them with curl -O {URL} and dithead train convert syncnet {PUBLISHED} {path}"


def load_syncnet(path: str | Path) -> SyncNet:
    """Load SyncNet, on the CPU, frozen and in evaluation mode.

    Args:
        path: what ``dithead train convert syncnet`` wrote.

    Raises:
        CheckpointError: it is missing, damaged or of another network; the message says where it was
            looked for, and the commands that fetch it.
    """
    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"no weights of SyncNet at {source}", hint=fetch_hint(source))
    network = SyncNet()
    try:
        checkpoint.load_into(network, checkpoint.load(source)[0], source)
    except CheckpointError as error:
        raise CheckpointError(
            f"no usable weights of SyncNet: {error.message}", hint=fetch_hint(source)
        ) from error
    return network.requires_grad_(False).eval()
