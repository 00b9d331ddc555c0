"""What is missing of a file is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from clips import tone, write_clip, write_wav

from dithead.runtime.media.damage import damage


def whole_files(folder: Path) -> Iterator[Path]:
    """Files of every container that states its length."""
    sound = tone(44100, 1.6)
    for name in ("in.mp4", "in.mov", "in.mkv", "in.webm", "in.avi", "pieces.mp4"):
        codec = {"in.webm": "libvpx", "in.avi": "mpeg4"}.get(name, "libx264")
        options = {"movflags": "frag_keyframe+empty_moov"} if name == "pieces.mp4" else None
        heard = None if name == "in.webm" else sound  # which takes no AAC
        yield write_clip(
            folder / name, codec=codec, b_frames=0, sound=heard, container_options=options
        )
    yield write_wav(folder / "in.wav", sound, 44100)
    rng = np.random.default_rng(0)
    image = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), "rgb24")
    for name in ("in.png", "in.jpg"):
        image.save(folder / name)
        yield folder / name


def test_what_is_missing_of_a_file_is_told(tmp_path: Path) -> None:
    for path in whole_files(tmp_path):
        assert damage(path) is None, path
        content = path.read_bytes()
        path.write_bytes(content[:-30])
        said = damage(path)
        assert said is not None and said.startswith("is truncated"), path
        if path.suffix != ".jpg" and path.name != "in.png":
            assert "30 bytes are missing" in said
        for kept in (1, 5, 9, 12, 20, 40):  # whatever is left, nothing is raised
            path.write_bytes(content[:kept])
            damage(path)
        path.write_bytes(b"")
        assert damage(path) == "is empty"
    for name in ("in.ts", "in.flv"):  # state no length
        assert damage(write_clip(tmp_path / name, b_frames=0)) is None
    assert damage(tmp_path / "missing.mp4") is None
    assert damage(tmp_path) is None
