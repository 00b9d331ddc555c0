"""Configuration of the whole model: one frozen dataclass per concern, and the named presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from dithead.audio.config import AUDIO_PRESETS, AudioConfig
from dithead.errors import ConfigError

Conditioning = Literal["paper", "tokens"]
Schedule = Literal["linear", "cosine"]
Prediction = Literal["noise", "velocity"]
NoiseMode = Literal["frame", "stream"]
Norm = Literal["group", "none"]
Upsampling = Literal["nearest", "shuffle"]
Mask = Literal["fixed", "paper"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


class View(NamedTuple):
    """The square that a crop shows, in crop units: its side, and how far its middle is below their
    origin."""

    span: float = 1.0
    down: float = 0.0


@dataclass(frozen=True, slots=True)
class FaceConfig:
    """Geometry of the face crop and of the mask. Lengths are in crop units (dithead.face.crop)
    unless a name says otherwise.

    The paper draws a convex polygon from the landmarks of the lower face. Here the polygon depends
    on points that speech does not move, so it cannot tell how far the mouth is open
    (docs/architecture.md, "The mask"). The paper's is there for comparison.
    """

    crop_px: int = 256
    """Side of the square crop in pixels. 256 is *assumed*: the paper states latents of 32 x 32 at
    f = 8. 512 (``paper-512``) gives 64 x 64."""
    crop_span: float = 1.0
    """How much of the face the crop shows, along each side, in crop units: below 1 it is tighter,
    and gives the mouth more of its pixels."""
    crop_down: float = 0.0
    """How far the crop's middle is below the origin of crop units."""
    mask: Mask = "fixed"
    """``fixed``: the same polygon in every crop. ``paper``: one round the frame's own landmarks,
    which shows how far the mouth is open; in PyTorch only, not in a bundle."""
    mask_softness: float = 0.02
    """Sigma of the Gaussian that softens the polygon's edge. *Assumed*, as the paper names neither
    the kernel's size nor its sigma: 5 pixels of a crop of 256. The size is 2.5 sigma to
    either side, which leaves out 1 % of a Gaussian."""
    smoothing_cutoff_hz: float = 1.5
    """Cut-off of the one-euro filter on the crop transform for a still head."""
    smoothing_speed_gain: float = 12.0
    """How fast the cut-off rises with the head's speed (Hz per crop side per second)."""

    def __post_init__(self) -> None:
        _require(
            self.crop_px >= 32 and self.crop_px % 16 == 0,
            f"crop_px must be a multiple of 16, at least 32, not {self.crop_px}",
        )
        _require(
            0.5 <= self.crop_span <= 1.0 and 0.0 <= self.crop_down <= 0.5 * (1.0 - self.crop_span),
            "crop_span must lie in 0.5..1 and crop_down in 0..(1 - crop_span) / 2, not "
            f"{self.crop_span} and {self.crop_down}",
        )
        _require(
            self.mask in get_args(Mask), f"mask must be one of {get_args(Mask)}, not {self.mask!r}"
        )
        _require(
            0 < self.mask_softness < 0.2,
            f"mask_softness must lie in (0, 0.2), not {self.mask_softness}",
        )
        _require(
            self.smoothing_cutoff_hz > 0 and self.smoothing_speed_gain >= 0,
            "smoothing_cutoff_hz must be positive and smoothing_speed_gain not negative",
        )

    @property
    def view(self) -> View:
        """The part of the face that the crop shows."""
        return View(self.crop_span, self.crop_down)


@dataclass(frozen=True, slots=True)
class VQGANConfig:
    """One VQGAN (Esser et al., arXiv 2012.09841). Two are trained: one for whole faces, one for
    masked faces."""

    encoder_channels: tuple[int, ...] = (128, 256, 256, 512)
    """Channels at each resolution, finest first; the factor f is fold * 2 ** (levels - 1). The
    paper states f = 8 only; the channels are *assumed*: those of LDM's VQ-f8 (arXiv
    2112.10752)."""
    decoder_channels: tuple[int, ...] = (128, 256, 256, 512)
    """Channels of the decoder, finest first; as many levels as the encoder."""
    fold: int = 1
    """Pixels along each side that are folded into channels before the first convolution, and
    unfolded after the last: convolutions at full resolution are the most expensive."""
    blocks: int = 2
    """Residual blocks at each resolution (*assumed*, as in LDM's VQ-f8)."""
    decoder_blocks: tuple[int, ...] = ()
    """Residual blocks at each resolution of the decoder, finest first, if different from the
    encoder."""
    upsampling: Upsampling = "nearest"
    """``nearest``: repeat pixels, then a 3x3 convolution (LDM). ``shuffle``: a 1x1 convolution to
    four times the channels, which become pixels: a fifth of the work."""
    norm: Norm = "group"
    """``group``: group norm and SiLU before every convolution (LDM). ``none``: only ReLU, and every
    residual block begins as the identity; on a CPU a group norm costs as much as a convolution."""
    attention: bool = True
    """Self-attention at the coarsest resolution (*assumed*, as in LDM's VQ-f8)."""
    latent_channels: int = 4
    """Channels of the latent."""
    codebook_size: int = 16384
    """Entries of the codebook. *Assumed*: LDM's VQ-f8 has 16384 of 4 numbers, and the paper's
    latents have its 4 channels."""
    codebook_groups: int = 1
    """Groups of channels that are quantised separately, each with its own entries: otherwise a
    latent of many channels needs very many entries (product quantisation, Jegou et al., 2011)."""
    softness: float | None = 0.002
    """Squared distance over which codebook entries are mixed when a latent is decoded; 0 takes only
    the nearest, as LDM does; None decodes the latent as it is. With 0, the last digit decides
    between two pictures where a latent lies between two entries, and precisions and back ends
    differ visibly."""

    def __post_init__(self) -> None:
        _require(
            len(self.encoder_channels) == len(self.decoder_channels) >= 2,
            "encoder_channels and decoder_channels need the same number of levels, at least 2",
        )
        _require(
            all(c > 0 and c % 8 == 0 for c in self.encoder_channels + self.decoder_channels),
            "VQGAN channels must be positive multiples of 8",
        )
        _require(
            self.blocks >= 1 and self.latent_channels >= 1 and self.codebook_size >= 2,
            "blocks and latent_channels must be at least 1, codebook_size at least 2",
        )
        _require(
            not self.decoder_blocks
            or (
                len(self.decoder_blocks) == len(self.decoder_channels)
                and min(self.decoder_blocks) > 0
            ),
            "decoder_blocks needs a number of at least 1 for each of decoder_channels, or none",
        )
        _require(
            self.codebook_groups >= 1 and self.latent_channels % self.codebook_groups == 0,
            f"codebook_groups ({self.codebook_groups}) must divide latent_channels "
            f"({self.latent_channels})",
        )
        _require(self.fold >= 1, f"fold must be at least 1, not {self.fold}")
        for name, kind in (("norm", Norm), ("upsampling", Upsampling)):
            value = getattr(self, name)
            _require(
                value in get_args(kind), f"{name} must be one of {get_args(kind)}, not {value!r}"
            )
        _require(
            self.softness is None or self.softness >= 0,
            f"softness must not be negative, not {self.softness}",
        )

    @property
    def factor(self) -> int:
        """How many pixels one latent position represents, along each side."""
        return self.fold * 2 ** (len(self.encoder_channels) - 1)


@dataclass(frozen=True, slots=True)
class DiTConfig:
    """The denoiser: a diffusion transformer (Peebles and Xie, arXiv 2212.09748) that receives the
    audio by cross-attention."""

    width: int = 1024
    """Width of a token."""
    depth: int = 24
    """Number of blocks."""
    heads: int = 16
    """Attention heads; must divide the width."""
    patch: int = 2
    """Side of a patch in latent positions."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP, relative to the width (*assumed*, as in DiT)."""
    conditioning: Conditioning = "paper"
    """``paper``: audio and timestep joined in one cross-attention token. *Assumed*: they are joined
    by concatenation on channels, after the audio's projection to the width; cross-attention stands
    between self-attention and MLP, as in LDM's transformer blocks. ``tokens``: one token for each
    window frame, the timestep through adaLN-zero."""
    skip: bool = False
    """Whether a separate linear map at every position leads from the inputs round the blocks to the
    output: what can be copied need not be learnt. Needs ``tokens``."""
    landmarks: bool = False
    """Whether the landmarks of brows, nose and eyes are one more token of the cross-attention
    (DiffTalk, arXiv 2301.03786). Like the next two, this is no part of the paper's method."""
    audio_filter: bool = False
    """Whether self-attention smooths each audio window over time first (DiffTalk)."""
    motion_frames: int = 0
    """Number of frames before whose latents are shown, too, as channels of the input (Diffused
    Heads, arXiv 2301.03396, shows two)."""

    def __post_init__(self) -> None:
        _require(
            self.width % self.heads == 0 and self.width % 4 == 0,
            f"heads ({self.heads}) must divide width ({self.width}), a multiple of 4",
        )
        _require(self.depth >= 1 and self.patch >= 1, "depth and patch must be at least 1")
        _require(
            0 <= self.motion_frames <= 8,
            f"motion_frames must lie in 0..8, not {self.motion_frames}",
        )
        _require(
            not self.skip or self.conditioning == "tokens", "skip needs the conditioning 'tokens'"
        )
        _require(
            self.conditioning in get_args(Conditioning),
            f"conditioning must be one of {get_args(Conditioning)}, not {self.conditioning!r}",
        )


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """The diffusion process and its defaults at sampling time."""

    timesteps: int = 1000
    """Length of the training schedule."""
    schedule: Schedule = "linear"
    """``linear``: ADM's betas from 1e-4 to 2e-2 (the paper). ``cosine``: Nichol and Dhariwal (arXiv
    2102.09672)."""
    prediction: Prediction = "noise"
    """What the network predicts: the noise (the paper) or the velocity (Salimans and Ho, arXiv
    2202.00512)."""
    noise: NoiseMode = "frame"
    """``frame``: fresh initial noise for every frame (the paper). ``stream``: the same for every
    frame of a stream, which keeps the picture from flickering."""
    noise_scale: float = 1.0
    """Standard deviation of the initial noise. Below 1, samples are closer to the likeliest
    picture: less variety, less error (reduced temperature, as in Glow, arXiv 1807.03039)."""
    steps: int = 250
    """Default number of DDIM steps. Their spacing, from the last timestep down, and eta = 0 are
    *assumed*: the paper gives only their number, 250."""
    inpaint: bool = False
    """Whether the part of the latent outside the mask is replaced by that of the frame, noised
    accordingly, after every step (DiffTalk, arXiv 2301.03786). No part of the paper's method; any
    denoiser can be sampled so."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("schedule", Schedule),
            ("prediction", Prediction),
            ("noise", NoiseMode),
        ):
            value = getattr(self, name)
            _require(
                value in get_args(kind), f"{name} must be one of {get_args(kind)}, not {value!r}"
            )
        _require(self.timesteps >= 2, "timesteps must be at least 2")
        _require(
            0.0 <= self.noise_scale <= 1.0,
            f"noise_scale must lie in 0..1, not {self.noise_scale}",
        )
        _require(
            1 <= self.steps <= self.timesteps,
            f"steps must lie in 1..{self.timesteps}, not {self.steps}",
        )


@dataclass(frozen=True, slots=True)
class DitHeadConfig:
    """Everything that defines the model; stored as JSON in every checkpoint and bundle."""

    preset: str = "custom"
    """Name of the configuration in logs."""
    face: FaceConfig = field(default_factory=FaceConfig)
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    dit: DiTConfig = field(default_factory=DiTConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    shape_head: bool = False
    """Whether a head reads the face's shape from its latent for the detail layer; without one the
    mesh network reads it from the picture."""

    def __post_init__(self) -> None:
        _require(
            self.face.crop_px % (self.vqgan.factor * self.dit.patch) == 0,
            f"crop_px ({self.face.crop_px}) must be a multiple of the VQGAN's factor times the "
            f"patch ({self.vqgan.factor} x {self.dit.patch})",
        )

    @property
    def torch_only(self) -> list[str]:
        """Which choices no bundle and no C library can run, only PyTorch."""
        choices = {
            "dit.landmarks": self.dit.landmarks,
            "dit.motion_frames": self.dit.motion_frames > 0,
            "diffusion.inpaint": self.diffusion.inpaint,
        }
        return [name for name, chosen in choices.items() if chosen]

    @property
    def latent_size(self) -> int:
        """Side of the square latent."""
        return self.face.crop_px // self.vqgan.factor

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DitHeadConfig:
        """Inverse of :meth:`to_dict`.

        Raises:
            ConfigError: an unknown key (the message lists the valid ones) or an invalid value.
        """
        return _from_dict(cls, values, "config")


def _from_dict(cls: type, values: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(values) - set(names))
    _require(not unknown, f"unknown key {unknown} in {where}; valid keys: {', '.join(names)}")
    kwargs: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            _require(isinstance(value, Mapping), f"{where}.{name} must be a mapping")
            kwargs[name] = _from_dict(hint, value, f"{where}.{name}")  # type: ignore[arg-type]
        else:
            kwargs[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**kwargs)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error


_WAV2VEC2 = AUDIO_PRESETS["wav2vec2-xlsr-english"]
_LDM = VQGANConfig(softness=0.0)
# f = 16 with 8 channels, as latent diffusion has it (arXiv 2112.10752, table 8).
_LDM_16_CHANNELS = (128, 128, 256, 256, 512)
_LDM_16 = dataclasses.replace(
    _LDM,
    encoder_channels=_LDM_16_CHANNELS,
    decoder_channels=_LDM_16_CHANNELS,
    latent_channels=8,
)

_FEW_STEPS = DiffusionConfig(
    schedule="cosine", prediction="velocity", noise="stream", noise_scale=0.7, steps=4
)

_BASE = DitHeadConfig(
    preset="base",
    dit=DiTConfig(width=768, depth=12, heads=12, conditioning="tokens"),
    diffusion=_FEW_STEPS,
)

PRESETS: dict[str, DitHeadConfig] = {
    "tiny": DitHeadConfig(
        preset="tiny",
        face=FaceConfig(crop_px=128, crop_span=0.84, crop_down=0.065),
        vqgan=VQGANConfig(
            encoder_channels=(48, 96, 128),
            decoder_channels=(48, 96, 128),
            fold=2,
            blocks=1,
            decoder_blocks=(1, 1, 2),
            upsampling="shuffle",
            norm="none",
            attention=False,
            latent_channels=16,
            codebook_size=1024,
            codebook_groups=4,
            softness=None,
        ),
        dit=DiTConfig(width=256, depth=8, heads=4, conditioning="tokens", skip=True),
        diffusion=dataclasses.replace(_FEW_STEPS, steps=1),
        audio=AudioConfig(
            layers=(3,), hop_ms=120, left_context_ms=960, right_context_ms=120, window_shift_ms=80
        ),
        shape_head=True,
    ),
    "base": _BASE,
    # The same, hearing with Whisper's multilingual encoder.
    "base-multilingual": dataclasses.replace(
        _BASE, preset="base-multilingual", audio=AUDIO_PRESETS["whisper-base"]
    ),
    "paper": DitHeadConfig(preset="paper", vqgan=_LDM, audio=_WAV2VEC2),
    # With the paper's own mask, to compare: it shows how far the mouth is open.
    "paper-mask": DitHeadConfig(
        preset="paper-mask", face=FaceConfig(mask="paper"), vqgan=_LDM, audio=_WAV2VEC2
    ),
    "paper-512": DitHeadConfig(
        preset="paper-512", face=FaceConfig(crop_px=512), vqgan=_LDM, audio=_WAV2VEC2
    ),
    # The conditions of two other papers in this method's denoiser: not their networks.
    "difftalk": DitHeadConfig(
        preset="difftalk",
        face=FaceConfig(crop_px=512),
        vqgan=_LDM_16,
        dit=DiTConfig(conditioning="tokens", landmarks=True, audio_filter=True),
        diffusion=DiffusionConfig(inpaint=True, steps=200),
        audio=_WAV2VEC2,
    ),
    "diffused-heads": DitHeadConfig(
        preset="diffused-heads",
        vqgan=_LDM,
        dit=DiTConfig(conditioning="tokens", motion_frames=2),
        audio=_WAV2VEC2,
    ),
}


def preset(name: str) -> DitHeadConfig:
    """The configuration with a name.

    Raises:
        ConfigError: no such preset; the message lists those that exist.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
