"""Prepared footage in one small file, and the whole training from it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from streams import voice

from dithead.config import preset
from dithead.errors import MediaError
from dithead.face.mesh import INNER_LOWER, INNER_UPPER
from dithead.model import DitHead
from dithead.train.archive import archive, restore
from dithead.train.data import Clip, Footage, make_folders, save_clip, write_index
from dithead.train.prepare import Source, prepare_clip

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 30


@pytest.fixture
def footage(tmp_path: Path, astronaut: np.ndarray) -> Footage:
    """Two clips of a speaker and two stills, all of the portrait, whose lips are said to be closed
    in the stills, and to open and close in the clips."""
    av = pytest.importorskip("av")
    source, out = tmp_path / "portrait.png", tmp_path / "data"
    with av.open(str(source), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 240, 240, "rgb24"
        picture = np.ascontiguousarray(astronaut[20:260, 104:344])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    make_folders(out)
    whole = prepare_clip(Source(source, "portrait", "train", still=True), out, preset("tiny"))
    write_index(out, [whole])
    made = Footage(out)
    crop, track = np.array(made.crops(whole)), made.track(whole)
    mesh = track["mesh"][0]
    height = np.linalg.norm(mesh[10] - mesh[152])
    mesh[list(INNER_LOWER)] = mesh[list(INNER_UPPER)] + [0, 0.004 * height]
    clips = []
    for name, split, still in [
        *(("clip0", "train", False), ("clip1", "train", False), ("held_out", "validation", False)),
        *(("still0", "train", True), ("still1", "validation", True)),
    ]:
        frames = 1 if still else FRAMES
        meshes = np.repeat(mesh[None], frames, 0)
        opened = np.zeros(1) if still else np.abs(np.sin(np.arange(frames) / 2))
        meshes[:, list(INNER_LOWER), 1] += 0.06 * height * opened[:, None]
        own = {
            "transform": np.repeat(track["transform"], frames, 0),
            "mesh": meshes.astype(np.float32),
            "time_s": np.arange(frames) / 25,
            "audio": (np.zeros(0) if still else voice(frames / 25)).astype(np.float16),
        }
        save_clip(out, name, np.repeat(crop, frames, 0), own)
        person = name if still else "speaker"
        clips.append(Clip(name, person, split, frames, still))
    write_index(out, clips)
    return Footage(out)


def test_what_is_restored_is_what_was_stored(footage: Footage, tmp_path: Path) -> None:
    path = tmp_path / "footage.tar"
    size = archive(footage, path)
    folder = sum(file.stat().st_size for file in footage.roots[0].rglob("*") if file.is_file())
    assert size == path.stat().st_size < folder / 40
    assert restore(path, tmp_path / "again") == [
        *(clip for clip in footage.clips if not clip.still),
        *(clip for clip in footage.clips if clip.still),
    ]
    again = Footage(tmp_path / "again")
    assert [clip.name for clip in again.clips] == [clip.name for clip in footage.clips]
    for clip in footage.clips:
        a, b = np.array(footage.crops(clip)).astype(float), np.array(again.crops(clip))
        assert a.shape == b.shape
        assert 10 * np.log10(255**2 / np.square(a - b).mean()) > 34
        old, new = footage.track(clip), again.track(clip)
        assert np.array_equal(old["time_s"], new["time_s"])
        assert np.allclose(old["transform"], new["transform"])
        assert np.abs(old["mesh"] - new["mesh"]).max() < 0.3
        sound, heard = (x["audio"].astype(np.float32) for x in (old, new))
        assert sound.shape == heard.shape
        if not clip.still:
            assert np.corrcoef(sound[800:-800], heard[800:-800])[0, 1] > 0.95


def test_no_archive(footage: Footage, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(b"no archive")
    with pytest.raises(MediaError, match="is no archive of footage"):
        restore(other, tmp_path / "out")
    with tarfile.open(other, "w"):
        pass
    with pytest.raises(MediaError, match="is no archive of footage"):
        restore(other, tmp_path / "out")
    archive(footage, other)
    with tarfile.open(other) as tar:
        names = tar.getnames()
        index = json.loads(tar.extractfile("index.json").read())  # type: ignore[union-attr]
        parts = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]

    def written(**changes: bytes) -> Path:
        with tarfile.open(other, "w") as tar:
            for name, content in {**parts, **changes}.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return other

    index["clips"][0]["name"] = "../../escaped"
    with pytest.raises(MediaError, match="no file's name"):
        restore(written(**{"index.json": json.dumps(index).encode()}), tmp_path / "out")
    index["clips"][0]["name"] = "clip0"
    index["clips"][0]["frames"] = 7
    with pytest.raises(MediaError, match="is damaged"):
        restore(written(**{"index.json": json.dumps(index).encode()}), tmp_path / "out")
    for damage in ({"index.json": b"[]"}, {"tracks.npz": b"x"}, {"index.json": b'{"clips": [1]}'}):
        with pytest.raises(MediaError, match="is no archive"):
            restore(written(**damage), tmp_path / "out")
    assert not (tmp_path / "out" / "index.json").exists()
    write_index(footage.roots[0], [])
    with pytest.raises(MediaError, match="nothing to store"):
        archive(Footage(footage.roots[0]), other)


@pytest.mark.slow
def test_a_gpu_session_without_a_gpu(footage: Footage, tmp_path: Path) -> None:
    archive(footage, tmp_path / "footage.tar")
    settings = {"SCALE": "0.01", "DEVICE": "cpu", "WORKERS": "1", "STILLS": "1", "BATCH": "8"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "train" / "gpu_session.sh", tmp_path / "footage.tar", tmp_path / "out"],
        env={**os.environ, **settings, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    model = DitHead.load(tmp_path / "out" / "tiny.safetensors")
    assert model.config == DitHead.load("tiny").config
    before = DitHead.load("tiny").state_dict()
    parts = {name.split(".")[0] for name, value in model.state_dict().items()}
    changed = {n.split(".")[0] for n, v in model.state_dict().items() if not v.equal(before[n])}
    assert changed == parts
