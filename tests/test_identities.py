"""Talking clips made of stills: what moves, what stays, and that the lips follow the driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dithead.config import DitHeadConfig, preset
from dithead.errors import MediaError
from dithead.face.mesh import INNER_LOWER, INNER_UPPER, load_face_mesh, roi_from_mesh
from dithead.train.appearance import plain_appearance, random_appearance
from dithead.train.data import Clip, Footage, make_folders, read_index, save_clip, write_index
from dithead.train.identities import StillRule, make_identities
from dithead.train.latents import LatentCache, Run, _looks
from dithead.train.metrics import fine_correlation, opening
from dithead.train.motion import LOWER_LIP, Motion, read_motion
from dithead.train.prepare import Source, list_folder, list_manifest, list_stills, prepare
from dithead.train.retarget import Still, read_still, retarget
from dithead.train.samples import LatentSampler
from dithead.train.settings import DiTTraining
from dithead.train.windows import cache_windows, load_windows

FRAMES = 40
SMILING = StillRule(max_opening=0.1)
"""The portrait shows its teeth."""


@pytest.fixture(scope="module")
def config() -> DitHeadConfig:
    return preset("tiny")


@pytest.fixture(scope="module")
def footage(config: DitHeadConfig, tmp_path_factory: pytest.TempPathFactory) -> Footage:
    """The portrait as two stills, one of them held out, and as two speakers whose lower lips and
    chins go up and down; of one there are two clips."""
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    folder = tmp_path_factory.mktemp("people")
    for name in ("still_a", "still_b"):
        with av.open(str(folder / f"{name}.png"), "w", format="image2") as container:
            stream = container.add_stream("png", rate=1)
            stream.height, stream.width, stream.pix_fmt = 240, 240, "rgb24"
            picture = np.ascontiguousarray(data.astronaut()[20:260, 104:344])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
    out = folder / "data"
    sources = [
        Source(folder / "still_a.png", "still_a", "train", still=True),
        Source(folder / "still_b.png", "still_b", "validation", still=True),
    ]
    clips = prepare(sources, out, config, workers=1)
    prepared = Footage(out)
    crop, track = prepared.crops(clips[0]), prepared.track(clips[0])
    random = np.random.default_rng(0)
    for i, person in enumerate(("x", "x", "y")):
        opened = np.abs(np.convolve(random.standard_normal(FRAMES), [0.3, 0.4, 0.3], "same"))
        opened = 0.09 * np.clip(opened - 0.1, 0, None) / opened.max()
        save_clip(out, f"clip{i}", np.repeat(crop, FRAMES, 0), _speaking(track, opened))
        clips.append(Clip(f"clip{i}", person, "train", FRAMES))
    clips.append(Clip("clip_held_out", "x", "validation", FRAMES))
    save_clip(out, "clip_held_out", np.repeat(crop, FRAMES, 0), _speaking(track, opened))
    write_index(out, clips)
    return Footage(out)


def _speaking(track: dict[str, np.ndarray], opened: np.ndarray) -> dict[str, np.ndarray]:
    """The track of a face whose lips are closed but for ``opened`` (T,) face heights."""
    mesh = track["mesh"][0].copy()
    height = np.linalg.norm(mesh[10] - mesh[152])
    mesh[list(INNER_LOWER)] = mesh[list(INNER_UPPER)] + [0, 0.004 * height]
    meshes = np.repeat(mesh[None], len(opened), 0)
    for point in (*LOWER_LIP, 152, 148, 377, 176, 400, 18, 200, 199, 175):
        meshes[:, point, 1] += opened * height
    return {
        "transform": np.repeat(track["transform"], len(opened), 0),
        "mesh": meshes.astype(np.float32),
        "time_s": np.arange(len(opened)) / 25,
        "audio": np.random.default_rng(1).standard_normal(len(opened) * 640).astype(np.float16) / 9,
    }


@pytest.fixture(scope="module")
def still(footage: Footage, config: DitHeadConfig) -> Still:
    clip = footage.stills("train")[0]
    return read_still(footage.crops(clip), footage.track(clip), config.face)


@pytest.fixture(scope="module")
def closed(footage: Footage, config: DitHeadConfig) -> Still:
    """The same picture with a mesh whose lips touch."""
    clip = footage.stills("train")[0]
    track = _speaking(footage.track(clip), np.zeros(1))
    return read_still(footage.crops(clip), track, config.face)


@pytest.fixture(scope="module")
def motion(footage: Footage, config: DitHeadConfig) -> Motion:
    clip = footage.split("train")[0]
    return read_motion(footage.crops(clip), footage.track(clip), config.face)


def _found(crops: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """Opening (T,) that the mesh network finds on made crops."""
    net = load_face_mesh()
    with torch.inference_mode():
        regions = roi_from_mesh(torch.from_numpy(mesh))
        return opening(net.forward_batch(torch.from_numpy(crops), regions)[0][..., :2].numpy())


def test_without_motion_the_still_comes_back(closed: Still, motion: Motion) -> None:
    at_rest = replace(motion, moved=torch.zeros_like(motion.moved))
    crops, mesh = retarget(closed, at_rest)
    picture = (255 * closed.crop).round().byte().movedim(0, -1).numpy()
    assert np.abs(crops.astype(int) - picture).max() <= 1
    # The edges of the lips stand above each other afterwards, which moves them by a hair.
    np.testing.assert_allclose(mesh, np.repeat(closed.mesh[None].numpy(), FRAMES, 0), atol=0.05)


def test_the_upper_face_does_not_change(still: Still, motion: Motion) -> None:
    crops, mesh = retarget(still, motion)
    picture = (255 * still.crop).round().byte().movedim(0, -1).numpy()
    assert (crops[:, : still.top] == picture[: still.top]).all()
    assert (crops[:, still.top :] != picture[still.top :]).any()
    above = (still.mesh[:, 1] < still.top).numpy()
    np.testing.assert_allclose(mesh[0, above], still.mesh[above].numpy(), atol=1e-4)


def test_the_opening_follows_the_driver(still: Still, motion: Motion) -> None:
    crops, mesh = retarget(still, motion)
    driven = opening((motion.rest + motion.moved).numpy())
    found = _found(crops, mesh)
    assert fine_correlation([(found, driven)]) > 0.9
    assert fine_correlation([(opening(mesh), driven)]) > 0.95
    smile = opening(still.mesh[None].numpy())[0]  # the portrait shows its teeth
    assert found[driven.argmin()] < 0.6 * smile


def test_an_opened_mouth_is_dark_or_the_speakers(closed: Still, motion: Motion) -> None:
    """The inside is the speaker's: when his frames are painted, so is what opens."""
    crops, mesh = retarget(closed, motion)
    painted = replace(motion, crops=torch.zeros_like(motion.crops))
    black, _ = retarget(closed, painted)
    widest = int(opening(mesh).argmax())
    middle = mesh[widest, [13, 14]].mean(0).round().astype(int)
    assert black[widest, middle[1], middle[0]].max() == 0
    changed = (black[widest] != crops[widest]).any(-1)
    y, x = np.nonzero(changed)
    lips = mesh[widest, list(INNER_UPPER + INNER_LOWER)]
    assert lips[:, 0].min() - 1 < x.min()
    assert x.max() < lips[:, 0].max() + 1
    assert lips[:, 1].min() - 1 < y.min()
    assert y.max() < lips[:, 1].max() + 1


def test_a_livelier_mouth_opens_further_and_is_dark_between_its_teeth(
    closed: Still, motion: Motion
) -> None:
    white = replace(motion, crops=torch.ones_like(motion.crops))
    as_driven, usual = retarget(closed, white)
    lively, wide = retarget(closed, white, vigour=2.0)
    ratio = np.ptp(opening(wide)) / np.ptp(opening(usual))
    assert 1.8 < ratio < 2.2
    frame = int(opening(wide).argmax())

    def column(picture: np.ndarray, mesh: np.ndarray) -> np.ndarray:
        """The mouth's middle, from lip to lip."""
        (x, top), (_, bottom) = mesh[frame, 13], mesh[frame, 14]
        return picture[frame, int(top) + 2 : int(bottom) - 1, round(float(x))].mean(1)

    inside = column(lively, wide)
    assert inside[len(inside) // 2] < 0.6 * max(inside[0], inside[-1])
    assert column(as_driven, usual).min() > 0.8 * column(as_driven, usual).max()


def test_from_stills_to_footage_and_on_after_an_interruption(
    footage: Footage, config: DitHeadConfig, tmp_path: Path
) -> None:
    clips, left_out = make_identities(footage, tmp_path, config, rule=SMILING, workers=1)
    assert not left_out
    assert len(clips) == 4
    made = Footage(tmp_path)
    assert {(c.person, c.split) for c in clips} == {("still_a", "train"), ("still_b", "validation")}
    for clip in clips:
        assert clip.made
        assert clip.driver in ("clip0", "clip1", "clip2")  # none that is held out
        assert made.crops(clip).shape == (FRAMES, 160, 160, 3)
        track, driver = made.track(clip), footage.track(Clip(clip.driver, "", "", 0))
        assert (track["audio"] == driver["audio"]).all()
        assert track["mesh"].shape == (FRAMES, 468, 2)
        assert track["mesh"].dtype == np.float32
    assert len({c.driver for c in clips if c.person == "still_a"}) == 2

    files = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/*")}
    write_index(tmp_path, [c for c in clips if c.person == "still_a"])
    (tmp_path / "crops" / "half.npy.partial").touch()
    again, _ = make_identities(footage, tmp_path, config, rule=SMILING, workers=1)
    assert again == clips == sorted(read_index(tmp_path), key=lambda c: c.name)
    for path, before in files.items():
        assert ("still_a" in path.name) == (path.stat().st_mtime_ns == before)
    assert set(tmp_path.glob("*/*")) == set(files)


def test_livelier_people_beside_those_as_lively_as_their_drivers(
    footage: Footage, config: DitHeadConfig, tmp_path: Path
) -> None:
    usual, _ = make_identities(footage, tmp_path / "a", config, rule=SMILING, workers=1)
    lively, _ = make_identities(
        footage, tmp_path / "b", config, vigour=(1.5, 2.0), rule=SMILING, workers=1
    )
    both = Footage(tmp_path / "a", tmp_path / "b")
    spread = {clip.name: np.ptp(opening(both.track(clip)["mesh"])) for clip in [*usual, *lively]}
    for clip in usual:
        (other,) = (c for c in lively if (c.person, c.driver) == (clip.person, clip.driver))
        assert 1.4 < spread[other.name] / spread[clip.name] < 2.1
    factors = {clip.person: clip.name.rsplit("-", 1)[1] for clip in lively}
    assert len(set(factors.values())) == len(factors)  # each person's own


def test_made_people_share_their_drivers_windows(
    footage: Footage, config: DitHeadConfig, tmp_path: Path
) -> None:
    driver = footage.split("train")[0]
    crops, track = footage.crops(driver), footage.track(driver)
    make_folders(tmp_path / "made")
    for name in ("m1", "m2"):
        save_clip(tmp_path / "made", name, crops, track)
    made = [Clip(name, name, "train", FRAMES, driver="clip0") for name in ("m1", "m2")]
    write_index(tmp_path / "made", made)
    both = Footage(footage.roots[0], tmp_path / "made")
    assert len(both.clips) == len(footage.clips) + 2
    assert (both.crops(made[0])[0] == crops[0]).all()
    cache_windows(both, config, tmp_path / "cache", workers=1)
    assert load_windows(tmp_path / "cache").windows.keys() == {"clip0", "clip1", "clip2"}
    write_index(tmp_path / "made", [Clip("clip0", "m", "train", FRAMES, driver="clip0")])
    with pytest.raises(MediaError, match="both hold"):
        Footage(footage.roots[0], tmp_path / "made")


def test_made_people_get_looks_of_their_own_and_are_never_the_main_person(
    footage: Footage,
) -> None:
    both = Footage(footage.roots[0])
    both.clips = [c for c in footage.clips if not c.still]
    both.clips += [Clip(f"m{i}", "m", "train", 1, driver="clip0") for i in range(5)]
    plan = list(_looks(both, 0, 1, 1.0, other_looks=3, made_looks=2))
    main = {clip.person for clip, *_, main in plan if main}
    looks: dict[str, set[int]] = {clip.person: set() for clip, *_ in plan}
    for clip, _, index, _, _ in plan:
        looks[clip.person].add(index)
    assert main == {"x"}  # two clips; the made person has five
    assert looks == {"x": {0, 1}, "y": {0, 1, 2, 3}, "m": {0, 1, 2}}


def test_stills_are_refused_by_their_mesh(footage: Footage) -> None:
    track = footage.track(footage.stills("train")[0])
    assert StillRule().refusal(track) == "mouth open"
    assert SMILING.refusal(track) is None
    assert StillRule(min_side_px=1000).refusal(track) == "small"
    assert StillRule(pitch=(0.0, 0.1)).refusal(track) == "nodding"
    assert StillRule(max_yaw=0.0).refusal(track) == "turned aside"
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tilted = {"mesh": track["mesh"] @ turn.T, "transform": turn @ track["transform"]}
    assert StillRule().refusal(tilted) == "tilted"
    aside = track["mesh"].copy()
    aside[:, [1, 4], 0] += 0.3 * (aside[:, 454, 0] - aside[:, 234, 0])
    assert StillRule().refusal({**track, "mesh": aside}) == "turned aside"


def test_footage_without_drivers_or_stills_is_named(
    footage: Footage, config: DitHeadConfig, tmp_path: Path
) -> None:
    only = Footage(footage.roots[0])
    only.clips = footage.stills("train")
    with pytest.raises(MediaError, match="opens and closes"):
        make_identities(only, tmp_path, config)
    only.clips = footage.split("train")
    with pytest.raises(MediaError, match="no still"):
        make_identities(only, tmp_path, config)


@pytest.mark.parametrize(
    ("made_share", "expected"), [(0.5, (0.35, 0.15, 0.5)), (0.0, (0.7, 0.3, 0.0))]
)
def test_people_are_drawn_in_the_shares_asked_for(
    made_share: float, expected: tuple[float, ...]
) -> None:
    runs = [Run(f"a{i}", "a", 0, i % 2, 0, 1, True) for i in range(6)]
    runs += [Run("b", "b", 1, 0, 0, 1, False)]
    runs += [Run(f"m{i}", f"m{i % 3}", 2 + i, 0, 0, 1, False, True, "b") for i in range(7)]
    cache = LatentCache(runs, *[torch.zeros(1)] * 2, {}, {}, torch.zeros(1))
    sampler = LatentSampler(cache, DiTTraining(made_share=made_share))
    drawn = [sampler.draw_run() for _ in range(4000)]
    shares = [
        np.mean([run.main for run in drawn]),
        np.mean([run.person == "b" for run in drawn]),
        np.mean([run.made for run in drawn]),
    ]
    np.testing.assert_allclose(shares, expected, atol=0.03)
    if made_share:
        alike = [np.mean([run.person == f"m{i}" for run in drawn]) for i in range(3)]
        np.testing.assert_allclose(alike, made_share / 3, atol=0.03)  # m0 has one clip more
    made_alone = LatentSampler(replace(cache, runs=runs[7:]), DiTTraining())
    assert made_alone.draw_run().made


def test_mild_looks_change_less_and_none_at_strength_0() -> None:
    def looks(strength: float) -> dict[str, torch.Tensor]:
        look = random_appearance(50, torch.Generator().manual_seed(3), strength)
        plain = plain_appearance(50)
        names = ("warp", "light", "gamma", "colour", "coarseness")
        return {name: (getattr(look, name) - getattr(plain, name)).abs().mean() for name in names}

    full, mild, none = looks(1.0), looks(0.3), looks(0.0)
    for name in full:
        assert none[name] == 0
        assert 0 < mild[name] < 0.5 * full[name]


@pytest.mark.slow
def test_lips_of_real_stills_follow_real_speech(
    shared_footage: Path, config: DitHeadConfig, tmp_path: Path
) -> None:
    speakers = list_folder(shared_footage / "grid_s1" / "clips", "s1", 45)[45:49]
    speakers += list_manifest(shared_footage / "clips" / "manifest.tsv")[::4]
    stills = list_stills(shared_footage / "faces")[1::60]
    prepare([*speakers, *stills], tmp_path / "data", config)
    footage = Footage(tmp_path / "data")
    clips, left_out = make_identities(footage, tmp_path / "made", config, clips_per_still=1)
    assert sum(left_out.values()) + len(clips) == len(footage.stills("train"))
    assert len(clips) >= 8
    made, followed = Footage(tmp_path / "made"), []
    for clip in clips:
        driver = next(c for c in footage.clips if c.name == clip.driver)
        found = _found(np.array(made.crops(clip)), made.track(clip)["mesh"])
        followed.append(fine_correlation([(found, opening(footage.track(driver)["mesh"]))]))
    assert np.mean(followed) >= 0.9
