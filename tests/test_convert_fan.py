"""Weights of S3FD and FAN, in the form in which face-alignment downloads them."""

from __future__ import annotations

import sys
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors import safe_open
from torch import nn

from dithead.errors import BackendUnavailable, CheckpointError, ConfigError
from dithead.face.fan import Fan
from dithead.face.networks import FaceNetworks
from dithead.face.s3fd import S3fd
from dithead.train import cli
from dithead.train.convert import fan as convert_fan

FILES = ("s3fd-619a316812.pth", "2DFAN4-11f355bf06.pth.tar")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder to which the package downloads, and no home of the user's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def networks() -> tuple[S3fd, Fan]:
    torch.manual_seed(7)
    return S3fd(), Fan()


def published(net: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """A network's state dict as versions of PyTorch before 0.4.1 wrote it, without counters."""
    state = net.state_dict()
    return OrderedDict((n, t) for n, t in state.items() if not n.endswith("num_batches_tracked"))


def test_what_was_downloaded_is_converted_and_loaded(
    hub: Path,
    networks: tuple[S3fd, Fan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save(published(networks[0]), hub / FILES[0])
    torch.save(networks[1].state_dict(), hub / FILES[1])
    assert cli.main(["convert", "fan"]) == 0
    folder = tmp_path / "cache" / "dithead" / "fan"
    assert str(folder) in capsys.readouterr().out
    with safe_open(folder / "fan.safetensors", framework="pt") as file:
        told = file.metadata()
    assert FILES[1] in told["origin"]
    assert "BSD-3-Clause" in told["licence"]
    assert len(told["origin_sha256"]) == 64

    loaded = FaceNetworks.load("fan")
    pairs = (loaded.detector, networks[0]), (loaded.landmarks, networks[1])
    for graph, net in pairs:
        assert isinstance(graph, nn.Module)
        found = graph.get_submodule("net").state_dict()
        assert found.keys() == net.state_dict().keys()
        assert all(torch.equal(found[name], value) for name, value in net.state_dict().items())


def test_a_wrong_or_missing_file_gives_one_line(
    hub: Path, networks: tuple[S3fd, Fan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "weights"

    def refused(expected: str, kind: type[Exception] = CheckpointError, **files: Path) -> None:
        with pytest.raises(kind, match=expected) as caught:
            convert_fan.convert_fan(out, **files)
        assert "\n" not in str(caught.value)
        assert not out.exists()

    absent = tmp_path / "none.pth"
    fetch = f"dithead train convert fan -o {out}"
    refused(f"no weights of S3FD at {absent}.*s3fd-619a316812.pth.*{fetch}", s3fd=absent)
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    refused(
        rf"no weights of S3FD at {hub / FILES[0]}.*pip install 'dithead\[fan\]'.*--s3fd",
        BackendUnavailable,
    )
    torch.save(published(networks[0]), hub / FILES[0])
    refused(rf"no weights of FAN at {hub / FILES[1]}.*--fan", BackendUnavailable)

    other = tmp_path / "other.pth"
    other.write_bytes(b"<html>not found</html>")
    refused(f"{other} is no file of PyTorch weights.*{fetch}", fan=other)
    torch.save({"epoch": 3, "state_dict": {}}, other)
    refused(f"{other} holds no state dict: expected 2DFAN4.*{fetch}", fan=other)
    torch.save(published(networks[0]), other)
    refused(f"no weights of FAN: {other} does not fit this Fan: missing.*{fetch}", fan=other)


def test_a_failed_download_names_the_file_and_its_address(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    reason = "face-alignment, which knows the addresses, is not installed"
    utils = pytest.importorskip("face_alignment", reason=reason).utils
    asked = []

    def no_network(url: str) -> str:
        asked.append(url)
        raise URLError("no route")

    monkeypatch.setattr(utils, "load_file_from_url", no_network)
    for path, option in zip(FILES, ("--s3fd", "--fan"), strict=True):
        expected = f"{hub / path}, and https.*/{path} cannot be downloaded.*no route.*{option}"
        with pytest.raises(CheckpointError, match=expected):
            convert_fan.convert_fan(tmp_path / "weights")
        torch.save({}, hub / path)
    assert len(asked) == 2


def test_a_file_that_does_not_load_says_what_to_do(tmp_path: Path, hub: Path) -> None:
    folder = tmp_path / "cache" / "dithead" / "fan"
    fetch = f"dithead train convert fan -o {folder}"
    with pytest.raises(CheckpointError, match=f"no weights of S3FD at {folder}.*{fetch}"):
        FaceNetworks.load("fan")
    folder.mkdir(parents=True)
    (folder / "s3fd.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=f"S3FD: {folder}.*not a readable.*{fetch}"):
        FaceNetworks.load("fan")
    with pytest.raises(ConfigError, match="come with the package"):
        FaceNetworks.load("mediapipe", folder)
    with pytest.raises(ConfigError, match=r"unknown face models 'dlib'.*mediapipe, fan"):
        FaceNetworks.load("dlib")  # type: ignore[arg-type]
