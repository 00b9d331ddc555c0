"""What an HDR video says of its display: kept where the encoder takes it, and told of elsewhere."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from struct import pack

import pytest
from av.sidedata.sidedata import Type
from clips import write_clip

from dithead.runtime.media.hdr import Hdr, hdr_of
from dithead.runtime.media.outputs import Encoding
from dithead.runtime.media.sink import VideoSink
from dithead.runtime.media.sources import VideoSource

# x and y of red, green, blue and white, then the least and the greatest luminance: BT.2020's kind.
DISPLAY = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329, 0.005, 1000)
LEVEL = (1000, 400)


@pytest.fixture
def hdr_clip(tmp_path: Path) -> Path:
    parameters = (
        "log-level=none:hdr10=1:max-cll=1000,400:master-display=G(13250,34500)B(7500,3000)"
        "R(34000,16000)WP(15635,16450)L(10000000,50)"
    )
    return write_clip(
        tmp_path / "in.mp4",
        codec="libx265",
        pix_fmt="yuv420p10le",
        b_frames=0,
        count=6,
        options={"x265-params": parameters},
        color_range=1,
        colorspace=9,
        color_primaries=9,
        color_trc=16,
    )


def copied(source: VideoSource, path: Path, codec: str | None) -> tuple[Hdr | None, list[str]]:
    """What a copy says, and what its writer says of it."""
    with VideoSink(path, source.info, encoding=Encoding(video_codec=codec)) as sink:
        for frame in source:
            sink.write(frame)
    with VideoSource(path) as result:
        return result.info.hdr, sink.notes


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_mastering_display_and_light_level_are_kept(
    hdr_clip: Path, tmp_path: Path, codec: str, suffix: str
) -> None:
    with VideoSource(hdr_clip) as source:
        found, notes = copied(source, tmp_path / f"out{suffix}", codec)
        assert source.info.hdr is not None
        assert source.info.hdr.mastering == tuple(Fraction(str(value)) for value in DISPLAY)
    assert notes == []
    assert found is not None
    assert found.mastering is not None
    # AV1 has 16 bits for colours and 14 behind the point for the least luminance.
    assert [float(value) for value in found.mastering] == pytest.approx(DISPLAY, abs=5e-5)
    assert found.light_level == LEVEL
    assert found.others == ()


@pytest.mark.parametrize(("name", "codec"), [("out.webm", "libvpx-vp9"), ("out.mkv", "ffv1")])
def test_what_an_encoder_does_not_take_is_told(
    hdr_clip: Path, tmp_path: Path, name: str, codec: str
) -> None:
    with VideoSource(hdr_clip) as source:
        found, notes = copied(source, tmp_path / name, codec)
    assert found is None
    wanted = f"HDR data were left out, which {codec} is not given: mastering display, content light"
    assert [note[: len(wanted)] for note in notes] == [wanted]


def test_an_ordinary_video_says_nothing(tmp_path: Path) -> None:
    with VideoSource(write_clip(tmp_path / "in.mp4", count=2)) as source:
        assert source.info.hdr is None
        assert copied(source, tmp_path / "out.webm", None)[1] == []


def test_what_changes_with_the_frames_is_named() -> None:
    found = hdr_of({Type.DYNAMIC_HDR_PLUS: b"", Type.DOVI_METADATA: b"", Type.DOVI_RPU_BUFFER: b""})
    assert found is not None
    note = found.note("libx265")
    assert note == "HDR data were left out, which libx265 is not given: HDR10+, Dolby Vision"
    assert found.options("libx265", {"preset": "slow"}) == {"preset": "slow"}


def test_half_a_display_is_not_made_whole() -> None:
    half = pack("=22i", *[0, 1] * 8, *[1, 10, 1000, 1], 0, 1)  # its colours are not known
    found = hdr_of({Type.MASTERING_DISPLAY_METADATA: half})
    assert found is not None
    assert found.mastering is None
    assert "half is not said" in str(found.note("libx265"))
