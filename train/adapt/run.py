"""One adaptation from start to end."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from dithead import checkpoint
from dithead.audio import load_audio_encoder
from dithead.errors import ConfigError, MediaError
from dithead.face.choice import FaceChoice
from dithead.model import DitHead
from dithead.train.adapt.decoder import fit_decoder
from dithead.train.adapt.fit import Practice, fit_denoiser, fit_shape_head
from dithead.train.adapt.gain import Gain, Held
from dithead.train.adapt.person import encoded, practice_windows, prepared
from dithead.train.adapt.settings import Adaptation, Tell
from dithead.train.adapt.work import Work
from dithead.train.distributed import refuse_several
from dithead.train.latents import load_cache
from dithead.train.samples import LatentSampler
from dithead.train.settings import DiTTraining


def adapt(
    videos: Sequence[Path],
    out: Path,
    training: Adaptation | None = None,
    *,
    base: str = "tiny",
    audio_weights: Path | None = None,
    latents: Path | None = None,
    face: FaceChoice = "largest",
    tell: Tell | None = None,
) -> Gain:
    """Fit a checkpoint to the person in some videos, whose own sound is the words.

    An interrupted call leaves a folder beside ``out``; the same call then goes on from there.

    Args:
        out: the .safetensors file to write; it holds only what changed. A sheet of frames that were
            not learnt from is written beside it as .adapted.png: true, before, after.
        base: name or path of the checkpoint.
        audio_weights: of the speech encoder, for a checkpoint that does not use the packaged one;
            see :func:`dithead.audio.load_audio_encoder`.
        latents: folder of ``dithead train latents`` with general footage to mix in.
        face: whose face, where a video shows several. tell: told what is being done.

    Raises:
        MediaError: a video cannot be read or has no sound, too few frames show a face, or the file
            cannot be written.
        ConfigError: the checkpoint has no shape head or would be overwritten, or the same file is
            being made by another run; or several processes were started.
        CheckpointError: the checkpoint cannot be used.
    """
    refuse_several("an adaptation")
    training, tell = training or Adaptation(), tell or _silent
    check_files(videos)
    model = DitHead.load(base, "math")  # the fused one takes half as long again to learn
    checkpoint.check_not_a_base(out, base)
    if model.shape_head is None:
        raise ConfigError(f"{base} has no shape head, so that lips cannot be compared")
    if refused := model.config.torch_only:
        raise ConfigError(f"{base} cannot be adapted: it was trained with {', '.join(refused)}")
    general = None
    if latents is not None:
        general = LatentSampler(load_cache(latents), DiTTraining(seed=training.seed))
    torch.manual_seed(training.seed)
    settings = face, audio_weights, general is None
    try:
        with closing(Work(out, videos, checkpoint.resolve(base), training, settings)) as work:
            return _adapt(
                work, videos, out, training, model, base, audio_weights, general, face, tell
            )
    except OSError as error:
        raise MediaError(f"{out} cannot be made: {error}") from error


def _adapt(
    work: Work,
    videos: Sequence[Path],
    out: Path,
    training: Adaptation,
    model: DitHead,
    base: str,
    audio_weights: Path | None,
    general: LatentSampler | None,
    face: FaceChoice,
    tell: Tell,
) -> Gain:
    encoder = load_audio_encoder(model.config.audio, audio_weights)
    try:
        footage = prepared(videos, work, training, model, face, tell)
    except MediaError:
        work.remove()  # nothing to go on with
        raise
    person = encoded(footage, model, encoder, training.seed)
    held = Held(footage, model, encoder, person.face[:1].float())
    learnt = copy.deepcopy(model)
    head = fit_shape_head(person, learnt, work, training, tell)
    practice = Practice(model, practice_windows(encoder), training.practice_rows)
    denoiser = fit_denoiser(person, learnt, practice, general, work, training, tell)
    decoder = fit_decoder(person, learnt, work, training, tell)
    changes = {f"face_vqgan.decoder.{name}": value for name, value in decoder.items()}
    changes |= {f"shape_head.{name}": value for name, value in head.items()}
    changes |= {f"dit.{name}": value for name, value in denoiser.items()}
    origin = f"dithead train adapt, {training.minutes:g} minutes"
    checkpoint.save_adapted(out, changes, base, {"origin": origin})
    gain = held.compare(DitHead.load(out), out.with_suffix(".adapted.png"))
    work.remove()
    return gain


def check_files(videos: Sequence[Path]) -> None:
    """Raise MediaError if one of the videos is no file."""
    for video in videos:
        if not video.is_file():
            raise MediaError(f"{video} is no file: only to a file can a model be adapted")


def _silent(what: str, share: float) -> None:
    """Tells nobody."""
