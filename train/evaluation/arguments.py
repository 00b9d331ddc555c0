"""The command line of ``dithead-eval``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dithead.command import (
    add_checkpoint_arguments,
    add_device_arguments,
    add_face_model_arguments,
)
from dithead.train.evaluation.plan import LOOPED
from dithead.train.evaluation.summary import KINDS


def parser(prog: str) -> argparse.ArgumentParser:
    """All that an evaluation is asked for, see :func:`dithead.train.evaluate.evaluate`."""
    whole = argparse.ArgumentParser(
        prog=prog,
        description="How well the lips follow the audio, and how true the picture is, on held-out "
        "clips. docs/evaluation.md defines every measure.",
    )
    whom = whole.add_argument_group("whom")
    whom.add_argument("videos", type=Path, nargs="?", help="folder of one person's clips")
    whom.add_argument("--person", help="their name (default: the folder's)")
    whom.add_argument("--validation", type=int, default=45, help="held-out clips, first by name")
    whom.add_argument("--manifest", type=Path, help="TSV with the columns file, split, person")
    whom.add_argument(
        "--split", default="eval", help="split of the manifest (default: %(default)s)"
    )
    whom.add_argument("--stills", type=Path, help="folder or list of stills, for stage 1 alone")
    whom.add_argument("--clips", type=int, default=None, help="maximum number of clips per person")
    whom.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="maximum length of a clip (default: %(default)s)",
    )
    whom.add_argument(
        "--sound-delay-ms",
        type=float,
        default=0.0,
        help="added to the sound's times, if these clips' sound runs ahead of the picture",
    )
    whom.add_argument("--align", type=Path, help="folder of GRID alignments")
    what = whole.add_argument_group("what")
    add_checkpoint_arguments(what)
    what.set_defaults(checkpoint="tiny")
    add_device_arguments(what)
    add_face_model_arguments(what)
    default_kinds = [kind for kind in KINDS if kind not in LOOPED]
    what.add_argument("--kinds", nargs="+", choices=KINDS, default=default_kinds)
    what.add_argument("--steps", type=int, default=None, help="default: the model's")
    what.add_argument("--reference", choices=("previous", "fixed"), default="previous")
    what.add_argument(
        "--generate-every",
        type=int,
        choices=(1, 2),
        default=1,
        help="2 interpolates every second face",
    )
    what.add_argument(
        "--detail", choices=("on", "off"), default="on", help="off shows the generated face itself"
    )
    what.add_argument(
        "--perceptual",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ST-LPIPS (default: if the extra 'train' is installed)",
    )
    what.add_argument(
        "--identity",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="is it still the person? (default: if the extra 'identity' is installed)",
    )
    what.add_argument(
        "--fid",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="FID, in --paper-table (default: if the extra 'fid' is installed)",
    )
    what.add_argument(
        "--syncnet",
        type=Path,
        metavar="FILE",
        help="SyncNet's weights (dithead train convert syncnet): LSE-C and LSE-D, in --paper-table",
    )
    what.add_argument(
        "--looped-clips", type=int, default=1, help="clips for feedback and for precision"
    )
    what.add_argument(
        "--precision", choices=("fp16", "bf16"), default="fp16", help="to compare with float32"
    )
    whole.add_argument(
        "--workers",
        type=int,
        help="processes (default: 2; 1 on a GPU, where each holds the model once more)",
    )
    whole.add_argument("--json", type=Path, help="write the figures here, and print a table")
    whole.add_argument("--report", type=Path, help="folder for a page with sheets and clips")
    whole.add_argument(
        "--paper-table",
        action="store_true",
        help="measure the whole face, too, and print a row beside the paper's Table 1 (kind own)",
    )
    whole.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="two files of --json; runs nothing",
    )
    return whole
