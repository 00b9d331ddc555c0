"""The C library's loader: the same bits as Python's, and nothing damaged or foreign is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capi
import numpy as np
import pytest
import torch
from bundles import SMALL, cases

from dithead.bundle import manifest as mf
from dithead.bundle.graphspecs import graph_specs
from dithead.export.inputs import example_inputs
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.torchgraphs import TorchGraphs

ROOT = Path(__file__).resolve().parents[1]
LOADER = capi.BUILD / "tests" / "capi_loader"
INVALID, BUNDLE, PROVIDER, STAGE = 1, 4, 5, 9
"""What the program exits with: minus the status in dithead.h."""

pytestmark = pytest.mark.skipif(
    not LOADER.exists(), reason=f"{LOADER} was not built: make capi CAPI_OPTIONS=-DDITHEAD_TESTS=ON"
)


def loader(*arguments: object, status: int = 0) -> str:
    """Run the test program; what it prints, or with a status what it says went wrong."""
    ran = subprocess.run(
        [str(LOADER), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == status, ran.stderr
    return ran.stdout if status == 0 else ran.stderr


@pytest.fixture
def change(bundle_copy: Path) -> Callable[[Callable[[dict], object]], Path]:
    """Changes the manifest of a copy of the small bundle; the copy."""

    def apply(by: Callable[[dict], object]) -> Path:
        path = bundle_copy / mf.MANIFEST
        values = json.loads(path.read_text())
        by(values)
        path.write_text(json.dumps(values))
        return bundle_copy

    return apply


def test_the_manifest_and_the_audio_grid_are_read_as_in_python(small_bundle: Path) -> None:
    found = json.loads(loader("manifest", small_bundle))
    manifest = mf.read_manifest(small_bundle)
    config, audio = manifest.model_config(), manifest.model_config().audio
    for name in ("chunk_ms", "chunk_samples", "hop_samples", "left_context_samples", "first_hop"):
        assert found.pop(name) == getattr(audio, name), name
    for name in ("right_context_samples", "chunk_features", "hop_features", "block_features"):
        assert found.pop(name) == getattr(audio, name), name
    for name in ("left_context_features", "window_half_span_us", "longest_wait_ms"):
        assert found.pop(name) == getattr(audio, name), name
    times_us = (-1000000, -1, 0, 1, 39999, 40000, 12345678)
    assert found.pop("block_start") == [audio.block_start(time_us) for time_us in times_us]
    assert found.pop("window_shape") == list(audio.window_shape)
    for name in ("crop_px", "crop_span", "crop_down"):
        assert found.pop(name) == getattr(config.face, name), name
    for name in ("timesteps", "steps"):
        assert found.pop(name) == getattr(config.diffusion, name), name
    assert found.pop("noise_per_frame") == (config.diffusion.noise == "frame")
    assert found.pop("latent_channels") == config.vqgan.latent_channels
    for name in ("latent_size", "shape_head"):
        assert found.pop(name) == getattr(config, name), name
    assert found.pop("largest_rectangle") == manifest.largest_rectangle
    graphs = found.pop("graphs")
    assert not found
    assert list(graphs) == sorted(entry.name for entry in manifest.graphs)
    for entry in manifest.graphs:
        for kind in ("inputs", "outputs"):
            ports = [{"name": p.name, "shape": list(p.shape)} for p in getattr(entry, kind)]
            assert graphs[entry.name][kind] == ports


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SMALL)
def test_graphs_give_the_same_bits_as_in_python(
    small_bundle: Path, random_models: TorchGraphs, tmp_path: Path, name: str, threads: int
) -> None:
    inputs = cases(name, random_models, 1)[0]
    for port, value in inputs.items():
        value.numpy().tofile(tmp_path / port)
    files = [tmp_path / port for port in inputs]
    loader("run", small_bundle, name, threads, tmp_path / "out", *files)
    wanted = OnnxGraphs(small_bundle, threads=threads).run(name, *inputs.values())
    for number, value in enumerate(wanted):
        found = np.fromfile(tmp_path / f"out.{number}", value.numpy().dtype)
        assert np.array_equal(found.view(np.uint8), value.numpy().reshape(-1).view(np.uint8))


def test_every_graph_of_a_whole_bundle_gives_the_same_bits(
    shipped_bundle: Path, tmp_path: Path
) -> None:
    manifest = mf.read_manifest(shipped_bundle)
    config = manifest.model_config()
    generator = torch.Generator().manual_seed(1)
    graphs = OnnxGraphs(shipped_bundle, threads=2)
    for spec in graph_specs(manifest.largest_rectangle, config.shape_head):
        examples = example_inputs(spec, config, generator)
        inputs = {port: examples[port] for port in spec.inputs}
        files = []
        for port, value in inputs.items():
            value.contiguous().numpy().tofile(tmp_path / port)
            files.append(f"{tmp_path / port}:{','.join(map(str, value.shape))}")
        loader("run", shipped_bundle, spec.name, 2, tmp_path / "out", *files)
        for number, value in enumerate(graphs.run(spec.name, *inputs.values())):
            found = (tmp_path / f"out.{number}").read_bytes()
            assert found == value.numpy().tobytes(), f"{spec.name}, output {number}"


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        message = loader("manifest", folder, status=BUNDLE)
        assert "is no bundle: it has no manifest.json; make one with dithead-export -o" in message
    (tmp_path / mf.MANIFEST).mkdir()
    assert "is no bundle" in loader("manifest", tmp_path, status=BUNDLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "damaged"),
        (b'{"schema": 1', "damaged"),
        (b"[]", "expected an object"),
        (b"nonsense", "damaged"),
        (b'{"schema": 1, "checkpoint": "\xff"}', "damaged"),
        (b'{"schema": 99}', f"schema version 99, and this version of DiT-Head reads {mf.SCHEMA}"),
        (b'{"schema": "1"}', "expected an integer"),
        (b'{"schema": 1.0}', "expected an integer"),
        (b'{"schema": 1e400}', "damaged"),
        (b'{"schema": 18446744073709551616}', "damaged"),
        (b"[" * 100_000 + b"]" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 100_000, "nested more than 64 deep"),
        (b'{"schema": %d}' % mf.SCHEMA, "'config' is missing"),
        (b" " * ((16 << 20) + 1), "damaged: it is larger than"),
    ],
)
def test_a_manifest_that_is_damaged_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / mf.MANIFEST).write_bytes(text)
    found = loader("manifest", tmp_path, status=BUNDLE)
    assert message in found and "export again" in found and len(found) < 1000


def first_port(values: dict) -> Any:
    return values["graphs"][0]["inputs"][0]


def first_file(values: dict) -> Any:
    return values["graphs"][0]["onnx"][0]["file"]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (lambda v: v.pop("graphs"), "manifest: 'graphs' is missing"),
        (lambda v: v.update(graphs={}), "manifest.graphs: expected a list"),
        (lambda v: v.update(graphs=[7]), "manifest.graphs[0]: expected an object, found 7"),
        (lambda v: v["graphs"].append(v["graphs"][0]), "no graph twice"),
        (lambda v: v["graphs"][0].pop("onnx"), "manifest.graphs[0]: 'onnx' is missing"),
        (lambda v: v["graphs"][0].update(engine=1), "expected true or false"),
        (lambda v: v["graphs"][0].update(name="x" * 5000), "expected text of at most 256"),
        (lambda v: v["graphs"][0].update(name="a\0b"), "expected text"),
        (lambda v: v["graphs"][0].update(inputs=v["graphs"][0]["inputs"] * 2), "no name twice"),
        (lambda v: v["graphs"][0].update(inputs=[first_port(v)] * 65), "a list of at most 64"),
        (lambda v: first_port(v).update(dtype="complex64"), "expected float32, float64, int64"),
        (lambda v: first_port(v).update(shape=[-1]), "shape[0]: expected an integer, 1 to"),
        (lambda v: first_port(v).update(shape=[0]), "shape[0]: expected an integer, 1 to"),
        (lambda v: first_port(v).update(shape=[1 << 62]), "shape[0]: expected an integer"),
        (lambda v: first_port(v).update(shape=[1 << 64]), "shape[0]: expected an integer"),
        (lambda v: first_port(v).update(shape=[1 << 16] * 4), "shape[1]: expected an integer"),
        (lambda v: first_port(v).update(shape=[1] * 9), "a list of at most 8"),
        (lambda v: first_port(v).update(shape=[1.5]), "expected an integer"),
        (lambda v: first_port(v).update(shape=[""]), "expected a name"),
        (lambda v: first_file(v).update(bytes=-1), "bytes: expected an integer, 0 to"),
        (lambda v: first_file(v).update(bytes=1 << 63), "bytes: expected an integer"),
        (lambda v: first_file(v).pop("sha256"), "'sha256' is missing"),
        (lambda v: v.update(largest_rectangle=-4), "expected an integer, 1 to 16384"),
        (lambda v: v.update(targets="cpu"), "manifest.targets: expected a list"),
        (lambda v: v["config"].update(nonsense=1), 'config: unknown key "nonsense"'),
        (lambda v: v["config"]["audio"].update(speed=2), 'audio: unknown key "speed"'),
        (lambda v: v["config"].update(face=[]), "config.face: expected an object"),
        (lambda v: v["config"]["face"].update(crop_px=65), "expected a multiple of 16"),
        (lambda v: v["config"]["face"].update(crop_px=1 << 40), "expected an integer, 32 to"),
        (lambda v: v["config"]["face"].update(crop_span=1.5), "expected a number, 0.5 to 1.0"),
        (lambda v: v["config"]["face"].update(crop_span="wide"), "expected a number"),
        (lambda v: v["config"]["face"].update(mask="paper"), "mask: expected fixed"),
        (lambda v: v["config"]["diffusion"].update(inpaint=True), "inpaint: expected false"),
        (lambda v: v["config"]["dit"].update(landmarks=True), "landmarks: expected false"),
        (lambda v: v["config"]["dit"].update(motion_frames=2), "motion_frames: expected an int"),
        (lambda v: v["config"]["vqgan"].update(fold=3), "crop_px to be a multiple of"),
        (lambda v: v["config"]["diffusion"].update(steps=5000), "steps: expected an integer"),
        (lambda v: v["config"]["diffusion"].update(noise="loud"), "expected frame or stream"),
        (lambda v: v["config"]["audio"].update(encoder="hubert"), "encoder: expected"),
        (lambda v: v["config"]["audio"].update(hop_ms=0), "hop_ms: expected an integer, 20 to"),
        (lambda v: v["config"]["audio"].update(hop_ms=30), "hop_ms: expected a multiple of 20"),
        (lambda v: v["config"]["audio"].update(left_context_ms=30_000), "from 40 to 30000"),
        (lambda v: v["config"]["audio"].update(window_frames=10), "expected an odd number"),
        (lambda v: v["config"]["audio"].update(layers=[1, 1]), "expected no layer twice"),
        (lambda v: v["config"]["audio"].update(layers=[9]), "expected an integer, -1 to 4"),
        (
            lambda v: v["config"]["audio"].update(encoder="whisper-base", layers=[7]),
            "expected an integer, -1 to 6",
        ),
        (
            lambda v: v["config"]["audio"].update(encoder="whisper-base", feature_dim=5),
            "feature_dim: expected 512",
        ),
        (lambda v: v["config"]["audio"].update(feature_dim=5), "feature_dim: expected 384"),
    ],
)
def test_absurd_values_are_refused(
    change: Callable[..., Path], by: Callable[[dict], object], message: str
) -> None:
    found = loader("manifest", change(by), status=BUNDLE)
    assert message in found and "export again" in found


def test_fields_that_do_not_matter_here_may_be_added(change: Callable[..., Path]) -> None:
    loader("open", change(lambda v: v["graphs"][0].update(surprise=1)), "cpu")


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "./noise.onnx"]
)
def test_paths_that_lead_elsewhere_are_refused(change: Callable[..., Path], path: str) -> None:
    bundle = change(lambda values: first_file(values).update(path=path))
    message = loader("manifest", bundle, status=BUNDLE)
    assert "expected the name of a file in the bundle" in message


def file_of(bundle: Path) -> Path:
    """The file of the graph ``noise``."""
    return bundle / mf.read_manifest(bundle).graph("noise").onnx[0].file.path


@pytest.mark.parametrize("what", ["file", "manifest", "folder"])
def test_links_that_lead_out_of_the_bundle_are_refused(
    bundle_copy: Path, tmp_path: Path, what: str
) -> None:
    path = bundle_copy / mf.MANIFEST if what == "manifest" else file_of(bundle_copy)
    if what == "folder":
        (tmp_path / "outside").mkdir()
        shutil.move(path, tmp_path / "outside" / "file")
        path.symlink_to(tmp_path / "outside")
        assert "is missing from the bundle" in loader("open", bundle_copy, "cpu", status=BUNDLE)
        return
    shutil.move(path, tmp_path / "outside")
    path.symlink_to("../outside")
    message = loader("open", bundle_copy, "cpu", status=BUNDLE)
    assert "points out of the bundle" in message and "cp -rL" in message


def test_links_that_stay_inside_are_followed(bundle_copy: Path, tmp_path: Path) -> None:
    path = file_of(bundle_copy)
    path.rename(bundle_copy / "stored")
    path.symlink_to("stored")
    (tmp_path / "link").symlink_to(bundle_copy)
    loader("open", tmp_path / "link", "cpu")


def test_files_that_are_missing_short_or_altered_are_refused(bundle_copy: Path) -> None:
    path = file_of(bundle_copy)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    size = f"{len(content) - 100} bytes, and the manifest says {len(content)}"
    assert size in loader("open", bundle_copy, "cpu", status=BUNDLE)
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert "its hash differs" in loader("open", bundle_copy, "cpu", status=BUNDLE)
    path.unlink()
    assert "is missing from the bundle" in loader("open", bundle_copy, "cpu", status=BUNDLE)
    os.mkfifo(path)
    assert "is missing from the bundle" in loader("open", bundle_copy, "cpu", status=BUNDLE)


def replace(bundle: Path, content: bytes) -> Callable[[dict], None]:
    """Puts a file in the place of the graph ``noise``, and into the manifest."""
    from hashlib import sha256

    path = file_of(bundle)
    path.write_bytes(content)

    def change(values: dict) -> None:
        for graph in values["graphs"]:
            for onnx in graph["onnx"]:
                if onnx["file"]["path"] == path.name:
                    onnx["file"].update(sha256=sha256(content).hexdigest(), bytes=len(content))

    return change


def test_a_file_that_is_no_graph_or_another_one_is_refused(
    bundle_copy: Path, change: Callable[..., Path]
) -> None:
    other = bundle_copy / mf.read_manifest(bundle_copy).graph("dit_context").onnx[0].file.path
    change(replace(bundle_copy, b"no graph at all"))
    message = loader("open", bundle_copy, "cpu", status=BUNDLE)
    assert "cannot open graph 'noise'" in message
    change(replace(bundle_copy, other.read_bytes()))
    message = loader("open", bundle_copy, "cpu", status=BUNDLE)
    assert "graph 'noise'" in message and "export again" in message


def test_the_provider_must_be_there_and_the_bundle_made_for_it(
    small_bundle: Path, change: Callable[..., Path]
) -> None:
    unknown = loader("open", small_bundle, "openvino", status=INVALID)
    assert "choose one of cpu, cuda, tensorrt, tensorrt-rtx" in unknown
    if not torch.cuda.is_available():
        for name in ("cuda", "tensorrt", "tensorrt-rtx"):
            message = loader("open", small_bundle, name, status=PROVIDER)
            assert "has no" in message or "cannot load the plug-in provider" in message
    bundle = change(lambda values: values.update(targets=["gpu"]))
    assert "--targets cpu" in loader("open", bundle, "cpu", status=BUNDLE)


def test_a_library_that_is_no_provider_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "plugin.so").write_bytes(b"no library")
    for library in (tmp_path / "absent.so", tmp_path / "plugin.so"):
        message = loader("open", small_bundle, "tensorrt-rtx", library, status=PROVIDER)
        assert f"cannot load the plug-in provider {library}" in message


def test_a_graph_that_the_bundle_lacks_is_named(small_bundle: Path, tmp_path: Path) -> None:
    message = loader("run", small_bundle, "face_decoder", 1, tmp_path / "out", status=BUNDLE)
    assert "the bundle has no graph 'face_decoder'" in message


def test_inputs_that_do_not_fit_are_named(small_bundle: Path, tmp_path: Path) -> None:
    np.zeros(2, np.int64).tofile(tmp_path / "two")
    np.zeros(1, np.int64).tofile(tmp_path / "one")
    run = ("run", small_bundle, "noise", 1, tmp_path / "out")
    message = loader(*run, f"{tmp_path / 'two'}:2", tmp_path / "one", status=STAGE)
    assert "graph 'noise', input 'seed': expected int64 [1], found int64 [2]" in message
    message = loader(*run, tmp_path / "one", status=STAGE)
    assert "graph 'noise' takes 2 inputs, found 1" in message


def test_the_table_of_graphs_is_that_of_python() -> None:
    found = {}
    for line in loader("table").strip().splitlines():
        name, _, ports = line.partition(": ")
        inputs, _, outputs = ports.partition(" -> ")
        names = [tuple(p.partition("(")[0] for p in side.split()) for side in (inputs, outputs)]
        found[name.replace("SIDE", "64")] = names
    unused = "interpolator"
    specs = [spec for spec in graph_specs(64) if spec.name != unused]
    assert found == {spec.name: [spec.inputs, spec.outputs] for spec in specs}


@pytest.mark.parametrize(
    ("graph", "port", "shape"),
    [("dit_step", "noisy", [1, 4, 8, 9]), ("noise", "seed", [2]), ("dit_context", "window", [7])],
)
def test_graphs_with_other_shapes_are_refused(
    change: Callable[..., Path], graph: str, port: str, shape: list[int]
) -> None:
    def by(values: dict) -> None:
        entry = next(entry for entry in values["graphs"] if entry["name"] == graph)
        next(p for p in entry["inputs"] if p["name"] == port)["shape"] = shape

    message = loader("open", change(by), "cpu", status=BUNDLE)
    assert f"graph '{graph}' was made by another version" in message and f"{port}(" in message


@pytest.mark.parametrize(("cut", "shown"), [(192, 192), (256, 256), (256, 192), (160, 160)])
def test_a_picture_of_a_region_fits_either_landmark_network(
    change: Callable[..., Path], cut: int, shown: int
) -> None:
    """The mesh network's has 192 pixels, FAN's 256."""

    def port(name: str, dtype: str, *shape: int | str) -> dict:
        return {"name": name, "dtype": dtype, "shape": shape}

    def graph(name: str, inputs: list[dict], output: dict) -> dict:
        return {"name": name, "inputs": inputs, "outputs": [output], "engine": False}

    picture = port("picture", "float32", 1, 3, shown, shown)
    given = [port("frame", "uint8", "H", "W", 3), port("region", "float32", 1, 5)]
    region = graph("face_region.1", given, port("picture", "float32", 1, 3, cut, cut))
    frame = graph("face_picture", [picture], port("frame", "uint8", shown, shown, 3))

    def by(values: dict) -> None:
        files = next(entry["onnx"] for entry in values["graphs"] if entry["name"] == "noise")
        values["graphs"] += [region | {"onnx": files}, frame | {"onnx": files}]

    message = loader("open", change(by), "cpu", status=BUNDLE)
    fits = cut == shown != 160  # then the next thing is that the files are another graph's
    assert ("its file has 2 inputs" if fits else "expected picture(1,3,") in message


def test_a_bundle_of_some_graphs_is_not_complete(small_bundle: Path) -> None:
    message = loader("complete", small_bundle, status=BUNDLE)
    assert "the bundle has no graph 'face_detector'" in message


def test_a_whole_bundle_is_complete(shipped_bundle: Path) -> None:
    loader("complete", shipped_bundle)


def test_the_sizes_in_use_stay_open() -> None:
    loader("sizes")


def test_random_weights_are_announced(change: Callable[..., Path]) -> None:
    bundle = change(lambda values: values.update(checkpoint_sha256="", checkpoint="random weights"))
    ran = subprocess.run([str(LOADER), "open", str(bundle), "cpu"], capture_output=True, text=True)
    assert "log 2:" in ran.stderr and "it says how fast the model is, not how good" in ran.stderr
