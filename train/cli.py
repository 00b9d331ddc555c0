"""``dithead-train``: prepare footage, make people from stills, train the two VQGANs and the shape
head, cache latents, train the denoiser, pack a checkpoint, compare choices, adapt it to one person,
convert weights, train the sync model that judges lips and sound."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch

from dithead import checkpoint
from dithead.command import face_choice
from dithead.config import preset
from dithead.errors import ConfigError, DitheadError
from dithead.kernels.attention import ATTENTION_BACKENDS, check_attention
from dithead.runtime.progress import TaskProgress
from dithead.train.data import Footage
from dithead.train.distributed import is_main
from dithead.train.dit import train_dit
from dithead.train.evaluation.table import as_markdown
from dithead.train.latents import cache_latents, cache_windows, load_cache
from dithead.train.loop import load_part
from dithead.train.pack import pack
from dithead.train.recipe import load_recipe
from dithead.train.recipe import names as recipe_names
from dithead.train.settings import Distillation, DiTTraining, Execution, Precision, VQGANTraining
from dithead.train.shape import ShapeTraining, load_shape_head, shape_scores, train_shape
from dithead.train.shards.options import add_options as shard_options
from dithead.train.vqgan import reconstruction_psnr, train_vqgan
from dithead.vqgan import VQGAN

MAX_STAGE_MINUTES = 120.0


def _prepare(args: argparse.Namespace) -> None:
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
    clips = prepare(sources, args.out, preset(args.preset), args.workers)
    print(json.dumps({"clips": len(clips), "frames": sum(c.frames for c in clips)}))


def _identities(args: argparse.Namespace) -> None:
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


def _vqgan(args: argparse.Namespace) -> None:
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
    print(json.dumps({"weights": str(path), **scores}))


def _latents(args: argparse.Namespace) -> None:
    config = preset(args.preset)
    footage = Footage(*args.data)
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


def _shape(args: argparse.Namespace) -> None:
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


def _sync(args: argparse.Namespace) -> None:
    from dithead.train.sync.training import SyncTraining, train_sync

    _check_weights_file(args.out)
    training = SyncTraining(**_settings(SyncTraining, args))
    provenance = {"origin": args.origin, "licence": args.licence}
    found = train_sync(Footage(*args.data), training, args.out, provenance, without=args.without)
    print(json.dumps({"weights": str(args.out), **found}))


def _dit(args: argparse.Namespace) -> None:
    execution = Execution(**_settings(Execution, args))
    check_attention(execution.attention, torch.device(execution.device))  # before much is read
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


def _archive(args: argparse.Namespace) -> None:
    from dithead.train.archive import archive

    if not args.out.parent.is_dir():
        raise ConfigError(f"{args.out}: the folder {args.out.parent} does not exist; make it first")
    size = archive(Footage(*args.data), args.out)
    print(json.dumps({"archive": str(args.out), "bytes": size}))


def _restore(args: argparse.Namespace) -> None:
    from dithead.train.archive import restore

    clips = restore(args.archive, args.out)
    print(json.dumps({"clips": len(clips), "frames": sum(clip.frames for clip in clips)}))


def _check_weights_file(path: Path) -> None:
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ConfigError(f"{path}: expected a .safetensors file in a folder that exists")


def _convert_whisper(args: argparse.Namespace) -> None:
    from dithead.train.convert.whisper import convert_whisper, packaged_parts

    _check_weights_file(args.out)
    convert_whisper(args.source or packaged_parts(args.model), args.out, args.model)
    print(json.dumps({"weights": str(args.out), "bytes": args.out.stat().st_size}))


def _adapt(args: argparse.Namespace) -> None:
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


def _pack(args: argparse.Namespace) -> None:
    _check_weights_file(args.out)
    provenance = {"origin": args.origin, "licence": args.licence}
    config = preset(args.preset)
    pack(config, args.out, args.face, args.masked, args.dit, args.shape, provenance)
    print(json.dumps({"checkpoint": str(args.out), "bytes": args.out.stat().st_size}))


def _ablate(args: argparse.Namespace) -> None:
    from dithead.train.ablation import Ablation, ablate, chosen

    rows = chosen(args.rows)
    training = DiTTraining(**{**_settings(DiTTraining, args), "minutes": math.inf})
    shared = Ablation(preset(args.preset), training, args.face, args.masked, args.shape, args.out)
    clips = [] if args.manifest is None else ["--manifest", str(args.manifest)]
    clips += ["--split", args.split] if clips else []
    # With a state at least, a row that is done is known as that.
    saved = max(1, args.steps // 10)
    execution = Execution(device=args.device, resume=True, save_steps=saved)
    table = as_markdown(ablate(shared, rows, load_cache(args.latents), execution, clips))
    (args.out / "table.md").write_text(table)
    print(table, end="")


def _settings(cls: type, args: argparse.Namespace) -> dict[str, Any]:
    """What arguments and recipe say about a stage."""
    return {field.name: getattr(args, field.name) for field in fields(cls) if field.name in args}


def _convert_fan(args: argparse.Namespace) -> None:
    from dithead.train.convert.fan import convert_fan

    folder = convert_fan(args.out, args.s3fd, args.fan)
    print(json.dumps({"folder": str(folder)}))


def _convert_syncnet(args: argparse.Namespace) -> None:
    from dithead.train.convert.syncnet import convert_syncnet

    _check_weights_file(args.out)
    convert_syncnet(args.source, args.out)
    print(json.dumps({"weights": str(args.out), "bytes": args.out.stat().st_size}))


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


def _parser(prog: str, recipe: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """The command's arguments; a recipe's settings are defaults of the stages."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help_text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        sub.add_argument("--preset", default="tiny", help="configuration")
        sub.add_argument("--threads", type=int, default=2, help="CPU threads")
        return sub

    def stage(sub: argparse.ArgumentParser, minutes: float, batch: int, rate: float) -> None:
        sub.add_argument("--out", type=Path, required=True, help="folder for weights and log")
        sub.add_argument("--start", type=Path, help="weights of an earlier stage, or a checkpoint")
        sub.add_argument("--minutes", type=float, default=minutes, help="length of the stage")
        sub.add_argument("--batch", type=int, default=batch)
        sub.add_argument("--learning-rate", type=float, default=rate)
        sub.add_argument("--seed", type=int, default=0)
        sub.add_argument("--device", default="cpu")

    def long(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--steps", type=int, help="length of the stage in steps, in the place of --minutes"
        )
        sub.add_argument(
            "--recipe",
            help=f"settings of the stage, and the preset: {', '.join(recipe_names())}, or a .json "
            "file; options that are given count before it",
        )

        sub.add_argument(
            "--resume",
            action="store_true",
            help="go on from the newest state in --out; begin if there is none",
        )
        sub.add_argument("--save-minutes", type=float, default=10.0, help="time between states")
        sub.add_argument("--save-steps", type=int, help="steps between them, in the place of that")
        sub.add_argument(
            "--precision", default="bf16", choices=get_args(Precision), help="of the products"
        )

    prepare = command("prepare", _prepare, "crops, tracks and audio from videos and stills")
    prepare.add_argument(
        "--videos", type=Path, help="folder of videos; of one person, unless --shards"
    )
    prepare.add_argument("--person", help="the name of one person whom all of them show")
    prepare.add_argument("--validation", type=int, default=45, help="clips held out, first by name")
    prepare.add_argument("--manifest", type=Path, help="TSV with columns file, split, person")
    prepare.add_argument("--split", default="train", help="of the manifest's rows")
    prepare.add_argument("--stills", type=Path, help="folder of pictures, each of another person")
    prepare.add_argument(
        "--sound-delay-ms",
        type=float,
        default=0.0,
        help="for all these videos: added to the sound's times if it runs ahead of the picture",
    )
    prepare.add_argument("--out", type=Path, required=True, help="folder to write")
    prepare.add_argument("--workers", type=int, default=2)
    shard_options(prepare)

    archive = command("archive", _archive, "prepared footage in one small file")
    archive.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepare")
    archive.add_argument("--out", type=Path, required=True, help="the .tar file to write")
    restore = command("restore", _restore, "the folder of prepare, from an archive")
    restore.add_argument("archive", type=Path, help="file written by archive")
    restore.add_argument("--out", type=Path, required=True, help="folder to write")

    identities = command("identities", _identities, "talking clips of people in stills")
    identities.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    identities.add_argument("--out", type=Path, required=True, help="folder to write")
    identities.add_argument("--stills", type=int, help="maximum number of training stills")
    identities.add_argument("--clips-per-still", type=int, default=2)
    identities.add_argument(
        "--vigour",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("LEAST", "MOST"),
        help="how much further their mouths move than the drivers', drawn for each",
    )
    identities.add_argument("--seed", type=int, default=0)
    identities.add_argument("--workers", type=int, default=2)

    vqgan = command("vqgan", _vqgan, "stage 1: one autoencoder")
    vqgan.add_argument("kind", choices=("face", "masked"))
    vqgan.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    vqgan.add_argument(
        "--perceptual",
        dest="perceptual_weight",
        type=float,
        default=0.0,
        help="weight of ST-LPIPS",
    )
    vqgan.add_argument(
        "--adversarial",
        dest="adversarial_weight",
        type=float,
        default=0.0,
        help="weight of the discriminator; needs --decoder-only",
    )
    vqgan.add_argument(
        "--decoder-only", action="store_true", help="train only the decoder: latents stay"
    )
    vqgan.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)  # refused, with why
    stage(vqgan, 15, 16, 1e-3)
    long(vqgan)

    latents = command("latents", _latents, "encode the footage once for stage 2")
    latents.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders written by prepare, identities"
    )
    latents.add_argument("--face", type=Path, required=True, help="face VQGAN")
    latents.add_argument("--masked", type=Path, required=True, help="masked-face VQGAN")
    latents.add_argument("--out", type=Path, required=True, help="folder to write")
    latents.add_argument(
        "--audio-weights",
        type=Path,
        help="speech encoder, if not the packaged one: a folder, a file, or hub (wav2vec2)",
    )
    latents.add_argument("--main-looks", type=int, default=1)
    latents.add_argument("--main-plain-share", type=float, default=0.5)
    latents.add_argument("--other-looks", type=int, default=24)
    latents.add_argument("--made-looks", type=int, default=1, help="for people made from stills")
    latents.add_argument("--workers", type=int, default=2)
    latents.add_argument("--device", default="cpu")

    shape = command("shape", _shape, "the head that reads the face's shape from its latent")
    shape.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders written by prepare, identities"
    )
    shape.add_argument("--face", type=Path, required=True, help="face VQGAN")
    stage(shape, 15, 32, 2e-3)

    switch = argparse.BooleanOptionalAction  # a recipe may say yes
    dit = command("dit", _dit, "stage 2: the denoiser")
    dit.add_argument("--latents", type=Path, required=True, help="folder written by latents")
    dit.add_argument("--compile", action=switch, default=False, help="torch.compile the denoiser")
    dit.add_argument("--made-share", type=float, default=0.5, help="for people made from stills")
    dit.add_argument(
        "--main-share", type=float, default=0.7, help="the main person's part of the rest"
    )
    dit.add_argument("--shape", type=Path, help="shape head, which then adds to the loss")
    dit.add_argument(
        "--teacher",
        type=Path,
        help="distil these weights of an earlier stage, or this checkpoint: to half of its steps, "
        "or from the noise to the velocity",
    )
    dit.add_argument(
        "--teacher-steps", type=int, help="steps that it takes, if not those of its configuration"
    )
    dit.add_argument(
        "--generated-share",
        type=float,
        default=0.25,
        help="share of each batch whose generated outputs become references of later samples",
    )
    dit.add_argument(
        "--lip-weight",
        type=float,
        default=0.0,
        help="weight of a second loss in the lips' box (Diffused Heads has 0.2)",
    )
    dit.add_argument(
        "--other-clip-share",
        type=float,
        default=0.9,
        help="references from another clip of the same person; 0: only from the same clip, at "
        "least 60 frames away",
    )
    stage(dit, 60, 32, 6e-4)
    long(dit)
    dit.add_argument(
        "--attention",
        default="auto",
        choices=ATTENTION_BACKENDS,
        help="auto: PyTorch's, which on a GPU is flash attention; flash: the package flash-attn",
    )
    dit.add_argument(
        "--recompute",
        action=switch,
        default=False,
        help="run each block again in the backward pass: less memory (gradient checkpointing)",
    )
    dit.add_argument(
        "--accumulate", type=int, default=1, help="parts of a batch, computed one after the other"
    )
    dit.add_argument(
        "--shard",
        action=switch,
        default=False,
        help="each of several processes keeps a part of the weights (FSDP2)",
    )

    adapt = command("adapt", _adapt, "fit a checkpoint to one person's own footage")
    adapt.add_argument("videos", metavar="VIDEO", type=Path, nargs="+", help="with sound")
    adapt.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("me.safetensors"),
        help="file to write, with a sheet beside it; an interrupted run goes on where it was",
    )
    adapt.add_argument("--minutes", type=float, default=5.0, help="all of it")
    adapt.add_argument("--checkpoint", default="tiny", help="name, or a .safetensors file")
    adapt.add_argument("--audio-weights", type=Path, help="speech encoder, as for dithead stream")
    adapt.add_argument("--latents", type=Path, help="general footage to mix in, from latents")
    adapt.add_argument(
        "--face", type=face_choice, default="largest", help="whose, as for dithead stream"
    )
    adapt.add_argument("--seed", type=int, default=0)
    adapt.set_defaults(threads=os.cpu_count())

    sync = command("sync", _sync, "the model that judges whether lips and sound belong together")
    sync.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepare")
    sync.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    sync.add_argument(
        "--without", nargs="+", default=[], metavar="PERSON", help="people to leave out, by name"
    )
    sync.add_argument("--steps", type=int, default=900)
    sync.add_argument("--minutes", type=float, default=10.0, help="end then, if that comes first")
    sync.add_argument("--batch", type=int, default=16)
    sync.add_argument("--learning-rate", type=float, default=2e-3)
    sync.add_argument("--main-share", type=float, default=0.5, help="of the person with most clips")
    sync.add_argument("--versions", type=int, default=6, help="of each clip's sound, changed")
    sync.add_argument("--seed", type=int, default=0)
    sync.add_argument("--origin", default="trained with dithead-train sync")
    sync.add_argument("--licence", default="Apache-2.0")

    for sub in (vqgan, dit):
        sub.add_argument(
            "--keyed",
            action=switch,
            default=False,
            help="draw samples by step and place, as several processes do",
        )
        sub.set_defaults(**(recipe or {}))

    ablate = command("ablate", _ablate, "denoisers that differ in one choice, and a table of them")
    ablate.add_argument("--latents", type=Path, required=True, help="folder written by latents")
    for part in ("face", "masked"):
        ablate.add_argument(f"--{part}", type=Path, required=True, help="weights of stage 1")
    ablate.add_argument("--shape", type=Path, help="for presets with a shape head")
    ablate.add_argument("--out", type=Path, required=True, help="folder to write, or to go on in")
    ablate.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="some rows by name")
    ablate.add_argument("--steps", type=int, required=True, help="of the training of each row")
    ablate.add_argument("--batch", type=int, default=32)
    ablate.add_argument("--learning-rate", type=float, default=6e-4)
    ablate.add_argument("--seed", type=int, default=0)
    ablate.add_argument("--device", default="cpu")
    ablate.add_argument("--manifest", type=Path, help="clips to judge on, as for dithead-eval")
    ablate.add_argument("--split", default="eval", help="split of that manifest")

    packing = command("pack", _pack, "one checkpoint from the three parts")
    for part in ("face", "masked", "dit"):
        packing.add_argument(f"--{part}", type=Path, required=True)
    packing.add_argument("--shape", type=Path, help="for presets with a shape head")
    packing.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    packing.add_argument("--origin", default="trained with dithead-train")
    packing.add_argument("--licence", default="Apache-2.0")

    convert = command("convert", None, "another project's published weights, to use them here")
    weights = convert.add_subparsers(required=True, metavar="WEIGHTS")
    whisper = weights.add_parser("whisper", help="Whisper's encoder, a speech encoder")
    whisper.set_defaults(run=_convert_whisper)
    whisper.add_argument("--model", choices=("tiny.en", "base"), default="base")
    whisper.add_argument(
        "--source",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="CTranslate2 model.bin, or its parts in order, if the extra whisper-base is not "
        "installed",
    )
    whisper.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    fan = weights.add_parser("fan", help="S3FD and FAN, of face-alignment 1.5.0")
    fan.set_defaults(run=_convert_fan)
    fan.add_argument(
        "-o", "--out", type=Path, help="folder to write (default: the one in the user's cache)"
    )
    fan.add_argument("--s3fd", type=Path, help="s3fd-619a316812.pth, if it is not downloaded")
    fan.add_argument("--fan", type=Path, help="2DFAN4-11f355bf06.pth.tar, likewise")
    syncnet = weights.add_parser("syncnet", help="SyncNet, for dithead eval --syncnet")
    syncnet.set_defaults(run=_convert_syncnet)
    syncnet.add_argument("source", metavar="IN", type=Path, help="syncnet_v2.model, as published")
    syncnet.add_argument("out", metavar="OUT", type=Path, help="the .safetensors file to write")
    return parser


def _with_recipe(args: argparse.Namespace, prog: str, argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with a recipe's settings in the place of the defaults."""
    recipe = load_recipe(args.recipe)
    if args.run is _dit:
        values = {**recipe.sections["execution"], **recipe.sections["dit"]}
    else:
        values = dict(recipe.sections["decoder" if args.decoder_only else "vqgan"])
    return _parser(prog, {"preset": recipe.preset, **values}).parse_args(argv)


def main(argv: list[str] | None = None, prog: str = "dithead-train") -> int:
    """Entry point of ``dithead-train``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = _parser(prog).parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        if getattr(args, "recipe", None) is not None:
            args = _with_recipe(args, prog, argv)
        args.run(args)
    except DitheadError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0
