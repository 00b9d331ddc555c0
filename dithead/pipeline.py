"""The whole method, offline, in the plainest code: the specification that every runtime must equal.

Frames come in as pictures with presentation times, audio as 16 kHz samples; nothing here knows
about files, threads or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dithead.audio import AudioEncoder, encode_audio, load_audio_encoder
from dithead.errors import ConfigError, StreamError
from dithead.face.detector import FaceDetector, load_face_detector
from dithead.face.locate import FaceChoice, FaceLocator
from dithead.face.mesh import FaceMesh, load_face_mesh
from dithead.face.tracker import FaceTracker
from dithead.graphs import (
    DiTContext,
    DiTStep,
    FaceDecoder,
    FaceEncoder,
    ReferenceEncoder,
    crop_density,
    face_rectangle,
    paste_density,
)
from dithead.model import DitHead

ReferenceMode = Literal["previous", "fixed"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a stream is asked to do."""

    steps: int | None = None
    """DDIM steps a frame; None takes the model's default."""
    seed: int = 0
    reference: ReferenceMode = "fixed"
    """``fixed``: the latent of the first frame that shows the face. ``previous``: the latent
    generated for the frame before (the paper), which a small model lets drift on strangers."""
    face: FaceChoice = "largest"
    """``"largest"`` or the index of a face counted from the left."""
    on_no_face: Literal["pass", "error"] = "pass"
    """What to do with a frame in which no face is found: hand it through untouched, or stop."""

    def __post_init__(self) -> None:
        if self.reference not in ("previous", "fixed"):
            raise ConfigError(f"reference must be 'previous' or 'fixed', not {self.reference!r}")
        if self.on_no_face not in ("pass", "error"):
            raise ConfigError(f"on_no_face must be 'pass' or 'error', not {self.on_no_face!r}")
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"steps must be at least 1, not {self.steps}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, found {self.seed}")


@dataclass(frozen=True, slots=True)
class Models:
    """Weights of every graph; shared by streams."""

    dithead: DitHead
    audio: AudioEncoder
    detector: FaceDetector
    mesh: FaceMesh

    @classmethod
    def load(
        cls,
        checkpoint: str = "tiny",
        device: str | torch.device = "cpu",
        audio_weights: str | Path | None = None,
    ) -> Models:
        """Load a checkpoint and the packaged face and speech models onto a device.

        Args:
            audio_weights: folder of the speech encoder where it is not the packaged one (wav2vec2).
        """
        dithead = DitHead.load(checkpoint)
        audio = load_audio_encoder(dithead.config.audio, audio_weights)
        modules: list[nn.Module] = [dithead, audio, load_face_detector(), load_face_mesh()]
        return cls(*(module.to(device).eval() for module in modules))  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.dithead.dit.positions.device


@dataclass(frozen=True, slots=True)
class Patch:
    """A generated piece of a frame."""

    left: int
    """May be negative: the rectangle may reach beyond the frame."""
    top: int
    image: Tensor
    """(S, S, 3) uint8 RGB, composited: equal to the source where the mask is 0."""
    mask: Tensor
    """(S, S) float in [0, 1]: where it may differ."""


@dataclass(slots=True)
class FaceState:
    """What a stream carries from frame to frame, apart from the weights."""

    tracker: Tensor
    reference: Tensor | None = None
    """Latent (1, C, s, s); None until a face has been seen."""
    last_time_s: float | None = None


class FrameGenerator:
    """Generates the patch of one frame after the other. Each method is one stage; :meth:`__call__`
    runs them in order."""

    def __init__(self, models: Models, options: Options) -> None:
        self.models = models
        self.options = options
        config = models.dithead.config
        steps = options.steps or config.diffusion.steps
        self.locator = FaceLocator(models.detector, models.mesh, options.face)
        self.tracker = FaceTracker(config.face).to(models.device)
        self.reference_encoder = ReferenceEncoder(models.dithead.face_vqgan)
        self.dit_context = DiTContext(models.dithead.dit)
        self.dit_step = DiTStep(models.dithead.dit, models.dithead.diffusion, steps).to(
            models.device
        )
        self.steps = steps
        self._encoders: dict[int, FaceEncoder] = {}
        self._decoders: dict[int, FaceDecoder] = {}
        self.state = self._fresh_state()

    def _fresh_state(self) -> FaceState:
        return FaceState(self.tracker.initial_state(self.models.device))

    def reset(self) -> None:
        """Back to the state of a fresh stream."""
        self.locator.reset()
        self.state = self._fresh_state()

    def track(self, frame: Tensor, time_s: float) -> tuple[Tensor, Tensor] | None:
        """Frame (H, W, 3) uint8 -> smoothed crop transform (2, 3) in frame pixels and the blend's
        polygon (P, 2) in crop units, or None where no face is found."""
        mesh = self.locator(frame)
        if self.locator.changed:
            self.state = self._fresh_state()  # this may be somebody else
        if mesh is None:
            return None
        last = self.state.last_time_s
        elapsed = torch.tensor(0.0 if last is None else time_s - last, device=frame.device)
        self.state.last_time_s = time_s
        transform, polygon, self.state.tracker = self.tracker(mesh, self.state.tracker, elapsed)
        return transform, polygon

    def encode(self, rectangle: Tensor, transform: Tensor) -> tuple[Tensor, Tensor]:
        """Rectangle (S, S, 3) uint8, transform into it -> crop, masked latent."""
        side = rectangle.shape[0]
        if side not in self._encoders:
            model = self.models.dithead
            density = crop_density(side, model.config.face.crop_px)
            self._encoders[side] = FaceEncoder(model.config.face, model.masked_vqgan, density)
        return self._encoders[side](rectangle, transform)

    def denoise(self, crop: Tensor, masked: Tensor, window: Tensor, index: int) -> Tensor:
        """Crop, masked latent, audio window (window_frames, features) -> the frame's latent (1, C,
        s, s)."""
        if self.state.reference is None:
            self.state.reference = self.reference_encoder(crop)
        latent = self.models.dithead.initial_noise(self.options.seed, index)
        context = self.dit_context(window[None])
        for step in range(self.steps):
            number = torch.tensor([step], device=latent.device)
            latent = self.dit_step(latent, masked, self.state.reference, context, number)
        if self.options.reference == "previous":
            self.state.reference = latent
        return latent

    def decode(
        self, latent: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latent, what :meth:`encode` took and gave, the blend's polygon -> composited rectangle,
        its soft mask."""
        return self.decoder(rectangle.shape[0])(latent, rectangle, crop, transform, polygon)

    def decoder(self, side: int) -> FaceDecoder:
        """The decoder graph for rectangles of a size."""
        if side not in self._decoders:
            model = self.models.dithead
            density = paste_density(side, model.config.face.crop_px)
            decoder = FaceDecoder(model.config.face, model.face_vqgan, density)
            self._decoders[side] = decoder.to(self.models.device)
        return self._decoders[side]

    def refuse_faceless(self, index: int, time_s: float) -> None:
        """Raise StreamError if the options do not allow a frame without a face."""
        if self.options.on_no_face == "error":
            raise StreamError(
                f"no face in frame {index} (at {time_s:.3f} s); "
                "with --on-no-face pass such frames are handed through untouched"
            )

    @torch.inference_mode()
    def __call__(
        self, frame: Tensor, time_s: float, index: int, window: Callable[[float], Tensor]
    ) -> Patch | None:
        """Generate one frame's patch.

        Args:
            frame: (H, W, 3) uint8 RGB on the models' device. time_s: presentation time, seconds.
                index: number of the frame.
            window: gives the audio window (window_frames, features) at a time.

        Returns:
            The patch, or None where no face is found.

        Raises:
            StreamError: no face is found and ``on_no_face`` is ``"error"``.
        """
        found = self.track(frame, time_s)
        if found is None:
            self.refuse_faceless(index, time_s)
            return None
        transform, polygon = found
        left, top, rectangle, local = cut_face(frame, transform)
        crop, masked = self.encode(rectangle, local)
        latent = self.denoise(crop, masked, window(time_s), index)
        image, weight = self.decode(latent, rectangle, crop, local, polygon)
        return Patch(left, top, image, weight)


def cut_face(frame: Tensor, transform: Tensor) -> tuple[int, int, Tensor, Tensor]:
    """The rectangle round a face.

    Args:
        frame: (H, W, 3). transform: (2, 3), crop units to frame pixels.

    Returns:
        Left, top, rectangle (S, S, 3), transform (2, 3) from crop units to its pixels.
    """
    left, top, side = face_rectangle(transform)
    shift = torch.tensor([[0, 0, left], [0, 0, top]], device=transform.device)
    return left, top, cut_rectangle(frame, left, top, side), transform - shift


def cut_rectangle(frame: Tensor, left: int, top: int, side: int) -> Tensor:
    """Square (side, side, 3) of a frame (H, W, 3); beyond the frame its edge pixels are
    repeated."""
    rows = torch.arange(top, top + side, device=frame.device).clamp(0, frame.shape[0] - 1)
    columns = torch.arange(left, left + side, device=frame.device).clamp(0, frame.shape[1] - 1)
    return frame[rows][:, columns]


def put_patch(frame: Tensor, patch: Patch) -> Tensor:
    """A copy of a frame (H, W, 3) with a patch laid onto it."""
    out = frame.clone()
    x, y, image, _ = inside(patch, frame.shape[1], frame.shape[0])
    out[y : y + image.shape[0], x : x + image.shape[1]] = image
    return out


def inside(patch: Patch, width: int, height: int) -> tuple[int, int, Tensor, Tensor]:
    """The part of a patch that lies in a frame: left, top, image (h, w, 3), mask (h, w); h or w may
    be 0."""
    side = patch.image.shape[0]
    x0, y0 = max(0, min(width, patch.left)), max(0, min(height, patch.top))
    x1, y1 = max(x0, min(width, patch.left + side)), max(y0, min(height, patch.top + side))
    rows, columns = slice(y0 - patch.top, y1 - patch.top), slice(x0 - patch.left, x1 - patch.left)
    return x0, y0, patch.image[rows, columns], patch.mask[rows, columns]


def revoice(
    frames: Iterable[tuple[Tensor, float]], samples: Tensor, models: Models, options: Options
) -> Iterator[Tensor]:
    """Re-voice a video that is held as pictures.

    Args:
        frames: pairs of a picture (H, W, 3) uint8 RGB and its presentation time in seconds.
        samples: (S,) float32 in [-1, 1], 16 kHz mono, time 0 at the first sample.

    Yields:
        One picture (H, W, 3) uint8 for each frame; a frame without a face comes back unchanged.
    """
    with torch.inference_mode():
        features = encode_audio(models.audio, samples)
    generate = FrameGenerator(models, options)
    for index, (frame, time_s) in enumerate(frames):
        patch = generate(frame, time_s, index, features.window)
        yield frame if patch is None else put_patch(frame, patch)
