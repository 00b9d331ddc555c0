"""The options of ``dithead-train``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from dithead.command import add_face_model_arguments, face_choice
from dithead.kernels.attention import ATTENTION_BACKENDS
from dithead.train import commands
from dithead.train.recipe import names as recipe_names
from dithead.train.settings import Precision, Seen
from dithead.train.shards.options import add_options as shard_options

DESCRIPTION = """prepare footage, make people from stills, train the two VQGANs and the shape head,
cache latents, train the denoiser, pack a checkpoint, compare choices, adapt it to one person,
convert weights, train the sync model that judges lips and sound."""

Parser = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], None]
Add = Callable[[str, Run | None, str], Parser]
"""Adds a command: its name, what it runs (None: its own commands say), its help."""
SWITCH = argparse.BooleanOptionalAction
"""A recipe may say yes where the command line says no."""


def train_parser(prog: str, recipe: Mapping[str, Any] | None = None) -> Parser:
    """The command's arguments; a recipe's settings are defaults of the stages."""
    parser = Parser(prog=prog, description=DESCRIPTION)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run | None, help_text: str) -> Parser:
        sub = subparsers.add_parser(
            name, help=help_text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        sub.add_argument("--threads", type=int, default=2, help="CPU threads")
        return sub

    def add_for_preset(name: str, run: Run | None, help_text: str) -> Parser:
        sub = add(name, run, help_text)
        sub.add_argument("--preset", default="tiny", help="configuration")
        return sub

    _add_prepare(add_for_preset)
    _add_archives(add)
    _add_identities(add_for_preset)
    _add_vqgan(add_for_preset, recipe or {})
    _add_latents(add_for_preset)
    _add_shape(add_for_preset)
    _add_dit(add_for_preset, recipe or {})
    _add_adapt(add)
    _add_sync(add)
    _add_ablate(add_for_preset)
    _add_pack(add_for_preset)
    _add_convert(add)
    return parser


def _add_prepare(add: Add) -> None:
    sub = add("prepare", commands.run_prepare, "crops, tracks and audio from videos and stills")
    sub.add_argument("--videos", type=Path, help="folder of videos; of one person, unless --shards")
    sub.add_argument("--person", help="the name of one person whom all of them show")
    sub.add_argument("--validation", type=int, default=45, help="clips held out, first by name")
    sub.add_argument("--manifest", type=Path, help="TSV with columns file, split, person")
    sub.add_argument("--split", default="train", help="of the manifest's rows")
    sub.add_argument("--stills", type=Path, help="folder of pictures, each of another person")
    sub.add_argument(
        "--sound-delay-ms",
        type=float,
        default=0.0,
        help="for all these videos: added to the sound's times if it runs ahead of the picture",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument("--workers", type=int, default=2)
    add_face_model_arguments(sub)
    shard_options(sub)


def _add_archives(add: Add) -> None:
    archive = add("archive", commands.run_archive, "prepared footage in one small file")
    archive.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepare")
    archive.add_argument("--out", type=Path, required=True, help="the .tar file to write")
    restore = add("restore", commands.run_restore, "the folder of prepare, from an archive")
    restore.add_argument("archive", type=Path, help="file written by archive")
    restore.add_argument("--out", type=Path, required=True, help="folder to write")


def _add_identities(add: Add) -> None:
    sub = add("identities", commands.run_identities, "talking clips of people in stills")
    sub.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument("--stills", type=int, help="maximum number of training stills")
    sub.add_argument("--clips-per-still", type=int, default=2)
    sub.add_argument(
        "--vigour",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        metavar=("LEAST", "MOST"),
        help="how much further their mouths move than the drivers', drawn for each",
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--workers", type=int, default=2)


def _add_vqgan(add: Add, recipe: Mapping[str, Any]) -> None:
    sub = add("vqgan", commands.run_vqgan, "stage 1: one autoencoder")
    sub.add_argument("kind", choices=("face", "masked"))
    sub.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    sub.add_argument(
        "--perceptual",
        dest="perceptual_weight",
        type=float,
        default=0.0,
        help="weight of ST-LPIPS",
    )
    sub.add_argument(
        "--perceptual-sees",
        choices=get_args(Seen),
        default="auto",
        help="what it compares; auto: of whole faces the mouth's quarter, of masked ones all",
    )
    sub.add_argument(
        "--adversarial",
        dest="adversarial_weight",
        type=float,
        default=0.0,
        help="weight of the discriminator; needs --decoder-only",
    )
    sub.add_argument(
        "--decoder-only", action="store_true", help="train only the decoder: latents stay"
    )
    sub.add_argument("--shard", action="store_true", help=argparse.SUPPRESS)  # refused, with why
    _add_stage(sub, 15, 16, 1e-3)
    _add_long(sub)
    _add_keyed(sub)
    sub.set_defaults(**recipe)


def _add_latents(add: Add) -> None:
    sub = add("latents", commands.run_latents, "encode the footage once for stage 2")
    sub.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders written by prepare, identities"
    )
    sub.add_argument("--face", type=Path, required=True, help="face VQGAN")
    sub.add_argument("--masked", type=Path, required=True, help="masked-face VQGAN")
    sub.add_argument("--out", type=Path, required=True, help="folder to write")
    sub.add_argument(
        "--audio-weights",
        type=Path,
        help="speech encoder, if not the packaged one: a folder, a file, or hub (wav2vec2)",
    )
    sub.add_argument("--main-looks", type=int, default=1)
    sub.add_argument("--main-plain-share", type=float, default=0.5)
    sub.add_argument("--other-looks", type=int, default=24)
    sub.add_argument("--made-looks", type=int, default=1, help="for people made from stills")
    sub.add_argument("--workers", type=int, default=2)
    sub.add_argument("--device", default="cpu")


def _add_shape(add: Add) -> None:
    sub = add("shape", commands.run_shape, "the head that reads the face's shape from its latent")
    sub.add_argument(
        "--data", type=Path, nargs="+", required=True, help="folders written by prepare, identities"
    )
    sub.add_argument("--face", type=Path, required=True, help="face VQGAN")
    _add_stage(sub, 15, 32, 2e-3)


def _add_dit(add: Add, recipe: Mapping[str, Any]) -> None:
    sub = add("dit", commands.run_dit, "stage 2: the denoiser")
    sub.add_argument("--latents", type=Path, required=True, help="folder written by latents")
    sub.add_argument("--compile", action=SWITCH, default=False, help="torch.compile the denoiser")
    sub.add_argument("--made-share", type=float, default=0.5, help="for people made from stills")
    sub.add_argument(
        "--main-share", type=float, default=0.7, help="the main person's part of the rest"
    )
    sub.add_argument("--shape", type=Path, help="shape head, which then adds to the loss")
    sub.add_argument(
        "--teacher",
        type=Path,
        help="distil these weights of an earlier stage, or this checkpoint: to half of its steps, "
        "or from the noise to the velocity",
    )
    sub.add_argument(
        "--teacher-steps", type=int, help="steps that it takes, if not those of its configuration"
    )
    sub.add_argument(
        "--generated-share",
        type=float,
        default=0.25,
        help="share of each batch whose generated outputs become references of later samples",
    )
    sub.add_argument(
        "--lip-weight",
        type=float,
        default=0.0,
        help="weight of a second loss in the lips' box (Diffused Heads has 0.2)",
    )
    sub.add_argument(
        "--other-clip-share",
        type=float,
        default=0.9,
        help="references from another clip of the same person; 0: only from the same clip, at "
        "least 60 frames away",
    )
    _add_stage(sub, 60, 32, 6e-4)
    _add_long(sub)
    _add_attention(sub)
    sub.add_argument(
        "--recompute",
        action=SWITCH,
        default=False,
        help="run each block again in the backward pass: less memory (gradient checkpointing)",
    )
    sub.add_argument(
        "--accumulate", type=int, default=1, help="parts of a batch, computed one after the other"
    )
    sub.add_argument(
        "--shard",
        action=SWITCH,
        default=False,
        help="each of several processes keeps a part of the weights (FSDP2)",
    )
    _add_keyed(sub)
    sub.set_defaults(**recipe)


def _add_adapt(add: Add) -> None:
    sub = add("adapt", commands.run_adapt, "fit a checkpoint to one person's own footage")
    sub.add_argument("videos", metavar="VIDEO", type=Path, nargs="+", help="with sound")
    sub.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("me.safetensors"),
        help="file to write, with a sheet beside it; an interrupted run goes on where it was",
    )
    sub.add_argument("--minutes", type=float, default=5.0, help="all of it")
    sub.add_argument("--checkpoint", default="tiny", help="name, or a .safetensors file")
    sub.add_argument("--audio-weights", type=Path, help="speech encoder, as for dithead stream")
    sub.add_argument("--latents", type=Path, help="general footage to mix in, from latents")
    sub.add_argument(
        "--face", type=face_choice, default="largest", help="whose, as for dithead stream"
    )
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(threads=os.cpu_count())


def _add_sync(add: Add) -> None:
    sub = add(
        "sync", commands.run_sync, "the model that judges whether lips and sound belong together"
    )
    sub.add_argument("--data", type=Path, nargs="+", required=True, help="folders of prepare")
    sub.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    sub.add_argument(
        "--without", nargs="+", default=[], metavar="PERSON", help="people to leave out, by name"
    )
    sub.add_argument("--steps", type=int, default=900)
    sub.add_argument("--minutes", type=float, default=10.0, help="end then, if that comes first")
    sub.add_argument("--batch", type=int, default=16)
    sub.add_argument("--learning-rate", type=float, default=2e-3)
    sub.add_argument("--main-share", type=float, default=0.5, help="of the person with most clips")
    sub.add_argument("--versions", type=int, default=6, help="of each clip's sound, changed")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--origin", default="trained with dithead-train sync")
    sub.add_argument("--licence", default="Apache-2.0")


def _add_attention(sub: Parser) -> None:
    sub.add_argument(
        "--attention",
        default="auto",
        choices=ATTENTION_BACKENDS,
        help="auto: PyTorch's, which on a GPU is flash attention; flash: the package flash-attn",
    )


def _add_ablate(add: Add) -> None:
    sub = add(
        "ablate", commands.run_ablate, "denoisers that differ in one choice, and a table of them"
    )
    sub.add_argument("--latents", type=Path, required=True, help="folder written by latents")
    for part in ("face", "masked"):
        sub.add_argument(f"--{part}", type=Path, required=True, help="weights of stage 1")
    sub.add_argument("--shape", type=Path, help="for presets with a shape head")
    sub.add_argument("--out", type=Path, required=True, help="folder to write, or to go on in")
    sub.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="some rows by name")
    sub.add_argument("--steps", type=int, required=True, help="of the training of each row")
    sub.add_argument("--batch", type=int, default=32)
    sub.add_argument("--learning-rate", type=float, default=6e-4)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="cpu", help="to train and to judge on")
    _add_attention(sub)
    sub.add_argument("--manifest", type=Path, help="clips to judge on, as for dithead-eval")
    sub.add_argument("--split", default="eval", help="split of that manifest")
    sub.add_argument(
        "--audio-weights", type=Path, help="speech encoder to judge with, as for dithead-eval"
    )


def _add_pack(add: Add) -> None:
    sub = add("pack", commands.run_pack, "one checkpoint from the three parts")
    for part in ("face", "masked", "dit"):
        sub.add_argument(f"--{part}", type=Path, required=True)
    sub.add_argument("--shape", type=Path, help="for presets with a shape head")
    sub.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    sub.add_argument("--origin", default="trained with dithead-train")
    sub.add_argument("--licence", default="Apache-2.0")


def _add_convert(add: Add) -> None:
    convert = add("convert", None, "another project's published weights, to use them here")
    weights = convert.add_subparsers(required=True, metavar="WEIGHTS")
    whisper = weights.add_parser("whisper", help="Whisper's encoder, a speech encoder")
    whisper.set_defaults(run=commands.run_convert_whisper)
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
    fan.set_defaults(run=commands.run_convert_fan)
    fan.add_argument(
        "-o", "--out", type=Path, help="folder to write (default: the one in the user's cache)"
    )
    fan.add_argument("--s3fd", type=Path, help="s3fd-619a316812.pth, if it is not downloaded")
    fan.add_argument("--fan", type=Path, help="2DFAN4-11f355bf06.pth.tar, likewise")
    syncnet = weights.add_parser("syncnet", help="SyncNet, for dithead eval --syncnet")
    syncnet.set_defaults(run=commands.run_convert_syncnet)
    syncnet.add_argument("source", metavar="IN", type=Path, help="syncnet_v2.model, as published")
    syncnet.add_argument("out", metavar="OUT", type=Path, help="the .safetensors file to write")


def _add_stage(sub: Parser, minutes: float, batch: int, rate: float) -> None:
    """Options of all stages of training."""
    sub.add_argument("--out", type=Path, required=True, help="folder for weights and log")
    sub.add_argument("--start", type=Path, help="weights of an earlier stage, or a checkpoint")
    sub.add_argument("--minutes", type=float, default=minutes, help="length of the stage")
    sub.add_argument("--batch", type=int, default=batch)
    sub.add_argument("--learning-rate", type=float, default=rate)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--device", default="cpu")


def _add_long(sub: Parser) -> None:
    """Options of those that may take days."""
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


def _add_keyed(sub: Parser) -> None:
    sub.add_argument(
        "--keyed",
        action=SWITCH,
        default=False,
        help="draw samples by step and place, as several processes do",
    )
