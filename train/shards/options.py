"""The options of ``dithead-train prepare --shards``, without what it takes to run it."""

from __future__ import annotations

import argparse
from pathlib import Path

from dithead.train.shards.rules import HELD_OUT, SAMPLE_S, SHARD_BYTES, ShotRule, SyncRule


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of shards to those of ``prepare``."""
    shots, sync = ShotRule(), SyncRule()
    group = parser.add_argument_group(
        "shards", "any number of videos of any people, filtered, into shards for training"
    )
    group.add_argument("--shards", action="store_true", help="write shards instead of a folder")
    group.add_argument("--list", type=Path, help="paths of videos, or a table")
    group.add_argument("--hdtf", type=Path, help="HDTF's lists, of videos in --videos")
    group.add_argument("--face", type=Path, help="face VQGAN: adds latents to the samples")
    group.add_argument("--masked", type=Path, help="masked-face VQGAN, likewise")
    group.add_argument("--audio-weights", type=Path, help="speech encoder, or hub (wav2vec2)")
    group.add_argument("--held-out", type=float, default=HELD_OUT, help="share of the people")
    group.add_argument(
        "--shard-mb", type=float, default=SHARD_BYTES / 1e6, help="size of a full shard"
    )
    group.add_argument("--max-s", type=float, default=SAMPLE_S, help="longest sample")
    group.add_argument("--min-s", type=float, default=shots.min_s, help="shortest sample")
    group.add_argument("--min-side-px", type=float, default=shots.min_side_px, help="of a face")
    group.add_argument(
        "--min-sync",
        type=float,
        default=sync.min_confidence,
        help="confidence of the sync model that lips and sound belong together",
    )
    group.add_argument("--max-lag-ms", type=float, default=sync.max_lag_ms, help="between these")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run on a Ray cluster (auto, or its address) that shares the folders",
    )
