"""The bundle that is made once for this machine's CPU: when it is made, what it runs, and what
happens where there can be none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import dithead
from dithead.__main__ import stream
from dithead.bundle.graphspecs import NETWORKS, graph_specs
from dithead.bundle.manifest import MANIFEST, read_manifest
from dithead.errors import CheckpointError, ExportError
from dithead.export.cached import KEPT, cache_folder, cached_bundle
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


@pytest.fixture
def own_cache(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with a copy of the bundle; the copy. What is made is a copy,
    too."""
    folder = tmp_path / "cache" / "dithead" / "bundles" / bundle.name
    shutil.copytree(bundle, folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def export(source: str, to: Path, *_: object, **__: object) -> None:
        shutil.copytree(bundle, to)

    monkeypatch.setattr("dithead.export.bundle.export_bundle", export)
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: next(folder.glob("dit_context*.onnx")).write_bytes(b"short"),
        lambda folder: next(folder.glob("dit_context*.onnx")).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text("{}"),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: some_graphs(folder),
        lambda folder: (shutil.rmtree(folder), folder.touch()),
        lambda folder: (shutil.rmtree(folder), (left_by_a_kill(folder)).mkdir()),
    ],
)
def test_a_damaged_bundle_is_made_again(
    own_cache: Path, checkpoint_file: Path, damage: Callable[[Path], object]
) -> None:
    begun: list[Path] = []
    damage(own_cache)
    assert cached_bundle(checkpoint_file, begin=begun.append) == own_cache
    assert begun == [own_cache]
    assert cached_bundle(checkpoint_file, begin=begun.append) == own_cache
    assert begun == [own_cache]
    assert not left_by_a_kill(own_cache).exists()


def left_by_a_kill(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.making")


def some_graphs(folder: Path) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    values["graphs"] = values["graphs"][:3]
    (folder / MANIFEST).write_text(json.dumps(values))


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
    assert all(line.startswith("{") for line in command("--progress", "json")[2].splitlines())


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


def test_bundles_that_are_not_used_go(own_cache: Path, checkpoint_file: Path) -> None:
    def other(name: str, used: bool = True) -> Path:
        folder = own_cache.with_name(name)
        folder.mkdir()
        if used:
            (folder / MANIFEST).touch()
            os.utime(folder / MANIFEST, (1000 + len(name), 1000 + len(name)))
        return folder

    old = [other("x" * (n + 1) + "-" + "0" * 16) for n in range(KEPT + 1)]
    kept = [other("notes"), other("half-" + "1" * 16, used=False)]  # not ours; not a bundle
    left = other(".x-" + "2" * 16 + ".making", used=False)
    os.utime(left, (1000, 1000))
    busy = other(".y-" + "3" * 16 + ".making", used=False)
    shutil.rmtree(own_cache)
    assert cached_bundle(checkpoint_file) == own_cache
    found = {path for path in own_cache.parent.iterdir() if path.is_dir()}
    assert found == {own_cache, *old[-(KEPT - 1) :], *kept, busy}


def test_many_at_once_make_it_once(
    own_cache: Path, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_cache)
    begun: list[Path] = []
    found: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(cached_bundle(checkpoint_file, begin=begun.append))
        )
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [own_cache] * 16
    assert begun == [own_cache]


def test_what_cannot_be_made_leaves_nothing(
    own_cache: Path, checkpoint_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(own_cache)

    def breaks(source: str, to: Path, *_: object, **__: object) -> None:
        to.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dithead.export.bundle.export_bundle", breaks)
    with pytest.raises(ExportError, match=r"cannot keep a bundle in .*No space left"):
        cached_bundle(checkpoint_file)
    assert not [path for path in own_cache.parent.iterdir() if path.is_dir()]


def test_no_checkpoint_is_the_same_error_as_without(command, tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=f"no checkpoint at {path}"):
            cached_bundle(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "onnxruntime", "--batch", "2"), "takes one frame at a time"),
        (("--backend", "onnxruntime", "--attention", "math"), "takes its attention from"),
        (("--backend", "onnxruntime", "--audio-weights", "none"), "its own weights"),
    ],
)
def test_contradictions_are_found_before_it_is_made(
    command, options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dithead.export.cached.cached_bundle", lambda *_, **__: pytest.fail("made"))
    code, failure, _ = command(*options)
    assert code == 2
    assert message in failure["error"]


def test_onnx_runtime_collects_nothing(tmp_path: Path) -> None:
    code = "from dithead.bundle.libraries import load_onnxruntime; load_onnxruntime()"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    env.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-P", "-c", code], env=env, check=True)
    assert not list(tmp_path.iterdir())
