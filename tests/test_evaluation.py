"""``dithead-eval``: whom it takes, what it runs, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dithead import checkpoint
from dithead.errors import MediaError
from dithead.export.layers import ReducedGraphs
from dithead.options import Options
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs
from dithead.train import evaluate
from dithead.train.evaluation.clips import (
    Clip,
    Person,
    fit_meshes,
    follow_meshes,
    people_in_folder,
    speaking_part,
)
from dithead.train.evaluation.looped import compare_precision, feedback
from dithead.train.evaluation.papertable import notes, paper_table
from dithead.train.evaluation.plan import crossed_pairs, crossed_people, plan
from dithead.train.evaluation.summary import mean_of, sum_up, voice_lags
from dithead.train.evaluation.syncnet import SyncNet
from dithead.train.evaluation.table import as_text, tables
from dithead.train.metrics import MOUTH_POINTS
from dithead.train.picture import save_png


@pytest.mark.parametrize("clips", [44, 45, 23, 2])
def test_crossed_pairs_are_as_many_as_asked_for_and_never_of_one_clip(clips: int) -> None:
    pairs = crossed_pairs(clips, 45)
    assert len(set(pairs)) == len(pairs) == min(45, clips * (clips - 1))
    assert all(video != audio for video, audio in pairs)


def test_evaluation_from_files_to_figures(
    talking_clip: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, blank in (("a", ()), ("b", ()), ("c", (3,))):
        talking_clip(folder / f"{name}.mp4", blank)
    command = [str(folder), "--validation=3", "--steps=1", "--workers=1"]
    assert evaluate.main([*command, "--kinds", "own", "crossed", "silent"]) == 0
    report = json.loads(capsys.readouterr().out)
    own = report["own, 1 steps, previous reference"]
    assert own["clips"] == 2  # the one with a faceless frame was left out
    assert report["settings"]["left_out"] == ["c.mp4"]
    assert own["people"].keys() == {"clips"}  # by the folder
    assert own["gain_db"] == own["generated"]["psnr_db"] - own["frozen"]["psnr_db"]
    assert own["ceiling"]["psnr_db"] > own["generated"]["psnr_db"] > 15
    assert report["crossed, 1 steps, previous reference"]["clips"] == 2  # both orders
    assert 0 <= report["silent, 1 steps, previous reference"]["mean_opening"] < 0.2
    assert evaluate.main([*command, f"--align={folder}"]) == 1
    assert evaluate.main([str(tmp_path / "none")]) == 1


def test_the_papers_table_is_beside_ours(
    talking_clip: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    talking_clip(folder / "a.mp4")
    command = [str(folder), "--validation=1", "--steps=1", "--workers=1", "--no-perceptual"]
    command += ["--no-identity", "--paper-table", f"--json={tmp_path / 'a.json'}"]
    weights = tmp_path / "syncnet.safetensors"
    assert evaluate.main([*command, "--kinds", "own", f"--syncnet={weights}"]) == 1
    assert f"no weights of SyncNet at {weights}" in capsys.readouterr().err
    checkpoint.save(weights, SyncNet().state_dict(), {"model": "SyncNet"}, dtype=None)
    assert evaluate.main([*command, "--kinds", "own", f"--syncnet={weights}"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    columns = ["PSNR", "SSIM", "LPIPS", "ST-LPIPS", "FID", "LSE-C", "LSE-D", "Sync-C", "Sync-D"]
    assert lines[1].split() == columns
    paper = ["28.37", "0.872", "0.0856", "-", "10.31", "3.6", "10.49", "-", "-"]
    assert lines[2].split()[-9:] == paper
    report = json.loads((tmp_path / "a.json").read_text())
    face = report["own, 1 steps, previous reference"]["face"]
    psnr, ssim, *rest = lines[3].split()[-9:]
    assert (float(psnr), float(ssim)) == pytest.approx((face["psnr_db"], face["ssim"]), rel=1e-3)
    lse = [f"{face[name]:.4g}" for name in ("lse_c", "lse_d")]
    fid = f"{face['fid']:.4g}" if "fid" in face else "-"
    assert rest == ["-", "-", fid, *lse, "-", "-"]  # half a second is too short for our sync model
    assert "1 clips" in lines[3] and "LSE-C and LSE-D are means over clips" in printed
    if "fid" in face:  # its package is installed
        assert "12 true and 12 generated frames" in printed and "too few" in printed
    assert "ST-LPIPS is not measured" in printed and "No clip is long enough for Sync" in printed
    for name in ("fid", "lse_c", "lse_d"):
        face.pop(name, None)
    assert paper_table(report).rows[1][1][2:] == ["-"] * 7
    assert all(f"{name} not measured" in notes(report) for name in ("FID is", "LSE-D are"))
    assert evaluate.main([*command, "--kinds", "silent"]) == 1
    for option in ("--fid", f"--syncnet={weights}"):
        assert evaluate.main([str(folder), option]) == 1
        assert "add --paper-table" in capsys.readouterr().err
    true, made = {"confidence": 0.5, "distance": 0.8}, {"confidence": 0.3, "distance": 0.9}
    sync = {"generated": made, "true": true}
    own = {"clips": 1, "people": {}, "face": {}, "sync model of ours": sync}
    table = paper_table({"own, 1 steps": own, "settings": {"checkpoint": "t"}})
    assert [cells[-2:] for _, cells in table.rows] == [["-", "-"], ["0.3", "0.9"], ["0.5", "0.8"]]
    with pytest.raises(MediaError, match="run the kind 'own' with --paper-table"):
        paper_table({"own, 1 steps": {"clips": 1, "people": {}}, "settings": {"checkpoint": "t"}})


@pytest.mark.parametrize("rate", [25, 30])
def test_feedback_compares_the_first_and_last_five_seconds(rate: int) -> None:
    frames = [torch.full((96, 96, 3), 100, dtype=torch.uint8)] * (3 * rate)
    mesh = np.zeros((468, 2))
    mesh[list(MOUTH_POINTS)] = [(30, 40), (60, 40), (45, 30), (45, 60)]
    times = [i / rate for i in range(len(frames))]
    clip = Clip("c", frames, times, np.ones(48000, np.float32), np.stack([mesh] * len(frames)))

    def make(samples: np.ndarray, given: Iterable[tuple[torch.Tensor, float]]) -> list[Any]:
        pairs = list(given)
        assert len(samples) == pytest.approx(60 * 16000, abs=20)
        assert np.allclose([t for _, t in pairs], np.arange(60 * rate) / rate)
        return [frame + (10 if t < 5 else 20 if t >= 55 - 1e-6 else 50) for frame, t in pairs]

    scores = feedback(clip, make)
    assert scores["first_5s_db"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert scores["last_5s_db"] == pytest.approx(20 * np.log10(255 / 20), abs=1e-3)


def test_a_reduced_precision_is_compared_with_float32(
    random_models: TorchGraphs, astronaut: np.ndarray
) -> None:
    picture = torch.from_numpy(astronaut[20:260, 104:344].copy())
    frames = [picture.roll(i, 1) for i in range(5)]
    times = [i * 2.5 for i in range(5)]  # one round is 12.5 s
    meshes = fit_meshes(frames, random_models)
    clip = Clip("c", frames, times, 0.1 * np.ones(160000, np.float32), meshes)
    options = Options(steps=1, reference="previous")
    same = compare_precision(clip, random_models, random_models, options)
    assert same["largest_levels"] == same["largest_loss_db"] == 0
    assert same["fp32_db"] == same["reduced_db"] > 5
    coarse = ReducedGraphs(random_models, "bf16")
    found = compare_precision(clip, random_models, coarse, options)
    assert found["frames"] == 5
    assert 0 < found["worst_frame_mean_levels"] < found["largest_levels"]
    assert found["reduced_db"] != found["fp32_db"] == same["fp32_db"]


def test_people_of_a_manifest_are_judged_one_by_one_and_shown(
    talking_clip: Callable[..., Path],
    astronaut: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = ["file\tsplit\tperson"]
    for name, split, person in (
        ("a.mp4", "eval", "Ann"),
        ("b.mp4", "eval", "Bob"),
        ("c.mp4", "train", "Cy"),
    ):
        talking_clip(tmp_path / name)
        rows.append(f"{name}\t{split}\t{person}")
    manifest = tmp_path / "manifest.tsv"
    manifest.write_text("\n".join(rows))
    stills = tmp_path / "stills"
    save_png(torch.from_numpy(astronaut[:340, 70:410].copy()), stills / "ann.png")
    page, figures = tmp_path / "page", tmp_path / "figures.json"
    command = [f"--manifest={manifest}", f"--stills={stills}", "--steps=1", "--workers=1"]
    command += ["--no-perceptual", f"--report={page}", f"--json={figures}"]
    assert evaluate.main(command) == 0
    table = capsys.readouterr().out
    report = json.loads(figures.read_text())
    own = report["own, 1 steps, previous reference"]
    assert own["people"].keys() == {"Ann", "Bob"}
    for person in own["people"].values():
        assert person["clips"] == 1 and person["lost_faces"] == 0
        assert 0 < person["generated"]["colour"] < 5
        assert 0 < person["ceiling"]["colour"] < 10
        assert person["theval"]["true"]["lip_dynamics"] > 0
    sharpness = [person["generated"]["sharpness"] for person in own["people"].values()]
    assert own["generated"]["sharpness"] == pytest.approx(np.mean(sharpness))
    assert report["crossed, 1 steps, previous reference"]["clips"] == 2
    assert report["reconstruction"]["lower_face_db"] > 20
    assert report["stills"]["clips"] == 1
    assert "Ann" in table and "gain_db" in table
    html = (page / "index.html").read_text()
    shown = {path.name for path in page.iterdir()} - {"index.html", "figures.json"}
    assert {Path(name).suffix for name in shown} == {".png", ".mp4"}
    assert all(name in html for name in shown) and len(shown) == 2 * 6 + 1
    with VideoSource(page / "Ann_crossed_a_b.mp4") as video:
        assert len(list(video)) == 12 and video.info.width == 2 * 160
    assert evaluate.main(["--compare", str(figures), str(figures)]) == 0
    assert capsys.readouterr().out.count("own, 1 steps") == 1
    assert evaluate.main(["--compare", str(figures), str(manifest)]) == 1
    assert evaluate.main([f"--manifest={manifest}", "--split=none"]) == 1
    assert evaluate.main([]) == 1


def test_each_person_gets_the_words_of_three_others() -> None:
    people = [
        Person(name, [Path(f"{name}{i}") for i in range(1 + (name == "a"))]) for name in "abcde"
    ]
    pairs = [
        (person.name, str(video), str(audio)) for person, video, _, audio in crossed_people(people)
    ]
    assert pairs[:3] == [("a", "a0", "b0"), ("a", "a1", "c0"), ("a", "a0", "d0")]
    assert pairs[-1] == ("e", "e0", "c0")
    assert len(set(pairs)) == 15 and all(video[0] != audio[0] for _, video, audio in pairs)
    jobs = plan(people, ["own", "crossed"], pairs=45)
    assert len(jobs) == 6 + 15
    assert [job.video for job in jobs] == sorted(job.video for job in jobs)


def test_a_voice_recorded_out_of_step_is_judged_in_step() -> None:
    """Ann's recorded lips are two frames later than what her sound makes of others; one lag goes
    for all who speak with her voice."""
    noise = np.random.default_rng(1).standard_normal((3, 60))

    def row(voice: str, lag: int, words: np.ndarray, seed: int) -> dict[str, Any]:
        own = np.random.default_rng(seed).standard_normal(50)
        made, other = words[5:55], words[5 - lag : 55 - lag]
        series = {"made": made, "own": own, "other": other, "again": other}
        return {"voice": voice, "series": series, "jitter": 1.0}

    rows = {
        "Bob": [row("Ann", 2, noise[0], 5), row("Cy", 0, noise[1], 6)],
        "Cy": [row("Ann", 2, noise[2], 7)],
    }
    out = sum_up("crossed", rows)
    assert out["fine_with_audio"] < 0.7
    assert out["fine_in_step"] > 0.99
    assert abs(out["fine_in_step_by_chance"]) < 0.7
    assert out["people"]["Bob"]["voice_lag_ms"] is None  # nobody speaks with his voice
    assert out["voice_lag_ms"] == out["people"]["Cy"]["voice_lag_ms"] == 0
    assert voice_lags(rows["Bob"] + rows["Cy"]) == {"Ann": 2, "Cy": 0}


def test_a_person_goes_by_the_folder_or_a_given_name(tmp_path: Path) -> None:
    folder = tmp_path / "ann"
    folder.mkdir()
    for name in ("b.mp4", "a.mp4", "c.mp4"):
        (folder / name).touch()
    assert people_in_folder(folder, 2) == [Person("ann", [folder / "a.mp4", folder / "b.mp4"])]
    assert people_in_folder(folder, 1, "Ann Other")[0].name == "Ann Other"
    with pytest.raises(MediaError, match="--validation"):
        people_in_folder(folder, 0)


def test_what_is_missing_does_not_count() -> None:
    rows = [{"a": 1.0, "b": {"c": None}}, {"a": 3.0, "b": {"c": 4.0}}]
    assert mean_of(rows) == {"a": 2.0, "b": {"c": 4.0}}
    assert mean_of(rows[:1]) == {"a": 1.0, "b": {"c": None}}


def test_two_reports_stand_beside_each_other() -> None:
    old = {
        "settings": {"steps": 4},
        "own, 4 steps, fixed reference": {
            "clips": 2,
            "gain_db": 1.0,
            "people": {"A": {"gain_db": 2}},
        },
    }
    new = {
        "own, 2 steps, fixed reference": {"clips": 2, "gain_db": 3.5, "colour": 1.25, "people": {}},
        "silent, 2 steps, fixed reference": {"clips": 1, "lip_leak": None},
    }
    first, second = tables([old, new])
    assert first.title == "own, 4 steps, fixed reference -> own, 2 steps, fixed reference"
    assert first.columns == ["mean", "A"]
    assert dict(first.rows)["gain_db"] == ["1 -> 3.5", "2 -> -"]
    assert dict(first.rows)["colour"] == ["- -> 1.25", "- -> -"]
    assert second.title == "not run -> silent, 2 steps, fixed reference"
    assert "1 -> 3.5" in as_text([first, second])


def test_long_silence_is_left_out() -> None:
    samples = np.zeros(10 * 16000, np.float32)
    samples[4 * 16000 : 6 * 16000] = 0.1
    start, end = speaking_part(samples, 20.0)
    assert (start, end) == (pytest.approx(3, abs=0.05), pytest.approx(7, abs=0.05))
    assert speaking_part(samples, 2.5)[1] == pytest.approx(start + 2.5)
    assert speaking_part(samples[3 * 16000 :], 20.0)[0] == pytest.approx(0.0, abs=0.05)


def test_part_of_a_clip_begins_anew() -> None:
    frames = [torch.full((2, 2, 3), i, dtype=torch.uint8) for i in range(10)]
    samples = np.arange(6400, dtype=np.float32)
    clip = Clip(
        "c", frames, [i / 25 for i in range(10)], samples, np.arange(10)[:, None, None], 2.0
    )
    part = clip.part(0.12, 0.28)
    assert [int(frame[0, 0, 0]) for frame in part.frames] == [3, 4, 5, 6]
    np.testing.assert_allclose(part.times_s, np.arange(4) / 25)
    assert part.samples[0] == 0.12 * 16000 and len(part.samples) == 0.16 * 16000
    assert part.start_s == pytest.approx(2.12) and part.meshes.ravel().tolist() == [3, 4, 5, 6]


def test_frames_that_lost_their_face_are_counted(
    random_models: TorchGraphs, astronaut: np.ndarray
) -> None:
    picture = torch.from_numpy(astronaut[20:260, 104:344].copy())
    blank = torch.full_like(picture, 90)
    meshes, found = follow_meshes([blank, picture, blank, picture], random_models)
    assert found.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(meshes[0], meshes[1])
    np.testing.assert_array_equal(meshes[2], meshes[1])
    with pytest.raises(MediaError, match="no face in frame 0"):
        fit_meshes([blank, picture], random_models)
    with pytest.raises(MediaError, match="no face in any"):
        follow_meshes([blank], random_models)
