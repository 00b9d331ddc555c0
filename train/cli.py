"""``dithead-train``: footage to a checkpoint, and what is made beside it."""

from __future__ import annotations

import argparse
import logging
import sys

import torch

from dithead.errors import DitheadError
from dithead.train.commands import run_dit
from dithead.train.parser import train_parser
from dithead.train.recipe import load_recipe


def _with_recipe(args: argparse.Namespace, prog: str, argv: list[str] | None) -> argparse.Namespace:
    """The arguments, with a recipe's settings in the place of the defaults."""
    recipe = load_recipe(args.recipe)
    if args.run is run_dit:
        values = {**recipe.sections["execution"], **recipe.sections["dit"]}
    else:
        values = dict(recipe.sections["decoder" if args.decoder_only else "vqgan"])
    return train_parser(prog, {"preset": recipe.preset, **values}).parse_args(argv)


def main(argv: list[str] | None = None, prog: str = "dithead-train") -> int:
    """Entry point of ``dithead-train``."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = train_parser(prog).parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        if getattr(args, "recipe", None) is not None:
            args = _with_recipe(args, prog, argv)
        args.run(args)
    except DitheadError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{prog}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0
