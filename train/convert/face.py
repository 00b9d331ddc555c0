"""Convert MediaPipe's face detector and mesh to ``face_detector`` and ``face_mesh.safetensors``.

The weights come with the package ``mediapipe`` 0.10.21 (Apache-2.0), which stores them as float16.

    pip download mediapipe==0.10.21 --no-deps
    python -m dithead.train.convert.face mediapipe-0.10.21-*.whl dithead/assets

``tests/data/face_nets_reference.npz`` holds what the original files answer to the pictures the
tests make, so that the tests need no TensorFlow Lite. It was made with ``ai-edge-litert`` 2.3.0:

    from ai_edge_litert.interpreter import Interpreter
    inputs = {**astronaut_inputs(), **carphone_inputs()}  # from tests/test_face_nets.py
    write_reference_outputs(wheel, Interpreter, inputs, Path("face_nets_reference.npz"))
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.face.detector import BlazeFace
from dithead.face.mesh import FaceMeshNet
from dithead.train.convert.command import convert_command
from dithead.train.convert.tflite import TfliteFile, read_tflite, torch_kernel

_VERSION = "0.10.21"
_DETECTOR_FILE = "mediapipe/modules/face_detection/face_detection_short_range.tflite"
_MESH_FILE = "mediapipe/modules/face_landmark/face_landmark.tflite"


def convert_face_models(mediapipe_wheel_or_dir: Path, out: Path) -> None:
    """Write both networks' weights as float16 checkpoints, which loses nothing.

    Args:
        mediapipe_wheel_or_dir: the wheel ``mediapipe==0.10.21``, or a folder with the package
            ``mediapipe`` in it.
        out: the folder to write to; it must exist.

    Raises:
        BackendUnavailable: the package ``tflite`` is not installed.
        CheckpointError: the files are not there or do not fit the networks.
    """
    models: tuple[tuple[str, str, nn.Module, Mapping[str, str], str], ...] = (
        ("face_detector", _DETECTOR_FILE, BlazeFace(), detector_layers(), "arXiv 1907.05047"),
        ("face_mesh", _MESH_FILE, FaceMeshNet(), mesh_layers(), "arXiv 1907.06724"),
    )
    for name, file, net, layers, paper in models:
        with _extracted(mediapipe_wheel_or_dir, file) as path:
            tensors = _take_layers(read_tflite(path), layers, path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        checkpoint.load_into(net, tensors, file)
        checkpoint.save(
            out / f"{name}.safetensors",
            tensors,
            config={"model": type(net).__name__},
            provenance={
                "origin": f"PyPI package mediapipe {_VERSION}, file {file}",
                "origin_sha256": digest,
                "origin_url": "https://github.com/google-ai-edge/mediapipe",
                "licence": "Apache-2.0, Copyright The MediaPipe Authors",
                "paper": paper,
            },
            dtype=None,
        )


def write_reference_outputs(
    mediapipe_wheel_or_dir: Path,
    interpreter: Callable[..., Any],
    inputs: Mapping[str, np.ndarray],
    out: Path,
) -> None:
    """Store the original networks' outputs, for the tests.

    Args:
        mediapipe_wheel_or_dir: as for :func:`convert_face_models`.
        interpreter: the class ``Interpreter`` of ``ai_edge_litert`` or ``tflite_runtime``.
        inputs: pictures (128, 128, 3) for the detector and (192, 192, 3) for the mesh, uint8 RGB,
            by name.
        out: the ``.npz`` file to write. For each input it holds ``<name>.crc32`` of the picture,
            and ``<name>.scores`` (896,) and ``<name>.regressors`` (896, 16), or
            ``<name>.landmarks`` (468, 3) and ``<name>.score`` (before the sigmoid).
    """
    arrays: dict[str, Any] = {}
    for name, picture in inputs.items():
        arrays[f"{name}.crc32"] = np.uint32(zlib.crc32(picture.tobytes()))
        if picture.shape[0] == 128:
            file, value = _DETECTOR_FILE, picture.astype(np.float32) / 127.5 - 1
            results = {"regressors": (896, 16), "scores": (896,)}
        else:
            file, value = _MESH_FILE, picture.astype(np.float32) / 255
            results = {"landmarks": (468, 3), "score": ()}
        with _extracted(mediapipe_wheel_or_dir, file) as path:
            runner = interpreter(model_path=str(path))
            runner.allocate_tensors()
            runner.set_tensor(runner.get_input_details()[0]["index"], value[None])
            runner.invoke()
            for detail, (result, shape) in zip(
                runner.get_output_details(), results.items(), strict=True
            ):
                arrays[f"{name}.{result}"] = runner.get_tensor(detail["index"]).reshape(shape)
    np.savez_compressed(out, **arrays)


def _take_layers(file: TfliteFile, layers: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Rename and reorder the weights; each floating constant must have a place in ``layers``."""
    tensors = {}
    for name, constant in file.constants.items():
        if not np.issubdtype(constant.dtype, np.floating):  # paddings, which the modules know
            continue
        layer, _, kind = name.rpartition("/")
        if layer not in layers:
            raise CheckpointError(
                f"{path} holds {name}, for which there is no place: "
                f"expected the file of mediapipe {_VERSION}"
            )
        if kind == "Kernel":
            tensors[f"{layers[layer]}.weight"] = torch_kernel(file, name)
        else:  # Bias (C,) of a convolution, or Alpha (1, 1, C) of a PReLU
            kind = {"Bias": "bias", "Alpha": "weight"}[kind]
            tensors[f"{layers[layer]}.{kind}"] = torch.from_numpy(constant.copy()).flatten()
    return tensors


def detector_layers() -> dict[str, str]:
    """Layer in the file -> module in :class:`BlazeFace`."""
    table = {"conv2d": "stem"}
    for i in range(16):
        block = f"stages.0.{i}" if i < 11 else f"stages.1.{i - 11}"
        table[f"depthwise_conv2d_{i}" if i else "depthwise_conv2d"] = f"{block}.depthwise"
        table[f"conv2d_{i + 1}"] = f"{block}.pointwise"
    for i, cell in enumerate((8, 16)):
        table[f"classificator_{cell}"] = f"score_heads.{i}"
        table[f"regressor_{cell}"] = f"box_heads.{i}"
    return table


def mesh_layers() -> dict[str, str]:
    """Layer in the file -> module in :class:`FaceMeshNet`."""
    table = {
        "conv2d_1": "stem",
        "p_re_lu_1": "stem_activation",
        "conv2d_19": "point_head.3",
        "p_re_lu_19": "point_head.4",
        "conv2d_21": "point_head.6",
        "conv2d_29": "score_head.1",
        "p_re_lu_27": "score_head.2",
        "conv2d_31": "score_head.4",
    }
    blocks = {f"trunk.{i}": (i + 1, i + 2, i + 2) for i in range(14)}  # numbers of the three layers
    blocks |= {f"point_head.{i}": (i + 15, i + 16, i + 16) for i in range(3)}
    blocks |= {
        "point_head.5": (18, 20, 20),
        "score_head.0": (23, 28, 26),
        "score_head.3": (24, 30, 28),
    }
    for block, (depthwise, pointwise, activation) in blocks.items():
        table[f"depthwise_conv2d_{depthwise}"] = f"{block}.depthwise"
        table[f"conv2d_{pointwise}"] = f"{block}.pointwise"
        table[f"p_re_lu_{activation}"] = f"{block}.activation"
    return table


@contextmanager
def _extracted(wheel_or_dir: Path, file: str) -> Iterator[Path]:
    """Path of a file in a wheel or an unpacked one, while the context lasts."""
    wheel_or_dir = Path(wheel_or_dir)
    if wheel_or_dir.is_dir():
        yield wheel_or_dir / file
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel_or_dir) as wheel:
                path = Path(wheel.extract(file, folder))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{wheel_or_dir} is neither a folder nor a wheel with {file} in it ({error}); "
                f"pip download mediapipe=={_VERSION} --no-deps"
            ) from error
        yield path


if __name__ == "__main__":
    sys.exit(
        convert_command(
            convert_face_models,
            None,
            what="MediaPipe's face detector and face mesh",
            source=("mediapipe", f"wheel mediapipe=={_VERSION}, or it unpacked"),
            out="folder to write the safetensors files to",
        )
    )
