"""Whether a generated face is still the same person: dlib's face-recognition network, in PyTorch.

The network is that of dlib's ``dlib_face_recognition_resnet_model_v1`` (Davis King, 2017): a
shortened ResNet-34 (arXiv 1512.03385) whose 128 outputs are close to each other for pictures of one
person. Its weights are in the public domain (CC0) and come with the package
``face-recognition-models`` 0.3.0, whose code is never imported. They are in dlib's own format;
nothing in it is executed, and every tensor's size is checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.errors import CheckpointError
from dithead.face.crop import crop_face
from dithead.train.packaged import fetch_hint, packaged_file

CHIP_PX = 150
EVERY = 5
"""One in this many frames of a clip is judged."""
_PACKAGE, _VERSION = "face-recognition-models", "0.3.0"
_WEIGHTS_NAME = "dlib_face_recognition_resnet_model_v1.dat"
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""Channels, blocks, and whether the first of them halves the resolution."""
_MEAN = (122.782, 117.001, 104.298)
_TENSOR_VERSION = 2
# Positions of the outer and inner corners of the eyes and the base of the nose in the faces of its
# training data, in sides of the face, and the margin round the face, in sides.
_ALIGNED = {
    33: (0.1206, 0.2137),
    133: (0.3341, 0.2291),
    362: (0.6461, 0.2290),
    263: (0.8596, 0.2135),
    2: (0.4901, 0.6278),
}
_PADDING = 0.25


class _Affine(nn.Module):
    """The rest of a batch normalisation: a scale and an offset for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.offset[:, None, None]


class _Block(nn.Module):
    """Two convolutions and a path round them; where sizes differ, the smaller one is padded with
    zeros."""

    def __init__(self, channels_in: int, channels: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        stride, padding = (2, 0) if halve else (1, 1)
        self.first = nn.Conv2d(channels_in, channels, 3, stride, padding)
        self.first_affine = _Affine(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second_affine = _Affine(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_affine(self.first(x)))
        y = self.second_affine(self.second(y))
        if self.halve:
            x = F.avg_pool2d(x, 2)
        shape = [max(a, b) for a, b in zip(x.shape[1:], y.shape[1:], strict=True)]
        return F.relu(_grown(x, shape) + _grown(y, shape))


def _grown(x: Tensor, shape: list[int]) -> Tensor:
    channels, height, width = (want - have for want, have in zip(shape, x.shape[1:], strict=True))
    return F.pad(x, (0, width, 0, height, 0, channels))


class FaceRecognition(nn.Module):
    """An aligned face -> 128 numbers that identify the person."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.stem_affine = _Affine(32)
        blocks, width = [], 32
        for channels, count, halve in _STAGES:
            for i in range(count):
                blocks.append(_Block(width, channels, halve and i == 0))
                width = channels
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)

    def forward(self, face: Tensor) -> Tensor:
        """Faces (B, 3, 150, 150) RGB in 0..255 -> (B, 128)."""
        x = (face - self.mean) / 256
        x = F.relu(self.stem_affine(self.stem(x)))  # (B, 32, 72, 72)
        x = F.max_pool2d(x, 3, 2)  # (B, 32, 35, 35)
        for block in self.blocks:
            x = block(x)  # (B, 64, 17, 17), (B, 128, 8, 8), (B, 256, 4, 4), (B, 256, 2, 2)
        return self.head(x.mean((2, 3)))


def aligned_face(frame: Tensor, mesh: np.ndarray) -> Tensor:
    """The face of a frame (H, W, 3) uint8 in the network's alignment, placed by a mesh (468, 2):
    (1, 3, 150, 150) in 0..255."""
    target = (np.array(list(_ALIGNED.values())) + _PADDING) / (1 + 2 * _PADDING) - 0.5
    points = mesh[list(_ALIGNED)]
    t, p = (values @ np.array([1, 1j]) for values in (target, points))  # as complex numbers
    turn = np.vdot(t - t.mean(), p - p.mean()) / np.vdot(t - t.mean(), t - t.mean())
    shift = p.mean() - turn * t.mean()
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    transform = torch.tensor([rows], dtype=torch.float32)
    density = max(1, round(abs(turn) / CHIP_PX))
    return crop_face(frame.permute(2, 0, 1)[None].float(), transform, CHIP_PX, density)


@torch.inference_mode()
def identity(
    true: Sequence[Tensor], made: Sequence[Tensor], meshes: np.ndarray, network: FaceRecognition
) -> float:
    """Mean cosine between the network's outputs for true and for generated frames; both are placed
    by the true frames' meshes (T, 468, 2)."""
    cosines = []
    for i in range(0, len(true), EVERY):
        faces = [aligned_face(frame, meshes[i]) for frame in (true[i], made[i])]
        a, b = network(torch.cat(faces))
        cosines.append(float(F.cosine_similarity(a, b, dim=0)))
    return float(np.mean(cosines))


def load_face_recognition(path: str | Path | None = None) -> FaceRecognition:
    """Load the network, frozen, on the CPU.

    Args:
        path: the ``.dat`` file; by default the one in the installed ``face-recognition-models``.

    Raises:
        BackendUnavailable: no path was given and the package is not installed.
        CheckpointError: the file cannot be read, or contains something else.
    """
    if path is None:
        path = packaged_file(_PACKAGE, _WEIGHTS_NAME, "the measure of identity", "identity")
    source = Path(path)
    try:
        data = source.read_bytes()
        network = FaceRecognition()
        position = 0
        for module in in_file_order(network):
            position = _fill(module, data, position)
    except (OSError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{source} does not hold dlib's face recognition ({error})",
            hint=fetch_hint(_PACKAGE, _VERSION, _WEIGHTS_NAME),
        ) from error
    return network.requires_grad_(False).eval()


def in_file_order(network: FaceRecognition) -> list[nn.Module]:
    """dlib writes a network starting at its input."""
    order: list[nn.Module] = [network.stem, network.stem_affine]
    for block in network.blocks:
        order += block.children()
    return [*order, network.head]


def _fill(module: nn.Module, data: bytes, position: int) -> int:
    """Copy the next layer's numbers into a module; returns the position after them."""
    name = {nn.Conv2d: b"con_", _Affine: b"affine_", nn.Linear: b"fc_"}[type(module)]
    start = data.index(name, position)
    position = start + data[start - 1]  # a name follows its length
    if isinstance(module, nn.Linear):
        for _ in ("outputs", "inputs"):
            _, position = _integer(data, position)
    version, position = _integer(data, position)
    if version != _TENSOR_VERSION:
        raise ValueError(f"a tensor of version {version}, not {_TENSOR_VERSION}")
    shape = []
    for _ in range(4):
        length, position = _integer(data, position)
        shape.append(length)
    parameters = list(module.parameters())
    count = int(np.prod(shape))
    if count != sum(parameter.numel() for parameter in parameters):
        raise ValueError(f"a layer of {count} numbers where {module} was expected")
    end = position + 4 * count
    if end > len(data):
        raise ValueError("the file ends early")
    values = torch.tensor(struct.unpack(f"<{count}f", data[position:end]))
    with torch.no_grad():
        for parameter in parameters:
            part, values = values[: parameter.numel()], values[parameter.numel() :]
            if isinstance(module, nn.Linear):  # written with its inputs as rows
                part = part.view(parameter.shape[::-1]).T
            parameter.copy_(part.reshape(parameter.shape))
    return end


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """One of dlib's integers: a byte with the number of bytes that follow, then those, least
    significant first."""
    size = data[position]
    if not 1 <= size <= 8:
        raise ValueError(f"no length at byte {position}")
    return int.from_bytes(data[position + 1 : position + 1 + size], "little"), position + 1 + size
