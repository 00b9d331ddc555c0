"""The shipped weights and clips are the ones listed, described and licensed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import av
import pytest
from safetensors import safe_open

import dithead

ASSETS = Path(dithead.__file__).parent / "assets"
SHIPPED = sorted(
    path.relative_to(ASSETS).as_posix()
    for pattern in ("*.safetensors", "demo/*.flac")
    for path in ASSETS.glob(pattern)
)
WEIGHTS = [name for name in SHIPPED if name.endswith(".safetensors")]
LIMIT_BYTES = 90_000_000


def listed_hashes() -> dict[str, str]:
    lines = (ASSETS / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines]
    return {name.lstrip("*"): digest for digest, name in pairs}


def test_the_list_and_the_folder_agree() -> None:
    assert sorted(listed_hashes()) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_file_has_its_listed_hash(name: str) -> None:
    assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == listed_hashes().get(name)


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_carry_origin_licence_and_configuration(name: str) -> None:
    with safe_open(ASSETS / name, framework="pt") as file:
        metadata = file.metadata() or {}
    assert metadata.get("origin"), "no origin in the file's metadata"
    assert metadata.get("licence"), "no licence in the file's metadata"
    assert isinstance(json.loads(metadata["dithead_config"]), dict)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_readme_describes_the_file(name: str) -> None:
    assert f"`{name}`" in (ASSETS / "README.md").read_text(encoding="utf-8")


def test_the_package_stays_small() -> None:
    total = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    assert total <= LIMIT_BYTES


def test_demo_speech_is_16_khz_mono() -> None:
    with av.open(str(ASSETS / "demo" / "sense_and_sensibility.flac")) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (16000, "mono")
        assert sum(frame.samples for frame in container.decode(stream)) == 395_680
