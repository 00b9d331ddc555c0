"""Single pictures: known by what they hold, shown the right way up and round."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import declared_interlaced, picture, write_clip

from dithead.errors import MediaError
from dithead.runtime.media.inputs import Input
from dithead.runtime.media.sidedata import Mirror
from dithead.runtime.media.sources import VideoSource
from dithead.runtime.media.videoframe import planes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["photo.jpg", "photo.png", "photo.webp", "photo.tiff"])
def test_a_photograph_is_shown_upright_and_not_mirrored(
    tmp_path: Path, name: str, orientation: int
) -> None:
    images = pytest.importorskip("PIL.Image", reason="writes photographs")
    ops = pytest.importorskip("PIL.ImageOps", reason="turns photographs")
    pixels = np.zeros((96, 64, 3), np.uint8)
    pixels[:40, :24], pixels[60:, 40:] = 220, 120
    image = images.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, quality=95)
    wanted = ops.exif_transpose(images.open(tmp_path / name))
    with VideoSource(tmp_path / name) as source:
        assert source.info.mirrored == (orientation in (2, 4, 5, 7))
        found = next(iter(source)).rgb()
    assert found.shape == np.array(wanted).shape
    assert np.abs(found.astype(int) - np.array(wanted)).mean() < 4


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuva420p"])
def test_a_mirrored_picture_is_the_same_the_other_way_round(pix_fmt: str) -> None:
    image = declared_interlaced(picture(0, 64, 48, pix_fmt, seed=3))
    found = Mirror(image)(image)
    assert found.interlaced_frame
    for plane, before in zip(planes(found), planes(image), strict=True):
        assert np.array_equal(plane, before[:, ::-1])


def write_stills(folder: Path) -> Iterator[Path]:
    """One picture in files of many kinds, some under a wrong name or none."""
    images = pytest.importorskip("PIL.Image", reason="writes pictures")
    features = pytest.importorskip("PIL.features", reason="knows which")
    image = images.fromarray(np.full((48, 64, 3), 120, np.uint8))
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp", "a.tiff", "a.webp", "a.avif", "a.jp2"):
        needs = {"a.webp": "webp", "a.avif": "avif", "a.jp2": "jpg_2000"}.get(name)
        if needs is None or features.check(needs):
            image.save(folder / name)
            yield folder / name
    yield (folder / "a.png").rename(folder / "portrait")
    yield (folder / "a.jpg").rename(folder / "portrait.mp4")
    yield write_clip(folder / "one.mp4", count=1)
    yield write_clip(folder / "one.mkv", count=1)


def test_a_still_picture_is_known_by_what_it_holds(tmp_path: Path) -> None:
    for path in write_stills(tmp_path):
        for given, rate in ((Input(path), 25), (Input(path, fps=Fraction(30000, 1001)), None)):
            with VideoSource(given) as source:
                assert source.info.still, path
                assert source.info.average_rate == (rate or given.fps)
                assert source.info.duration_s is None
                assert [(f.time_s, f.end_s) for f in source] == [(0, 1 / source.info.average_rate)]


def test_pictures_that_move_are_no_still(tmp_path: Path, pipe_of: Callable[..., Path]) -> None:
    images = pytest.importorskip("PIL.Image", reason="writes animated pictures")
    features = pytest.importorskip("PIL.features", reason="knows which")
    frames = [images.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)) for i in range(5)]
    for name in ("a.gif", "a.png", "a.avif"):
        if name == "a.avif" and not features.check("avif"):
            continue
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
        with VideoSource(tmp_path / name) as source:
            assert not source.info.still
            assert [frame.time_s for frame in source] == [Fraction(i, 10) for i in range(5)], name
    clip = write_clip(tmp_path / "one.mkv", count=1).read_bytes()
    with VideoSource(pipe_of(clip)) as source:  # a pipe is not read on to find out
        assert not source.info.still


# 16 x 16 pixels, all of them grey.
_JPEG_XL = (
    "ff0a43060013880200b400b59f200000152aa38c1bbc9cebf9f24387c5b48deb0c6db56d610963b3bd304848384ba0"
    "6d0606000c21402509"
)


# An AVIF of 128 x 64 grey pixels in two tiles, as phones store their photographs, compressed.
_TILES = (
    "eNpjYGCQSSupLEgsy0xjAAIQnZuZZpibmQjkMwbnppYkMkCAYkZKThGUzVCQmVzCgAb4CjJLcsEsZiC2yszJTwZx"
    "XEB8RiADiBnLgbQKAxOUNxvMY4by9gNpDiD2zczMS4ObIwrkpDKBVDCCnGdgyIAiyIQpCNaXXpSZAmLKZBalpkEd"
    "KJCSmZsOlGSC6GMozSwoKgDSPpkFyflAWiSzuCAVqtYBipHFGqBiPIllhs6NDDxgMwsyKzLBdnJwgByvmFmQCwsx"
    "oLeZGZtZGJjAJDMTEwtQMCI3JbFEiIGLU0K0/u8iJileDiNRIfbv31YyNHHYAU0/f4b7Rq6E8wMHYtSAQ66BwQEA"
    "GKNK+A=="
)


def test_a_picture_in_tiles_is_no_tile(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(zlib.decompress(base64.b64decode(_TILES)))
    with pytest.raises(MediaError, match="in tiles, which cannot be joined here: convert it"):
        VideoSource(tmp_path / "a.avif")


def test_jpeg_xl_is_held_or_said_not_to_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jxl").write_bytes(bytes.fromhex(_JPEG_XL))
    try:
        with VideoSource(tmp_path / "a.jxl") as source:
            assert source.info.still
            assert len(list(source)) == 1
    except MediaError as error:  # PyAV's wheels come without the decoder
        assert re.search(r"this FFmpeg cannot decode its video \(.*jpegxl", str(error))
