"""What is usable in a part of a video: stretches of one person's face, without a cut or a gap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dithead.config import FaceConfig
from dithead.face.choice import FaceChoice, inside
from dithead.face.cropsmoother import CropSmoother
from dithead.face.likeness import unlikeness
from dithead.face.networks import FaceNetworks
from dithead.face.others import MIN_OVERLAP
from dithead.face.scene import Scene
from dithead.face.search import FaceSearch, Point, Sighting, area, overlap
from dithead.face.tracker import ANOTHER, FaceTracker, TrackedFace
from dithead.runtime.media.videoframe import VideoFrame
from dithead.train.prepare import stored_crop
from dithead.train.shards.rules import MOST_S, ShotRule


@dataclass(slots=True)
class Stretch:
    """Consecutive frames of one person."""

    looks: Tensor
    """LOOKS_SHAPE, in the first of them."""
    crops: list[np.ndarray] = field(default_factory=list)
    """(S, S, 3) uint8 each, as :func:`dithead.train.prepare.stored_crop` makes them."""
    transforms: list[np.ndarray] = field(default_factory=list)
    """(2, 3) each."""
    meshes: list[np.ndarray] = field(default_factory=list)
    """(468, 2) each, in frame pixels."""
    times_s: list[float] = field(default_factory=list)
    length_s: float = 0.0
    """Of all frames, the last one's duration included."""


class ShotFinder:
    """Finds the stretches of one part.

    Args:
        choice: whose face. If it is a box, faces outside it do not matter: whoever gave the box
            knew who speaks.

    Attributes:
        left_out: seconds that are not usable, by reason.
        cuts: how many scene cuts there were so far.
    """

    def __init__(
        self, networks: FaceNetworks, config: FaceConfig, rule: ShotRule, choice: FaceChoice
    ) -> None:
        self._locate = FaceTracker(networks.run, choice)
        self._search = FaceSearch(networks.run)
        self._scene = Scene(networks.run)
        self._smoother = CropSmoother(config)
        self._state = self._smoother.initial_state()
        self._config = config
        self._rule = rule
        self._window = choice if isinstance(choice, tuple) and len(choice) == 4 else None
        self._people: list[Tensor] = []
        self._several = False
        self._since = rule.look_every
        self._last: TrackedFace | None = None  # in the frame before
        self._last_s = 0.0  # when the smoother was last used
        self.left_out: defaultdict[str, float] = defaultdict(float)
        self.cuts = 0

    def person(self, stretch: Stretch) -> int:
        """Which person of this part a stretch shows, by the looks, from 0 in the order of their
        coming; one who has changed a lot may count as another."""
        for number, looks in enumerate(self._people):
            if float(unlikeness(looks[None], stretch.looks)) <= ANOTHER:
                return number
        self._people.append(stretch.looks)
        return len(self._people) - 1

    @torch.inference_mode()
    def stretches(self, frames: Iterable[tuple[VideoFrame, float]]) -> Iterator[Stretch]:
        """The usable stretches of frames, each given with how long it is shown, in seconds."""
        current: Stretch | None = None
        for frame, duration_s in frames:
            image = torch.from_numpy(frame.rgb())
            cut = self._cut(image)
            self.cuts += cut
            found = self._locate(image)
            reason, transform = self._judged(image, found, cut, float(frame.time_s))
            fresh = cut or found is None or found.changed
            if current is not None and (fresh or reason or current.length_s >= MOST_S):
                yield from self._ended(current)
                current = None
            if reason is not None or found is None or transform is None:
                self.left_out[reason or "no face"] += duration_s
                continue
            if current is None:
                current = Stretch(found.looks)
            current.crops.append(stored_crop(image, transform, self._config))
            current.transforms.append(transform.numpy())
            current.meshes.append(found.mesh[:, :2].numpy().astype(np.float32))
            current.times_s.append(float(frame.time_s))
            current.length_s += duration_s
        if current is not None:
            yield from self._ended(current)

    def _ended(self, stretch: Stretch) -> Iterator[Stretch]:
        if stretch.length_s < self._rule.min_s:
            self.left_out["too short"] += stretch.length_s
        else:
            yield stretch

    def _cut(self, image: Tensor) -> bool:
        """Whether another scene begins with this frame."""
        self._scene.see(image)
        place = None if self._last is None else self._last.place
        return self._scene.has_cut(place, Tensor.cpu)

    def _judged(
        self, image: Tensor, found: TrackedFace | None, cut: bool, time_s: float
    ) -> tuple[str | None, Tensor | None]:
        """Why a frame is not usable, or None; and the face's crop transform (2, 3)."""
        self._last = found
        self._since += 1
        if found is None:
            self._since = self._rule.look_every  # look again as soon as there is a face
            return "no face", None
        if cut or found.changed:
            self._state = self._smoother.initial_state()
        if cut or found.changed or self._since >= self._rule.look_every:
            self._several, self._since = self._sees_several(image, found), 0
        elapsed, self._last_s = torch.tensor(time_s - self._last_s), time_s
        transform, _, self._state = self._smoother(found.mesh, self._state, elapsed)
        if self._several:
            return "several faces", transform
        if found.crossed:
            return "somebody in front", transform
        if float(transform[:, 0].norm()) < self._rule.min_side_px:
            return "face too small", transform
        return None, transform

    def _sees_several(self, image: Tensor, found: TrackedFace) -> bool:
        seen = self._search.upright(image, Tensor.cpu)
        if self._window is not None:
            seen = [face for face in seen if inside(_middle(face), self._window)]

        def is_theirs(face: Sighting) -> bool:
            return overlap(found.place, face.box) > MIN_OVERLAP

        own = max((face.area for face in seen if is_theirs(face)), default=area(found.place))
        return any(not is_theirs(f) and f.area >= self._rule.other_share * own for f in seen)


def _middle(face: Sighting) -> Point:
    left, top, right, bottom = face.box
    return (left + right) / 2, (top + bottom) / 2
