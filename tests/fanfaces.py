"""S3FD and FAN with the packaged networks in the place of their weights, which are not to be had
everywhere: what they find is written as S3FD's anchors and FAN's heatmaps, and everything after
that is the real thing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dithead.face.detector import load_face_detector
from dithead.face.fan import HEATMAP_SIZE, Fan
from dithead.face.fanregion import FanLandmarks
from dithead.face.mesh import (
    LANDMARKS_68,
    load_face_mesh,
    roi_from_detection,
    roi_from_mesh,
)
from dithead.face.networks import FaceNetworks
from dithead.face.s3fd import S3fd, S3fdConfig, S3fdDetector

SIDE = 320


class DrawnS3fd(nn.Module):
    """Writes the box round the mesh of every face as S3FD's answer at one anchor."""

    def __init__(self, anchors: Tensor) -> None:
        super().__init__()
        self.detector, self.mesh = load_face_detector(), load_face_mesh()
        self.register_buffer("anchors", anchors, persistent=False)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.tensor([104.0, 117.0, 123.0], device=picture.device)
        frame = (picture[0].permute(1, 2, 0) + mean).flip(2)
        boxes, scores, keypoints = self.detector(frame)
        logits = torch.full((1, len(self.anchors)), -9.0, device=picture.device)
        regressors = torch.zeros(1, len(self.anchors), 4, device=picture.device)
        for box, score, points in zip(boxes, scores, keypoints, strict=True):
            if score == 0:
                break
            (mesh,), sure = self.mesh(frame, roi_from_detection(points[None], box[None]))
            (mesh,), sure = self.mesh(frame, roi_from_mesh(mesh[None]))
            if sure < 0.5:
                continue
            low, high = mesh[:, :2].amin(0), mesh[:, :2].amax(0)
            centre, extent = (low + high) / 2, high - low
            sizes = (self.anchors[:, 2] / extent.amax()).log().abs()
            off = (self.anchors[:, :2] - centre).norm(dim=1) / self.anchors[:, 2]
            taken = (sizes + off).argmin()
            x, y, side = self.anchors[taken]
            logits[0, taken] = 4.0
            regressors[0, taken, :2] = (centre - torch.stack([x, y])) / side / 0.1
            regressors[0, taken, 2:] = (extent / side).log() / 0.2
        return logits, regressors


class DrawnFan(nn.Module):
    """Draws the landmarks of the mesh network as FAN's heatmaps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = load_face_mesh().net

    def forward(self, picture: Tensor) -> Tensor:
        mesh, score = self.net(picture[:, :, 48:240, 32:224])
        places = mesh[:, list(LANDMARKS_68), :2] + torch.tensor([32.0, 48.0], device=mesh.device)
        line = torch.arange(HEATMAP_SIZE, device=mesh.device) + 0.5
        x, y = places[..., 0, None] / 4 - line, places[..., 1, None] / 4 - line  # (B, 68, 64)
        squared = y.square()[..., :, None] + x.square()[..., None, :]
        return score[:, None, None, None] * (-squared / 2).exp()


def drawn_networks() -> FaceNetworks:
    """The second stack of networks, with something to see."""
    detector = S3fdDetector(S3fdConfig(SIDE))
    detector.net = DrawnS3fd(detector.anchors)  # type: ignore[assignment]
    landmarks = FanLandmarks(DrawnFan())  # type: ignore[arg-type]
    return FaceNetworks(detector.eval(), landmarks.eval(), "fan")


def random_networks(side: int = 64, hourglasses: int = 1) -> FaceNetworks:
    """Small ones with random weights."""
    torch.manual_seed(11)
    detector = S3fdDetector(S3fdConfig(side, max_faces=1, candidates=64))
    detector.net = S3fd()
    landmarks = FanLandmarks(Fan(hourglasses))
    for part in (detector, landmarks):
        part.eval().requires_grad_(False)
    return FaceNetworks(detector, landmarks, "fan")
