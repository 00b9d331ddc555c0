"""How nearly S3FD and FAN place a face's crop where the packaged face networks place it.

    python -m dithead.train.evaluation.facemodels CLIP... [--face-weights FOLDER] [--frames 100]

Both follow the largest face of each clip, as a stream does, and the crops are smoothed as there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from dithead.config import FaceConfig
from dithead.errors import DitheadError
from dithead.face.cropsmoother import CropSmoother
from dithead.face.networks import FaceNetworks
from dithead.face.tracker import FaceTracker
from dithead.runtime.media.sources import VideoSource

FRAMES = 100


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two stacks of face networks agree on the frames of a clip; means over the frames in which
    both found the face, NaN if there is none."""

    frames: int
    """How many frames were looked at."""
    both: int
    """In how many both found a face."""
    only_first: int
    only_second: int
    centre: float
    """Distance of the crops' centres, as a share of the first one's side."""
    side: float
    """How much larger the second one's side is, as a share of the first one's."""
    side_apart: float
    """The same without sign, frame by frame."""
    roll: float
    """How far one is turned from the other, in degrees."""
    mesh: float
    """Distance of the meshes' points, as a share of the face's width between the temples."""


class _Crops:
    """Follows a face with one stack of networks, and places its crop."""

    def __init__(self, networks: FaceNetworks) -> None:
        self._tracker = FaceTracker(networks.run)
        self._smoother = CropSmoother(FaceConfig())
        self._state = CropSmoother.initial_state()

    def __call__(self, frame: Tensor, elapsed_s: float) -> tuple[Tensor, Tensor] | None:
        """The mesh (468, 3) and the crop's transform (2, 3), if the frame shows the face."""
        found = self._tracker(frame)
        if found is None or found.changed:
            self._state = CropSmoother.initial_state()
        if found is None:
            return None
        smooth = self._smoother(found.mesh, self._state, torch.tensor(elapsed_s))
        transform, _, self._state = smooth
        return found.mesh, transform


@torch.inference_mode()
def agreement(
    frames: Iterable[tuple[Tensor, float]], first: FaceNetworks, second: FaceNetworks
) -> Agreement:
    """Compare two stacks of networks on frames (H, W, 3) uint8 RGB with their times in seconds."""
    one, other = _Crops(first), _Crops(second)
    seen, apart, before = [0, 0, 0], [], None
    for count, (frame, time_s) in enumerate(frames, 1):
        elapsed_s = 0.04 if before is None else time_s - before
        a, b, before = one(frame, elapsed_s), other(frame, elapsed_s), time_s
        seen = [count, seen[1] + (a is not None), seen[2] + (b is not None)]
        if a is not None and b is not None:
            apart.append(_apart(a, b))
    means = torch.stack(apart).mean(0) if apart else torch.full((5,), math.nan)
    both = len(apart)
    return Agreement(seen[0], both, seen[1] - both, seen[2] - both, *means.tolist())


def _apart(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """Centre, side, side without sign, roll and mesh (5,) as in :class:`Agreement`."""
    (mesh, crop), (other_mesh, other_crop) = a, b
    side, other_side = crop[:, 0].norm(), other_crop[:, 0].norm()
    centre = (crop[:, 2] - other_crop[:, 2]).norm() / side
    larger = other_side / side - 1
    turn = (crop[:, 0] @ other_crop[:, 0] / (side * other_side)).clamp(-1, 1).acos()
    width = (mesh[356, :2] - mesh[127, :2]).norm()
    points = (mesh - other_mesh)[:, :2].norm(dim=1).mean() / width
    return torch.stack([centre, larger, larger.abs(), turn.rad2deg(), points])


def _frames(clip: Path, count: int) -> Iterator[tuple[Tensor, float]]:
    with VideoSource(clip) as video:
        for frame in islice(video, count):
            yield torch.from_numpy(frame.rgb()), float(frame.time_s)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the agreement on each clip as a line of JSON. Returns 0 done, 1 failed."""
    parser = argparse.ArgumentParser(description="Compare S3FD and FAN with the packaged networks.")
    parser.add_argument("clips", metavar="CLIP", type=Path, nargs="+")
    parser.add_argument("--face-weights", type=Path, help="folder of S3FD's and FAN's weights")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each clip, at most")
    args = parser.parse_args(arguments)
    try:
        first, second = FaceNetworks.load(), FaceNetworks.load("fan", args.face_weights)
        for clip in args.clips:
            found = agreement(_frames(clip, args.frames), first, second)
            print(json.dumps({"clip": str(clip), **asdict(found)}), flush=True)
    except DitheadError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
