"""Settings of the two stages of training, and how a stage runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dithead.errors import ConfigError
from dithead.kernels.attention import AttentionBackend

Kind = Literal["face", "masked"]
Precision = Literal["bf16", "fp32"]
Seen = Literal["auto", "mouth", "whole"]


@dataclass(frozen=True, slots=True)
class DiTTraining:
    """Settings of stage 2, the denoiser."""

    minutes: float = 60.0
    steps: int | None = None
    """End after this many steps, if that comes first."""
    batch: int = 32
    learning_rate: float = 6e-4
    warmup_steps: int = 300
    beta1: float = 0.9
    """AdamW's decay of the mean gradient (*assumed*: DiT's)."""
    beta2: float = 0.98
    """AdamW's decay of the mean squared gradient. *Assumed*: DiT has 0.999, which takes longer than
    a short stage's warm-up to settle."""
    weight_decay: float = 0.01
    """AdamW's, of matrices alone. *Assumed*: DiT has none."""
    gradient_clip: float = 1.0
    """A longer gradient is shortened to this length. *Assumed*: DiT shortens none; here no single
    batch may throw a high learning rate off."""
    seed: int = 0
    average_decay: float = 0.999
    """Of the moving average of the weights, which is what the stage writes. *Assumed*: DiT has
    0.9999, over far more steps."""
    made_share: float = 0.5
    """Share of samples from people made from stills, if there are any; all of them equally
    often."""
    main_share: float = 0.7
    """Share of the other samples from the person with the most clips."""
    main_plain_share: float = 0.45
    """Share of that person's samples that show the person's true look."""
    other_clip_share: float = 0.9
    """Share of samples whose reference comes from another clip of the same person and look, if
    there is one. 0 is the paper's rule: a distant frame of the same clip."""
    min_distance: int = 60
    """A reference from the same clip, or from another that ``dithead-train prepare --shards`` cut
    from the same part of a video, is at least this many frames away (the paper's number). A clip
    shorter than twice that has frames for which none is so far: these take the most distant one.
    Of pieces that were cut by other means nothing is known."""
    own_output_share: float = 0.5
    """Share of samples whose reference is the model's own output for another frame and audio, if
    there is one; most of those were made from own outputs in turn."""
    generated_share: float = 0.25
    """Share of each batch for which such outputs are generated, with 1 to ``generated_steps``
    steps."""
    generated_steps: int = 4
    reference_noise: float = 0.1
    """Largest standard deviation of the noise on reference latents."""
    past_noise: float = 1.0
    """The same of the latents of frames before, for a denoiser that is shown them. Training shows
    true ones: with as little as the references have, errors grow from frame to frame
    (docs/evaluation.md)."""
    silence_share: float = 0.35
    """Share of silent frames that hear digital silence instead of the recorded one."""
    disturbed_share: float = 0.5
    """Share of samples that hear the audio with a changed level and added noise."""
    mouth_weight: float = 2.5
    """Extra weight of the mouth region; outside the mask the loss has the weight
    ``outside_weight``."""
    outside_weight: float = 0.15
    lip_weight: float = 0.0
    """Weight of a second loss, the prediction's in the lips' box alone; Diffused Heads (arXiv
    2301.03396) has 0.2, and no extra weight of the mouth besides."""
    shape_weight: float = 0.1
    """Weight of the face's shape, as the shape head reads it from the latent that the prediction
    implies; only with a shape head."""
    first_step_share: float = 0.3
    """Share of samples at the noisiest timestep, from which few-step sampling starts."""
    keyed: bool = False
    """Whether the random numbers of a sample depend on the seed, the step and its place in the
    batch alone, so that any number of processes sees the same batches; several processes need it.
    Otherwise each is drawn after the one before."""

    def __post_init__(self) -> None:
        _check_descent(self)
        if self.min_distance < 1:
            raise ConfigError(f"min_distance must be at least 1 frame, not {self.min_distance}")
        if self.lip_weight < 0:
            raise ConfigError(f"lip_weight must not be negative, not {self.lip_weight}")
        for name in (
            "made_share",
            "main_share",
            "main_plain_share",
            "other_clip_share",
            "own_output_share",
            "generated_share",
            "silence_share",
            "disturbed_share",
            "first_step_share",
        ):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must lie in 0..1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Distillation:
    """One round of distillation in stage 2: see :func:`dithead.train.distil.plan_lesson`."""

    teacher: Path
    """Weights of an earlier stage, or a checkpoint."""
    steps: int | None = None
    """Steps of DDIM that the teacher takes; None: those of its configuration."""

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ConfigError(f"the teacher's steps must be at least 1, not {self.steps}")


@dataclass(frozen=True, slots=True)
class VQGANTraining:
    """Settings of stage 1, for one of the two autoencoders."""

    kind: Kind = "face"
    """``face`` for whole faces, ``masked`` for masked faces."""
    minutes: float = 15.0
    steps: int | None = None
    """End after this many steps, if that comes first."""
    batch: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    """*Assumed*: LDM (arXiv 2112.10752) has no warm-up, and a lower rate."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient. *Assumed*: LDM has 0.5, as is usual where a discriminator
    takes part; here that comes last."""
    beta2: float = 0.99
    """AdamW's decay of the mean squared gradient. *Assumed*: LDM has 0.9."""
    weight_decay: float = 0.0
    """AdamW's (*assumed*: LDM's)."""
    gradient_clip: float = 1.0
    """A longer gradient is shortened to this length. *Assumed*: LDM shortens none; here no single
    batch may throw a high learning rate off."""
    average_decay: float = 0.998
    """Of the moving average of the weights, which is what the stage writes. *Assumed*: LDM's
    autoencoders have none; this one evens out the last 500 steps."""
    seed: int = 0
    still_share: float = 0.7
    """Share of the pictures that are stills, if there are any."""
    main_share: float = 0.6
    """Share of the frames of clips that come from the person with the most; the rest is divided
    over all others."""
    plain_share: float = 0.5
    """Share of pictures whose look is not augmented."""
    mouth_weight: float = 2.0
    """Extra weight of the mouth region in the reconstruction loss."""
    warm_share: float = 0.45
    """Part of the stage before the codebook is switched on (skipped when starting from weights)."""
    quantised_share: float | None = None
    """Share of each batch that passes through the codebook then; None: all, or a quarter where
    latents are decoded as they are."""
    latent_noise: float = 0.05
    """Largest standard deviation of the noise, relative to the features' own, that the decoder
    learns to tolerate where latents are not quantised."""
    commitment_weight: float = 0.25
    """Weight of what draws features to their codebook entries; what draws entries to features has
    1. *Assumed*: that of VQ-VAE (arXiv 1711.00937) and LDM."""
    perceptual_weight: float = 0.0
    """Weight of the perceptual distance (ST-LPIPS, AlexNet); needs the extra ``train``."""
    perceptual_sees: Seen = "auto"
    """Which part of the pictures that distance compares: ``mouth``, the quarter that contains it,
    or ``whole``, which takes four times as long. ``auto``: the mouth of whole faces, and all of
    masked ones, whose mouth is a constant grey."""
    adversarial_weight: float = 0.0
    """Weight of the patch discriminator; only with ``decoder_only``."""
    decoder_only: bool = False
    """Train only the decoder, so that latents stay as they are: the denoiser is trained on them. If
    the start's decoder has another shape, a new one begins."""
    keyed: bool = False
    """As in :class:`DiTTraining`; the noise on latents is then keyed, too."""

    def __post_init__(self) -> None:
        _check_descent(self)
        if self.commitment_weight < 0:
            raise ConfigError(
                f"commitment_weight must not be negative, not {self.commitment_weight}"
            )
        if self.adversarial_weight > 0 and not self.decoder_only:
            raise ConfigError("a discriminator would move the latents: train the decoder only")
        if self.perceptual_sees not in get_args(Seen):
            raise ConfigError(
                f"perceptual_sees must be one of {', '.join(get_args(Seen))}, not "
                f"{self.perceptual_sees!r}"
            )
        if self.kind == "masked" and self.perceptual_sees == "mouth":
            raise ConfigError(
                "the mouth of a masked face is a constant grey, of which nothing is learnt",
                hint="let perceptual_sees be whole or auto",
            )

    @property
    def perceptual_whole(self) -> bool:
        """Whether the perceptual distance compares whole pictures."""
        by_kind = self.perceptual_sees == "auto" and self.kind == "masked"
        return by_kind or self.perceptual_sees == "whole"


def _check_descent(training: DiTTraining | VQGANTraining) -> None:
    """Raise ConfigError if a stage's weights cannot be trained like that."""
    t = training
    if t.batch < 1 or (t.steps is not None and t.steps < 1) or not t.minutes > 0:
        raise ConfigError(
            f"batch and steps must be at least 1 and minutes positive, not {t.batch}, {t.steps} "
            f"and {t.minutes}"
        )
    if not (t.learning_rate > 0 and t.warmup_steps >= 1 and t.seed >= 0):
        raise ConfigError(
            "learning_rate must be positive, warmup_steps at least 1 and seed not negative, "
            f"not {t.learning_rate}, {t.warmup_steps} and {t.seed}"
        )
    if not (0 <= t.beta1 < 1 and 0 <= t.beta2 < 1):
        raise ConfigError(f"beta1 and beta2 must lie in 0..1, below 1, not {t.beta1} and {t.beta2}")
    if not (t.weight_decay >= 0 and t.gradient_clip > 0):
        raise ConfigError(
            "weight_decay must not be negative and gradient_clip must be positive, not "
            f"{t.weight_decay} and {t.gradient_clip}"
        )
    if not 0 <= t.average_decay <= 1:
        raise ConfigError(f"average_decay must lie in 0..1, not {t.average_decay}")


@dataclass(frozen=True, slots=True)
class Execution:
    """How a stage runs. Nothing of it is meant to change what is learnt."""

    device: str = "cpu"
    attention: AttentionBackend = "auto"
    """``auto``: PyTorch's scaled_dot_product_attention on a GPU, which in bf16 is flash attention,
    and on a CPU the formula written out. Otherwise see :func:`dithead.kernels.attention.attention`;
    ``flash`` is the package flash-attn."""
    precision: Precision = "bf16"
    """``bf16``: autocast; weights, moments and averages are float32."""
    compile: bool = False
    """Compile the model (torch.compile)."""
    recompute: bool = False
    """Run each block again in the backward pass, in the place of keeping what it computed (gradient
    checkpointing)."""
    accumulate: int = 1
    """Parts of each process's batch that are computed one after the other. The sum is the same."""
    shard: bool = False
    """Each process keeps a part of the weights, moments and averages (FSDP2); only with several."""
    resume: bool = False
    """Go on from the newest state in the folder, if there is one."""
    save_minutes: float = 10.0
    """Time between two states."""
    save_steps: int | None = None
    """Steps between two states, in the place of that time."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"precision must be one of {', '.join(get_args(Precision))}, not {self.precision!r}"
            )
        if self.accumulate < 1:
            raise ConfigError(f"accumulate must be at least 1, not {self.accumulate}")
        if not self.save_minutes > 0:
            raise ConfigError(f"save_minutes must be positive, not {self.save_minutes}")
        if self.save_steps is not None and self.save_steps < 1:
            raise ConfigError(f"save_steps must be at least 1, not {self.save_steps}")


PLAIN = Execution()
"""On the CPU, begun anew."""
