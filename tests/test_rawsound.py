"""Sound without a header: read as it is said to be, and refused where nobody says."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import all_samples, tone

from dithead.errors import ConfigError, MediaError
from dithead.runtime.media.inputs import Input
from dithead.runtime.media.sources import AudioSource


def write_raw(path: Path, rate_hz: int, channels: int, dtype: str = "<i2") -> np.ndarray:
    """Samples without a header, a tone on each channel; (channels, S) float32 in [-1, 1]."""
    sound = np.stack([tone(rate_hz, 1.2) / (n + 1) for n in range(channels)])
    full = np.iinfo(dtype).max if dtype[1] == "i" else 1
    path.write_bytes(np.ascontiguousarray(sound.T * full).astype(dtype).tobytes())
    return sound


@pytest.mark.parametrize(
    ("name", "dtype"), [("s16le", "<i2"), ("s16be", ">i2"), ("s32le", "<i4"), ("f32le", "<f4")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_raw_sound_is_read_as_it_is_said_to_be(
    tmp_path: Path, pipe_of: Callable[..., Path], name: str, dtype: str, channels: int
) -> None:
    wanted = write_raw(tmp_path / "speech.pcm", 24000, channels, dtype)
    said = (("rate", "24000"), ("channels", str(channels)))
    piped = pipe_of((tmp_path / "speech.pcm").read_bytes())
    for path in (tmp_path / "speech.pcm", piped):
        source = AudioSource(Input(path, name, options=said))
        assert (source.sample_rate_hz, source.channels) == (24000, channels)
        assert np.abs(all_samples(source) - wanted).max() < 1e-3
    ffmpegs = (("sample_rate", "24000"), ("ch_layout", "stereo" if channels == 2 else "mono"))
    source = AudioSource(Input(tmp_path / "speech.pcm", name, options=ffmpegs))
    assert source.duration_s == Fraction(12, 10)


@pytest.mark.parametrize("suffix", ["pcm", "raw", "s16", "s16le", "f32", "sw", "ul", "PCM", "dat"])
def test_raw_sound_that_nobody_describes_is_an_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech.{suffix}"
    write_raw(path, 24000, 1)
    how = "--audio-format s16le --audio-option rate=24000 --audio-option channels=1"
    with pytest.raises((ConfigError, MediaError), match=how):
        AudioSource(path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "raw sound without its rate and channels: for"),
        ((("channels", "1"),), "raw sound without its rate: for"),
        ((("rate", "24000"),), "raw sound without its channels: for"),
        (
            (("rate", "24k"), ("channels", "1")),
            "the rate must be a whole number above 0, not '24k'",
        ),
        ((("rate", "24000"), ("channels", "0")), "the channels must be a whole number above 0"),
    ],
)
def test_raw_sound_that_is_half_described_is_an_error(
    tmp_path: Path, options: tuple[tuple[str, str], ...], reason: str
) -> None:
    write_raw(tmp_path / "speech.pcm", 24000, 1)
    with pytest.raises(ConfigError, match=reason):
        AudioSource(Input(tmp_path / "speech.pcm", "s16le", options=options))
