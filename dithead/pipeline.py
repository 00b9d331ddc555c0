"""The whole method, offline, in the plainest code: the specification that every runtime must equal.

Frames come in as pictures with presentation times, audio as 16 kHz samples; nothing here knows
about files, threads or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from dithead.audio import (
    AudioEncoder,
    AudioWindow,
    Wav2Vec2Encoder,
    encode_audio,
    load_audio_encoder,
    random_wav2vec2,
)
from dithead.audio.config import WAV2VEC2
from dithead.config import DitHeadConfig
from dithead.diffusion import ddim_timesteps
from dithead.errors import ConfigError, StreamError
from dithead.face.detector import FaceDetector, load_face_detector
from dithead.face.locate import FaceChoice, FaceLocator
from dithead.face.mesh import FaceMesh, load_face_mesh
from dithead.face.tracker import FaceTracker
from dithead.graphs import (
    DiTContext,
    DiTStep,
    DiTTimestep,
    FaceBlend,
    FaceCrop,
    FaceDecoder,
    Graphs,
    MaskedEncoder,
    Noise,
    ReferenceEncoder,
    face_rectangle,
)
from dithead.interpolation import load_interpolator
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
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must lie in 0..{2**32 - 1}, not {self.seed}")


class Models:
    """Weights of every graph, shared by streams, and the graphs as PyTorch modules."""

    def __init__(
        self, dithead: DitHead, audio: AudioEncoder, detector: FaceDetector, mesh: FaceMesh
    ) -> None:
        self.dithead = dithead
        self.audio = audio
        self.detector = detector
        self.mesh = mesh
        self._modules: dict[str, nn.Module] = {}

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

    @classmethod
    def random(cls, config: DitHeadConfig) -> Models:
        """Random weights, always the same, behind the packaged face and speech models, for
        measuring sizes and speed; wav2vec2 is random, too. On the CPU."""
        audio: AudioEncoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            dithead = DitHead(config)
            for parameter in dithead.dit.parameters():
                if not parameter.any():  # what is zero before training would hide the rest
                    nn.init.normal_(parameter, std=0.02)
            if config.audio.encoder == WAV2VEC2:
                audio = Wav2Vec2Encoder(config.audio, random_wav2vec2())
            else:
                audio = load_audio_encoder(config.audio)
        dithead.eval().requires_grad_(False)
        return cls(dithead, audio, load_face_detector(), load_face_mesh())

    @property
    def config(self) -> DitHeadConfig:
        """The checkpoint's configuration."""
        return self.dithead.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.dithead.dit.positions.device

    def module(self, name: str) -> nn.Module:
        """The graph that goes by a name, such as ``dit_step``; those that depend on the rectangle's
        size are named with it, such as ``face_crop.256``.

        Raises:
            ConfigError: no such graph.
        """
        if name not in self._modules:
            self._modules[name] = self._build(name).to(self.device).eval()
        return self._modules[name]

    def _build(self, name: str) -> nn.Module:
        model, config = self.dithead, self.dithead.config
        kind, _, side = name.partition(".")
        if side.isdigit() and kind in ("face_crop", "face_blend"):
            return (FaceCrop if kind == "face_crop" else FaceBlend)(config.face, int(side))
        builders: dict[str, Callable[[], nn.Module]] = {
            "face_detector": lambda: self.detector,
            "face_landmarks": lambda: self.mesh,
            "face_tracker": lambda: FaceTracker(config.face),
            "masked_encoder": lambda: MaskedEncoder(config.face, model.masked_vqgan),
            "reference_encoder": lambda: ReferenceEncoder(model.face_vqgan),
            "audio_encoder": lambda: self.audio,
            "audio_window": lambda: AudioWindow(config.audio),
            "noise": lambda: Noise(config.diffusion, model.noise),
            "dit_context": lambda: DiTContext(model.dit),
            "dit_timestep": lambda: DiTTimestep(model.dit),
            "dit_step": lambda: DiTStep(model.dit, model.diffusion),
            "face_decoder": lambda: FaceDecoder(model.face_vqgan),
            "interpolator": load_interpolator,
        }
        if name not in builders:
            raise ConfigError(
                f"unknown graph {name!r}; choose one of {', '.join(builders)}, face_crop.SIDE, "
                "face_blend.SIDE"
            )
        return builders[name]()

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph eagerly: its inputs -> its outputs, in the table's order."""
        outputs = self.module(name)(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


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


class SpeechGraph:
    """The ``audio_encoder`` graph on the grid of chunks."""

    def __init__(self, graphs: Graphs) -> None:
        self.config = graphs.config.audio
        self.device = graphs.device
        self._graphs = graphs

    def __call__(self, chunk: Tensor) -> Tensor:
        """Chunk (B, chunk_samples) -> features of its hop (B, hop_features, F)."""
        return self._graphs.run("audio_encoder", chunk)[0]


class FrameGenerator:
    """Generates the patch of one frame after the other. Each method is one stage; :meth:`__call__`
    runs them in order."""

    def __init__(self, graphs: Graphs, options: Options) -> None:
        self.graphs = graphs
        self.options = options
        config = graphs.config.diffusion
        self.steps = options.steps or config.steps
        visits = torch.tensor([*ddim_timesteps(config, self.steps), -1], device=graphs.device)
        self.visits = visits[:, None]  # (steps + 1, 1)
        with torch.inference_mode():
            self.modulations = [graphs.run("dit_timestep", now)[0] for now in self.visits[:-1]]
        self.seed = torch.tensor([options.seed], device=graphs.device)
        self.locator = FaceLocator(
            partial(graphs.run, "face_detector"),
            partial(graphs.run, "face_landmarks"),
            options.face,
        )
        self.state = self._fresh_state()

    def _fresh_state(self) -> FaceState:
        return FaceState(FaceTracker.initial_state(self.graphs.device))

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
        transform, polygon, self.state.tracker = self.graphs.run(
            "face_tracker", mesh, self.state.tracker, elapsed
        )
        return transform, polygon

    def encode(self, rectangle: Tensor, transform: Tensor) -> tuple[Tensor, Tensor]:
        """Rectangle (S, S, 3) uint8, transform into it -> crop, masked latent."""
        (crop,) = self.graphs.run(f"face_crop.{rectangle.shape[0]}", rectangle, transform)
        return crop, self.graphs.run("masked_encoder", crop)[0]

    def denoise(self, crop: Tensor, masked: Tensor, window: Tensor, index: int) -> Tensor:
        """Crop, masked latent, audio window (window_frames, features) -> the frame's latent (1, C,
        s, s)."""
        run = self.graphs.run
        if self.state.reference is None:
            (self.state.reference,) = run("reference_encoder", crop)
        (latent,) = run("noise", self.seed, torch.full_like(self.seed, index))
        (context,) = run("dit_context", window[None])
        reference = self.state.reference
        for modulation, visit in zip(self.modulations, pairwise(self.visits), strict=True):
            (latent,) = run("dit_step", latent, masked, reference, context, modulation, *visit)
        if self.options.reference == "previous":
            self.state.reference = latent
        return latent

    def decode(
        self, latent: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latent, what :meth:`encode` took and gave, the blend's polygon -> composited rectangle,
        its soft mask."""
        (face,) = self.graphs.run("face_decoder", latent)
        return self.blend(face, rectangle, crop, transform, polygon)

    def blend(
        self, face: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`decode`, from a face crop (1, 3, S, S) in [-1, 1]."""
        name = f"face_blend.{rectangle.shape[0]}"
        image, weight = self.graphs.run(name, face, rectangle, crop, transform, polygon)
        return image, weight

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
            frame: (H, W, 3) uint8 RGB on the graphs' device. time_s: presentation time, seconds.
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
    frames: Iterable[tuple[Tensor, float]], samples: Tensor, graphs: Graphs, options: Options
) -> Iterator[Tensor]:
    """Re-voice a video that is held as pictures.

    Args:
        frames: pairs of a picture (H, W, 3) uint8 RGB and its presentation time in seconds.
        samples: (S,) float32 in [-1, 1], 16 kHz mono, time 0 at the first sample.

    Yields:
        One picture (H, W, 3) uint8 for each frame; a frame without a face comes back unchanged.
    """
    with torch.inference_mode():
        features = encode_audio(SpeechGraph(graphs), samples)
    generate = FrameGenerator(graphs, options)
    for index, (frame, time_s) in enumerate(frames):
        patch = generate(frame, time_s, index, features.window)
        yield frame if patch is None else put_patch(frame, patch)
