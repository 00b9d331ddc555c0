"""``dithead-eval``: how well the lips follow the audio, and how true the picture is, on held-out
clips of one person or of many. docs/evaluation.md defines every measure."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.pool import Pool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from dithead.errors import BackendUnavailable, ConfigError, DitheadError, MediaError
from dithead.options import Options
from dithead.train.evaluation.arguments import parser
from dithead.train.evaluation.clips import (
    ClipStore,
    Person,
    people_in_folder,
    people_in_manifest,
)
from dithead.train.evaluation.identity import load_face_recognition
from dithead.train.evaluation.inception import load_inception
from dithead.train.evaluation.models import JudgedModel, load_models
from dithead.train.evaluation.page import write_page
from dithead.train.evaluation.papertable import FACE, notes, paper_table
from dithead.train.evaluation.plan import plan
from dithead.train.evaluation.reconstruction import list_stills
from dithead.train.evaluation.runs import Job, Settings, run_job
from dithead.train.evaluation.summary import sum_up
from dithead.train.evaluation.syncnet import load_syncnet
from dithead.train.evaluation.table import as_text, read_report, tables
from dithead.train.evaluation.wholeface import pooled_fid
from dithead.train.perceptual import load_stlpips

STILLS = "stills"
_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


def evaluate(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[Job]]:
    """Run an evaluation from the command's arguments.

    Returns:
        Figures by kind of run, with the settings; the jobs that gave them.

    Raises:
        MediaError: no held-out clip shows a face in every frame.
    """
    people = _people(arguments)
    with TemporaryDirectory(prefix="dithead-eval-") as folder:
        settings = _settings(arguments, Path(folder))
        if settings.report is not None:
            settings.report.mkdir(parents=True, exist_ok=True)
        workers = arguments.workers or (2 if settings.model.device == "cpu" else 1)
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            how = arguments.seconds, arguments.sound_delay_ms
            usable = _usable(people, settings, how, pool)
            jobs = []
            if usable:
                jobs += plan(
                    usable,
                    arguments.kinds,
                    pairs=len(people[0].clips),
                    clips=arguments.clips,
                    looped_clips=arguments.looped_clips,
                    align=arguments.align,
                )
            if arguments.stills is not None:
                stills = list_stills(arguments.stills)
                jobs += [Job(STILLS, STILLS, path, path) for path in stills]
            results = _each(pool, run_job, [(job, settings) for job in jobs], "measured")
        pooled = _pooled(settings, jobs, results)
    kept = {path for person in usable for path in person.clips}
    missing = [path.name for person in people for path in person.clips if path not in kept]
    return _report(arguments, settings, jobs, results, missing, pooled), jobs


def _people(arguments: argparse.Namespace) -> list[Person]:
    people = []
    if arguments.videos is not None:
        people += people_in_folder(arguments.videos, arguments.validation, arguments.person)
    if arguments.manifest is not None:
        people += people_in_manifest(arguments.manifest, arguments.split)
    if not people and arguments.stills is None:
        raise MediaError("nothing to evaluate: give a folder of clips, --manifest or --stills")
    return people


def _settings(arguments: argparse.Namespace, store: Path) -> Settings:
    model = JudgedModel(
        arguments.checkpoint,
        arguments.audio_weights,
        arguments.device,
        arguments.attention or "auto",
        arguments.face_models or "mediapipe",
        arguments.face_weights,
    )
    config = model.check()
    options = Options(
        steps=arguments.steps or config.diffusion.steps,
        reference=arguments.reference,
        generate_every=arguments.generate_every,
        detail=arguments.detail == "on",
    )
    return Settings(
        model,
        store,
        options,
        arguments.precision,
        _wanted(arguments.perceptual, load_stlpips),
        _wanted(arguments.identity, load_face_recognition),
        arguments.paper_table,
        arguments.paper_table and _wanted(arguments.fid, load_inception),
        arguments.syncnet,
        arguments.report,
    )


def _wanted(asked: bool | None, load: Callable[[], object]) -> bool:
    """Whether to take a measure that needs a package: if it was requested, or if the package is
    installed."""
    if asked is False:
        return False
    try:
        load()
    except BackendUnavailable:
        if asked:
            raise
        return False
    return True


def _usable(
    people: Sequence[Person], settings: Settings, how: tuple[float, float], pool: Pool
) -> list[Person]:
    """The people with those of their clips that could be read, which are then in the store; ``how``
    has the arguments of :class:`ClipStore`."""
    paths = [path for person in people for path in person.clips]
    work = [(path, settings, how) for path in paths]
    read = dict(zip(paths, _each(pool, _store, work, "read"), strict=True))
    usable = [replace(person, clips=[p for p in person.clips if read[p]]) for person in people]
    usable = [person for person in usable if person.clips]
    if people and not usable:
        raise MediaError("every held-out clip was left out: see the lines above")
    return usable


def _store(work: tuple[Path, Settings, tuple[float, float]]) -> bool:
    path, settings, how = work
    try:
        ClipStore(settings.store, *how).add(path, load_models(settings.model))
    except MediaError as error:
        print(f"left out {path.name}: {error}", file=sys.stderr)
        return False
    return True


def _each(
    pool: Pool, do: Callable[[_Given], _Result], work: Sequence[_Given], verb: str
) -> list[_Result]:
    """Results in order, with a progress line on a terminal."""
    results: list[_Result] = []
    start = time.monotonic()
    for result in pool.imap(do, work, chunksize=1):
        results.append(result)
        if sys.stderr.isatty():
            done, elapsed = len(results), time.monotonic() - start
            left = elapsed / done * (len(work) - done)
            print(f"{verb} {done} of {len(work)}, {left:.0f} s left", file=sys.stderr)
    return results


def _pooled(
    settings: Settings, jobs: Sequence[Job], results: Sequence[dict[str, Any] | None]
) -> dict[str, float]:
    """Figures of the whole face that are of all clips together, not means over people."""
    if not settings.fid:
        return {}
    store = ClipStore(settings.store)
    measured = [
        store.features_file(job.video)
        for job, row in zip(jobs, results, strict=True)
        if job.kind == "own" and row is not None
    ]
    return pooled_fid(measured) if measured else {}


def _report(
    arguments: argparse.Namespace,
    settings: Settings,
    jobs: Sequence[Job],
    results: Sequence[dict[str, Any] | None],
    left_out: Sequence[str],
    pooled: dict[str, float],
) -> dict[str, Any]:
    failed = [job.name for job, row in zip(jobs, results, strict=True) if row is None]
    report: dict[str, Any] = {
        "settings": {
            "checkpoint": settings.model.checkpoint,
            "device": settings.model.device,
            "attention": settings.model.attention,
            "face_models": settings.model.face_models,
            "steps": settings.options.steps,
            "reference": settings.options.reference,
            "generate_every": settings.options.generate_every,
            "detail": settings.options.detail,
            "seconds": arguments.seconds,
            "sound_delay_ms": arguments.sound_delay_ms,
            "left_out": [*left_out, *failed],
        }
    }
    for kind in dict.fromkeys([*arguments.kinds, STILLS]):
        asked = [i for i, job in enumerate(jobs) if job.kind == kind]
        if not asked:
            continue
        rows: dict[str, list[dict[str, Any]]] = {}
        for i in asked:
            row = results[i]
            if row is not None:
                rows.setdefault(jobs[i].person, []).append(row)
        if not rows:
            raise MediaError(f"every clip was left out of '{kind}': see the lines above")
        figures = report[_title(kind, settings.options)] = sum_up(kind, rows)
        if kind == "own" and FACE in figures:
            figures[FACE] |= pooled
    return report


def _title(kind: str, options: Options) -> str:
    if kind in ("reconstruction", STILLS):
        return kind
    reference = "previous" if kind == "feedback" else options.reference
    return f"{kind}, {options.steps} steps, {reference} reference"


def main(argv: list[str] | None = None, prog: str = "dithead-eval") -> int:
    """Entry point of ``dithead-eval``."""
    arguments = parser(prog).parse_args(argv)
    try:
        if arguments.paper_table and "own" not in arguments.kinds:
            raise ConfigError("--paper-table needs the kind own", hint="add it to --kinds")
        for option in ("fid", "syncnet"):
            if getattr(arguments, option) and not arguments.paper_table:
                raise ConfigError(f"--{option} is for the paper's table", hint="add --paper-table")
        if arguments.syncnet is not None:
            load_syncnet(arguments.syncnet)  # before the work, in which every process loads it
        if arguments.compare is not None:
            print(as_text(tables([read_report(path) for path in arguments.compare])))
            return 0
        report, jobs = evaluate(arguments)
        if arguments.report is not None:
            print(f"wrote {write_page(report, jobs, arguments.report)}", file=sys.stderr)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(report, indent=2))
    except DitheadError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    if arguments.paper_table:
        print(as_text([paper_table(report)]), notes(report), sep="\n")
    elif arguments.json is None:
        print(json.dumps(report, indent=2))
    else:
        print(as_text(tables([report])))
    return 0
