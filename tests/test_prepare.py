"""Footage prepared with either stack of face networks."""

from __future__ import annotations

import multiprocessing.dummy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fanfaces import drawn_networks

from dithead.face.networks import FaceNetworks
from dithead.train import cli
from dithead.train.data import Footage
from dithead.train.picture import save_png
from dithead.train.shards.run import one_thread


def test_the_papers_networks_find_faces(
    astronaut: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "stills").mkdir()
    picture = torch.from_numpy(astronaut[:256, 100:356].copy())
    save_png(picture, tmp_path / "stills" / "p.png")
    folder, out = tmp_path / "weights", tmp_path / "out"
    command = ["prepare", f"--stills={tmp_path / 'stills'}", "--threads=1"]
    with_fan = [*command, "--face-models=fan", f"--face-weights={folder}", f"--out={out}"]
    assert cli.main(with_fan) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no weights of S3FD at {folder / 's3fd.safetensors'}" in line
    assert f"fetch them with dithead train convert fan -o {folder}" in line
    assert not out.exists()

    load_packaged = FaceNetworks.load

    def load(models: str = "mediapipe", weights: object = None) -> FaceNetworks:
        assert (models, weights) in (("mediapipe", None), ("fan", folder))
        return drawn_networks() if models == "fan" else load_packaged()

    monkeypatch.setattr(FaceNetworks, "load", load)
    # Threads in the place of other processes, in which the stand-ins would not be known.
    threads = SimpleNamespace(get_context=lambda kind: multiprocessing.dummy)
    monkeypatch.setattr("dithead.train.prepare.multiprocessing", threads)
    with one_thread():
        assert cli.main(with_fan) == 0
        assert cli.main([*command, f"--out={tmp_path / 'packaged'}"]) == 0
    fan, packaged = Footage(out), Footage(tmp_path / "packaged")
    meshes = [one.track(one.clips[0])["mesh"] for one in (fan, packaged)]
    assert meshes[0].shape == meshes[1].shape == (1, 468, 2)
    off = np.abs(meshes[0] - meshes[1]).max()
    assert 0.5 < off < 20  # the same face of 120 px, of which FAN gives 68 points
