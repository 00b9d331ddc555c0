"""The judgement on footage of many people, where it is at hand: nothing is left alone that is well,
and a cut is one to the frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import scaled
from torch import Tensor

from dithead.face.cover import MouthWatch
from dithead.face.reference import ReferenceChoice
from dithead.face.tracker import FaceTracker
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.patch import put_patch
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs

CUTS = [
    ("grid_s31_lbig7s", "grid_s30_pbbm3n", 5),
    ("grid_other_lrwp9a", "grid_other_sbia1a", 9),
    ("grid_new_p2", "grid_other_1600ms_ex2", 12),
    ("elo_01_T1_matrix1306", "elo_02_T4_matrix0509", 7),
    ("hdtf_radio10", "hdtf_av2av11", 10),
    ("hdtf_pose2", "grid_s10_bbab8n", 4),
]


def frames_of(path: Path, count: int, every: int = 1) -> list[Tensor]:
    with VideoSource(path) as video:
        frames = []
        for frame in video:
            if frame.index % every == 0:
                frames.append(torch.from_numpy(frame.rgb().copy()))
            if len(frames) == count:
                break
    return frames


@pytest.mark.parametrize("every", [1, 5])
def test_no_ordinary_frame_is_left_alone_or_begun_with_afresh(
    every: int, shared_footage: Path, random_models: TorchGraphs
) -> None:
    clips = sorted((shared_footage / "clips").glob("*.mp4"))
    assert len(clips) >= 30
    for clip in clips:
        locate, watch, choose = (
            FaceTracker(random_models.run),
            MouthWatch(),
            ReferenceChoice(random_models.run),
        )
        for index, frame in enumerate(frames_of(clip, 12, every)):
            face = locate(frame)
            assert face is not None, (clip.name, index, locate.absence)
            assert face.changed == (index == 0), (clip.name, index, face.measures)
            assert not watch(face, index * every / 25), (clip.name, index, face.measures)
            shown = choose(face, watch.anew)
            assert shown.taken == (index == 0), (clip.name, index, face.measures)
            assert torch.equal(face.light, torch.tensor([[1.0] * 3, [0.0] * 3]))
            locate.reference, locate.mouths = shown.looks, watch.known


@pytest.mark.parametrize(("before", "after", "at"), CUTS)
def test_from_a_cut_on_all_is_as_if_it_began_there(
    before: str, after: str, at: int, shared_footage: Path, random_models: TorchGraphs
) -> None:
    one, other = (
        frames_of(shared_footage / "clips" / f"{name}.mp4", 14) for name in (before, after)
    )
    height, width = one[0].shape[:2]
    other = [scaled(frame, height, width) for frame in other[:6]]
    window = torch.zeros(11, 768)

    def made(frames: list[Tensor], first: int) -> list[Tensor]:
        generate = FrameGenerator(random_models, Options(steps=1))
        out = []
        for index, frame in enumerate(frames, first):
            patch = generate(frame, index / 25, index, lambda _: window)
            assert patch is not None
            out.append(put_patch(frame, patch))
        return out

    joined = made([*one[:at], *other], 0)
    apart = made(one[:at], 0) + made(other, at)
    assert all(map(torch.equal, joined, apart))
