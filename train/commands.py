"""What the commands of ``dithead-train`` do with their options, which are in
:mod:`dithead.train.parser`. Each prints one line of JSON about what it made."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from dithead import checkpoint
from dithead.config import preset
from dithead.errors import ConfigError
from dithead.face.networks import FaceModels
from dithead.kernels.attention import check_attention
from dithead.runtime.checked import checked_device
from dithead.runtime.progress import TaskProgress
from dithead.train.data import Footage
from dithead.train.distributed import is_main
from dithead.train.dit import train_dit
from dithead.train.evaluation.table import as_markdown
from dithead.train.latents import cache_latents, load_cache, load_vqgan
from dithead.train.loop import load_part
from dithead.train.pack import pack
from dithead.train.settings import Distillation, DiTTraining, Execution, VQGANTraining
from dithead.train.shape import ShapeTraining, load_shape_head, shape_scores, train_shape
from dithead.train.vqgan import reconstruction_psnr, train_vqgan
from dithead.train.windows import cache_windows
from dithead.vqgan import VQGAN

log = logging.getLogger(__name__)

MAX_STAGE_MINUTES = 120.0


def run_prepare(args: argparse.Namespace) -> None:
    """Crops, tracks and sound from footage, in a folder or in shards."""
    # Imported here: the other commands need neither FFmpeg nor the face models.
    from dithead.train.prepare import list_folder, list_manifest, list_stills, prepare
    from dithead.train.shards import command as shards

    if args.shards:
        shards.run(args)
        return
    sources = []
    if args.videos is not None:
        if args.person is None:
            raise ConfigError("--videos needs --person, the name its clips go by")
        sources += list_folder(args.videos, args.person, args.validation)
    if args.manifest is not None:
        sources += list_manifest(args.manifest, args.split)
    if args.stills is not None:
        sources += list_stills(args.stills)
    if not sources:
        raise ConfigError("nothing to prepare: give --videos, --manifest or --stills")
    sources = [replace(source, sound_delay_ms=args.sound_delay_ms) for source in sources]
    config = preset(args.preset)
    models: FaceModels = args.face_models or "mediapipe"
    clips = prepare(sources, args.out, config, args.workers, models, args.face_weights)
    print(json.dumps({"clips": len(clips), "frames": sum(c.frames for c in clips)}))


def run_archive(args: argparse.Namespace) -> None:
    """Prepared footage in one file."""
    from dithead.train.archive import archive

    if not args.out.parent.is_dir():
        raise ConfigError(f"{args.out}: the folder {args.out.parent} does not exist; make it first")
    size = archive(Footage(*args.data), args.out)
    print(json.dumps({"archive": str(args.out), "bytes": size}))


def run_restore(args: argparse.Namespace) -> None:
    """The folder of prepared footage, from such a file."""
    from dithead.train.archive import restore

    clips = restore(args.archive, args.out)
    print(json.dumps({"clips": len(clips), "frames": sum(clip.frames for clip in clips)}))


def run_identities(args: argparse.Namespace) -> None:
    """Talking clips of people in stills."""
    from dithead.train.identities import make_identities

    clips, left_out = make_identities(
        Footage(args.data),
        args.out,
        preset(args.preset),
        args.stills,
        args.clips_per_still,
        tuple(args.vigour),
        seed=args.seed,
        workers=args.workers,
    )
    people = {clip.person for clip in clips}
    counts = {"clips": len(clips), "people": len(people), "frames": sum(c.frames for c in clips)}
    print(json.dumps({**counts, "stills_left_out": left_out}))


def run_vqgan(args: argparse.Namespace) -> None:
    """Stage 1: one autoencoder."""
    config = preset(args.preset)
    training = VQGANTraining(**{**_settings(VQGANTraining, args), "minutes": _minutes(args)})
    footage = Footage(args.data)
    execution = Execution(**_settings(Execution, args))
    path = train_vqgan(footage, config, training, args.out, args.start, execution)
    if not is_main():
        return
    model = VQGAN(config.vqgan)
    checkpoint.load_into(model, load_part(path, f"{args.kind}_vqgan"), path)
    model.eval()
    scores = reconstruction_psnr(model, footage, config, args.kind)
    if not scores:
        log.info("no clips are held out for validation, so nothing says how good it is")
    print(json.dumps({"weights": str(path), **scores}))


def run_latents(args: argparse.Namespace) -> None:
    """The footage, encoded once for stage 2."""
    config = preset(args.preset)
    footage = Footage(*args.data)
    for path, part in ((args.face, "face_vqgan"), (args.masked, "masked_vqgan")):
        load_vqgan(path, part, config)  # before the sound, which takes long
    cache_windows(footage, config, args.out, args.audio_weights, workers=args.workers)
    cache_latents(
        footage,
        config,
        args.face,
        args.masked,
        args.out,
        args.main_looks,
        args.main_plain_share,
        args.other_looks,
        args.made_looks,
        workers=args.workers,
        device=args.device,
    )


def run_shape(args: argparse.Namespace) -> None:
    """The head that reads the face's shape from its latent."""
    config = preset(args.preset)
    training = ShapeTraining(
        minutes=_minutes(args),
        batch=args.batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    footage = Footage(*args.data)
    path = train_shape(footage, config, training, args.face, args.out, args.start)
    scores = shape_scores(load_shape_head(path, config), footage, config, args.face)
    print(json.dumps({"weights": str(path), **scores}))


def run_dit(args: argparse.Namespace) -> None:
    """Stage 2: the denoiser, from noise or from a teacher."""
    execution = Execution(**_settings(Execution, args))
    check_attention(execution.attention, checked_device(execution.device))  # before much is read
    training = DiTTraining(**{**_settings(DiTTraining, args), "minutes": _minutes(args)})
    distillation = None
    if args.teacher is not None:
        distillation = Distillation(args.teacher, args.teacher_steps)
    elif args.teacher_steps is not None:
        raise ConfigError("--teacher-steps needs --teacher, the weights of who takes them")
    path = train_dit(
        load_cache(args.latents),
        preset(args.preset),
        training,
        args.out,
        args.start,
        execution,
        args.shape,
        distillation,
    )
    if is_main():
        print(json.dumps({"weights": str(path)}))


def run_adapt(args: argparse.Namespace) -> None:
    """A checkpoint, fitted to one person's footage."""
    from dithead.train.adapt import Adaptation, adapt

    _check_weights_file(args.out)
    progress = TaskProgress(sys.stderr) if sys.stderr.isatty() else None
    try:
        gain = adapt(
            args.videos,
            args.out,
            Adaptation(minutes=_minutes(args), seed=args.seed),
            base=args.checkpoint,
            audio_weights=args.audio_weights,
            latents=args.latents,
            face=args.face,
            tell=None if progress is None else progress.show,
        )
    finally:
        if progress is not None:
            progress.end()
    if gain.is_loss:
        print(f"{args.out} is worse than {args.checkpoint}: {gain}", file=sys.stderr)
    size = args.out.stat().st_size
    print(json.dumps({"checkpoint": str(args.out), "bytes": size, **asdict(gain)}))


def run_sync(args: argparse.Namespace) -> None:
    """The model that judges whether lips and sound belong together."""
    from dithead.train.sync.training import SyncTraining, train_sync

    _check_weights_file(args.out)
    training = SyncTraining(**_settings(SyncTraining, args))
    provenance = {"origin": args.origin, "licence": args.licence}
    found = train_sync(Footage(*args.data), training, args.out, provenance, without=args.without)
    print(json.dumps({"weights": str(args.out), **found}))


def run_ablate(args: argparse.Namespace) -> None:
    """Denoisers that differ in one choice, and a table of them."""
    from dithead.train.ablation import Ablation, ablate, chosen

    rows = chosen(args.rows)
    training = DiTTraining(**{**_settings(DiTTraining, args), "minutes": math.inf})
    parts = args.face, args.masked, args.shape
    shared = Ablation(preset(args.preset), training, *parts, args.out, args.audio_weights)
    clips = [] if args.manifest is None else ["--manifest", str(args.manifest)]
    clips += ["--split", args.split] if clips else []
    # With a state at least, a row that is done is known as that.
    saved = max(1, args.steps // 10)
    execution = Execution(args.device, args.attention, resume=True, save_steps=saved)
    table = as_markdown(ablate(shared, rows, load_cache(args.latents), execution, clips))
    (args.out / "table.md").write_text(table)
    print(table, end="")


def run_pack(args: argparse.Namespace) -> None:
    """One checkpoint from its parts."""
    _check_weights_file(args.out)
    provenance = {"origin": args.origin, "licence": args.licence}
    config = preset(args.preset)
    pack(config, args.out, args.face, args.masked, args.dit, args.shape, provenance)
    print(json.dumps({"checkpoint": str(args.out), "bytes": args.out.stat().st_size}))


def run_convert_whisper(args: argparse.Namespace) -> None:
    """Whisper's encoder."""
    from dithead.train.convert.whisper import convert_whisper, packaged_parts

    _check_weights_file(args.out)
    convert_whisper(args.source or packaged_parts(args.model), args.out, args.model)
    print(json.dumps({"weights": str(args.out), "bytes": args.out.stat().st_size}))


def run_convert_fan(args: argparse.Namespace) -> None:
    """S3FD and FAN."""
    from dithead.train.convert.fan import convert_fan

    folder = convert_fan(args.out, args.s3fd, args.fan)
    print(json.dumps({"folder": str(folder)}))


def run_convert_syncnet(args: argparse.Namespace) -> None:
    """SyncNet."""
    from dithead.train.convert.syncnet import convert_syncnet

    _check_weights_file(args.out)
    convert_syncnet(args.source, args.out)
    print(json.dumps({"weights": str(args.out), "bytes": args.out.stat().st_size}))


def _settings(cls: type, args: argparse.Namespace) -> dict[str, Any]:
    """What arguments and recipe say about a stage."""
    return {field.name: getattr(args, field.name) for field in fields(cls) if field.name in args}


def _minutes(args: argparse.Namespace) -> float:
    if getattr(args, "steps", None) is not None:
        return math.inf
    if not 0 < args.minutes <= MAX_STAGE_MINUTES:
        raise ConfigError(
            f"a stage lasts at most {MAX_STAGE_MINUTES:g} minutes, not {args.minutes:g}: "
            "train longer in several stages, each with --start from the last one's weights; "
            "or bound a stage of the autoencoders or the denoiser by --steps"
        )
    return args.minutes


def _check_weights_file(path: Path) -> None:
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ConfigError(f"{path}: expected a .safetensors file in a folder that exists")
