"""The stages between a source of frames and a sink: each runs one step of
:class:`dithead.generator.FrameGenerator` on the fields of a :class:`Frame`.

Nothing is computed here. A stage remembers what it needs from one frame to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dithead.audio import AudioFeatureStream
from dithead.errors import ConfigError
from dithead.generator import COVERED, FrameGenerator, in_rectangle
from dithead.graphs import Graphs
from dithead.patch import Patch, SamePicture, inside
from dithead.runtime.schedule.batch import Member
from dithead.runtime.schedule.frame import Frame, Picture
from dithead.runtime.schedule.lanes import Lane
from dithead.torchgraphs import SpeechGraph


class PictureLoader:
    """Creates frames: their pictures on the device."""

    def __init__(self) -> None:
        self._same = SamePicture()

    def __call__(self, source: Picture, lane: Lane) -> Frame:
        frame, picture = Frame(source), torch.from_numpy(source.rgb())
        frame.same = self._same(picture)
        frame.rgb = lane.upload(picture)
        return frame


class FaceStage:
    """A stage that holds no frame and skips frames without a face; see
    :class:`dithead.runtime.schedule.scheduler.Stage`."""

    name = ""
    host = False
    holds = 0
    ended = False

    def __init__(self, generator: FrameGenerator) -> None:
        self.generator = generator

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        if frame.face is not None:
            self.work(frame, lane)
        return [frame]

    def work(self, f: Frame, lane: Lane) -> None:
        """Work on a frame with a face."""
        raise NotImplementedError

    def finish(self, lane: Lane) -> Iterable[Frame]:
        return []

    def save(self) -> Callable[[], None]:
        return lambda: None


class TrackFace(FaceStage):
    """Finds the face and cuts out the rectangle."""

    name = "track"

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        f, generator = frame, self.generator
        face = generator.track(f.rgb, f.time_s, lane.read, f.source.face_box, f.same)
        if face is None:
            generator.refuse_faceless(f.index, f.time_s)
        else:
            f.left, f.top, f.rectangle, f.transform = generator.cut(
                f.rgb, face.transform, lane.read
            )
            face = generator.fitted(face, f.rectangle)
        if face is None:
            f.left_alone = generator.left_alone
            return [f]
        f.face, f.polygon, f.light = face, face.polygon, face.light
        f.mesh, f.region = in_rectangle(face, f.left, f.top)
        return [f]


class EncodeFace(FaceStage):
    """Cuts and masks the crop, and encodes the result."""

    name = "encode face"

    def __init__(self, generator: FrameGenerator) -> None:
        super().__init__(generator)
        self._last: tuple[Tensor, ...] | None = None

    def work(self, f: Frame, lane: Lane) -> None:
        assert f.face is not None
        if not f.face.still or self._last is None:
            inputs = f.rectangle, f.transform, f.light, f.mesh
            self._last = lane.replay(self.generator.encode, *inputs)
        # Copies: what is kept may be freed here while another lane still reads what it was given.
        f.crop, f.masked, *conditions = (value.clone() for value in self._last)
        f.conditions = tuple(conditions)


class Sound(Protocol):
    """Speech as it arrives."""

    def read(self, picture: Picture) -> Tensor | None:
        """The next (S,) float32 samples at 16 kHz, waiting for them; None at the end.

        Args:
            picture: the picture that needs them.
        """

    @property
    def length_s(self) -> Fraction:
        """Length in seconds; only known at the end."""


@runtime_checkable
class CutSound(Sound, Protocol):
    """Speech whose end may be dropped after it was read."""

    @property
    def kept(self) -> int:
        """How many of the samples that were read are still to be heard."""

    def before(self, end: int, count: int) -> Tensor:
        """The ``count`` samples before number ``end``; 0 before the first of all."""

    def speaks_at(self, time_s: Fraction) -> bool:
        """Whether somebody speaks at that time or close to it, or this is not known yet."""


class AlignAudio(FaceStage):
    """Gives each frame its audio window, and reads as much sound as that needs.

    Args:
        trim: whether frames after the end of the sound are dropped; otherwise they are silent.
        pass_idle: whether frames in which nobody speaks are passed through.
    """

    name = "audio"

    def __init__(self, graphs: Graphs, sound: Sound, trim: bool, pass_idle: bool = False) -> None:
        self.ended = False
        self.features = AudioFeatureStream(SpeechGraph(graphs))
        self._sound = sound
        self._trim = trim
        self._pass_idle = pass_idle

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        while self.features.available_s < frame.time_s:
            samples = self._sound.read(frame.source)
            if samples is None:
                self.features.finish()
            else:
                self.features.push(samples)
        # Also without a face; otherwise the features would pile up.
        frame.window = self.features.window(frame.time_s)
        if self._trim and self.features.state.finished:
            self.ended = frame.source.time_s >= self._sound.length_s
            if self.ended:
                return []
        if self._pass_idle and frame.face is not None:
            assert isinstance(self._sound, CutSound)
            if not self._sound.speaks_at(frame.source.time_s):
                frame.face, frame.idle, frame.left_alone = None, frame.face, "idle"
        return [frame]

    def save(self) -> Callable[[], None]:
        known, last_us = dict(self.features.state.features), self.features.state.last_time_us

        def back() -> None:
            sound = self._sound
            assert isinstance(sound, CutSound)
            self.ended = False
            self.features.go_back(sound.kept, sound.before, known, last_us)

        return back


class Denoise(FaceStage):
    """Generates the frames' latents; only those of every second frame, if so configured.

    Args:
        batch: number of frames denoised at a time; the earlier ones wait for the last.
        together: denoises with other streams; None denoises alone.
    """

    name = "denoise"

    def __init__(
        self, generator: FrameGenerator, batch: int = 1, together: Member | None = None
    ) -> None:
        super().__init__(generator)
        self._batch = batch
        self._together = together
        self._every = generator.options.generate_every
        self.holds = batch * self._every - 1
        self._waiting: list[Frame] = []  # all frames that were not passed on yet, in order
        self._begun: list[tuple[Frame, Tensor, Tensor]] = []  # those to generate: noise, reference
        self._odd: Frame | None = None  # the last one, if it may be filled in from its neighbours
        self._even = True  # whether the next face is generated in any case

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        face = frame.face
        passed: list[Frame] = []
        if self._odd is not None and (face is None or face.fresh):
            passed = self._settle(lane)  # there is nothing to fill it in from
        self._waiting.append(frame)
        if face is not None:
            if self._every == 2 and not self._even and not face.fresh:
                self._odd, self._even = frame, True
            else:
                self._begin(frame)
                self._even = False
                if self._odd is not None:
                    self._odd.filled, self._odd = True, None
        full = len(self._begun) >= self._batch or len(self._waiting) > self.holds
        if full or (not self._begun and self._odd is None):
            passed += self._generated(lane)
        return passed

    def finish(self, lane: Lane) -> Iterable[Frame]:
        return [*self._settle(lane), *self._generated(lane)]

    def save(self) -> Callable[[], None]:
        restore, even = self.generator.save_denoising(), self._even

        def back() -> None:
            restore()
            self._waiting, self._begun, self._odd, self._even = [], [], None, even

        return back

    def _settle(self, lane: Lane) -> list[Frame]:
        """Generate the frame that was to be filled in, with the batch to which it belongs."""
        if self._odd is not None:
            self._begin(self._odd)
            self._odd = None
        return self._generated(lane) if len(self._begun) >= self._batch else []

    def _begin(self, f: Frame) -> None:
        assert f.face is not None
        started = self.generator.begin(f.crop, f.index, f.face.refers, f.face.reference_share)
        self._begun.append((f, *started))

    def _generated(self, lane: Lane) -> list[Frame]:
        """Generate the frames that were begun, and return those to pass on."""
        if self._begun:
            frames, noise, reference = zip(*self._begun, strict=True)
            masked = [f.masked for f in frames]
            windows = [f.window[None] for f in frames]
            conditions = zip(*(f.conditions for f in frames), strict=True)
            shown = (noise, masked, reference, windows, *conditions)
            inputs = [_rows(values) for values in shown]
            if self._together is None:
                latents = lane.replay(self.generator.sample, *inputs)
            else:
                latents = self._together.run(lane, self.generator.sample, *inputs)
            for row, f in enumerate(frames):
                f.latent = latents[row : row + 1]
            self.generator.keep(latents[-1:])
            self._begun = []
        passed = [f for f in self._waiting if f is not self._odd]
        self._waiting = [] if self._odd is None else [self._odd]
        return passed


def _rows(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.cat(list(values))


class DecodeFace(FaceStage):
    """Decodes the latent, or interpolates a face between two that were generated."""

    name = "decode face"

    def __init__(self, generator: FrameGenerator) -> None:
        super().__init__(generator)
        self.holds = int(generator.options.generate_every == 2)
        self._held: Frame | None = None
        self._last: tuple[float, tuple[Tensor, Tensor]] | None = None  # time, face and shape

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        f = frame
        if f.filled:
            self._held = f
            return []
        if f.face is None:
            return [f]
        made = lane.replay(self.generator.decode, f.latent, f.light)
        f.generated, f.shape = made
        if not self.holds:
            return [f]
        passed = [f]
        if self._held is not None and self._last is not None:
            held, (before_s, before) = self._held, self._last
            part = (held.time_s - before_s) / (f.time_s - before_s)
            held.generated, held.shape = self.generator.fill(before, made, part)
            passed, self._held = [held, f], None
        self._last = f.time_s, (made[0].clone(), made[1].clone())
        return passed

    def save(self) -> Callable[[], None]:
        last = self._last

        def back() -> None:
            self._last, self._held = last, None

        return back


class Blend(FaceStage):
    """Blends the face into its rectangle."""

    name = "blend"

    def work(self, f: Frame, lane: Lane) -> None:
        f.blended, f.soft_mask = lane.replay(
            self.generator.blend, f.generated, f.rectangle, f.crop, f.transform, f.polygon
        )
        if not self.generator.options.detail:
            f.image, f.image_mask = lane.download(f.blended), lane.download(f.soft_mask)


class Detail(FaceStage):
    """Warps the frame's own pixels to the shape of the blended picture."""

    name = "detail"

    def work(self, f: Frame, lane: Lane) -> None:
        assert f.face is not None
        state = self.generator.begin_detail(f.time_s, f.face.fresh)
        image, habit, covered = lane.replay(
            self.generator.detail,
            *(f.blended, f.soft_mask, f.rectangle, f.transform, f.polygon),
            *(f.mesh, f.region, f.shape, *state),
            samples=f.face.samples,
        )
        self.generator.keep_detail(habit)
        f.covered = lane.download(covered)
        f.image, f.image_mask = lane.download(image), lane.download(f.soft_mask)

    def save(self) -> Callable[[], None]:
        return self.generator.save_detail()


class Composite(FaceStage):
    """Writes the rectangle into a copy of the frame, on the host."""

    name = "composite"
    host = True

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        frame.result = frame.source
        return super().run(frame, lane)

    def work(self, f: Frame, lane: Lane) -> None:
        f.result = lay_on(f.source, Patch(f.left, f.top, f.image, f.image_mask))
        if self.generator.options.detail and float(f.covered) >= COVERED:
            f.left_alone = "covered"


class Interpolate(FaceStage):
    """Interpolates the picture midway between the last frame and this one (RIFE)."""

    name = "interpolate"

    def __init__(self, generator: FrameGenerator) -> None:
        super().__init__(generator)
        self._last: Tensor | None = None

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        whole = lane.upload(torch.from_numpy(frame.result.rgb()))
        picture = whole.permute(2, 0, 1)[None].float() / 255.0  # (1, 3, H, W)
        last, self._last = self._last, picture
        if last is not None and last.shape == picture.shape:  # else nothing lies between
            half = torch.full((), 0.5, device=picture.device)
            (middle,) = self.generator.graphs.run("interpolator", last, picture, half)
            image = (middle[0].permute(1, 2, 0) * 255.0).round().byte()
            frame.middle = lane.download(image)
        return [frame]

    def save(self) -> Callable[[], None]:
        last = self._last

        def back() -> None:
            self._last = last

        return back


class Deliver:
    """Passes finished frames on, on the host: the last stage.

    Args:
        name: its name in errors and summaries.
        take: called with each frame.
    """

    host = True
    holds = 0
    ended = False

    def __init__(self, name: str, take: Callable[[Frame], None]) -> None:
        self.name = name
        self._take = take

    def run(self, frame: Frame, lane: Lane) -> Iterable[Frame]:
        self._take(frame)
        return [frame]

    def finish(self, lane: Lane) -> Iterable[Frame]:
        return []

    def save(self) -> Callable[[], None]:
        return lambda: None


def lay_on(picture: Picture, patch: Patch) -> Picture:
    """A copy of a picture with a patch from the host written in. Samples outside the patch's mask
    stay as they are, bit for bit."""
    x, y, image, mask = inside(patch, picture.width, picture.height)
    if image.numel() == 0:
        return picture
    return picture.with_rectangle(x, y, image.numpy(), (mask > 0).numpy())


def face_stages(
    generator: FrameGenerator,
    sound: Sound,
    *,
    trim: bool,
    interpolate: int,
    batch: int = 1,
    together: Member | None = None,
    pass_idle: bool = False,
) -> list[FaceStage]:
    """Every stage between the source and :class:`Deliver`.

    Args:
        sound, trim, pass_idle: see :class:`AlignAudio`.
        interpolate: 2 adds :class:`Interpolate`.
        batch, together: see :class:`Denoise`.

    Raises:
        ConfigError: frames that depend on each other cannot be batched.
    """
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, not {batch}")
    if batch > 1 and generator.options.reference == "previous":
        raise ConfigError(
            "with reference 'previous' a frame needs the one before: batch must be 1, or reference "
            "'fixed'"
        )
    if batch > 1 and generator.graphs.config.dit.motion_frames:
        raise ConfigError(
            "a model with motion_frames is shown the frames before each: batch must be 1, not "
            f"{batch}"
        )
    stages: list[FaceStage] = [TrackFace(generator), EncodeFace(generator)]
    stages.append(AlignAudio(generator.graphs, sound, trim, pass_idle))
    stages.append(Denoise(generator, batch, together))
    stages += [DecodeFace(generator), Blend(generator)]
    if generator.options.detail:
        stages.append(Detail(generator))
    stages.append(Composite(generator))
    if interpolate == 2:
        stages.append(Interpolate(generator))
    return stages
