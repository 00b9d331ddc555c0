"""``dithead-train ablate``: denoisers that differ in one choice each, trained on the same latents
with the same settings and judged on the same clips.

Rows that differ in how frames are sampled share their weights. Every row is without ``dit.skip``,
which the conditioning of the paper does not have.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dithead.audio import load_audio_encoder
from dithead.config import DitHeadConfig
from dithead.errors import ConfigError, MediaError
from dithead.kernels.attention import check_attention
from dithead.options import ReferenceMode
from dithead.runtime.checked import checked_device
from dithead.train import evaluate
from dithead.train.dit import train_dit
from dithead.train.evaluation.table import Table, read_report, side_by_side
from dithead.train.latents import LatentCache
from dithead.train.pack import pack
from dithead.train.settings import DiTTraining, Execution

log = logging.getLogger(__name__)

BASE = "tokens"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    name: str
    dit: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the denoiser that differ from the base's."""
    window_frames: int | None = None
    """Frames of the audio window; None takes the preset's."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training that differ."""
    inpaint: bool = False
    """See :class:`dithead.config.DiffusionConfig`."""
    steps: int | None = None
    """Steps of the sampler; None takes the preset's."""
    reference: ReferenceMode = "fixed"

    @property
    def trained(self) -> bool:
        """Whether it has weights of its own; otherwise it has the base's."""
        others = self.dit or self.window_frames or self.training
        return self.name == BASE or bool(others)

    def config(self, base: DitHeadConfig) -> DitHeadConfig:
        """Its configuration, from a preset's."""
        dit = replace(base.dit, **{"skip": False, "conditioning": "tokens", **self.dit})
        audio = replace(base.audio, window_frames=self.window_frames or base.audio.window_frames)
        diffusion = replace(base.diffusion, inpaint=self.inpaint)
        return replace(base, dit=dit, audio=audio, diffusion=diffusion)


ROWS = (
    Row(BASE),
    Row("another seed", training={"seed": 1001}),
    Row("paper conditioning", dit={"conditioning": "paper"}),
    Row("window of 1", window_frames=1),
    Row("window of 5", window_frames=5),
    Row("reference previous", reference="previous"),
    Row("landmarks", dit={"landmarks": True}),
    Row("audio filter", dit={"audio_filter": True}),
    Row("known laid back", inpaint=True),
    Row("2 motion frames", dit={"motion_frames": 2}),
    Row("lip loss 0.2", training={"lip_weight": 0.2}),
    Row("1 step", steps=1),
    *(Row(f"{steps} steps", steps=steps) for steps in (2, 4, 8)),
)
"""The base, the same once more with other random numbers, which says what a difference is worth,
and what differs from the base in one choice."""
MEASURES = (
    *("crossed fine_with_audio", "crossed fine_with_video", "crossed fine_in_step"),
    *("own gain_db", "own generated.psnr_db"),
)
"""Columns of the table, see docs/evaluation.md: kind of run, and a measure of it."""


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows with some names, in the table's order; all of them, if there are none.

    Raises:
        ConfigError: no such row.
    """
    known = [row.name for row in ROWS]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown row {unknown[0]!r}; choose from {', '.join(known)}")
    return [row for row in ROWS if not names or row.name in names]


def narrowed(cache: LatentCache, frames: int) -> LatentCache:
    """The cache with windows of so many frames: the middle of each.

    Raises:
        ConfigError: its own windows are shorter.
    """
    found = cache.silence_window.shape[0]
    if found < frames:
        raise ConfigError(f"the latents have windows of {found} frames, not of {frames}")
    middle = slice((found - frames) // 2, (found + frames) // 2)
    windows = {name: values[:, :, middle] for name, values in cache.windows.items()}
    return replace(cache, windows=windows, silence_window=cache.silence_window[middle])


@dataclass(frozen=True, slots=True)
class Ablation:
    """What all rows have in common.

    Args:
        base: the preset. face, masked, shape: weights of its other parts. out: folder for weights,
            checkpoints and figures. audio_weights: of the speech encoder, if it is not the packaged
            one; they are needed to judge.
    """

    base: DitHeadConfig
    training: DiTTraining
    face: Path
    masked: Path
    shape: Path | None
    out: Path
    audio_weights: Path | None = None

    def train(self, row: Row, cache: LatentCache, execution: Execution) -> Path:
        """Train a row, unless it is there already, and pack its checkpoint.

        Returns:
            The checkpoint.
        """
        config = row.config(self.base)
        weights = row if row.trained else ROWS[0]
        settings = replace(self.training, **weights.training)
        narrow = narrowed(cache, config.audio.window_frames)
        of_weights = weights.config(self.base)
        folder = self.out / _file_name(weights)
        dit = train_dit(narrow, of_weights, settings, folder, None, execution, self.shape)
        path = self.out / f"{_file_name(row)}.safetensors"
        provenance = {"origin": f"ablation: {row.name}", "licence": "Apache-2.0"}
        pack(config, path, self.face, self.masked, dit, self.shape, provenance)
        return path

    def judged(self, row: Row) -> Path:
        """Where a row's figures are, once it is judged."""
        return self.out / f"{_file_name(row)}.json"

    def judge_arguments(self, row: Row, execution: Execution) -> list[str]:
        """Arguments of ``dithead-eval`` for a row, besides the clips, on the device and with the
        attention of its training."""
        made = ["--checkpoint", str(self.out / f"{_file_name(row)}.safetensors")]
        made += ["--reference", row.reference, "--kinds", "own", "crossed"]
        made += ["--json", str(self.judged(row))]
        made += ["--device", execution.device, "--attention", execution.attention]
        if self.audio_weights is not None:
            made += ["--audio-weights", str(self.audio_weights)]
        return made + ([] if row.steps is None else ["--steps", str(row.steps)])


def ablate(
    ablation: Ablation,
    rows: Sequence[Row],
    cache: LatentCache,
    execution: Execution,
    clips: Sequence[str],
) -> Table:
    """Train and judge rows. What is there already, from an interrupted call, is kept.

    Args:
        cache: with windows as wide as the widest. clips: arguments of ``dithead-eval`` that say
            which to judge on; none judges nothing.

    Returns:
        The figures of all rows that were judged, now or before.

    Raises:
        BackendUnavailable, CheckpointError: rows are to be judged, and what that needs besides them
            is missing.
        MediaError: a row could not be judged.
    """
    if clips:
        check_attention(execution.attention, checked_device(execution.device))
        load_audio_encoder(ablation.base.audio, ablation.audio_weights)
    for row in rows:
        log.info("%s: %s", row.name, ablation.train(row, cache, execution))
        if clips and not ablation.judged(row).is_file():
            with redirect_stdout(sys.stderr):  # its table of each row is not the result
                failed = evaluate.main([*clips, *ablation.judge_arguments(row, execution)])
            if failed:
                raise MediaError(f"the row {row.name!r} could not be judged: see the error above")
    reports = {row.name: _report(ablation.judged(row)) for row in rows}
    return side_by_side("ablation", reports, MEASURES)


def _report(path: Path) -> dict[str, Any]:
    return read_report(path) if path.is_file() else {}


def _file_name(row: Row) -> str:
    return row.name.replace(" ", "_")
