"""The method, step by step: what turns a frame and its sound into a patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dithead.controls import FaceShape
from dithead.diffusion import ddim_timesteps
from dithead.errors import StreamError
from dithead.face.cover import MouthWatch
from dithead.face.cropsmoother import CropSmoother
from dithead.face.reference import FAINT, ReferenceChoice
from dithead.face.search import Box, Read
from dithead.face.tracker import Absence, FaceTracker, TrackedFace
from dithead.graphs import Graphs, face_rectangle
from dithead.hosttodevice import to_device
from dithead.options import Options
from dithead.patch import Patch, SamePicture, cut_rectangle


@dataclass(frozen=True, slots=True)
class Face:
    """A face's position in a frame."""

    transform: Tensor
    """(2, 3) float: smoothed crop transform, crop units to frame pixels."""
    polygon: Tensor
    """(P, 2) float in crop units: outline of the area that is replaced."""
    fresh: bool
    """Whether this may be somebody else than in the frame before, or shows the face so much better
    that everything known about it is learnt anew."""
    mesh: Tensor
    """(468, 3) in frame pixels, not smoothed."""
    region: Tensor
    """(1, 5), the region of the frame in which the mesh was fitted."""
    samples: int
    """How many samples of each of its pixels the mesh network saw."""
    light: Tensor
    """(2, 3): factor and offset that bring a crop's colours to the reference's light."""
    refers: bool
    """Whether this frame becomes the reference."""
    reference_share: float
    """Weight of the latest reference against the one before, in (0, 1]."""
    still: bool = False
    """Whether picture, position and light are those of the frame before, so that it need not be
    encoded again."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A frame with a face, ready for the denoiser."""

    index: int
    time_s: float
    found: Face
    left: int
    top: int
    rectangle: Tensor
    """(S, S, 3) uint8."""
    transform: Tensor
    """(2, 3): crop units to the rectangle's pixels."""
    mesh: Tensor
    """(468, 3) in the rectangle's pixels."""
    region: Tensor
    """(1, 5), the region where it was fitted, in the rectangle's pixels."""
    crop: Tensor
    masked: Tensor
    conditions: tuple[Tensor, ...]
    """See :meth:`FrameGenerator.encode`."""
    window: Tensor
    """(window_frames, features)."""


@dataclass(slots=True)
class SmoothingState:
    """What tracking carries from frame to frame."""

    smoothing: Tensor
    last_time_s: float | None = None


@dataclass(slots=True)
class DetailState:
    """What the detail layer carries from frame to frame."""

    habit: Tensor
    last_time_s: float | None = None


LeftAlone = Absence | Literal["too faint", "covered", "too large", "idle"]
"""Why a frame is passed through as it is: nobody in it can be re-voiced; too little can be seen of
the face; something is in front of the mouth; the graphs were made for smaller faces; nobody speaks,
and the stream was asked to show such frames as they are."""


@dataclass(frozen=True, slots=True)
class _Tracked:
    """What was found in a frame."""

    box: Box | None
    """Where the face should have been."""
    found: TrackedFace
    reference: Tensor | None
    """What its light was compared with."""
    face: Face | None
    left_alone: LeftAlone | None


COVERED = 0.95
"""A mouth that is covered this far counts as left alone."""


class FrameGenerator:
    """Generates the patch of one frame after the other. Each method is one stage; :meth:`__call__`
    runs them in order.

    Each stage has its own state and takes frames in order, so stages may run in parallel, each in
    its own thread.
    """

    def __init__(self, graphs: Graphs, options: Options) -> None:
        self.graphs = graphs
        self.options = options
        config = graphs.config.diffusion
        self.steps = options.steps or config.steps
        visits = torch.tensor([*ddim_timesteps(config, self.steps), -1])
        self.visits = to_device(visits, graphs.device)[:, None]  # (steps + 1, 1)
        with torch.inference_mode():
            self.modulations = [graphs.run("dit_timestep", now)[0] for now in self.visits[:-1]]
        self.seed = torch.full((1,), options.seed, device=graphs.device)
        self.tracker = FaceTracker(graphs.run, options.face)
        self.left_alone: LeftAlone | None = None  # why, for the latest frame that was tracked
        self.reset()

    def reset(self) -> None:
        """Return to the state of a new stream."""
        self.tracker.reset()
        self._forget_face()
        self._before: _Tracked | None = None  # the latest frame, if it showed the face
        self._encoded: tuple[Tensor, ...] | None = None  # the latest output of encode
        self._same = SamePicture()
        self._reference: Tensor | None = None  # latent (1, C, s, s)
        self._replaced: Tensor | None = None  # what was shown before it
        self._shown: Tensor | None = None  # what the latest frame was shown, a mixture of both
        self._noise: Tensor | None = None  # the same
        self._past: tuple[Tensor, ...] = ()  # the latents before, the latest first
        self._detailing = DetailState(FaceShape.initial_habit(self.graphs.device))
        self._larger = False  # whether the last face was too large

    def _forget_face(self) -> None:
        """Start afresh, with a face that may be another."""
        self._tracking = SmoothingState(CropSmoother.initial_state(self.graphs.device))
        self._choice, self._mouth = ReferenceChoice(self.graphs.run), MouthWatch()
        self._fresh = True

    def _light(self, reference: Tensor, looks: Tensor) -> Tensor:
        return self.graphs.run("face_light", reference, looks)[0]

    def track(
        self,
        frame: Tensor,
        time_s: float,
        read: Read = Tensor.cpu,
        box: Box | None = None,
        same: bool = False,
    ) -> Face | None:
        """Find the face.

        Args:
            frame: (H, W, 3) uint8. box: where the face should be, see
                :class:`~dithead.face.tracker.FaceTracker`.
            same: whether the picture is that of the frame before, as with a still; the face is then
                where it was.

        Returns:
            The face, or None if the frame is to be left alone; then ``left_alone`` says why.
        """
        if box is None and self.options.speakers is not None:
            box = self.options.speakers.box_at(time_s)
        before, self._before = self._before, None
        reference = self.tracker.reference
        if same and before is not None and before.box == box:
            found, face = before.found, self._again(before)
        else:
            tracked = self.tracker(frame, read, box)
            if tracked is None:
                self.left_alone = self.tracker.absence
                return None
            found, face = tracked, self._judged(tracked, time_s)
        self._before = _Tracked(box, found, reference, face, self.left_alone)
        if face is None:
            return None
        # What is kept is read here alone: a frame that is finished frees only what is its own.
        return replace(face, polygon=face.polygon.clone(), light=face.light.clone())

    def _again(self, before: _Tracked) -> Face | None:
        """The face in a frame that shows the same picture as the one before."""
        self.left_alone = before.left_alone
        if before.face is None:
            return None
        reference, shown = self.tracker.reference, self._choice(before.found)
        light, still = before.face.light, True
        if reference is not None and reference is not before.reference:
            light, still = self._light(reference, before.found.looks), False
        self.tracker.reference = shown.looks
        return replace(
            before.face,
            fresh=False,
            light=light,
            refers=shown.taken,
            reference_share=shown.share,
            still=still,
        )

    def _judged(self, found: TrackedFace, time_s: float) -> Face | None:
        """A face's smoothed place, and what the model is shown along with it; None if it is to be
        left alone."""
        if found.changed:
            self._forget_face()
        state = self._tracking
        elapsed_s = 0.0 if state.last_time_s is None else time_s - state.last_time_s
        state.last_time_s = time_s
        elapsed = torch.full((), elapsed_s, device=found.mesh.device)
        transform, polygon, state.smoothing = self.graphs.run(
            "crop_smoother", found.mesh, state.smoothing, elapsed
        )
        if found.measures.contrast < FAINT:
            self.left_alone = "too faint"
            return None
        covered = found.crossed or self._mouth(found, time_s)
        self.tracker.mouths = self._mouth.known
        if covered:
            self.left_alone = "covered"
            return None
        shown = self._choice(found, self._mouth.anew)
        light = found.light
        if shown.taken:
            light = self._light(shown.looks, found.looks)
        self.tracker.reference = shown.looks
        # What was learnt about the mouth from a bad reference's frames is forgotten with it.
        fresh = self._fresh or shown.taken
        self._fresh, self.left_alone = False, None
        return Face(
            *(transform, polygon, fresh, found.mesh, found.region),
            *(found.samples, light, shown.taken, shown.share),
        )

    def fit(self, picture: Tensor, region: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        """Meshes (1, 468, 3) and scores (1,) of the face in a region (1, 5) of a picture (H, W, 3),
        with so many samples along each side of a pixel."""
        (cut,) = self.graphs.run(f"face_region.{samples}", picture, region)
        mesh, score = self.graphs.run("face_landmarks", cut, region)
        return mesh, score

    def cut(
        self, frame: Tensor, transform: Tensor, read: Read = Tensor.cpu
    ) -> tuple[int, int, Tensor, Tensor]:
        """The rectangle round a face.

        Args:
            frame: (H, W, 3). transform: (2, 3), crop units to frame pixels.

        Returns:
            Left, top, rectangle (S, S, 3), transform (2, 3) from crop units to its pixels.
        """
        left, top, side = face_rectangle(read(transform), self.graphs.config.face)
        local = transform.clone()
        local[0, 2] -= left
        local[1, 2] -= top
        return left, top, cut_rectangle(frame, left, top, side), local

    def fitted(self, face: Face, rectangle: Tensor) -> Face | None:
        """The face, or None if its rectangle (S, S, 3) from :meth:`cut` is larger than the graphs
        support: such a frame is left alone, and the next face starts afresh. If every frame must
        show a face, the graphs raise their own error."""
        most = getattr(self.graphs, "largest_rectangle", None)
        larger = most is not None and rectangle.shape[0] > most
        before, self._larger = self._larger, larger and self.options.on_no_face == "pass"
        if self._larger:
            self.left_alone = "too large"
            return None
        return replace(face, fresh=True) if before else face

    def encode(
        self, rectangle: Tensor, transform: Tensor, light: Tensor, mesh: Tensor
    ) -> tuple[Tensor, ...]:
        """What is shown of a frame.

        Args:
            rectangle: (S, S, 3) uint8. transform: into it. light: of :class:`Face`. mesh: (468, 3)
                in the rectangle's pixels.

        Returns:
            Crop, in the frame's own light; masked latent, in the reference's; the model's further
            conditions, if it has any: landmarks (1, 26, 2), known latent (1, C, s, s).
        """
        name = f"face_crop.{rectangle.shape[0]}"
        crop, lit = self.graphs.run(name, rectangle, transform, light)
        if self.graphs.config.face.mask == "paper":
            (lit,) = self.graphs.run("paper_mask", lit, mesh, transform)
        shown = crop, *self.graphs.run("masked_encoder", lit)
        if self.graphs.config.dit.landmarks:
            shown += self.graphs.run("upper_landmarks", mesh, transform)
        if self.graphs.config.diffusion.inpaint:
            shown += self.graphs.run("known_encoder", lit)
        return shown

    def begin(self, crop: Tensor, index: int, refers: bool, share: float) -> tuple[Tensor, Tensor]:
        """The starting point of a frame's denoising.

        Args:
            crop: from :meth:`encode`. index: number of the frame. refers, share: see :class:`Face`.

        Returns:
            Noise and reference, latents (1, C, s, s). After the reference, the frames before, if
            the model is shown them: (1, (1 + motion_frames) C, s, s). A face that was not there
            before has the reference in their place (Diffused Heads, section 3.2).
        """
        if refers or self._reference is None:
            self._replaced = self._shown
            (self._reference,) = self.graphs.run("reference_encoder", crop)
        reference = self._reference
        if share < 1.0 and self._replaced is not None:
            latest = torch.full((), share, device=reference.device)
            (reference,) = self.graphs.run("reference_mix", self._replaced, reference, latest)
        self._shown = reference
        if motion := self.graphs.config.dit.motion_frames:
            if not self._past or (refers and share == 1.0):
                self._past = (reference,) * motion
            reference = torch.cat([reference, *self._past], dim=1)
        if self._noise is None or self.graphs.config.diffusion.noise == "frame":
            (self._noise,) = self.graphs.run("noise", self.seed, torch.full_like(self.seed, index))
        return self._noise, reference

    def sample(
        self,
        noise: Tensor,
        masked: Tensor,
        reference: Tensor,
        windows: Tensor,
        *conditions: Tensor,
    ) -> Tensor:
        """All DDIM steps: latents and reference of :meth:`begin`, audio windows (B, window_frames,
        features) and conditions, see :meth:`encode` -> latents (B, C, s, s). Frames are independent
        of each other."""
        landmarks = conditions[: int(self.graphs.config.dit.landmarks)]
        known = conditions[len(landmarks) :]
        (context,) = self.graphs.run("dit_context", windows, *landmarks)
        latent, rows = noise, noise.shape[0]
        for modulation, visit in zip(self.modulations, pairwise(self.visits), strict=True):
            same = [value.expand(rows, *value.shape[1:]) for value in (modulation, *visit)]
            (latent,) = self.graphs.run("dit_step", latent, masked, reference, context, *same)
            if known:
                (latent,) = self.graphs.run("lay_back", latent, *known, noise, same[-1])
        return latent

    def keep(self, latent: Tensor) -> None:
        """Use a frame's latent as the next one's reference, if the options say so, and as one of
        the frames before it, if the model is shown them."""
        if self.options.reference == "previous":
            self._reference = self._shown = latent
        if motion := self.graphs.config.dit.motion_frames:
            self._past = (latent, *self._past)[:motion]

    def denoise(
        self,
        crop: Tensor,
        masked: Tensor,
        window: Tensor,
        index: int,
        face: Face,
        conditions: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """Generate a frame's latent (1, C, s, s).

        Args:
            crop, masked, conditions: from :meth:`encode`. window: audio (window_frames, features).
                index: see :meth:`begin`.
        """
        noise, reference = self.begin(crop, index, face.refers, face.reference_share)
        latent = self.sample(noise, masked, reference, window[None], *conditions)
        self.keep(latent)
        return latent

    def decode(self, latent: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Latent (1, C, s, s), light of :class:`Face` -> face crop (1, 3, S, S) in [-1, 1], in the
        frame's own light; its mesh (468, 2) in crop units, or (0, 2) if there is no shape head or
        no detail layer."""
        (face,) = self.graphs.run("face_decoder", latent, light[None])
        if not (self.options.detail and self.graphs.config.shape_head):
            return face, latent.new_zeros(0, 2)
        return face, self.graphs.run("shape_head", latent)[0][0]

    def fill(
        self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], part: float
    ) -> tuple[Tensor, Tensor]:
        """The output of :meth:`decode` at a time between two generated faces, ``part`` of the way,
        interpolated."""
        t = torch.full((), part, device=before[0].device)
        (middle,) = self.graphs.run("interpolator", (before[0] + 1) / 2, (after[0] + 1) / 2, t)
        return middle * 2 - 1, torch.lerp(before[1], after[1], part)

    def blend(
        self, face: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Face crop from :meth:`decode`, the inputs and outputs of :meth:`encode`, the blend's
        polygon -> composited rectangle (S, S, 3) uint8, its soft mask (S, S)."""
        name = f"face_blend.{rectangle.shape[0]}"
        image, weight = self.graphs.run(name, face, rectangle, crop, transform, polygon)
        return image, weight

    def begin_detail(self, time_s: float, fresh: bool) -> tuple[Tensor, Tensor]:
        """The starting point of :meth:`detail` for a frame: habit, seconds since the last frame.
        ``fresh``: from :meth:`track`; nothing is known about the face then."""
        device = self.graphs.device
        if fresh:
            self._detailing = DetailState(FaceShape.initial_habit(device))
        state = self._detailing
        elapsed_s = 0.0 if state.last_time_s is None else time_s - state.last_time_s
        state.last_time_s = time_s
        return state.habit, torch.full((), elapsed_s, device=device)

    def detail(
        self,
        blended: Tensor,
        mask: Tensor,
        rectangle: Tensor,
        transform: Tensor,
        polygon: Tensor,
        mesh: Tensor,
        region: Tensor,
        shape: Tensor,
        habit: Tensor,
        elapsed_s: Tensor,
        *,
        samples: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Warp the frame's own pixels to the shape of the blended picture.

        Args:
            blended, mask: from :meth:`blend`. rectangle, transform, polygon: its inputs.
            mesh, region: from :func:`in_rectangle`. shape: from :meth:`decode`. habit, elapsed_s:
                from :meth:`begin_detail`.
            samples: of the face, see :class:`Face`.

        Returns:
            The rectangle (S, S, 3) uint8; habit, for :meth:`keep_detail`; how far the mouth is
            covered, () in [0, 1], for :data:`COVERED`.
        """
        name, run = f"face_detail.{rectangle.shape[0]}", self.graphs.run
        if len(shape) > 0:
            (wanted,) = run("generated_mesh", shape, transform)
        else:
            wanted = self.fit(blended, region, samples)[0][0]
        target, habit = run("face_shape", mesh, wanted, transform, habit, elapsed_s)
        inputs = rectangle, blended, mask, transform, polygon, mesh, wanted, target
        image, covered = run(name, *inputs)
        return image, habit, covered

    def keep_detail(self, habit: Tensor) -> None:
        """Use a frame's habit for the next one."""
        self._detailing.habit = habit

    def save_denoising(self) -> Callable[[], None]:
        """What returns the state of :meth:`begin` and :meth:`keep` to its present value."""
        saved = self._reference, self._replaced, self._shown, self._noise, self._past

        def restore() -> None:
            self._reference, self._replaced, self._shown, self._noise, self._past = saved

        return restore

    def save_detail(self) -> Callable[[], None]:
        """What returns the detail layer's state to its present value."""
        saved = replace(self._detailing)

        def restore() -> None:
            self._detailing = replace(saved)

        return restore

    def refuse_faceless(self, index: int, time_s: float) -> None:
        """Raise StreamError if the options do not allow a frame without the face."""
        absent = {"no face": "no face", "away": "not the face that is followed"}
        if self.options.on_no_face == "error" and self.left_alone in absent:
            raise StreamError(
                f"{absent[self.left_alone]} in frame {index} (at {time_s:.3f} s); "
                "with --on-no-face pass such frames pass through untouched"
            )

    @torch.inference_mode()
    def prepare(
        self, frame: Tensor, time_s: float, index: int, window: Callable[[float], Tensor]
    ) -> Prepared | None:
        """The stages before the denoiser; arguments as for :meth:`__call__`."""
        found = self.track(frame, time_s, same=self._same(frame))
        if found is None:
            self.refuse_faceless(index, time_s)
            return None
        left, top, rectangle, transform = self.cut(frame, found.transform)
        found = self.fitted(found, rectangle)
        if found is None:
            return None
        mesh, region = in_rectangle(found, left, top)
        if not found.still or self._encoded is None:
            self._encoded = self.encode(rectangle, transform, found.light, mesh)
        crop, masked, *conditions = self._encoded
        return Prepared(
            index=index,
            time_s=time_s,
            found=found,
            left=left,
            top=top,
            rectangle=rectangle,
            transform=transform,
            mesh=mesh,
            region=region,
            crop=crop,
            masked=masked,
            conditions=tuple(conditions),
            window=window(time_s),
        )

    @torch.inference_mode()
    def generate(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """The denoiser and the decoder; see :meth:`decode`."""
        p = prepared
        latent = self.denoise(p.crop, p.masked, p.window, p.index, p.found, p.conditions)
        return self.decode(latent, p.found.light)

    @torch.inference_mode()
    def finish(self, prepared: Prepared, made: tuple[Tensor, Tensor]) -> Patch:
        """Blend the output of :meth:`decode` into its rectangle."""
        p, polygon = prepared, prepared.found.polygon
        face, shape = made
        image, mask = self.blend(face, p.rectangle, p.crop, p.transform, polygon)
        if self.options.detail:
            image, habit, covered = self.detail(
                *(image, mask, p.rectangle, p.transform, polygon, p.mesh, p.region, shape),
                *self.begin_detail(p.time_s, p.found.fresh),
                samples=p.found.samples,
            )
            self.keep_detail(habit)
            if float(covered) >= COVERED:
                self.left_alone = "covered"
        return Patch(p.left, p.top, image, mask)

    def __call__(
        self, frame: Tensor, time_s: float, index: int, window: Callable[[float], Tensor]
    ) -> Patch | None:
        """Generate one frame's patch.

        Args:
            frame: (H, W, 3) uint8 RGB on the graphs' device. time_s: presentation time, seconds.
                index: number of the frame.
            window: returns the audio window (window_frames, features) at a time.

        Returns:
            The patch, or None if no face is found.

        Raises:
            StreamError: no face is found and ``on_no_face`` is ``"error"``.
        """
        prepared = self.prepare(frame, time_s, index, window)
        return None if prepared is None else self.finish(prepared, self.generate(prepared))


def in_rectangle(face: Face, left: int, top: int) -> tuple[Tensor, Tensor]:
    """A face's mesh (468, 3) and the region (1, 5) in which it was fitted, in the pixels of a
    rectangle of the frame."""
    mesh, region = face.mesh.clone(), face.region.clone()
    for places in (mesh, region):
        places[:, 0] -= left
        places[:, 1] -= top
    return mesh, region
