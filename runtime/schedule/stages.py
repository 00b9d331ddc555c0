"""The stages between a source of frames and a sink: each step of
:class:`dithead.pipeline.FrameGenerator`, on the buffers of a slot.

Nothing is computed here. A stage says which buffers it reads and writes, and what it remembers from
one frame to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dithead.audio import AudioFeatureStream
from dithead.errors import ConfigError
from dithead.face.choice import Box
from dithead.graphs import Graphs
from dithead.patch import Patch, inside
from dithead.pipeline import COVERED, Face, FrameGenerator, LeftAlone, in_rectangle
from dithead.runtime.schedule.batch import Member
from dithead.runtime.schedule.lanes import Lane
from dithead.runtime.schedule.scheduler import Item
from dithead.torchgraphs import SpeechGraph

BUFFERS: Mapping[str, bool] = {
    "picture": False,  # (H, W, 3) uint8, the frame in RGB
    "rectangle": False,  # (S, S, 3) uint8, round the face
    "transform": False,  # (2, 3), crop units to the rectangle's pixels
    "polygon": False,  # (P, 2), the blend's outline in crop units
    "mesh": False,  # (468, 3), in the rectangle's pixels
    "region": False,  # (1, 5), where it was fitted
    "light": False,  # (2, 3), brings its colours to the reference's light
    "crop": False,  # (1, 3, s, s)
    "masked": False,  # (1, C, l, l)
    "window": False,  # (window_frames, features)
    "latent": False,  # (1, C, l, l)
    "face": False,  # (1, 3, s, s), generated
    "shape": False,  # (468, 2), its mesh in crop units, or (0, 2)
    "blended": False,  # (S, S, 3) uint8, before the detail layer
    "soft mask": False,  # (S, S)
    "covered": True,  # (), how far something hides the mouth
    "image": True,  # (S, S, 3) uint8, composited
    "mask": True,  # (S, S)
    "whole": False,  # (H, W, 3) uint8, the finished frame
    "middle": True,  # (H, W, 3) uint8, the frame between the last one and this
}
"""Buffers of a slot, and whether they lie on the host."""


class Frame(Protocol):
    """A picture with its place in time, whatever holds its pixels."""

    index: int

    @property
    def time_s(self) -> Fraction:
        """Presentation time in seconds."""

    @property
    def face_box(self) -> Box | None:
        """Where the face to re-voice is, if the caller knows."""

    @property
    def width(self) -> int:
        """Width in pixels."""

    @property
    def height(self) -> int:
        """Height in pixels."""

    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8."""

    def with_rectangle(self, x: int, y: int, rgb: np.ndarray, mask: np.ndarray) -> Any:
        """A copy with a rectangle (h, w, 3) laid in where the mask (h, w) is not 0."""


@dataclass(slots=True)
class Note:
    """What stages tell each other of a frame."""

    face: Face | None = None
    left_alone: LeftAlone | None = None
    """Why the frame is handed through as it is."""
    left: int = 0
    top: int = 0
    filled: bool = False
    """Whether the face is filled in between two that were generated."""
    made: Any = None
    """The finished frame."""
    between: bool = False
    """Whether the buffer ``middle`` was written."""


class FaceStage:
    """A stage that keeps no frame and leaves those without a face alone; see
    :class:`dithead.runtime.schedule.scheduler.Stage`."""

    name = ""
    host = False
    holds = 0
    ended = False

    def __init__(self, generator: FrameGenerator) -> None:
        self.generator = generator

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        if item.note.face is not None:
            self.work(item, lane)
        return [item]

    def work(self, item: Item, lane: Lane) -> None:
        """Work on a frame with a face."""
        raise NotImplementedError

    def finish(self, lane: Lane) -> Iterable[Item]:
        return []


def load_picture(item: Item, lane: Lane) -> None:
    """Write a frame's picture into its slot."""
    item.note = Note()
    lane.put(item.slot["picture"], torch.from_numpy(item.frame.rgb()))


class TrackFace(FaceStage):
    """Finds the face and cuts the rectangle out."""

    name = "track"

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        picture, frame, note = lane.get(item.slot["picture"]), item.frame, item.note
        time_s = float(frame.time_s)
        note.face = self.generator.track(picture, time_s, lane.read, frame.face_box)
        if note.face is None:
            note.left_alone = self.generator.left_alone
            self.generator.refuse_faceless(frame.index, time_s)
            return [item]
        note.left, note.top, rectangle, local = self.generator.cut(
            picture, note.face.transform, lane.read
        )
        note.face = self.generator.fitted(note.face, rectangle)
        if note.face is None:
            note.left_alone = self.generator.left_alone
            return [item]
        lane.put(item.slot["rectangle"], rectangle)
        lane.put(item.slot["transform"], local)
        lane.put(item.slot["polygon"], note.face.polygon)
        mesh, region = in_rectangle(note.face, note.left, note.top)
        lane.put(item.slot["mesh"], mesh)
        lane.put(item.slot["region"], region)
        lane.put(item.slot["light"], note.face.light)
        return [item]


class EncodeFace(FaceStage):
    """Cuts and masks the crop, and encodes what is left."""

    name = "encode face"

    def work(self, item: Item, lane: Lane) -> None:
        names = ("rectangle", "transform", "light")
        inputs = [lane.get(item.slot[name]) for name in names]
        crop, masked = lane.replay(inputs[0].shape, self.generator.encode, *inputs)
        lane.put(item.slot["crop"], crop)
        lane.put(item.slot["masked"], masked)


class Sound(Protocol):
    """Speech as it comes."""

    def read(self) -> Tensor | None:
        """The next (S,) float32 samples at 16 kHz, waiting for them; None at the end."""

    @property
    def length_s(self) -> Fraction:
        """Length in seconds, known at the end."""


class AlignAudio(FaceStage):
    """Gives each frame its audio window, reading on in the sound as far as it takes.

    Args:
        trim: whether frames from the end of the sound on are dropped; else they are silent.
    """

    name = "audio"

    def __init__(self, graphs: Graphs, sound: Sound, trim: bool) -> None:
        self.ended = False
        self.features = AudioFeatureStream(SpeechGraph(graphs))
        self._device = graphs.device
        self._sound = sound
        self._trim = trim

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        time_s = float(item.frame.time_s)
        while self.features.available_s < time_s:
            samples = self._sound.read()
            if samples is None:
                self.features.finish()
            else:
                self.features.push(samples)
        # Without a face, too, or the features would pile up.
        window = self.features.window(time_s)
        if self._trim and self.features.state.finished:
            self.ended = item.frame.time_s >= self._sound.length_s
            if self.ended:
                return []
        if item.note.face is not None:
            lane.put(item.slot["window"], window.to(self._device, non_blocking=True))
        return [item]


class Denoise(FaceStage):
    """Generates the frames' latents; of every second frame alone, where asked to.

    Args:
        batch: frames that are denoised at a time; those before the last of them wait for it.
        together: denoises with other streams; None by itself.
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
        self._waiting: list[Item] = []  # all that were not passed on yet, in order
        self._begun: list[tuple[Item, Tensor, Tensor]] = []  # those to generate: noise, reference
        self._odd: Item | None = None  # the last one, should it be filled in from its neighbours
        self._even = True  # whether the next face is generated in any case

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        face: Face | None = item.note.face
        passed: list[Item] = []
        if self._odd is not None and (face is None or face.fresh):
            passed = self._settle(lane)  # nothing to fill it in from
        self._waiting.append(item)
        if face is not None:
            if self._every == 2 and not self._even and not face.fresh:
                self._odd, self._even = item, True
            else:
                self._begin(item, lane)
                self._even = False
                if self._odd is not None:
                    self._odd.note.filled, self._odd = True, None
        full = len(self._begun) >= self._batch or len(self._waiting) > self.holds
        if full or (not self._begun and self._odd is None):
            passed += self._generated(lane)
        return passed

    def finish(self, lane: Lane) -> Iterable[Item]:
        return [*self._settle(lane), *self._generated(lane)]

    def _settle(self, lane: Lane) -> list[Item]:
        """Generate the frame that was to be filled in, with the batch that it belongs to."""
        if self._odd is not None:
            self._begin(self._odd, lane)
            self._odd = None
        return self._generated(lane) if len(self._begun) >= self._batch else []

    def _begin(self, item: Item, lane: Lane) -> None:
        crop, face = lane.get(item.slot["crop"]), item.note.face
        started = self.generator.begin(crop, item.frame.index, face.refers, face.reference_share)
        self._begun.append((item, *started))

    def _generated(self, lane: Lane) -> list[Item]:
        """Generate what has begun: the frames to pass on."""
        if self._begun:
            items, noise, reference = zip(*self._begun, strict=True)
            masked = [lane.get(item.slot["masked"]) for item in items]
            windows = [lane.get(item.slot["window"])[None] for item in items]
            inputs = [_rows(values) for values in (noise, masked, reference, windows)]
            work = self.generator.sample
            if self._together is None:
                latents = lane.replay(("sample", len(items)), work, *inputs)
            else:
                latents = self._together.run(lane, work, *inputs)
            for row, item in enumerate(items):
                lane.put(item.slot["latent"], latents[row : row + 1])
            self.generator.keep(latents[-1:])
            self._begun = []
        passed = [item for item in self._waiting if item is not self._odd]
        self._waiting = [] if self._odd is None else [self._odd]
        return passed


def _rows(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.cat(list(values))


class DecodeFace(FaceStage):
    """Decodes the latent; fills a face in between two that were generated."""

    name = "decode face"

    def __init__(self, generator: FrameGenerator) -> None:
        super().__init__(generator)
        self.holds = int(generator.options.generate_every == 2)
        self._held: Item | None = None
        self._last: tuple[float, tuple[Tensor, Tensor]] | None = None  # time and face

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        if item.note.filled:
            self._held = item
            return []
        if item.note.face is None:
            return [item]
        inputs = [lane.get(item.slot[name]) for name in ("latent", "light")]
        made = lane.replay("decode", self.generator.decode, *inputs)
        self._put(item, made, lane)
        if not self.holds:
            return [item]
        passed, time_s = [item], float(item.frame.time_s)
        if self._held is not None and self._last is not None:
            held, (before_s, before) = self._held, self._last
            part = (float(held.frame.time_s) - before_s) / (time_s - before_s)
            self._put(held, self.generator.fill(before, made, part), lane)
            passed, self._held = [held, item], None
        self._last = time_s, (made[0].clone(), made[1].clone())
        return passed

    def _put(self, item: Item, made: tuple[Tensor, Tensor], lane: Lane) -> None:
        for name, value in zip(("face", "shape"), made, strict=True):
            lane.put(item.slot[name], value)


class Blend(FaceStage):
    """Lays the face into its rectangle."""

    name = "blend"

    def __init__(self, generator: FrameGenerator) -> None:
        super().__init__(generator)
        detail = generator.options.detail
        self._made = ("blended", "soft mask") if detail else ("image", "mask")

    def work(self, item: Item, lane: Lane) -> None:
        names = ("face", "rectangle", "crop", "transform", "polygon")
        inputs = [lane.get(item.slot[name]) for name in names]
        results = lane.replay(inputs[1].shape, self.generator.blend, *inputs)
        for name, result in zip(self._made, results, strict=True):
            lane.put(item.slot[name], result)


class Detail(FaceStage):
    """Lays the frame's own pixels over the blended picture."""

    name = "detail"

    def work(self, item: Item, lane: Lane) -> None:
        names = ("blended", "soft mask", "rectangle", "transform", "polygon")
        inputs = [lane.get(item.slot[name]) for name in (*names, "mesh", "region", "shape")]
        time_s, face = float(item.frame.time_s), item.note.face
        state = self.generator.begin_detail(time_s, face.fresh)
        key = inputs[2].shape, face.samples
        work = partial(self.generator.detail, samples=face.samples)
        image, habit, covered = lane.replay(key, work, *inputs, *state)
        self.generator.keep_detail(habit)
        lane.put(item.slot["covered"], covered)
        lane.put(item.slot["image"], image)
        lane.put(item.slot["mask"], inputs[1])


class Composite(FaceStage):
    """Writes the rectangle into a copy of the frame, on the host."""

    name = "composite"
    host = True

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        item.note.made = item.frame
        return super().run(item, lane)

    def work(self, item: Item, lane: Lane) -> None:
        note = item.note
        image, mask = lane.get(item.slot["image"]), lane.get(item.slot["mask"])
        note.made = lay_on(item.frame, Patch(note.left, note.top, image, mask))
        if self.generator.options.detail and float(lane.get(item.slot["covered"])) >= COVERED:
            note.left_alone = "covered"


class Interpolate(FaceStage):
    """Makes the frame in the middle of the last one and this (RIFE)."""

    name = "interpolate"

    def __init__(self, generator: FrameGenerator) -> None:
        super().__init__(generator)
        self._last: Tensor | None = None

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        lane.put(item.slot["whole"], torch.from_numpy(item.note.made.rgb()))
        whole = lane.get(item.slot["whole"])
        picture = whole.permute(2, 0, 1)[None].float() / 255.0  # (1, 3, H, W)
        last, self._last = self._last, picture
        if last is not None:
            half = torch.full((), 0.5, device=picture.device)
            (middle,) = self.generator.graphs.run("interpolator", last, picture, half)
            image = (middle[0].permute(1, 2, 0) * 255.0).round().byte()
            lane.put(item.slot["middle"], image)
            item.note.between = True
        return [item]


class Deliver:
    """Hands finished frames over, on the host: the last stage.

    Args:
        name: what errors and summaries call it.
        take: is given each frame on its way, and the picture (H, W, 3) between the last frame and
            this one where there is one.
    """

    host = True
    holds = 0
    ended = False

    def __init__(self, name: str, take: Callable[[Item, np.ndarray | None], None]) -> None:
        self.name = name
        self._take = take

    def run(self, item: Item, lane: Lane) -> Iterable[Item]:
        middle = lane.get(item.slot["middle"]).numpy() if item.note.between else None
        self._take(item, middle)
        return [item]

    def finish(self, lane: Lane) -> Iterable[Item]:
        return []


def lay_on(frame: Frame, patch: Patch) -> Any:
    """Put a patch into a frame; every sample outside the mask stays as it is, bit for bit."""
    x, y, image, mask = inside(patch, frame.width, frame.height)
    if image.numel() == 0:
        return frame
    return frame.with_rectangle(x, y, image.numpy(), (mask > 0).numpy())


def face_stages(
    generator: FrameGenerator,
    sound: Sound,
    *,
    trim: bool,
    interpolate: int,
    batch: int = 1,
    together: Member | None = None,
) -> list[FaceStage]:
    """Every stage between the source and :class:`Deliver`.

    Args:
        sound, trim: see :class:`AlignAudio`.
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
    stages: list[FaceStage] = [TrackFace(generator), EncodeFace(generator)]
    stages.append(AlignAudio(generator.graphs, sound, trim))
    stages.append(Denoise(generator, batch, together))
    stages += [DecodeFace(generator), Blend(generator)]
    if generator.options.detail:
        stages.append(Detail(generator))
    stages.append(Composite(generator))
    if interpolate == 2:
        stages.append(Interpolate(generator))
    return stages
