"""ST-LPIPS: a perceptual distance between pictures that hardly changes with a shift by a pixel.

Paper: Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric", arXiv 2207.13686; here with
its AlexNet trunk. The weights come with the package ``stlpips-pytorch`` 0.0.2 (BSD-2-Clause), whose
code is never imported. They are a pickle: only training and evaluation, offline, read them, and
``torch.load(weights_only=True)`` accepts only tensors.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.train.packaged import fetch_hint, packaged_file

MIN_SIDE_PX = 21  # if smaller, the last blur has too few pixels to reflect its border
_PACKAGE, _VERSION = "stlpips-pytorch", "0.0.2"
_WEIGHTS_NAME = "alex_shift_tolerant.pth"
_CONSTANTS = ("scaling_layer.", "net.slice1.1.filt", "net.slice2.4.filt", "net.slice3.8.filt")
_PUBLISHED_NAMES = {
    "net.slice1.0.": "convs.0.",
    "net.slice2.5.": "convs.1.",
    "net.slice3.9.": "convs.2.",
    "net.slice4.11.": "convs.3.",
    "net.slice5.13.": "convs.4.",
}


class STLPIPS(nn.Module):
    """Distance of two pictures: the weighted squared difference of their AlexNet features.

    It is shift-tolerant because every convolution and maximum has stride 1, and only a blur halves
    the resolution, over a border reflected far enough for the outermost pixels to count in full.
    """

    mean: Tensor
    std: Tensor
    blur: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            (
                nn.Conv2d(3, 64, 11, padding=2),
                nn.Conv2d(64, 192, 5, padding=2),
                nn.Conv2d(192, 384, 3, padding=1),
                nn.Conv2d(384, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
            )
        )
        # One weight per channel of each layer; equal ones until the published ones are loaded.
        widths = (64, 192, 384, 256, 256)
        self.heads = nn.ParameterList(torch.full((width,), 1 / width) for width in widths)
        # ImageNet's mean and standard deviation, for pictures in [-1, 1].
        mean, std = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)
        binomial = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("blur", binomial.outer(binomial)[None, None], persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Compare pictures pairwise; symmetric in ``a`` and ``b``.

        Args:
            a: (B, 3, H, W) float32 RGB in [-1, 1]; H and W at least :data:`MIN_SIDE_PX`.
            b: as ``a``.

        Returns:
            (B,) distances from 0 (the same picture) up; unrelated ones reach about 1.

        Raises:
            ValueError: the shapes differ or are not such batches.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < MIN_SIDE_PX:
            raise ValueError(
                f"expected two batches (B, 3, H, W) of one shape, sides at least {MIN_SIDE_PX} px, "
                f"found {tuple(a.shape)} and {tuple(b.shape)}; enlarge smaller pictures first"
            )
        # Two passes, not one of 2B: if only one picture needs a gradient, the other needs no graph.
        total = a.new_zeros(a.shape[0])
        for layer_a, layer_b, head in zip(
            self.features(a), self.features(b), self.heads, strict=True
        ):
            difference = unit_length(layer_a) - unit_length(layer_b)  # (B, C, h, w)
            total = total + difference.square().mean((2, 3)) @ head  # (B,)
        return total

    def features(self, image: Tensor) -> list[Tensor]:
        """The five layers' features, (B, C, h, w) each; shape comments are for H = W = 128."""
        conv1, conv2, conv3, conv4, conv5 = self.convs
        x = (image - self.mean) / self.std  # (B, 3, 128, 128)
        one = F.relu(self._halve(conv1(x)))  # (B, 64, 62, 62): blurred before the ReLU, only here
        two = F.relu(conv2(self._pool(one)))  # (B, 192, 31, 31)
        three = F.relu(conv3(self._pool(two)))  # (B, 384, 16, 16)
        four = F.relu(conv4(three))  # (B, 256, 16, 16)
        five = F.relu(conv5(four))  # (B, 256, 16, 16)
        return [one, two, three, four, five]

    def _pool(self, x: Tensor) -> Tensor:
        """AlexNet's 3 x 3 max pooling by 2 in two steps: the maximum at stride 1, then halving."""
        return self._halve(F.max_pool2d(x, 3, stride=1))  # (B, C, (h + 1) // 2, (w + 1) // 2)

    def _halve(self, x: Tensor) -> Tensor:
        """Blur by (1 2 1) / 4 both ways and keep every second pixel of the extended result."""
        channels = x.shape[1]
        padded = F.pad(x, (2, 2, 2, 2), mode="reflect")  # (B, C, h + 4, w + 4)
        return F.conv2d(padded, self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels)


def unit_length(features: Tensor) -> Tensor:
    """Scale each pixel of (B, C, h, w) to length 1; all zeros stay zeros."""
    return F.normalize(features, dim=1, eps=1e-10)


def load_stlpips(path: str | Path | None = None) -> STLPIPS:
    """Load ST-LPIPS with its published weights, on the CPU, frozen and in evaluation mode.

    Args:
        path: ``alex_shift_tolerant.pth``; by default the one in the installed ``stlpips-pytorch``.

    Raises:
        BackendUnavailable: no path was given and the package is not installed.
        CheckpointError: the file cannot be read, or holds other weights; the message says which
            command gets it.
    """
    if path is None:
        path = packaged_file(_PACKAGE, _WEIGHTS_NAME, "the perceptual distance", "train")
    source = Path(path)
    hint = fetch_hint(_PACKAGE, _VERSION, _WEIGHTS_NAME)
    try:
        published = torch.load(source, weights_only=True, map_location="cpu")
    except (OSError, EOFError, UnpicklingError, RuntimeError) as error:
        # PyTorch's text has several lines.
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{source} does not hold ST-LPIPS ({why})", hint=hint) from error
    if not isinstance(published, dict):
        found = type(published).__name__
        raise CheckpointError(f"{source}: expected tensors by name, found a {found}", hint=hint)
    model = STLPIPS()
    try:
        checkpoint.load_into(model, _rename(published), source)
    except CheckpointError as error:
        raise CheckpointError(error.message, hint=hint) from error
    # On a CPU, channels last saves a fifth (with gradient) to two fifths of the time.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.requires_grad_(False).eval()


def _rename(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give each published tensor our name; constants are dropped, unknown names stay and are
    refused later."""
    renamed = {}
    for name, tensor in published.items():
        if name.startswith(_CONSTANTS):
            continue
        if name.startswith("lin") and name.endswith(".model.1.weight"):
            number = name.removeprefix("lin").removesuffix(".model.1.weight")
            renamed[f"heads.{number}"] = tensor.flatten()  # (1, C, 1, 1) -> (C,)
            continue
        old = next((prefix for prefix in _PUBLISHED_NAMES if name.startswith(prefix)), "")
        renamed[_PUBLISHED_NAMES.get(old, "") + name.removeprefix(old)] = tensor
    return renamed
