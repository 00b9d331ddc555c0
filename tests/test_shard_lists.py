"""Which parts of which videos are prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from dithead.errors import ConfigError, MediaError
from dithead.train.shards.lists import Part, is_held_out, read_folder, read_hdtf, read_list


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_gives_its_videos_and_their_people(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "anna/one.MOV", "anna/day 2/two.mkv", "notes.txt")
    parts = read_folder(tmp_path)
    assert [(p.name, p.person) for p in parts] == [
        ("anna-day_2-two", "anna"),
        ("anna-one", "anna"),
        ("b", "b"),
    ]
    assert {p.person for p in read_folder(tmp_path, "carla")} == {"carla"}
    assert all(p.start_s == 0 and p.end_s is None for p in parts)


def test_long_names_stay_apart(tmp_path: Path) -> None:
    deep = "/".join(["a folder with a long name"] * 8)
    touch(tmp_path, f"{deep}/one.mp4", f"{deep}/two.mp4")
    first, second = (part.name for part in read_folder(tmp_path))
    assert first != second
    assert max(len(first), len(second)) < 100


def test_a_folder_without_videos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no videos"):
        read_folder(tmp_path)
    with pytest.raises(MediaError, match="not a folder"):
        read_folder(tmp_path / "none")


def test_names_that_coincide_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.mov")
    with pytest.raises(MediaError, match="both give samples called a"):
        read_folder(tmp_path)


def test_a_list_may_be_paths_or_a_table(tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("# ours\nx/a.mp4\n\ny/a.mp4\n")
    assert [(p.name, p.video, p.person) for p in read_list(plain)] == [
        ("x-a", str(tmp_path / "x/a.mp4"), "a"),
        ("y-a", str(tmp_path / "y/a.mp4"), "a"),
    ]
    table = tmp_path / "table.tsv"
    table.write_text("person\tfile\tstart_s\tend_s\nann\ta.mp4\t1.5\t9\n\ta.mp4\t20\t\n")
    first, second = read_list(table, "bob")
    assert (first.name, first.person, first.start_s, first.end_s) == ("a-1500", "ann", 1.5, 9.0)
    assert (second.name, second.person, second.end_s) == ("a-20000", "bob", None)


@pytest.mark.parametrize("row", ["a.mp4\t9\t1.5", "a.mp4\tsoon\t"])
def test_a_wrong_row_is_named(tmp_path: Path, row: str) -> None:
    table = tmp_path / "table.tsv"
    table.write_text(f"file\tstart_s\tend_s\n{row}\n")
    with pytest.raises(MediaError, match=r"row of a\.mp4 is wrong"):
        read_list(table)


def test_hdtf_lists_are_read(tmp_path: Path) -> None:
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    (lists / "RD_video_url.txt").write_text("Radio11 https://example.org/x\n")
    (lists / "RD_annotion_time.txt").write_text("Radio11.mp4 00:30-01:00 01:30-02:30 \nR2.mp4 x\n")
    (lists / "RD_crop_wh.txt").write_text("Radio11_0.mp4 412 599 3 599\n")
    (lists / "RD_resolution.txt").write_text("Radio11.mp4 720\n")
    (lists / "WRA_annotion_time.txt").write_text(
        "JonKyl.mp4 00:05-00:30\nPaulRyan0.mp4 00:30-00:58 06:00-07:00\n"
        "PaulRyan1.mp4 01:00:00-01:00:05.5\n"
    )
    touch(videos, "Radio11.mkv", "sub/WRA_PaulRyan0_001.mp4")
    parts, wrong = read_hdtf(lists, videos)
    assert wrong == ["RD_annotion_time.txt: R2 has 'x', which is no start-end"]
    by_name = {part.name: part for part in parts}
    assert list(by_name) == [
        "RD_Radio11_0",
        "RD_Radio11_1",
        "WRA_JonKyl_0",
        "WRA_PaulRyan0_0",
        "WRA_PaulRyan0_1",
        "WRA_PaulRyan1_0",
    ]
    assert by_name["RD_Radio11_0"] == Part(
        "RD_Radio11_0",
        str(videos / "Radio11.mkv"),
        "RD_Radio11",
        30.0,
        60.0,
        (412, 3, 412 + 599, 3 + 599),
        720,
    )
    assert by_name["RD_Radio11_1"].window is None
    assert by_name["WRA_JonKyl_0"].video == str(videos / "JonKyl.mp4")  # not there: reported later
    cut = by_name["WRA_PaulRyan0_1"]  # this clip has been cut out already
    assert (cut.video, cut.end_s) == (str(videos / "sub/WRA_PaulRyan0_001.mp4"), None)
    assert by_name["WRA_PaulRyan1_0"].start_s == 3600
    assert {by_name[f"WRA_PaulRyan{i}_0"].person for i in range(2)} == {"WRA_PaulRyan"}
    with pytest.raises(MediaError, match="lists of HDTF"):
        read_hdtf(videos, videos)


def test_a_part_is_checked() -> None:
    for wrong in ({"name": "a.b"}, {"end_s": 0.0}, {"window": (0, 0, 1, 1)}):
        with pytest.raises(ConfigError):
            Part(**{"name": "a", "video": "a.mp4", "person": "p", **wrong})  # type: ignore[arg-type]


def test_people_are_held_out_by_name() -> None:
    people = [f"person {i}" for i in range(2000)]
    few = {p for p in people if is_held_out(p, 0.05)}
    assert 60 < len(few) < 140
    assert few <= {p for p in people if is_held_out(p, 0.1)}
    assert not any(is_held_out(p, 0.0) for p in people)
