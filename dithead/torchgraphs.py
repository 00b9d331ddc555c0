"""Every graph of a model as a PyTorch module, run eagerly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dithead.audio import (
    AudioEncoder,
    AudioWindow,
    Wav2Vec2Encoder,
    load_audio_encoder,
    random_wav2vec2,
)
from dithead.audio.config import WAV2VEC2
from dithead.checkpoint import random_preset
from dithead.conditions import KnownEncoder, LayBack, UpperLandmarks
from dithead.config import DitHeadConfig, preset
from dithead.controls import FaceShape
from dithead.detail import FaceDetail
from dithead.diffusion import Diffusion, InitialNoise
from dithead.errors import ConfigError
from dithead.face.cropsmoother import CropSmoother
from dithead.face.networks import FaceModels, FaceNetworks
from dithead.face.networks import weightless as weightless_of_faces
from dithead.face.papermask import PaperMask
from dithead.graphs import (
    DiTContext,
    DiTStep,
    DiTTimestep,
    FaceBlend,
    FaceCrop,
    FaceDecoder,
    Graphs,
    MaskedEncoder,
    Mix,
    Noise,
    ReferenceEncoder,
)
from dithead.interpolation import load_interpolator
from dithead.kernels.attention import AttentionBackend, check_attention
from dithead.kernels.choice import check_preference
from dithead.model import DitHead, draw_what_is_zero
from dithead.shape import GeneratedMesh

_BY_SIDE = {"face_crop": FaceCrop, "face_blend": FaceBlend, "face_detail": FaceDetail}


def weightless(
    config: DitHeadConfig, face_models: FaceModels = "mediapipe"
) -> dict[str, Callable[[], nn.Module]]:
    """What makes each graph that has no weights and one size, by name."""
    latents = config.vqgan.latent_channels, config.latent_size
    paper = {"paper_mask": lambda: PaperMask(config.face)} if config.face.mask == "paper" else {}
    return {
        **weightless_of_faces(face_models),
        **paper,
        "looks_mix": Mix,
        "reference_mix": Mix,
        "crop_smoother": lambda: CropSmoother(config.face),
        "generated_mesh": GeneratedMesh,
        "upper_landmarks": UpperLandmarks,
        "lay_back": lambda: LayBack(config.face, config.vqgan.factor, Diffusion(config.diffusion)),
        "face_shape": FaceShape,
        "audio_window": lambda: AudioWindow(config.audio),
        "noise": lambda: Noise(config.diffusion, InitialNoise(*latents)),
    }


class PackagedGraphs:
    """The graphs that are the same for every checkpoint, as PyTorch modules: those without weights,
    those that find faces, and the networks that come with the package."""

    def __init__(self, config: DitHeadConfig, faces: FaceNetworks) -> None:
        self.config = config
        """The model's configuration."""
        self.faces = faces
        """The networks that find faces."""
        self._modules: dict[str, nn.Module] = {}
        self._building = threading.Lock()  # stages call from their own threads

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.faces.device

    def module(self, name: str) -> nn.Module:
        """The graph with a name such as ``dit_step``; if it depends on the rectangle's size, the
        name contains the size, as in ``face_crop.256``.

        Raises:
            ConfigError: no such graph.
        """
        with self._building:
            if name not in self._modules:
                self._modules[name] = self._build(name).to(self.device).eval()
            return self._modules[name]

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph eagerly: its inputs -> its outputs, in the table's order."""
        outputs = self.module(name)(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _build(self, name: str) -> nn.Module:
        kind, _, side = name.partition(".")
        if side.isdigit() and kind in _BY_SIDE:
            return _BY_SIDE[kind](self.config.face, int(side))
        if name in ("face_detector", "face_landmarks") or kind == "face_region":
            return self.faces.build(name)
        builders = self._builders()
        if name not in builders:
            raise ConfigError(
                f"unknown graph {name!r}; choose one of {', '.join(builders)}, face_detector, "
                "face_landmarks, face_region.SAMPLES, "
                f"{', '.join(f'{kind}.SIDE' for kind in _BY_SIDE)}"
            )
        return builders[name]()

    def _builders(self) -> dict[str, Callable[[], nn.Module]]:
        """What makes each graph that has one size."""
        return {**weightless(self.config, self.faces.models), "interpolator": load_interpolator}


class TorchGraphs(PackagedGraphs):
    """The weights of every graph, shared by streams, and the graphs as PyTorch modules."""

    def __init__(self, dithead: DitHead, audio: AudioEncoder, faces: FaceNetworks) -> None:
        super().__init__(dithead.config, faces)
        self.dithead = dithead
        self.audio = audio
        self.random_weights = False
        """Whether they were drawn, and never trained."""

    @classmethod
    def load(
        cls,
        checkpoint: str = "tiny",
        device: str | torch.device = "cpu",
        audio_weights: str | Path | None = None,
        attention: AttentionBackend = "auto",
        faces: FaceNetworks | None = None,
    ) -> TorchGraphs:
        """Load a checkpoint and the face and speech models onto a device.

        Args:
            checkpoint: name of a packaged one, a path, or ``random:PRESET`` for weights that are
                drawn in a preset's shapes, to measure its speed and memory.
            audio_weights: of the speech encoder, if it is not the packaged one; see
                :func:`dithead.audio.load_audio_encoder`.
            attention: attention of the denoiser; see :func:`dithead.kernels.attention.attention`.
            faces: the networks that find faces; None takes those that come with the package.
        """
        check_attention(attention, torch.device(device))
        check_preference(torch.device(device))
        if torch.device(device).type == "cuda":
            # On by default for convolutions; TF32 has only float16's digits, too few for a face's
            # position and for quiet sounds.
            torch.backends.cudnn.allow_tf32 = False
        faces = (faces or FaceNetworks.load()).to(device)
        drawn = random_preset(checkpoint)
        if drawn is not None:
            graphs = cls.random(preset(drawn), faces, attention, audio_weights)
        else:
            dithead = DitHead.load(checkpoint, attention)
            audio = load_audio_encoder(dithead.config.audio, audio_weights)
            graphs = cls(dithead, audio, faces)
        for module in (graphs.dithead, graphs.audio):
            module.to(device).eval()
        return graphs

    @classmethod
    def random(
        cls,
        config: DitHeadConfig,
        faces: FaceNetworks | None = None,
        attention: AttentionBackend = "auto",
        audio_weights: str | Path | None = None,
    ) -> TorchGraphs:
        """Random but fixed weights, with the packaged face and speech models, for measuring sizes
        and speed; wav2vec2 is random, too, unless its weights are given. On the CPU.

        Args:
            faces, attention, audio_weights: as in :meth:`load`.
        """
        audio: AudioEncoder
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            dithead = DitHead(config, attention)
            draw_what_is_zero(dithead.dit)
            if config.audio.encoder == WAV2VEC2 and audio_weights is None:
                audio = Wav2Vec2Encoder(config.audio, random_wav2vec2())
            else:
                audio = load_audio_encoder(config.audio, audio_weights)
        dithead.eval().requires_grad_(False)
        graphs = cls(dithead, audio, faces or FaceNetworks.load())
        graphs.random_weights = True
        return graphs

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.dithead.dit.positions.device

    @property
    def precision(self) -> str:
        """The precision of the computation."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(
            self.dithead.dit.positions.dtype, "fp32"
        )

    @property
    def replayable(self) -> bool:
        """PyTorch's kernels may be captured."""
        return True

    def _builders(self) -> dict[str, Callable[[], nn.Module]]:
        model, config = self.dithead, self.config
        builders: dict[str, Callable[[], nn.Module]] = {
            "masked_encoder": lambda: MaskedEncoder(config.face, model.masked_vqgan),
            "reference_encoder": lambda: ReferenceEncoder(model.face_vqgan),
            "known_encoder": lambda: KnownEncoder(config.face, model.face_vqgan),
            "audio_encoder": lambda: self.audio,
            "dit_context": lambda: DiTContext(model.dit),
            "dit_timestep": lambda: DiTTimestep(model.dit),
            "dit_step": lambda: DiTStep(model.dit, model.diffusion),
            "face_decoder": lambda: FaceDecoder(model.face_vqgan),
        }
        if model.shape_head is not None:
            head = model.shape_head
            builders["shape_head"] = lambda: head
        return {**super()._builders(), **builders}


class SpeechGraph:
    """The ``audio_encoder`` graph on the grid of chunks."""

    def __init__(self, graphs: Graphs) -> None:
        self.config = graphs.config.audio
        self.device = graphs.device
        self._graphs = graphs

    def __call__(self, chunk: Tensor) -> Tensor:
        """Chunk (B, chunk_samples) -> features of its hop (B, hop_features, F)."""
        return self._graphs.run("audio_encoder", chunk)[0]
