"""SyncNet: its layers, the file it is published in, and what LSE-C and LSE-D make of it."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dithead import checkpoint
from dithead.errors import CheckpointError
from dithead.train import cli
from dithead.train.convert.syncnet import convert_syncnet
from dithead.train.evaluation.clips import Clip
from dithead.train.evaluation.lse import (
    MOST_OFFSET,
    cut_face,
    face_boxes,
    lip_sync,
    mean_distances,
    nearest_frames,
    of_distances,
)
from dithead.train.evaluation.mfcc import mfcc
from dithead.train.evaluation.syncnet import EMBEDDING, FACE_PX, SyncNet, load_syncnet
from dithead.train.evaluation.wholeface import whole_face

# The published file's weights that are no vectors; every other layer is a normalisation.
PUBLISHED = {
    "netcnnaud.0": (64, 1, 3, 3),
    "netcnnaud.4": (192, 64, 3, 3),
    "netcnnaud.8": (384, 192, 3, 3),
    "netcnnaud.11": (256, 384, 3, 3),
    "netcnnaud.14": (256, 256, 3, 3),
    "netcnnaud.18": (512, 256, 5, 4),
    "netfcaud.0": (512, 512),
    "netfcaud.3": (1024, 512),
    "netcnnlip.0": (96, 3, 5, 7, 7),
    "netcnnlip.4": (256, 96, 1, 5, 5),
    "netcnnlip.8": (256, 256, 1, 3, 3),
    "netcnnlip.11": (256, 256, 1, 3, 3),
    "netcnnlip.14": (256, 256, 1, 3, 3),
    "netcnnlip.18": (512, 256, 1, 6, 6),
    "netfclip.0": (512, 512),
    "netfclip.3": (1024, 512),
}
NORMS = ("running_mean", "running_var", "weight", "bias")


@pytest.fixture(scope="module")
def network() -> SyncNet:
    torch.manual_seed(5)
    return SyncNet().requires_grad_(False).eval()


def published(seed: int = 9) -> OrderedDict[str, Tensor]:
    """A file of random weights in the published form, as versions of PyTorch before 0.4.1 wrote
    it, without counters."""
    generator = torch.Generator().manual_seed(seed)
    state: OrderedDict[str, Tensor] = OrderedDict()
    for layer, shape in PUBLISHED.items():
        state[f"{layer}.weight"] = torch.randn(shape, generator=generator) / 100
        state[f"{layer}.bias"] = torch.zeros(shape[0])
        part, _, number = layer.partition(".")
        if not (part.startswith("netfc") and number == "3"):
            for name in NORMS:
                value = torch.rand(shape[0], generator=generator) + 0.5
                state[f"{part}.{int(number) + 1}.{name}"] = value
    return state


def test_a_published_file_is_converted_and_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "syncnet_v2.model", tmp_path / "syncnet.safetensors"
    torch.save(published(), source)
    assert cli.main(["convert", "syncnet", str(source), str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == str(out)
    loaded = load_syncnet(out)
    assert not loaded.training
    found = loaded.state_dict()
    counters = {name for name in found if name.endswith("num_batches_tracked")}
    assert found.keys() - counters == published().keys()
    assert all(torch.equal(found[name], value) for name, value in published().items())


def test_a_wrong_or_missing_file_gives_one_line(tmp_path: Path) -> None:
    source, out = tmp_path / "syncnet_v2.model", tmp_path / "syncnet.safetensors"
    fetch = rf"curl -O http.*/syncnet_v2.model and dithead train convert syncnet .* {out}"

    def refused(expected: str) -> None:
        with pytest.raises(CheckpointError, match=f"{expected}.*{fetch}") as caught:
            convert_syncnet(source, out)
        assert "\n" not in str(caught.value)
        assert not out.exists()

    refused(f"no weights of SyncNet at {source}")
    source.write_bytes(b"<html>not found</html>")
    refused(f"{source} is no file of PyTorch weights")
    torch.save({"epoch": 3}, source)
    refused(f"{source} holds no state dict: expected syncnet_v2.model")
    state = published()
    state["netcnnlip.99.weight"] = state.pop("netcnnlip.0.weight")
    torch.save(state, source)
    refused("does not fit this SyncNet: missing .*netcnnlip.0.weight.*unknown .*netcnnlip.99")

    with pytest.raises(CheckpointError, match=f"no weights of SyncNet at {out}.*{fetch}"):
        load_syncnet(out)
    checkpoint.save(out, {"a": torch.zeros(1)}, {"model": "another"})
    with pytest.raises(CheckpointError, match=f"no usable weights of SyncNet: {out}.*{fetch}"):
        load_syncnet(out)
    with pytest.raises(CheckpointError, match=f"cannot write {tmp_path}/none"):
        torch.save(published(), source)
        convert_syncnet(source, tmp_path / "none" / "a.safetensors")


def test_windows_of_face_and_sound_have_outputs_of_one_size(network: SyncNet) -> None:
    faces = torch.rand(2, 3, 5, FACE_PX, FACE_PX) * 255
    assert network.embed_faces(faces).shape == (2, EMBEDDING)
    sound = torch.from_numpy(mfcc(np.ones(16000))[:20].T.copy()).float()
    assert network.embed_sound(sound.expand(3, 1, 13, 20)).shape == (3, EMBEDDING)
    with pytest.raises(ValueError, match=r"expected windows \(B, 1, 13, 20\)"):
        network.embed_sound(torch.zeros(3, 1, 20, 13))


@pytest.mark.parametrize("lag", [-15, -4, 0, 7, 15])
def test_a_planted_lag_is_found(lag: int) -> None:
    seen = torch.randn(60, EMBEDDING)
    heard = seen.roll(lag, 0) + 0.1 * torch.randn(60, EMBEDDING)
    distances = mean_distances(seen, heard)
    assert distances.shape == (2 * MOST_OFFSET + 1,)
    found = of_distances(distances)
    assert found.lag_frames == lag
    assert found.distance == pytest.approx(float(distances[lag + MOST_OFFSET]))
    assert found.confidence == pytest.approx(float(distances.sort()[0][15]) - found.distance)


def test_beyond_its_ends_the_sound_is_zero() -> None:
    seen, heard = torch.randn(4, 8), torch.randn(4, 8)
    distances = mean_distances(seen, heard)
    assert distances[0] == pytest.approx(float(seen.norm(dim=1).mean()), rel=1e-5)  # all beyond
    late = [(seen[0] - heard[2]).norm(), (seen[1] - heard[3]).norm(), *seen[2:].norm(dim=1)]
    assert distances[MOST_OFFSET + 2] == pytest.approx(float(sum(late) / 4), rel=1e-5)


def test_frames_are_taken_25_times_a_second() -> None:
    assert list(nearest_frames(np.arange(30) / 25)) == list(range(30))
    at_30 = nearest_frames(np.arange(31) / 30)
    assert list(at_30[:6]) == [0, 1, 2, 4, 5, 6] and len(at_30) == 26
    assert list(nearest_frames(np.array([0.0, 0.1, 0.12]))) == [0, 0, 1, 2]


def test_a_face_has_the_margins_of_the_published_evaluation() -> None:
    frame = torch.zeros(100, 120, 3, dtype=torch.uint8)
    frame[..., 0] = torch.arange(120)
    frame[..., 2] = torch.arange(100)[:, None]
    face = cut_face(frame, np.array([60.0, 30.0, 20.0]))  # x 32 to 88, y 10 to 66
    assert face.shape == (1, 3, FACE_PX, FACE_PX) and face.dtype == torch.uint8
    assert face[0, 2, 0, [0, -1]].tolist() == [32, 87]  # red is last
    assert face[0, 0, [0, -1], 0].tolist() == [10, 65]
    outside = cut_face(frame, np.array([10.0, 30.0, 20.0]))  # x from -18
    assert (outside[0, :, :, :70] == 110).all() and (outside[0, 1, :, 75:] == 0).all()


def test_boxes_are_medians_over_time() -> None:
    mesh = np.zeros((468, 2))
    mesh[:2] = [(10, 20), (50, 40)]
    meshes = np.stack([mesh] * 20)
    meshes[9] += 300  # one wrong fit
    assert np.array_equal(face_boxes(meshes), [[25, 20, 25]] * 20)


def test_a_clip_is_measured_and_a_short_one_is_not(network: SyncNet, tmp_path: Path) -> None:
    mesh = np.zeros((468, 2))
    mesh[:2] = [(10, 10), (50, 60)]
    generator = np.random.default_rng(1)
    frames = [torch.from_numpy(generator.integers(0, 256, (80, 70, 3), np.uint8)) for _ in range(8)]
    samples = generator.uniform(-0.5, 0.5, 16000).astype(np.float32)
    meshes = np.stack([mesh] * 8)
    times = [i / 25 for i in range(8)]
    found = lip_sync(frames, times, meshes, samples, network)
    assert found is not None and found.distance > 0 and found.confidence >= 0

    # By hand: three windows of frames, and of sound.
    faces = torch.cat([cut_face(frame, np.array([25.0, 30.0, 30.0])) for frame in frames]).float()
    sound = torch.from_numpy(mfcc((samples * 32768).round()).T.copy()).float()
    pictures = torch.stack([faces[i : i + 5].transpose(0, 1) for i in range(3)])
    words = torch.stack([sound[None, :, 4 * i : 4 * i + 20] for i in range(3)])
    seen, heard = network.embed_faces(pictures), network.embed_sound(words)
    expected = of_distances(mean_distances(seen, heard))
    assert found.lag_frames == expected.lag_frames
    assert (found.distance, found.confidence) == pytest.approx(
        (expected.distance, expected.confidence), rel=1e-4
    )

    assert lip_sync(frames[:5], times[:5], meshes[:5], samples, network) is None
    assert lip_sync(frames, times, meshes, samples[: 5 * 640], network) is None
    weights = tmp_path / "syncnet.safetensors"
    checkpoint.save(weights, network.state_dict(), {"model": "SyncNet"}, dtype=None)
    clip = Clip("c", frames, times, samples, meshes)
    scores = whole_face(clip, frames, syncnet=weights)
    assert scores["lse_d"] == pytest.approx(found.distance, rel=1e-4)
    assert scores["lse_c"] == pytest.approx(found.confidence, rel=1e-3)
    assert scores["ssim"] == 1
