"""``dithead-train prepare --shards``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dithead.audio import find_audio_weights
from dithead.config import preset
from dithead.errors import ConfigError
from dithead.face.fanweights import fan_folder
from dithead.face.networks import FaceModels
from dithead.train.shards.lists import Part, read_folder, read_hdtf, read_list
from dithead.train.shards.report import TABLE
from dithead.train.shards.rules import ShotRule, SyncRule
from dithead.train.shards.run import Runner, make_shards, on_processes
from dithead.train.shards.samples import SampleMaking


def run(args: argparse.Namespace) -> None:
    """Prepare shards as the options say."""
    if args.stills is not None or args.manifest is not None or args.sound_delay_ms:
        raise ConfigError("--shards takes no --stills, --manifest or --sound-delay-ms")
    parts, notes = _parts(args)
    config = preset(args.preset)
    models: FaceModels = args.face_models or "mediapipe"
    folder = fan_folder(args.face_weights) if models == "fan" else args.face_weights
    making = SampleMaking(
        config=config,
        face=_absolute(args.face),
        masked=_absolute(args.masked),
        audio_weights=find_audio_weights(config.audio, args.audio_weights),
        face_models=models,
        face_weights=_absolute(folder),
        max_s=args.max_s,
        held_out=args.held_out,
        shots=ShotRule(min_s=args.min_s, min_side_px=args.min_side_px),
        sync=SyncRule(min_confidence=args.min_sync, max_lag_ms=args.max_lag_ms),
    )
    making.check()
    out = args.out.absolute()
    shard_bytes = round(args.shard_mb * 1e6)
    settings = making.settings()
    placed = make_shards(parts, out, making, settings, _runner(args), shard_bytes, notes)
    counts = {
        "samples": len(placed),
        "frames": sum(one.entry.frames for one in placed),
        "shards": len({one.shard for one in placed}),
        "people": len({one.entry.person for one in placed}),
    }
    print(json.dumps({**counts, "report": str(out / TABLE)}))


def _parts(args: argparse.Namespace) -> tuple[list[Part], list[str]]:
    """What the options name, with absolute paths, as a worker may run in another folder; and what
    is wrong in the lists."""
    if args.list is not None:
        if args.videos is not None or args.hdtf is not None:
            raise ConfigError("give --list alone, or --videos, or --hdtf and --videos")
        return read_list(args.list.absolute(), args.person), []
    if args.videos is None:
        raise ConfigError("nothing to prepare: give --videos or --list")
    if args.hdtf is None:
        return read_folder(args.videos.absolute(), args.person), []
    return read_hdtf(args.hdtf, args.videos.absolute())


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _runner(args: argparse.Namespace) -> Runner:
    if args.ray is None:
        return on_processes(args.workers)
    from dithead.train.shards.ray import on_ray

    return on_ray(args.ray)
