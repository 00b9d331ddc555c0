"""Make ``face_mean.safetensors``: the mean mesh of frontal faces in a folder of stills.

python -m dithead.train.meanmesh faces dithead/assets/face_mean.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import av
import torch
from torch import Tensor

from dithead import checkpoint
from dithead.errors import MediaError
from dithead.face.detector import FaceDetector, load_face_detector
from dithead.face.mesh import FaceMesh, load_face_mesh, roi_from_detection, roi_from_mesh
from dithead.train.convert.command import convert_command

MOST_TURN = 0.12
"""A face is frontal if the tip of its nose is off the middle between the temples by at most half of
this share of their distance."""
_MIN_SCORE = 0.8
_PATTERN = "syn_*.jpg"
_TEMPLES, _OUTER_EYE_CORNERS, _NOSE_TIP = (127, 356), (33, 263), 1


def mean_mesh(meshes: Iterable[Tensor]) -> Tensor:
    """The mean (468, 3) of those meshes (468, 3) that are frontal: from the middle of the outer eye
    corners, level, in distances between the temples, z too.

    Raises:
        MediaError: none is frontal.
    """
    kept = []
    for mesh in meshes:
        left, right = mesh[_TEMPLES[0], :2], mesh[_TEMPLES[1], :2]
        middle = mesh[list(_OUTER_EYE_CORNERS), :2].mean(0)
        across = right - left
        turn = torch.stack([across, torch.stack([-across[1], across[0]])]) / across.square().sum()
        xy = (mesh[:, :2] - middle) @ turn.T
        nose, temples = xy[_NOSE_TIP, 0], xy[list(_TEMPLES), 0]
        if (2 * nose - temples.sum()).abs() <= MOST_TURN:
            kept.append(torch.cat([xy, mesh[:, 2:] / across.norm()], 1))
    if not kept:
        raise MediaError("none of the pictures shows a frontal face: give another folder")
    return torch.stack(kept).mean(0)


def make_mean_mesh(stills: Path, out: Path) -> None:
    """Fit meshes to the pictures ``syn_*.jpg`` of a folder, and write their mean.

    Raises:
        MediaError: no picture shows a frontal face.
    """
    pictures = sorted(stills.glob(_PATTERN))
    detector, fitter = load_face_detector(), load_face_mesh()
    fitted = (_fitted(path, detector, fitter) for path in pictures)
    meshes = [mesh for mesh in fitted if mesh is not None]
    checkpoint.save(
        out,
        {"mesh": mean_mesh(meshes)},
        config={"model": "mean face"},
        provenance={
            "origin": f"the packaged mesh network on {len(pictures)} pictures of people "
            "who do not exist (SFHQ-T2I)",
            "licence": "Apache-2.0; SFHQ-T2I: MIT",
            "command": "python -m dithead.train.meanmesh STILLS OUT",
        },
        dtype=None,
    )


@torch.inference_mode()
def _fitted(path: Path, detector: FaceDetector, fitter: FaceMesh) -> Tensor | None:
    """The mesh (468, 3) of the surest face of a picture."""
    with av.open(str(path)) as container:
        frame = torch.from_numpy(next(container.decode(video=0)).to_ndarray(format="rgb24"))
    boxes, scores, keypoints = detector(frame)
    if scores[0] == 0:
        return None
    rough, _ = fitter(frame, roi_from_detection(keypoints[:1], boxes[:1]))
    mesh, score = fitter(frame, roi_from_mesh(rough))
    return mesh[0] if score[0] > _MIN_SCORE else None


if __name__ == "__main__":
    sys.exit(
        convert_command(
            make_mean_mesh,
            None,
            what="stills to the mean of their meshes",
            source=("stills", "folder with pictures syn_*.jpg"),
        )
    )
