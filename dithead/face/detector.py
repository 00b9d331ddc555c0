"""Finds faces in a frame: MediaPipe's short-range BlazeFace with its weighted suppression.

The network is described in Bazarevsky et al., "BlazeFace: Sub-millisecond Neural Face Detection on
Mobile GPUs" (2019). Coordinates are in frame pixels, measured from the top left corner of the
frame, so the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import ConfigError
from dithead.kernels.sampling import frame_size, resample

INPUT_SIZE = 128  # pixels, the side of the square picture that the network sees
KEYPOINTS = ("right_eye", "left_eye", "nose_tip", "mouth", "right_ear", "left_ear")
"""Order of a detection's key points; right and left are the person's own."""
_SCORE_LOGIT_LIMIT = 100.0
_BLOCK_CHANNELS = (24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88, 96, 96, 96, 96, 96)
_HALVING_BLOCKS = (2, 5, 11)
_FIRST_STAGE = 11  # blocks before the first pair of heads


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """How raw detections are turned into faces. The defaults are MediaPipe's.

    Attributes:
        max_faces: number of rows of the result.
        candidates: how many of the 896 raw detections, best first, take part in the suppression.
        min_score: raw detections below this score are ignored; in [0, 1].
        max_iou: two raw detections that overlap by more than this are one face; in [0, 1].
    """

    max_faces: int = 16
    candidates: int = 256
    min_score: float = 0.5
    max_iou: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.max_faces <= self.candidates <= 896:
            raise ConfigError(
                "expected 1 <= max_faces <= candidates <= 896, "
                f"found max_faces={self.max_faces}, candidates={self.candidates}"
            )
        if not (0 <= self.min_score <= 1 and 0 <= self.max_iou <= 1):
            raise ConfigError(
                "expected min_score and max_iou in [0, 1], "
                f"found {self.min_score} and {self.max_iou}"
            )


def pad_for_stride(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero-pad as TensorFlow's "SAME" does for even sizes: the odd pixel goes right and below."""
    total = kernel - stride
    before = total // 2
    return F.pad(x, (before, total - before, before, total - before))


class BlazeBlock(nn.Module):
    """Depthwise 3x3 and pointwise convolution with a shortcut, which is pooled and padded to fit.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output, at least as many as of the input.
        stride: 1 or 2.
        activation: makes the activation for a given number of channels.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        stride: int,
        activation: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        self.stride = stride
        self.extra_channels = channels_out - channels_in
        self.depthwise = nn.Conv2d(
            channels_in, channels_in, 3, stride, padding=1 if stride == 1 else 0, groups=channels_in
        )
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1)
        self.activation = activation(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        shortcut = x if self.stride == 1 else F.max_pool2d(x, self.stride)
        if self.extra_channels:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.extra_channels))
        x = x if self.stride == 1 else pad_for_stride(x, 3, self.stride)
        x = self.depthwise(x)  # (B, C_in, H / stride, W / stride)
        return self.activation(self.pointwise(x) + shortcut)


class BlazeFace(nn.Module):
    """The detector's network: a score and a box for each of the 896 anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 5, stride=2)
        blocks, channels = [], 24
        for i, channels_out in enumerate(_BLOCK_CHANNELS):
            stride = 2 if i in _HALVING_BLOCKS else 1
            blocks.append(BlazeBlock(channels, channels_out, stride, lambda _: nn.ReLU()))
            channels = channels_out
        self.stages = nn.ModuleList(
            [nn.Sequential(*blocks[:_FIRST_STAGE]), nn.Sequential(*blocks[_FIRST_STAGE:])]
        )
        self.score_heads = nn.ModuleList([nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)])
        self.box_heads = nn.ModuleList([nn.Conv2d(88, 2 * 16, 1), nn.Conv2d(96, 6 * 16, 1)])

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """Score every anchor.

        Args:
            picture: (B, 3, 128, 128) RGB in [-1, 1].

        Returns:
            Scores (B, 896) as logits, and regressors (B, 896, 16) in input pixels: box centre
            relative to the anchor's centre, box size, then six key points relative to the anchor's
            centre; always x before y.
        """
        x = F.relu(self.stem(pad_for_stride(picture, 5, 2)))  # (B, 24, 64, 64)
        scores, regressors = [], []
        for stage, score_head, box_head in zip(
            self.stages, self.score_heads, self.box_heads, strict=True
        ):
            x = stage(x)  # (B, 88, 16, 16), then (B, 96, 8, 8)
            scores.append(score_head(x).permute(0, 2, 3, 1).flatten(1))  # (B, 512), then (B, 384)
            regressors.append(box_head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 16))
        return torch.cat(scores, 1), torch.cat(regressors, 1)


def anchor_centers() -> Tensor:
    """Centres (896, 2) of the anchors in input pixels: 2 in each 8-pixel cell, 6 in each 16-pixel
    cell."""
    centers = []
    for stride, per_cell in ((8, 2), (16, 6)):
        cell = torch.arange(0, INPUT_SIZE, stride) + stride / 2
        y, x = torch.meshgrid(cell, cell, indexing="ij")
        cells = torch.stack([x, y], -1).reshape(-1, 2)
        centers.append(cells.repeat_interleave(per_cell, 0))
    return torch.cat(centers)


def crop_rotated(
    frames: Tensor, roi: Tensor, size: int, samples: int, padding_mode: str = "border"
) -> Tensor:
    """Cut rotated rectangles out of frames and resize them.

    Each output pixel is the mean of ``samples`` x ``samples`` bilinear samples. Where the picture
    is not shrunk they coincide, so enlarging is plain bilinear. The more it is shrunk, the more
    they spread over the pixel's footprint.

    Args:
        frames: (B, 3, H, W) float.
        roi: (B, R, 5), R rectangles per frame: centre x, centre y, width, height in frame
            pixels, rotation in radians (positive turns the x axis towards the y axis).
        size: side of the result in pixels.
        samples: samples along each axis of an output pixel; they suffice up to a shrinkage of about
            twice this number.
        padding_mode: what lies outside the frame, ``"border"`` or ``"zeros"``.

    Returns:
        (B * R, 3, size, size), in the range of ``frames``.
    """
    batch, per_frame = roi.shape[0], roi.shape[1]
    center, extent, angle = roi[..., :2], roi[..., 2:4], roi[..., 4]  # (B, R, 2), (B, R, 2), (B, R)
    # How far the samples spread in their pixel, (B, R, 2): 0 = all at its centre, 1 = all over it.
    spread = (1 - size / extent.clamp_min(1e-6)).clamp_min(0)

    scale = extent / size  # (B, R, 2), frame pixels per output pixel
    cos, sin = angle.cos()[..., None], angle.sin()[..., None]  # (B, R, 1)
    across = torch.cat([cos, sin], -1) * scale[..., :1]  # (B, R, 2), one output pixel to the right
    down = torch.cat([-sin, cos], -1) * scale[..., 1:]  # one output pixel down
    corner = center - (across + down) * (size / 2)
    columns = [across, across * spread[..., :1], down, down * spread[..., 1:], corner]
    matrix = torch.stack(columns, -1)  # (B, R, 2, 5)

    n = size * samples
    pixel = torch.arange(size, device=roi.device, dtype=roi.dtype) + 0.5
    within = (torch.arange(samples, device=roi.device, dtype=roi.dtype) + 0.5) / samples - 0.5
    # For each sample its pixel, and its position within that pixel: (2, n).
    line = torch.stack([pixel.repeat_interleave(samples), within.repeat(size)])
    x, y = line[:, None, :].expand(-1, n, -1), line[:, :, None].expand(-1, -1, n)
    coordinates = torch.cat([x, y, torch.ones_like(x[:1])]).flatten(1)  # (5, n * n)
    cut = resample(frames, matrix, coordinates, size, samples, padding_mode)
    cut = cut.reshape(batch, 3, per_frame, size, size).transpose(1, 2)
    return cut.reshape(batch * per_frame, 3, size, size)


class FaceDetector(nn.Module):
    """Finds the faces of one frame of any size in one traceable call.

    Faces narrower than about an eighth of the frame's longer side are missed.
    """

    centers: Tensor

    def __init__(self, config: DetectorConfig | None = None) -> None:
        super().__init__()
        self.config = config or DetectorConfig()
        self.net = BlazeFace()
        self.register_buffer("centers", anchor_centers(), persistent=False)

    def forward(self, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find faces.

        Args:
            frame: (H, W, 3) RGB in 0..255, uint8 or float.

        Returns:
            With K = ``max_faces``, best first: boxes (K, 4) as left, top, right, bottom; scores
            (K,) in [0, 1], where 0 marks a row without a face; key points (K, 6, 2) in the order of
            ``KEYPOINTS``. Boxes and key points are in frame pixels.
        """
        frame = frame.to(self.centers.dtype).permute(2, 0, 1)[None]  # (1, 3, H, W)
        size = frame_size(frame)  # (2,)
        side = size.amax(0)
        middle = size / 2
        letterbox = torch.cat([middle, side.expand(2), side.new_zeros(1)])[None, None]  # (1, 1, 5)
        picture = crop_rotated(frame, letterbox, INPUT_SIZE, samples=4, padding_mode="zeros")
        logits, regressors = self.net(picture / 127.5 - 1)
        scores, points = self.decode(logits[0], regressors[0])
        scores, points = self.merge(scores, points)  # (K,), (K, 8, 2)
        points = (points - INPUT_SIZE / 2) * (side / INPUT_SIZE) + middle
        points = torch.where(scores[:, None, None] > 0, points, 0.0)
        return points[:, :2].flatten(1), scores, points[:, 2:]

    def decode(self, logits: Tensor, regressors: Tensor) -> tuple[Tensor, Tensor]:
        """Turn raw outputs (896,), (896, 16) into scores (896,) and points (896, 8, 2).

        The points, in input pixels, are the top left and bottom right corners of the box and the
        six key points. Scores below the threshold become 0.
        """
        scores = logits.clamp(-_SCORE_LOGIT_LIMIT, _SCORE_LOGIT_LIMIT).sigmoid()
        scores = scores * (scores >= self.config.min_score).to(scores.dtype)
        raw = regressors.unflatten(1, (8, 2))  # (896, 8, 2): centre, size, six key points
        anchor = self.centers[:, None]  # (896, 1, 2)
        middle, half, keypoints = raw[:, :1] + anchor, raw[:, 1:2] / 2, raw[:, 2:] + anchor
        return scores, torch.cat([middle - half, middle + half, keypoints], 1)

    def merge(self, scores: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted suppression: the best detection absorbs all that overlap it, weighted by score.

        Then the best of the remaining detections does the same, and so on.

        Args:
            scores: (A,), 0 where there is no detection.
            points: (A, 8, 2); the first two are the box.

        Returns:
            Scores (K,), in falling order, and points (K, 8, 2).
        """
        scores, order = scores.topk(self.config.candidates)  # (N,)
        points = points[order].flatten(1)  # (N, 16)
        overlap = box_iou(points[:, :4])  # (N, N)
        taken_by = (overlap > self.config.max_iou).to(scores.dtype)
        index = torch.arange(self.config.candidates, device=scores.device)

        left = scores  # scores of the detections that do not belong to a face yet
        face_scores, face_points = [], []
        for _ in range(self.config.max_faces):
            best = left[None].argmax(1)  # (1,); TensorRT does not support argmax of one dimension
            taken = torch.maximum(taken_by[best][0], (index == best).to(left.dtype))  # (N,) 0 or 1
            members = taken * left  # (N,) weights
            face_scores.append(left[best][0])
            face_points.append((members @ points) / members.sum().clamp_min(1e-6))  # (16,)
            left = left * (members == 0).to(left.dtype)
        return torch.stack(face_scores), torch.stack(face_points).unflatten(1, (8, 2))


def box_iou(boxes: Tensor) -> Tensor:
    """Intersection over union (N, N) of each pair of boxes (N, 4) (left, top, right, bottom)."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)  # (N, N)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(-1)  # (N,)
    return shared / (area[:, None] + area[None, :] - shared).clamp_min(1e-6)


def load_face_detector(
    path: str | Path | None = None, config: DetectorConfig | None = None
) -> FaceDetector:
    """Make a detector with the packaged weights or those at ``path``, ready for inference.

    Raises:
        CheckpointError: the file is missing or does not fit.
    """
    path = checkpoint.asset_path("face_detector") if path is None else path
    detector = FaceDetector(config)
    checkpoint.load_into(detector.net, checkpoint.load(path)[0], path)
    return detector.eval().requires_grad_(False)
