"""Which model ``dithead-stream`` runs: adapted to the video first, or from the bundle in the user's
cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dithead.checkpoint import random_preset
from dithead.errors import BackendUnavailable, ConfigError, ExportError, MediaError
from dithead.runtime.defaults import default_backend
from dithead.runtime.progress import TaskProgress

Adapt = Callable[..., tuple[Path, str]]
"""Makes a checkpoint that is adapted to a video, or finds it, and says what was gained; see
:func:`dithead.train.adapt.adapted_to`."""


BundleOf = Callable[..., Path]
"""Makes the bundle of a checkpoint for the CPU, or finds it; see
:func:`dithead.export.cached.cached_bundle`."""


def takes_cached_bundle(args: argparse.Namespace) -> bool:
    """Whether ONNX Runtime is to run the checkpoint's bundle from the cache."""
    if args.bundle is not None or args.device != "cpu":
        return False
    # What only PyTorch can do: another attention or speech encoder, batches, random weights; and
    # other face models, which the cached bundle does not have.
    other = args.attention, args.audio_weights, args.face_models, args.face_weights
    only_torch = args.batch > 1 or any(value is not None for value in other)
    only_torch |= random_preset(getattr(args, "checkpoint", "tiny")) is not None
    wanted = args.backend or ("torch" if only_torch else default_backend(args.device))
    return bool(wanted == "onnxruntime")


def cached(
    args: argparse.Namespace, bundle_of: BundleOf, notes: list[str], checkpoint: str
) -> Path | None:
    """The bundle to run, or None if there can be none and no back end was asked for; adds notes on
    that."""

    # Where a program reads standard error, the notes say it.
    for_program = args.progress == "json" or (args.json and args.output == "-")
    said = not args.quiet and not for_program

    def begin(folder: Path) -> None:
        if said:
            print(
                f"making a bundle of {checkpoint} for this machine's CPU, once; it is kept in "
                f"{folder}",
                file=sys.stderr,
            )

    told = said and sys.stderr.isatty()
    progress = TaskProgress(sys.stderr) if told else None
    try:
        return bundle_of(
            checkpoint, begin=begin, progress=None if progress is None else progress.show
        )
    except (BackendUnavailable, ExportError) as error:
        if args.backend is not None:
            raise
        notes.append(f"PyTorch ran the model, more slowly than ONNX Runtime would: {error}")
        if said:
            print(notes[-1], file=sys.stderr)
        return None
    finally:
        if progress is not None:
            progress.end()


def check_adapt(args: argparse.Namespace) -> None:
    """Raise ConfigError if ``--adapt`` was given with what it cannot do."""
    if args.bundle is not None or args.backend not in (None, "torch", "onnxruntime"):
        raise ConfigError(
            "--adapt adapts a checkpoint: it needs the back end torch or onnxruntime, and no bundle"
        )
    if random_preset(getattr(args, "checkpoint", "tiny")) is not None:
        raise ConfigError("--adapt adapts weights that were trained, not random ones")
    if args.faces is not None:
        raise ConfigError("--adapt adapts to one face: leave --faces out")
    if not 0 < args.adapt < float("inf"):
        raise ConfigError(f"--adapt takes minutes above 0, not {args.adapt:g}")


def adapted(args: argparse.Namespace, adapt: Adapt, notes: list[str]) -> str:
    """The checkpoint to run, adapted to the video if possible; adds notes on that."""
    base = getattr(args, "checkpoint", "tiny")
    if not args.quiet:
        print(f"adapting to {args.video}, for {args.adapt:g} minutes at most", file=sys.stderr)
    told = sys.stderr.isatty() and args.progress == "auto" and not args.quiet
    progress = TaskProgress(sys.stderr) if told else None
    try:
        path, gain = adapt(
            Path(args.video),
            args.adapt,
            base=base,
            audio_weights=args.audio_weights,
            face=args.face,
            tell=None if progress is None else progress.show,
        )
    except MediaError as error:
        notes.append(f"not adapted: {error}")
        if not args.quiet:
            print(notes[-1], file=sys.stderr)
        return base
    finally:
        if progress is not None:
            progress.end()
    notes.append(f"adapted, {path}: {gain}")
    return str(path)
