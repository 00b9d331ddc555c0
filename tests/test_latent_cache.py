"""The cache of stage 2: written as it is made, and read as it is used."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dithead import checkpoint
from dithead.audio import load_audio_encoder
from dithead.config import DitHeadConfig, VQGANConfig, preset
from dithead.errors import MediaError
from dithead.train import latents
from dithead.train.ablation import narrowed
from dithead.train.data import Clip, Footage, make_folders, save_clip, write_index
from dithead.train.latents import LatentCache, Run, cache_latents, load_cache
from dithead.train.rows import written_rows
from dithead.train.samples import LatentSampler
from dithead.train.settings import DiTTraining
from dithead.train.windows import cache_windows, clip_windows, silence_window
from dithead.vqgan import VQGAN

RUNS = [
    Run("b", "p", 0, 0, 0, 9, True),
    Run("a", "p", 0, 0, 9, 6, True),
    Run("m", "q", 1, 1, 15, 5, False, True, "a"),
]


@pytest.fixture(scope="session")
def small() -> DitHeadConfig:
    tiny = preset("tiny")
    vqgan = VQGANConfig((8, 8, 16), (8, 8, 16), blocks=1, attention=False, codebook_size=64)
    return replace(tiny, face=replace(tiny.face, crop_px=64), vqgan=vqgan)


@pytest.fixture
def footage(small: DitHeadConfig, tmp_path: Path) -> Footage:
    """Two clips of noise, of 5 and 3 frames."""
    root, random, side = tmp_path / "data", np.random.default_rng(1), 80
    make_folders(root)
    clips = [Clip("c0", "p", "train", 5), Clip("c1", "p", "train", 3)]
    for clip in clips:
        track = {
            "transform": np.tile(np.eye(2, 3, dtype=np.float32), (clip.frames, 1, 1)),
            "mesh": random.random((clip.frames, 468, 2)).astype(np.float32),
            "time_s": np.arange(clip.frames) / 25,
            "audio": (0.1 * random.standard_normal(4000)).astype(np.float16),
        }
        crops = random.integers(0, 256, (clip.frames, side, side, 3), dtype=np.uint8)
        save_clip(root, clip.name, crops, track)
    write_index(root, clips)
    return Footage(root)


def written_cache(folder: Path) -> LatentCache:
    """A cache on disk, of random numbers; what it is expected to hold."""
    random = np.random.default_rng(2)
    face, masked = random.standard_normal((2, 20, 4, 8, 8)).astype(np.float16)
    landmarks = random.random((20, 26, 2)).astype(np.float32)
    windows = random.standard_normal((15, 2, 11, 3)).astype(np.float16)
    silent, silence = np.arange(15) % 3 == 0, np.zeros((11, 3), np.float32)
    arrays = {"face": face, "masked": masked, "landmarks": landmarks}
    for name, array in {**arrays, "windows": windows, "silent": silent, "silence": silence}.items():
        np.save(folder / f"{name}.npy", array)
    index = [{"clip": "a", "first": 0, "frames": 6}, {"clip": "b", "first": 6, "frames": 9}]
    (folder / "windows.json").write_text(json.dumps(index))
    (folder / "runs.json").write_text(json.dumps([asdict(run) for run in RUNS]))
    by_clip = {"a": windows[:6].swapaxes(0, 1).copy(), "b": windows[6:].swapaxes(0, 1).copy()}
    return LatentCache(
        RUNS,
        torch.from_numpy(face),
        torch.from_numpy(masked),
        by_clip,
        {"a": silent[:6], "b": silent[6:]},
        torch.from_numpy(silence),
        torch.from_numpy(landmarks),
    )


def test_training_draws_from_disk_what_it_draws_from_memory(
    small: DitHeadConfig, tmp_path: Path
) -> None:
    in_memory = written_cache(tmp_path)
    shown = replace(small.dit, landmarks=True, motion_frames=2)
    training = DiTTraining(seed=4, made_share=0.3, silence_share=0.5)
    for frames in (11, 5):
        expected = LatentSampler(narrowed(in_memory, frames), training, shown)
        found = LatentSampler(narrowed(load_cache(tmp_path), frames), training, shown)
        for _ in range(5):
            one, other = expected.sample(8), found.sample(8)
            for name in one.__slots__:
                assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_nothing_large_is_read_until_it_is_used(tmp_path: Path) -> None:
    written_cache(tmp_path)
    cache = load_cache(tmp_path)
    narrow = narrowed(cache, 5)
    for name in ("windows", "face", "masked", "landmarks"):
        np.load(tmp_path / f"{name}.npy", mmap_mode="r+")[:] = 7.0
    assert cache.landmarks is not None
    for values in (*cache.windows.values(), *narrow.windows.values()):
        assert isinstance(values, np.memmap) and (values == 7.0).all()
        assert not values.flags.writeable
    for tensor in (cache.face, cache.masked, cache.landmarks):
        assert (tensor == 7.0).all()


@pytest.mark.parametrize("name", ["windows", "silent", "masked", "landmarks"])
def test_a_cache_with_too_few_rows_is_refused(name: str, tmp_path: Path) -> None:
    written_cache(tmp_path)
    np.save(tmp_path / f"{name}.npy", np.load(tmp_path / f"{name}.npy")[:-1])
    with pytest.raises(MediaError, match="not whole: run dithead-train latents again"):
        load_cache(tmp_path)


def test_a_run_that_is_longer_than_its_sound_is_refused(tmp_path: Path) -> None:
    written_cache(tmp_path)
    runs = [replace(RUNS[0], clip="a"), *RUNS[1:]]  # 9 frames, where the sound of a has 6
    (tmp_path / "runs.json").write_text(json.dumps([asdict(run) for run in runs]))
    with pytest.raises(MediaError, match="not whole"):
        load_cache(tmp_path)


def test_windows_of_earlier_versions_are_refused(tmp_path: Path) -> None:
    written_cache(tmp_path)
    for name in ("windows.json", "windows.npy", "silent.npy"):
        (tmp_path / name).unlink()
    with pytest.raises(MediaError, match=r"no windows\.json: run dithead-train latents first"):
        load_cache(tmp_path)
    (tmp_path / "windows").mkdir()
    with pytest.raises(MediaError, match="earlier version") as refused:
        load_cache(tmp_path)
    assert "run dithead-train latents again" in str(refused.value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bool"])
def test_rows_added_one_after_the_other_are_the_file_of_all(dtype: str, tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(0, 2, (7, 3, 2)).astype(dtype)
    with written_rows(tmp_path / "rows.npy", 7) as rows:
        for place in (slice(0, 1), slice(1, 1), slice(1, 5), slice(5, 7)):
            rows.add(np.asfortranarray(whole[place]))
    np.save(tmp_path / "whole.npy", whole)
    assert (tmp_path / "rows.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_memory_does_not_grow_with_what_is_written(tmp_path: Path) -> None:
    piece = np.zeros((64, 1024), np.float16)
    tracemalloc.start()
    with written_rows(tmp_path / "rows.npy", 64 * 256) as rows:
        for _ in range(256):
            rows.add(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "rows.npy").stat().st_size > 32e6
    assert peak < 2e6


def test_what_is_interrupted_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), written_rows(tmp_path / "rows.npy", 4) as rows:
        rows.add(np.zeros((2, 3)))
        raise KeyboardInterrupt
    with pytest.raises(MediaError, match="no moving clips"), written_rows(tmp_path / "x.npy", 0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_windows_are_those_of_each_clip(
    footage: Footage, small: DitHeadConfig, tmp_path: Path
) -> None:
    out = tmp_path / "cache"
    (out / "windows").mkdir(parents=True)
    (out / "windows" / "c0.npz").touch()  # of an earlier version
    (out / "windows.npy.0.partial").touch()  # of a run that was killed
    cache_windows(footage, small, out, workers=1)
    files = {"silence.npy", "silent.npy", "windows.json", "windows.npy"}
    assert {path.name for path in out.iterdir()} == files
    encoder = load_audio_encoder(small.audio)
    pairs = [clip_windows(encoder, footage.track(c), i) for i, c in enumerate(footage.clips)]
    expected = np.concatenate([windows.swapaxes(0, 1) for windows, _ in pairs])
    found = np.load(out / "windows.npy")
    assert found.dtype == np.float16 and found.shape == expected.shape == (8, 2, 11, 768)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # float16; threads differ
    assert np.array_equal(np.load(out / "silent.npy"), np.concatenate([s for _, s in pairs]))
    silence = silence_window(encoder).numpy()
    np.testing.assert_allclose(np.load(out / "silence.npy"), silence, atol=1e-4)
    footage.clips[1] = replace(footage.clips[1], frames=4)
    with pytest.raises(MediaError, match="clip c1 has 3 frames, and its index says 4"):
        cache_windows(footage, small, out, workers=1)
    assert {path.name for path in out.iterdir()} == files - {"windows.json"}


def test_latents_are_those_of_each_run(
    footage: Footage, small: DitHeadConfig, tmp_path: Path
) -> None:
    weights, out = tmp_path / "w.safetensors", tmp_path / "cache"
    checkpoint.save(weights, VQGAN(small.vqgan).state_dict(), small.to_dict(), dtype=None)
    cache_latents(footage, small, weights, weights, out, 1, 1.0, workers=1, seed=3)
    assert {path.name for path in out.iterdir()} == {
        *("face.npy", "masked.npy", "landmarks.npy", "runs.json")
    }
    plan = latents._looks(footage, 3, 1, 1.0, 24, 1)
    jobs = [
        latents._Job(footage.roots, small, weights, weights, clip, look if index else None, 3 + i)
        for i, (clip, _, index, look, _) in enumerate(plan)
    ]
    assert [job.clip.name for job in jobs].count("c0") == len(jobs) / 2 == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = zip(*(latents._encode(job) for job in jobs), strict=True)
        for name, arrays in zip(latents.ARRAYS, expected, strict=True):
            np.save(tmp_path / "whole.npy", np.concatenate(arrays))
            assert (out / f"{name}.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    finally:
        torch.set_num_threads(threads)
    rows = json.loads((out / "runs.json").read_text())
    assert [row["clip"] for row in rows] == [job.clip.name for job in jobs]
    ends = np.cumsum([job.clip.frames for job in jobs])
    assert [row["first"] + row["frames"] for row in rows] == ends.tolist()
