"""The bundle that is made once for this machine's CPU: when it is made, what it runs, and what
happens where there can be none."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import dithead
from dithead.__main__ import stream
from dithead.bundle.graphspecs import NETWORKS, graph_specs
from dithead.bundle.manifest import MANIFEST, read_manifest
from dithead.errors import ExportError
from dithead.export.cached import KEPT, cache_folder, cached_bundle
from dithead.export.folder import claimed
from dithead.export.inputs import example_inputs
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.backends import open_graphs
from dithead.runtime.session import Session
from dithead.torchgraphs import TorchGraphs

pytest.importorskip("onnxruntime", reason="a bundle for the CPU is run by ONNX Runtime")


@pytest.fixture(scope="session")
def cache(checkpoint_file: Path, made_once: Callable[..., Path]) -> Path:
    """A cache with the small random model's bundle."""

    def fill(folder: Path) -> None:
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = str(folder)
        try:
            cached_bundle(checkpoint_file)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before

    return made_once("cache", fill)


@pytest.fixture
def bundle(cache: Path, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The bundle in the cache, which is the user's for as long as the test runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    torch.set_num_threads(1)
    yield cached_bundle(checkpoint_file)


def test_it_holds_the_networks_and_is_made_once(bundle: Path, checkpoint_file: Path) -> None:
    begun: list[Path] = []
    names = {entry.name for entry in read_manifest(bundle).graphs}
    assert names == set(NETWORKS) - {"shape_head"}  # which this model has not
    assert bundle.parent == cache_folder()
    assert dithead.cached_bundle(checkpoint_file, begin=begun.append) == bundle
    assert not begun


def test_a_damaged_file_is_made_again(bundle: Path, checkpoint_file: Path) -> None:
    begun: list[Path] = []
    made: list[str] = []
    damaged = next(path for path in bundle.iterdir() if path.name.startswith("dit_context"))
    whole, others = damaged.read_bytes(), {p: p.stat().st_mtime_ns for p in bundle.glob("*.onnx")}
    damaged.write_bytes(whole[:100])
    tell = lambda what, share: made.append(what)  # noqa: E731
    assert cached_bundle(checkpoint_file, begin=begun.append, progress=tell) == bundle
    assert begun == [bundle]
    assert [what.split()[0] for what in made] == ["dit_context"]
    assert len(damaged.read_bytes()) == len(whole)
    assert all(p.stat().st_mtime_ns == t for p, t in others.items() if p != damaged)


def test_onnx_runtime_runs_the_networks_and_pytorch_the_rest(
    bundle: Path, checkpoint_file: Path
) -> None:
    models = TorchGraphs.load(str(checkpoint_file))
    graphs = open_graphs("onnxruntime", bundle=bundle, threads=1)
    generator = torch.Generator().manual_seed(1)
    for spec in graph_specs(128, shape_head=False):
        named = example_inputs(spec, models.config, generator)
        inputs = [named[name] for name in spec.inputs]
        with torch.inference_mode():
            found, wanted = (each.run(spec.name, *inputs) for each in (graphs, models))
        for a, b in zip(found, wanted, strict=True):
            if spec.name in NETWORKS:
                assert (a - b).abs().max() <= 1e-4 * max(1.0, float(b.abs().max())), spec.name
            else:
                assert torch.equal(a, b), spec.name


def test_a_stream_equals_the_specification_on_it(bundle: Path, pictures, sound) -> None:
    graphs = open_graphs("onnxruntime", bundle=bundle, threads=1)
    frames = [(torch.from_numpy(image), index / 25) for index, image in enumerate(pictures)]
    wanted = list(revoice(frames, torch.from_numpy(sound), graphs, Options()))
    with Session(graphs).open_stream(Options()) as pushed:
        pushed.push_audio(sound)
        for image, time_s in frames:
            pushed.push_frame(image.numpy(), time_s)
        pushed.finish()
        found = [frame.image for frame in pushed.frames()]
    assert len(found) == len(wanted)
    assert all((a == b.numpy()).all() for a, b in zip(found, wanted, strict=True))
    assert any((a != b).any() for a, b in zip(found, pictures, strict=True))


@pytest.fixture
def command(
    checkpoint_file: Path, portrait_clip, tone_file, tmp_path: Path, capsys
) -> Callable[..., tuple[int, dict, str]]:
    """Runs ``dithead stream`` on a short clip: more arguments -> exit code, JSON, stderr."""
    clip = portrait_clip("in.mp4", [index / 25 for index in range(6)])
    sound = tone_file(0.24)

    def run(*more: str) -> tuple[int, dict, str]:
        out = str(tmp_path / "out.mp4")
        given = [str(clip), str(sound), "--checkpoint", str(checkpoint_file), "-o", out, "--json"]
        capsys.readouterr()
        code = stream([*given, *more])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return run


def test_the_command_takes_it_unless_asked_otherwise(bundle: Path, command) -> None:
    code, summary, said = command()
    assert (code, summary["backend"], summary["notes"]) == (0, "onnxruntime", [])
    assert said == ""
    assert command("--backend", "torch")[1]["backend"] == "torch"
    assert command("--attention", "math")[1]["backend"] == "torch"
    assert command("--batch", "2")[1]["backend"] == "torch"
    assert command("--backend", "onnxruntime")[1]["backend"] == "onnxruntime"


def test_making_it_is_said(bundle: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(checkpoint: str, *, begin, progress) -> Path:
        begin(bundle)
        return bundle

    monkeypatch.setattr("dithead.export.cached.cached_bundle", make)
    code, summary, said = command()
    assert (code, summary["backend"]) == (0, "onnxruntime")
    assert f"for this machine's CPU, once; it is kept in {bundle}" in said
    assert command("--quiet")[2] == ""


def test_without_a_cache_pytorch_runs_it_and_says_so(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    code, summary, said = command()
    assert (code, summary["backend"]) == (0, "torch")
    assert "PyTorch ran the model, more slowly than ONNX Runtime would" in summary["notes"][0]
    assert summary["notes"][0] in said
    code, failure, _ = command("--backend", "onnxruntime")
    assert code == 1
    assert "cannot" in failure["error"]


def test_bundles_that_are_not_used_go(
    bundle: Path, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    others = [cache_folder() / f"other-{number}" for number in range(KEPT + 1)]
    for number, folder in enumerate(others):
        folder.mkdir(parents=True)
        (folder / MANIFEST).touch()
        os.utime(folder / MANIFEST, (1000 + number, 1000 + number))
    monkeypatch.setattr(
        "dithead.export.bundle.export_bundle",
        lambda source, folder, *_, **__: folder.mkdir(),  # makes nothing
    )
    made = cached_bundle(checkpoint_file)
    assert set(cache_folder().iterdir()) == {made, *others[-(KEPT - 1) :]}


def test_an_export_waits_for_another_if_it_is_told_to(tmp_path: Path) -> None:
    folder, order = tmp_path / "bundle", []

    def second() -> None:
        with claimed(folder, wait=True):
            order.append("second")

    with claimed(folder):
        with pytest.raises(ExportError, match="another export"), claimed(folder):
            pass
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(10)
    assert order == ["first", "second"]
