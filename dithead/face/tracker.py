"""Follows one person's face through a video, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from dithead.face.choice import FaceChoice, checked_choice, chosen, inside
from dithead.face.judge import GALLERY, MEASURES, MOUTH_SHAPE, Measures
from dithead.face.likeness import LOOKS_SHAPE
from dithead.face.mesh import POINTS, region_side, samples_for
from dithead.face.others import MIN_OVERLAP, Other, Others, compared, seen_at
from dithead.face.passing import Passing
from dithead.face.scene import Scene
from dithead.face.search import Box, FaceSearch, Point, Read, Run, Sighting, area, overlap

MIN_MESH_SCORE = 0.5
SAME_PLACE = 0.4
"""A face is in the same place if it overlaps the person's last place by more than this."""
MAX_JUMP = 0.5
"""From one frame to the next, a followed face moves by at most this share of its width."""
MAX_MOTION = 0.15
"""If it moves by more than this, the detector looks again. The liveliest talker at hand moves by
0.05 at 30 frames a second, and by 0.11 at 10."""
MAX_UNLIKENESS = 0.12
"""The detector also looks again if the face differs from the frame before by more than this."""
MAX_LIGHT_STEP, RELIT_UNLIKENESS = 0.4, 0.08
"""The light alone may change by more than the first in one frame. If the looks change by more than
the second, too, it is another shot."""
ANOTHER = 0.3
"""A face in the person's place that differs from their looks by more than this is somebody else."""
TURNED = 0.5
"""This limit applies instead where the person was seen last, if nobody else was seen near it: a
head may turn away and come back turned."""
AGAIN = 0.18
"""Anywhere else, a face is that person if it differs by less than this."""
NEW_LOOK = 0.08
"""If the followed person differs by more than this from all stored looks, the new look is stored,
too."""
CERTAIN, LIKELY = 0.1, 0.2
"""Limits of the doubt (:meth:`~dithead.face.search.FaceSearch.doubt`): up to the first, a fit is
accepted; up to the second, it is accepted if there is no better one."""
TILES_A_FRAME = 2
"""When small faces are searched for over several frames, the number of tiles per frame."""
LOOKED_AT = 6
"""How many faces of a frame are looked at, the surest first."""
SAME_TURN = 0.12
"""A head is in the same position if its turn differs by at most this."""

Absence = Literal["no face", "away", "nobody"]
"""Why a frame has no face to follow: no face is seen; the followed person is not there; nobody is
meant to speak."""


@dataclass(frozen=True, slots=True)
class TrackedFace:
    """A face in one frame."""

    mesh: Tensor
    """(468, 3) in frame pixels."""
    region: Tensor
    """(1, 5), the region in which the mesh was fitted."""
    samples: int
    """Samples along each side of a pixel of the mesh network's picture."""
    looks: Tensor
    """LOOKS_SHAPE, see :mod:`dithead.face.judge`."""
    mouth: Tensor
    """MOUTH_SHAPE, likewise."""
    light: Tensor
    """(2, 3), likewise: brings colours to the light of :attr:`FaceTracker.reference`."""
    around: Tensor
    """(1, 5), the region in which to look for it next."""
    place: Box
    """The box round its mesh."""
    middle: Point
    """The middle of its mesh's points."""
    measures: Measures
    changed: bool = False
    """Whether it may not be the face of the frame before, or following starts afresh with it."""
    crossed: bool = False
    """Whether somebody else is in front of the lower face, or soon will be."""

    @property
    def samples_around(self) -> int:
        """Samples along each side of a pixel of the region round it."""
        return samples_for(region_side(self.place))

    @property
    def sudden(self) -> bool:
        """Whether this may be a different person from the frame before."""
        seen = self.measures
        return seen.unlike_last > MAX_UNLIKENESS or seen.moved > MAX_MOTION or self.relit

    @property
    def relit(self) -> bool:
        """Whether both its looks and its light differ from the frame before: another shot, of
        whichever person."""
        seen = self.measures
        return seen.light_step > MAX_LIGHT_STEP and seen.unlike_last > RELIT_UNLIKENESS


class FaceTracker:
    """Finds a face, follows its mesh from frame to frame, and searches again when it is lost.

    It follows a person, not a place, and knows the person by the looks of the upper face. Whoever
    takes that person's place is left alone, and so is everybody else until the person is back.
    After a cut, which changes most of the frame at once, the choice is made anew; the same person
    is preferred.

    Every ``redetect_every`` frames the detector must still see a face where the mesh is, so that a
    mesh that has wandered onto the background is dropped. It looks by turns in the whole frame,
    where it also sees who else is there, and in the face's own region, where it sees a face of any
    size and turn.

    Attributes:
        absence: why the latest frame has no face.
        reference: LOOKS_SHAPE, what the light is compared with; set by the caller. mouths:
            (GALLERY, *MOUTH_SHAPE), what the mouth is compared with; also set by the caller.

    Args:
        run: runs the graphs of the search, the scene, the others and who passes
            (:mod:`dithead.face`), ``face_landmarks`` and ``face_judge``.
        choice: whom to look for first.
        redetect_every: frames between two runs of the detector.

    Raises:
        ConfigError: no such choice.
    """

    def __init__(self, run: Run, choice: FaceChoice = "largest", redetect_every: int = 10) -> None:
        self._run = run
        self._choice = checked_choice(choice)
        self._redetect_every = redetect_every
        self._search = FaceSearch(run)
        self._read: Read = Tensor.cpu
        self.absence: Absence = "no face"
        self.reset()

    def reset(self) -> None:
        """Forget the face."""
        self._last: TrackedFace | None = None  # from the latest frame that showed the person
        self._followed = False  # whether that frame was the latest one
        self._person: Tensor | None = None  # (GALLERY, *LOOKS_SHAPE)
        self._first: TrackedFace | None = None  # the face with the first of these looks
        self._first_glance: Tensor | None = None  # and the glance at its frame
        self._bound = False  # whether only this person may be followed
        self._others = Others(self._run)
        self._passing = Passing(self._run)
        self._lost = 0  # frames since the person was seen
        self._since_detection = 0
        self._everywhere = False  # whether the last check covered the whole frame
        self._looked = False  # whether the detector saw all of the latest frame
        self._scene = Scene(self._run)
        self._next_tile = 0
        self.reference: Tensor | None = None
        self.mouths: Tensor | None = None

    def __call__(
        self, frame: Tensor, read: Read = Tensor.cpu, box: Box | None = None
    ) -> TrackedFace | None:
        """The face in a frame (H, W, 3) uint8 RGB, or None; then ``absence`` says why.

        Args:
            read: gives a tensor's values on the host, which decides what to run next.
            box: where the face must be; it may then be anybody's. An empty box (no area) means that
                nobody is followed.
        """
        self._read = read
        if box is not None and area(box) <= 0:
            self.absence, self._followed = "nobody", False
            return None
        if box is not None and not self._goes_on_in(box, self._last):
            self.reset()
        self._scene.see(frame)
        self._looked = False
        found = self._follow(frame)
        if found is not None and not found.sudden:
            if not self._confirmed(frame, found):
                found = None
            elif self._since_detection == 0 and self._is_another_by_now(found):
                found, self._person = begun(found), None
        if found is None or found.sudden:
            cut = self._is_cut(found)
            found = self._look(frame, found, cut, self._choice if box is None else box)
        if box is not None and found is not None and not self._goes_on_in(box, found):
            self.reset()
            self._scene.see(frame)
            found = self._look(frame, None, False, box)
        self._followed = found is not None
        if found is None:
            self._lost += 1
            self.absence = "away" if self._bound else "no face"
            return None
        if found.changed and self.reference is not None:  # which was taken in another light
            self.reference = self.mouths = None
            found = begun(self._fit(frame, found.region, found.samples) or found)
        self._lost, self._last = 0, found
        self._remember(found)
        return replace(found, crossed=True) if self._is_crossed(frame, found) else found

    def _goes_on_in(self, box: Box, face: TrackedFace | None) -> bool:
        if face is None:
            return self._person is None
        return inside(face.middle, box)

    def _follow(self, frame: Tensor) -> TrackedFace | None:
        if self._last is None or not self._followed:
            return None
        found = self._fit_again(frame, self._last)
        if found is not None and found.sudden:  # the region may have been off centre
            found = self._fit_again(frame, found) or found
        return None if found is None or found.measures.moved > MAX_JUMP else found

    def _confirmed(self, frame: Tensor, found: TrackedFace) -> bool:
        """Whether the detector still sees the followed face; True where it is not asked."""
        self._since_detection += 1
        if self._since_detection < self._redetect_every:
            return True
        self._since_detection = 0
        self._everywhere = not self._everywhere or bool(self._others)
        if self._everywhere:
            seen = self._seen(frame)
            self._note_others(frame, found, seen)
            if any(overlap(found.place, face.box) > MIN_OVERLAP for face in seen):
                return True
        return self._search.doubt(frame, found.mesh, self._read) <= LIKELY

    def _is_another_by_now(self, found: TrackedFace) -> bool:
        """Whether a face followed without a break has become somebody else, as after a fade: the
        head is in the same position as at first, but the face and its surroundings look
        different."""
        if self._first is None or self._first_glance is None:
            return False
        if abs(found.measures.turn - self._first.measures.turn) > SAME_TURN:
            return False
        (unlike,) = compared([self._first.looks], found.looks, self._run, self._read)
        before, place = self._first_glance, found.place
        return unlike > TURNED and self._scene.has_changed(before, place, self._read)

    def _is_crossed(self, frame: Tensor, found: TrackedFace) -> bool:
        """Whether somebody else passes in front of the person."""
        if found.changed:
            self._passing = Passing(self._run)

        def look() -> None:
            if not self._looked:
                self._note_others(frame, found, self._seen(frame))

        same = self._others, look, self._read
        return self._passing(frame, found.mesh, found.looks, *same)

    def _seen(self, frame: Tensor) -> list[Sighting]:
        """All roughly upright faces in the whole frame."""
        self._looked = True
        return self._search.upright(frame, self._read)

    def _is_cut(self, found: TrackedFace | None) -> bool:
        """Whether the latest frame shows another scene, or suddenly shows somebody else in the same
        place who was not seen to come."""
        if found is None:
            return self._scene.has_cut(None, self._read)
        if found.measures.unlike_person <= MAX_UNLIKENESS:
            return False  # whatever else has changed, as when the camera shakes
        place = None if self._others.near(found.place) else found.place
        return self._scene.has_cut(place, self._read)

    def _sees_others(self, frame: Tensor, seen: list[Sighting]) -> bool:
        """Whether one of the others is still there; if so, the scene is the same."""
        if not self._others:
            return False
        fits = (self._fit_sighting(frame, face) for face in seen[:LOOKED_AT])
        return any(
            f is not None and self._others.unlike(f.looks, self._read) <= AGAIN for f in fits
        )

    def _note_others(self, frame: Tensor, person: TrackedFace, seen: list[Sighting]) -> None:
        """Remember who else is there besides the person."""
        place, others = person.place, []
        for face in seen[:LOOKED_AT]:
            if overlap(place, face.box) <= MIN_OVERLAP:
                known = self._others.at(face)
                found = None if known else self._fit_sighting(frame, face)
                others.append(seen_at(face.box, known, None if found is None else found.looks))
        self._others.replace(others, keep=False)

    def _look(
        self, frame: Tensor, followed: TrackedFace | None, cut: bool, choice: FaceChoice
    ) -> TrackedFace | None:
        """Search the whole frame."""
        seen = self._seen(frame)
        wide = self._lost % self._redetect_every == 0
        self._since_detection = 0
        if cut and not self._sees_others(frame, seen):
            self._bound = False
        if self._bound:
            if self._last is not None:
                seen = self._search.closer(frame, self._last.place, seen, self._read)
            found = self._person_again(frame, followed, seen)
            if found is None and wide:
                found = self._person_again(frame, None, self._search.turned(frame, self._read))
            for small in self._small(frame) if found is None else ():
                found = self._person_again(frame, None, small)
                if found is not None:
                    break
            return found
        found = self._preferred(frame, seen)
        if found is None:
            found = self._chosen(frame, seen, wide, choice)
        if found is None and followed is not None:  # only the detector does not see it
            found = self._fit_again(frame, followed) or followed
        if found is None:
            return None
        if found.measures.unlike_person > AGAIN:
            self._person = None
        self._others = Others(self._run)
        self._note_others(frame, found, seen)
        return begun(found)

    def _person_again(
        self, frame: Tensor, followed: TrackedFace | None, seen: list[Sighting]
    ) -> TrackedFace | None:
        """The person who was followed, if the frame shows them."""
        assert self._last is not None
        place, read = (followed or self._last).place, self._read
        best: TrackedFace | None = None
        others: list[Other | None] = []
        for face in seen[:LOOKED_AT]:
            found = self._fit_sighting(frame, face)
            if found is None:
                continue
            shared, other = overlap(place, face.box), self._others.at(face)
            limit = ANOTHER if shared > MIN_OVERLAP else AGAIN
            if shared > SAME_PLACE and not self._others.near(place):
                limit = TURNED
            if other is not None:
                limit = AGAIN
            # A face that is more like somebody else belongs to them.
            limit = min(limit, self._others.unlike(found.looks, read) * (0.5 if other else 1.0))
            unlike = found.measures.unlike_person
            if unlike <= limit and (best is None or unlike < best.measures.unlike_person):
                best = found
            else:
                known = other or self._others.like(found.looks, AGAIN, read)
                others.append(seen_at(face.box, known, found.looks))
        self._others.replace(others, keep=True)
        if best is None and followed is not None:
            limit = min(ANOTHER, self._others.unlike(followed.looks, read))
            if followed.measures.unlike_person <= limit:
                best = self._fit_again(frame, followed) or followed
        if best is None:
            return None
        return begun(best) if best.relit else best

    def _preferred(self, frame: Tensor, seen: list[Sighting]) -> TrackedFace | None:
        """The person who was followed before a cut, if seen again."""
        if self._person is None:
            return None
        fits = (self._fit_sighting(frame, face) for face in seen[:LOOKED_AT])
        alike = [f for f in fits if f is not None and f.measures.unlike_person <= AGAIN]
        return min(alike, key=lambda found: found.measures.unlike_person, default=None)

    def _chosen(
        self, frame: Tensor, seen: list[Sighting], wide: bool, choice: FaceChoice
    ) -> TrackedFace | None:
        """The face that the caller asked for."""
        upright, doubt = self._tried(frame, chosen(seen, choice))
        if upright is not None and doubt <= CERTAIN:
            return upright
        if upright is not None or wide:
            turned = self._search.turned(frame, self._read)
            found = self._surest(frame, turned, choice)
            if found is not None:
                return found
        if upright is not None and doubt <= LIKELY:
            return upright
        for small in self._small(frame):
            found = self._surest(frame, small, choice)
            if found is not None:
                return found
        return None

    def _small(self, frame: Tensor) -> Iterator[list[Sighting]]:
        """Small faces: on the first frame, in all tiles; later, in a few tiles per frame, because
        searching all of them takes as long as many frames."""
        if self._scene.is_new:
            yield from self._search.small(frame, self._read)
            return
        tiles = [tile for level in self._search.levels(frame) for tile in level]
        for _ in range(min(TILES_A_FRAME, len(tiles))):
            self._next_tile = (self._next_tile + 1) % len(tiles)
            yield self._search.in_tiles(frame, [tiles[self._next_tile]], self._read)

    def _surest(
        self, frame: Tensor, seen: list[Sighting], choice: FaceChoice
    ) -> TrackedFace | None:
        """The chosen face among those that are certain."""
        certain: list[tuple[Sighting, TrackedFace]] = []
        for face in seen[: 2 * LOOKED_AT]:
            if any(overlap(face.box, other.box) > MIN_OVERLAP for other, _ in certain):
                continue
            found, doubt = self._tried(frame, face)
            if found is not None and doubt <= CERTAIN:
                certain.append((face, found))
        taken = chosen([face for face, _ in certain], choice)
        return next((found for face, found in certain if face is taken), None)

    def _tried(self, frame: Tensor, face: Sighting | None) -> tuple[TrackedFace | None, float]:
        """The fit to a sighting, and its doubt."""
        found = None if face is None else self._fit_sighting(frame, face)
        if found is None:
            return None, float("inf")
        return found, self._search.doubt(frame, found.mesh, self._read)

    def _fit_sighting(self, frame: Tensor, face: Sighting) -> TrackedFace | None:
        found = self._fit(frame, self._search.region(face, frame.device), face.samples)
        return None if found is None else self._fit_again(frame, found)

    def _fit_again(self, frame: Tensor, face: TrackedFace) -> TrackedFace | None:
        """The face fitted in the region that an earlier fit gives."""
        return self._fit(frame, face.around, face.samples_around)

    def _fit(self, frame: Tensor, region: Tensor, samples: int) -> TrackedFace | None:
        """The face fitted in a region, or None if there is none."""
        (picture,) = self._run(f"face_region.{samples}", frame, region)
        mesh, score = self._run("face_landmarks", picture, region)
        device, last = frame.device, self._last
        looks, mouth, light, around, measures = self._run(
            "face_judge",
            *(picture, region, mesh, score),
            torch.zeros(POINTS, 3, device=device) if last is None else last.mesh,
            _known(None if last is None else last.looks, LOOKS_SHAPE, device),
            _known(self._person, (GALLERY, *LOOKS_SHAPE), device),
            _known(self.reference, LOOKS_SHAPE, device),
            _known(self.mouths, (GALLERY, *MOUTH_SHAPE), device),
        )
        values = self._read(measures).tolist()
        seen, (left, top, right, bottom, *middle) = Measures(*values[:MEASURES]), values[MEASURES:]
        if not (seen.score >= MIN_MESH_SCORE and isfinite(left + top + right + bottom)):
            return None
        if last is None:
            seen = replace(seen, moved=0.0, unlike_last=0.0, light_step=0.0)
        x, y = middle
        place = left, top, right, bottom
        return TrackedFace(
            mesh[0], region, samples, looks, mouth, light, around, place, (x, y), seen
        )

    def _remember(self, found: TrackedFace) -> None:
        """Store the looks of the person who is followed."""
        self._bound = True
        if self._person is None:
            self._person = torch.stack([found.looks] * GALLERY)
            self._first, self._first_glance = found, self._scene.now
        elif found.measures.unlike_person > NEW_LOOK and not self._others.near(found.place):
            # Keep the first look; drop the oldest of the others.
            self._person = torch.stack([self._person[0], *self._person[2:], found.looks])


def _known(value: Tensor | None, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.zeros(shape, device=device) if value is None else value


def begun(found: TrackedFace) -> TrackedFace:
    """The same face, marked as one with which following starts afresh."""
    return replace(found, changed=True)
