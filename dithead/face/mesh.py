"""Fits a 468-point face mesh: MediaPipe's face landmark network, its crop, and the mapping back.

The network is described in Kartynnik et al., "Real-time Facial Surface Geometry from Monocular
Video on Mobile GPUs" (2019). Coordinates are in frame pixels, measured from the top left corner of
the frame, so the centre of the first pixel is (0.5, 0.5). A *region* (roi) is a rotated rectangle:
centre x, centre y, width, height in frame pixels, rotation in radians (positive turns the x axis
towards the y axis).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.face.detector import BlazeBlock, crop_rotated, pad_for_stride

INPUT_SIZE = 192  # pixels, the side of the square crop that the network sees
POINTS = 468
MOST_SAMPLES = 2
"""Most samples along each side of a pixel of the network's picture."""
SHRUNK_LITTLE = 1.5
"""Up to this shrinkage one sample is enough: it moves a mesh by less than 0.01 pixels of the
picture on average, while moving the region by half a pixel moves it by 0.13."""
_TRUNK_CHANNELS = (16, 16, 32, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128)
_HALVING_BLOCKS = (2, 5, 8, 11)
ROI_SCALE = 1.5
"""Side of a region relative to the face."""
LOOK_SCALE = 1.4
"""Side of the region in which the detector looks at one face, relative to that of the mesh."""
_KEYPOINTS = ((33, 133), (263, 362), (1,), (13, 14))  # mesh points for the detector's first four
_OUTER_EYE_CORNERS = (33, 263)  # on the left and on the right in a picture of an upright face

INNER_UPPER: tuple[int, ...] = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
"""Inner edge of the upper lip, from corner to corner."""
INNER_LOWER: tuple[int, ...] = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
"""Inner edge of the lower lip; the corners belong to both."""

LANDMARKS_68: tuple[int, ...] = (
    *(127, 234, 93, 58, 172, 136, 149, 176),  # 0-7, jaw from the left of the picture
    152,  # 8, chin
    *(400, 378, 365, 397, 288, 323, 454, 356),  # 9-16, jaw to the right of the picture
    *(70, 63, 105, 66, 107),  # 17-21, brow on the left
    *(336, 296, 334, 293, 300),  # 22-26, brow on the right
    *(168, 197, 5, 4),  # 27-30, bridge to tip of the nose
    *(98, 97, 2, 326, 327),  # 31-35, under the nose
    *(33, 160, 158, 133, 153, 144),  # 36-41, eye on the left, outer corner and upper lid first
    *(362, 385, 387, 263, 373, 380),  # 42-47, eye on the right, inner corner and upper lid first
    *(61, 39, 37, 0, 267, 269, 291),  # 48-54, outer edge of the upper lip
    *(405, 314, 17, 84, 181),  # 55-59, outer edge of the lower lip
    *(78, 82, 13, 312, 308),  # 60-64, inner edge of the upper lip
    *(317, 14, 87),  # 65-67, inner edge of the lower lip
)
"""Mesh points of the 68 iBUG landmarks (Sagonas et al., "300 Faces in-the-Wild", 2013)."""


class FaceMeshNet(nn.Module):
    """The mesh network: a trunk, one head for the points, and one for whether there is a face."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2)
        self.stem_activation = nn.PReLU(16)
        blocks, channels = [], 16
        for i, channels_out in enumerate(_TRUNK_CHANNELS):
            stride = 2 if i in _HALVING_BLOCKS else 1
            blocks.append(BlazeBlock(channels, channels_out, stride, nn.PReLU))
            channels = channels_out
        self.trunk = nn.Sequential(*blocks)
        self.point_head = nn.Sequential(
            BlazeBlock(128, 128, 2, nn.PReLU),  # (B, 128, 3, 3)
            BlazeBlock(128, 128, 1, nn.PReLU),
            BlazeBlock(128, 128, 1, nn.PReLU),
            nn.Conv2d(128, 32, 1),
            nn.PReLU(32),
            BlazeBlock(32, 32, 1, nn.PReLU),
            nn.Conv2d(32, POINTS * 3, 3),  # (B, 1404, 1, 1)
        )
        self.score_head = nn.Sequential(
            BlazeBlock(128, 128, 2, nn.PReLU),  # (B, 128, 3, 3)
            nn.Conv2d(128, 32, 1),
            nn.PReLU(32),
            BlazeBlock(32, 32, 1, nn.PReLU),
            nn.Conv2d(32, 1, 3),  # (B, 1, 1, 1)
        )

    def forward(self, crop: Tensor) -> tuple[Tensor, Tensor]:
        """Fit the mesh.

        Args:
            crop: (B, 3, 192, 192) RGB in [0, 1].

        Returns:
            Landmarks (B, 468, 3): x and y in crop pixels 0..192, and z on the same scale (smaller
            is nearer); scores (B,) in [0, 1].
        """
        # With each pixel's channels side by side, depthwise convolutions are faster on a CPU.
        crop = crop.contiguous(memory_format=torch.channels_last)
        x = self.stem_activation(self.stem(pad_for_stride(crop, 3, 2)))  # (B, 16, 96, 96)
        x = self.trunk(x)  # (B, 128, 6, 6)
        return self.point_head(x).reshape(-1, POINTS, 3), self.score_head(x).reshape(-1).sigmoid()


class FaceRegion(nn.Module):
    """``face_region.SAMPLES``: cuts regions out of a frame for the mesh network. No weights.

    Args:
        samples: number along each side of a pixel, see :func:`~dithead.face.detector.crop_rotated`.
        size: side of the network's picture.
    """

    def __init__(self, samples: int, size: int = INPUT_SIZE) -> None:
        super().__init__()
        self.samples, self.size = samples, size

    def forward(self, frame: Tensor, roi: Tensor) -> Tensor:
        """Cut regions out of one frame.

        Args:
            frame: (H, W, 3) RGB in 0..255, uint8 or float.
            roi: (B, 5) regions, see the top of this file.

        Returns:
            (B, 3, size, size) RGB in [0, 1].
        """
        frames = frame.to(roi.dtype).permute(2, 0, 1)[None]  # (1, 3, H, W)
        return crop_rotated(frames, roi[None], self.size, self.samples) / 255


class FaceLandmarks(nn.Module):
    """``face_landmarks``: fits meshes to the pictures that :class:`FaceRegion` cuts out."""

    def __init__(self, net: FaceMeshNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, picture: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, 192, 192) of regions (B, 5) -> meshes (B, 468, 3) in frame pixels, z on
        the same scale; scores (B,) in [0, 1]."""
        landmarks, score = self.net(picture)
        return to_frame(landmarks, roi), score


class FaceSighting(nn.Module):
    """``face_sighting``: the region for the first fit to a face that the detector sees."""

    def forward(self, box: Tensor, keypoints: Tensor) -> Tensor:
        """Box (4,), keypoints (6, 2) in frame pixels -> region (1, 5)."""
        return roi_from_detection(keypoints[None], box[None])


class FaceLook(nn.Module):
    """``face_look``: what the detector needs to look at one face alone, turned upright, and what it
    should see there.

    Args:
        size: side of a region's picture.
    """

    def __init__(self, size: int = INPUT_SIZE) -> None:
        super().__init__()
        self.size = size

    def forward(self, mesh: Tensor) -> tuple[Tensor, Tensor]:
        """Mesh (468, 3) in frame pixels.

        Returns:
            The region (1, 5). For the host (10,): x and y of the eyes, the tip of the nose and the
            mouth (the detector's first four keypoints) in the pixels of the region's picture, the
            face's width there, and the region's side in frame pixels.
        """
        region = roi_from_mesh(mesh[None])
        wide = torch.cat([region[:, :2], LOOK_SCALE * region[:, 2:4], region[:, 4:]], 1)
        corners = (torch.stack([mesh[p, :2] for p in points]) for points in _KEYPOINTS)
        points = torch.stack([corner.mean(0) for corner in corners])
        off = points - wide[:, :2]  # (4, 2)
        cos, sin, scale = wide[0, 4].cos(), wide[0, 4].sin(), self.size / wide[0, 2]
        turned = torch.stack([off[:, 0] * cos + off[:, 1] * sin, off[:, 1] * cos - off[:, 0] * sin])
        width = (mesh[:, 0].amax(0) - mesh[:, 0].amin(0)).clamp(min=1.0) * scale
        places = (turned.T * scale + self.size / 2).flatten()
        return wide, torch.cat([places, width[None], wide[0, 2:3]])


class FacePicture(nn.Module):
    """``face_picture``: the mesh network's picture as a frame for the detector."""

    def forward(self, picture: Tensor) -> Tensor:
        """Picture (1, 3, S, S) in [0, 1] -> frame (S, S, 3) uint8."""
        return (picture[0].permute(1, 2, 0) * 255.0).round().to(torch.uint8).contiguous()


class FaceMesh(nn.Module):
    """Fits meshes, in frame pixels, to the faces in given regions of a frame: cuts out the regions
    and finds the landmarks in one call, with enough samples for any size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = FaceMeshNet()

    def forward(self, frame: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Fit meshes to one frame.

        Args:
            frame: (H, W, 3) RGB in 0..255, uint8 or float.
            roi: (B, 5) regions, see the top of this file.

        Returns:
            Meshes (B, 468, 3) in frame pixels, z on the same scale; scores (B,) in [0, 1].
        """
        frame = frame.to(roi.dtype)
        return self._fit(frame[None], roi[None])

    def forward_batch(self, frames: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Fit a mesh in one region (B, 5) per frame (B, H, W, 3); otherwise as :meth:`forward`."""
        frames = frames.to(roi.dtype)
        return self._fit(frames, roi[:, None])

    def _fit(self, frames: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        frames = frames.permute(0, 3, 1, 2)  # (B, 3, H, W), with roi (B, R, 5)
        crop = crop_rotated(frames, roi, INPUT_SIZE, MOST_SAMPLES)  # (B * R, 3, 192, 192)
        landmarks, score = self.net(crop / 255)
        return to_frame(landmarks, roi.flatten(0, 1)), score


def samples_for(side_px: float) -> int:
    """How many samples along each side of a pixel a region of a side length needs: one if the
    picture is shrunk only a little or not at all."""
    return 1 if side_px <= SHRUNK_LITTLE * INPUT_SIZE else MOST_SAMPLES


def region_side(box: tuple[float, float, float, float]) -> float:
    """Side of the region round a face's box (left, top, right, bottom), in the same pixels."""
    return ROI_SCALE * max(box[2] - box[0], box[3] - box[1])


def to_frame(landmarks: Tensor, roi: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """Map landmarks (B, 468, 3), in pixels of the crops (of side ``size``) of regions (B, 5), to
    frame pixels."""
    center, extent, angle = roi[:, None, :2], roi[:, None, 2:4], roi[:, None, 4]
    x, y = ((landmarks[..., :2] / size - 0.5) * extent).unbind(-1)  # (B, 468)
    cos, sin = angle.cos(), angle.sin()
    xy = torch.stack([x * cos - y * sin, x * sin + y * cos], -1) + center
    return torch.cat([xy, landmarks[..., 2:] * (extent[..., :1] / size)], -1)


def roi_from_detection(keypoints: Tensor, box: Tensor) -> Tensor:
    """Region for the first fit to a face: square, level with the eyes, 1.5 times the detected box.

    Args:
        keypoints: (B, 6, 2) in frame pixels, from :class:`~dithead.face.detector.FaceDetector`.
        box: (B, 4), left, top, right, bottom in frame pixels.

    Returns:
        (B, 5) regions.
    """
    return _square_roi(box[:, :2], box[:, 2:], keypoints[:, 0], keypoints[:, 1])


def roi_from_mesh(mesh: Tensor) -> Tensor:
    """Region (B, 5) for the next frame, from meshes (B, 468, 2 or 3): the same, but round all
    points."""
    xy = mesh[..., :2]
    left_eye, right_eye = _OUTER_EYE_CORNERS
    return _square_roi(xy.amin(1), xy.amax(1), xy[:, left_eye], xy[:, right_eye])


def _square_roi(low: Tensor, high: Tensor, left_eye: Tensor, right_eye: Tensor) -> Tensor:
    across = right_eye - left_eye  # (B, 2)
    angle = torch.atan2(across[:, 1], across[:, 0])[:, None]
    side = (high - low).amax(1, keepdim=True) * ROI_SCALE
    return torch.cat([(low + high) / 2, side, side, angle], 1)


def load_face_mesh(path: str | Path | None = None) -> FaceMesh:
    """Make a mesh fitter with the packaged weights or those at ``path``, ready for inference.

    Raises:
        CheckpointError: the file is missing or does not fit.
    """
    path = checkpoint.asset_path("face_mesh") if path is None else path
    mesh = FaceMesh()
    checkpoint.load_into(mesh.net, checkpoint.load(path)[0], path)
    mesh.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return mesh.eval().requires_grad_(False)
