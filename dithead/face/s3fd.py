"""Finds faces in a frame with S3FD, the detector of the DiT-Head paper.

The network is described in Zhang et al., "S3FD: Single Shot Scale-invariant Face Detector" (2017).
Layers, names of weights and post-processing are those of the package face-alignment 1.5.0, so its
weights load by name. Coordinates are in frame pixels, measured from the top left corner of the
frame, so the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.errors import ConfigError
from dithead.face.detector import crop_rotated
from dithead.kernels.sampling import frame_size

_BACKBONE = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and layers of each stage
_HEADS = (
    ("conv3_3_norm", 256),
    ("conv4_3_norm", 512),
    ("conv5_3_norm", 512),
    ("fc7", 1024),
    ("conv6_2", 512),
    ("conv7_2", 256),
)
"""Feature maps with a pair of heads, and their channels; each is half as fine as the one before."""
_NORMS = {"conv3_3_norm": 10.0, "conv4_3_norm": 8.0, "conv5_3_norm": 5.0}
"""Normalised feature maps, and the scale that training begins with."""
_BACKGROUNDS = 3  # scores for background in the finest map, of which the largest counts
_FIRST_STRIDE = 4  # pixels between the anchors of the finest map
_ANCHOR = 4  # side of an anchor in strides
_MEAN = (123.0, 117.0, 104.0)  # of the training pictures, RGB
_CENTRE_VARIANCE, _SIZE_VARIANCE = 0.1, 0.2
_KEYPOINTS = ((0.27, 0.32), (0.73, 0.32), (0.5, 0.57), (0.5, 0.75), (0.01, 0.43), (0.99, 0.43))
"""Where :data:`~dithead.face.detector.KEYPOINTS` lie in the box round the mean face
(:func:`dithead.face.spread.mean_face`), as shares of its width and height."""


@dataclass(frozen=True, slots=True)
class S3fdConfig:
    """How pictures are shown to the network, and how raw detections become faces. The limits are
    those of face-alignment.

    Attributes:
        side: side of the square picture that the network sees, in pixels; a multiple of 32. Its
            smallest anchors have 16 pixels, so with 320 a face of a twentieth of the frame is seen.
        max_faces: number of rows of the result.
        candidates: how many raw detections, best first, take part in the suppression.
        min_score: raw detections with at most this score are ignored; in [0, 1].
        max_iou: of two raw detections that overlap by more than this, the better one is kept; in
            [0, 1].
    """

    side: int = 320
    max_faces: int = 16
    candidates: int = 256
    min_score: float = 0.5
    max_iou: float = 0.3

    def __post_init__(self) -> None:
        if self.side < 32 or self.side % 32:
            raise ConfigError(f"expected a side in multiples of 32 pixels, found {self.side}")
        if not 1 <= self.max_faces <= self.candidates <= len(anchors(self.side)):
            raise ConfigError(
                f"expected 1 <= max_faces <= candidates <= {len(anchors(self.side))}, "
                f"found max_faces={self.max_faces}, candidates={self.candidates}"
            )
        if not (0 <= self.min_score <= 1 and 0 <= self.max_iou <= 1):
            raise ConfigError(
                "expected min_score and max_iou in [0, 1], "
                f"found {self.min_score} and {self.max_iou}"
            )


class ScaledNorm(nn.Module):
    """Divides each position's channels by their length, and scales each channel."""

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        length = x.square().sum(1, keepdim=True).sqrt() + 1e-10
        return x / length * self.weight[:, None, None]


class S3fd(nn.Module):
    """The detector's network: VGG-16 with a score and a box at every anchor of six feature maps."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for stage, (width, count) in enumerate(_BACKBONE, 1):
            for layer in range(1, count + 1):
                self.add_module(f"conv{stage}_{layer}", nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=3)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.conv6_1 = nn.Conv2d(1024, 256, 1)
        self.conv6_2 = nn.Conv2d(256, 512, 3, stride=2, padding=1)
        self.conv7_1 = nn.Conv2d(512, 128, 1)
        self.conv7_2 = nn.Conv2d(128, 256, 3, stride=2, padding=1)
        for name, channels in _HEADS:
            if name in _NORMS:
                self.add_module(name, ScaledNorm(channels, _NORMS[name]))
            scores = _BACKGROUNDS + 1 if name == _HEADS[0][0] else 2
            self.add_module(f"{name}_mbox_conf", nn.Conv2d(channels, scores, 3, padding=1))
            self.add_module(f"{name}_mbox_loc", nn.Conv2d(channels, 4, 3, padding=1))

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Score every anchor.

        Args:
            picture: (B, 3, side, side) BGR in 0..255, less the mean of the training pictures.

        Returns:
            Scores (B, A) as logits and regressors (B, A, 4): shift of the box's centre from the
            anchor's and logarithm of its size, in units of the variances, x before y. The anchors
            are in the order of :func:`anchors`.
        """
        scores, boxes = [], []
        for name, features in self._features(picture).items():
            conf = self.get_submodule(f"{name}_mbox_conf")(features)  # (B, 2 or 4, h, w)
            background = conf[:, :-1].amax(1)  # (B, h, w)
            scores.append((conf[:, -1] - background).flatten(1))
            loc = self.get_submodule(f"{name}_mbox_loc")(features)  # (B, 4, h, w)
            boxes.append(loc.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    def _features(self, x: Tensor) -> dict[str, Tensor]:
        """The feature maps of the heads, by name, the finest first."""
        found = {}
        for stage, (_, count) in enumerate(_BACKBONE, 1):
            for layer in range(1, count + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{layer}")(x))
            if (name := f"conv{stage}_{count}_norm") in _NORMS:
                found[name] = self.get_submodule(name)(x)  # (B, C, side / 2 ** (stage - 1), ...)
            x = F.max_pool2d(x, 2)
        x = found["fc7"] = F.relu(self.fc7(F.relu(self.fc6(x))))
        x = found["conv6_2"] = F.relu(self.conv6_2(F.relu(self.conv6_1(x))))
        found["conv7_2"] = F.relu(self.conv7_2(F.relu(self.conv7_1(x))))
        return found


def anchors(side: int) -> Tensor:
    """Anchors (A, 3) of a square picture: centre x, centre y, side, in its pixels; map by map, the
    finest first, each row by row."""
    found, cells = [], [side >> shift for shift in (2, 3, 4)]
    cells.append((side >> 5) + 4)  # fc6 pads more than it takes away
    cells += [(cells[3] + 1) // 2, (cells[3] + 3) // 4]
    for level, count in enumerate(cells):
        stride = _FIRST_STRIDE << level
        centre = stride * (torch.arange(count) + 0.5)
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        found.append(torch.stack([x, y, torch.full_like(x, _ANCHOR * stride)], -1).flatten(0, 1))
    return torch.cat(found)


class S3fdDetector(nn.Module):
    """``face_detector`` with S3FD: finds the faces of one frame of any size.

    The network knows no key points. They are put where they lie in the box of an upright face, so
    they tell the box's place and which way is up, and nothing else of the face.
    """

    anchors: Tensor
    mean: Tensor
    keypoints: Tensor

    def __init__(self, config: S3fdConfig | None = None) -> None:
        super().__init__()
        self.config = config or S3fdConfig()
        self.net = S3fd()
        self.register_buffer("anchors", anchors(self.config.side), persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN), persistent=False)
        self.register_buffer("keypoints", torch.tensor(_KEYPOINTS), persistent=False)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find faces.

        Args:
            frame: (H, W, 3) RGB in 0..255, uint8 or float.

        Returns:
            As :class:`~dithead.face.detector.FaceDetector`.
        """
        # What lies outside the frame is 0 once the mean is taken off, as the convolutions pad.
        frame = (frame.to(self.mean.dtype) - self.mean).permute(2, 0, 1)[None]  # (1, 3, H, W)
        size = frame_size(frame)  # (2,)
        side, middle = size.amax(0), size / 2
        letterbox = torch.cat([middle, side.expand(2), side.new_zeros(1)])[None, None]  # (1, 1, 5)
        seen = self.config.side
        picture = crop_rotated(frame, letterbox, seen, samples=4, padding_mode="zeros")
        logits, regressors = self.net(picture.flip(1))
        scores, boxes = self.merge(*self.decode(logits[0], regressors[0]))  # (K,), (K, 4)
        boxes = ((boxes.unflatten(1, (2, 2)) - seen / 2) * (side / seen) + middle).flatten(1)
        boxes = torch.where(scores[:, None] > 0, boxes, 0.0)
        low, extent = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
        return boxes, scores, low + self.keypoints * extent

    def decode(self, logits: Tensor, regressors: Tensor) -> tuple[Tensor, Tensor]:
        """Turn raw outputs (A,), (A, 4) into scores (A,) and boxes (A, 4): left, top, right, bottom
        in pixels of the picture. Scores that are too low become 0."""
        scores = logits.sigmoid()
        scores = scores * (scores > self.config.min_score).to(scores.dtype)
        centre, side = self.anchors[:, :2], self.anchors[:, 2:]
        middle = centre + _CENTRE_VARIANCE * side * regressors[:, :2]
        half = side / 2 * (_SIZE_VARIANCE * regressors[:, 2:]).exp()
        return scores, torch.cat([middle - half, middle + half], 1)

    def merge(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Suppression: the best detection removes all that overlap it, then the best of the
        remaining ones does the same, and so on.

        Args:
            scores: (A,), 0 where there is no detection. boxes: (A, 4).

        Returns:
            Scores (K,), in falling order, and boxes (K, 4).
        """
        scores, order = scores.topk(self.config.candidates)  # (N,)
        boxes = boxes[order]  # (N, 4)
        alone = (pixel_iou(boxes) <= self.config.max_iou).to(scores.dtype)  # (N, N)
        index = torch.arange(self.config.candidates, device=scores.device)
        face_scores, face_boxes = [], []
        for _ in range(self.config.max_faces):
            best = scores[None].argmax(1)  # (1,); TensorRT has no argmax of one dimension
            face_scores.append(scores[best][0])
            face_boxes.append(boxes[best][0])
            scores = scores * alone[best][0] * (index != best).to(scores.dtype)
        return torch.stack(face_scores), torch.stack(face_boxes)


def pixel_iou(boxes: Tensor) -> Tensor:
    """Intersection over union (N, N) of each pair of boxes (N, 4), whose edges belong to them, as
    in face-alignment: a box from 0 to 9 is 10 pixels wide."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low + 1).clamp_min(0).prod(-1)  # (N, N)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(-1)  # (N,)
    return shared / (area[:, None] + area[None, :] - shared)
