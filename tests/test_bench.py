"""Benchmarks: figures that add up, cases that fail by name, a page that stands alone."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dithead.bench import cli
from dithead.bench.case import Case, run_case
from dithead.bench.measure import measure, percentiles
from dithead.bench.plot import COLOURS, Bar, as_svg, bars, timeline
from dithead.bench.report import render
from dithead.errors import BackendUnavailable, ConfigError, StreamError
from dithead.runtime.session import Session
from dithead.runtime.stream import Stream

TIMES = [Fraction(i, 25) for i in range(10)]
STAGES = {
    "decode video",
    "track",
    "encode face",
    "audio",
    "denoise",
    "decode face",
    "blend",
    "detail",
    "composite",
    "encode video",
}


@pytest.fixture
def case(
    portrait_clip: Callable[..., Path], tone_file: Callable[..., Path], checkpoint_file: Path
) -> Callable[..., Case]:
    """Makes cases on a clip of ten frames with the small random model."""
    video, audio = portrait_clip("in.mp4", TIMES), tone_file(0.3)

    def make(kind: Any = "file", **settings: Any) -> Case:
        defaults = {"checkpoint": str(checkpoint_file), "steps": 1, "frames": 16, "warm_up": 3}
        return Case(kind, "a case", str(video), str(audio), **(defaults | settings))

    return make


def overlaps(spans: list[dict[str, Any]]) -> int:
    """Pairs of spans that share some time."""
    return sum(
        a["start"] < b["end"] and b["start"] < a["end"] for a, b in itertools.combinations(spans, 2)
    )


def test_percentiles() -> None:
    found = percentiles([n / 1000 for n in range(101)])
    assert {name: round(value, 9) for name, value in found.items()} == {
        "p50": 50.0,
        "p95": 95.0,
        "p99": 99.0,
        "mean": 50.0,
    }


@pytest.mark.parametrize("overlap", [True, False])
def test_a_run_from_file_to_file(case: Callable[..., Case], overlap: bool) -> None:
    found = measure(case(overlap=overlap))
    assert (found["frames"], found["faces"], found["steps"]) == (16, 19, 1)  # the clip in loops
    assert (found["size"], found["video_fps"], found["precision"]) == ([160, 160], 25.0, "fp32")
    assert set(found["stages_ms"]) == STAGES
    assert 0 < found["judge_ms"]["p50"] < found["stages_ms"]["track"]["p95"]
    assert found["fps"] * found["real_time_factor"] == pytest.approx(25)
    assert 0 < found["first_frame_s"] < 60
    for times in (found["latency_ms"], *found["stages_ms"].values()):
        assert 0 < times["p50"] <= times["p95"] <= times["p99"]
    work_ms = sum(times["mean"] for times in found["stages_ms"].values())
    assert found["latency_ms"]["mean"] >= 0.99 * work_ms
    assert 0 < found["cores_busy"] <= 1.1 * found["cores"]
    assert found["host_peak_mib"] > 100
    # The trace shows what the scheduler promises.
    assert (overlaps(found["spans"]) > 0) == overlap
    events = [event for event in found["chrome"]["traceEvents"] if event["ph"] == "X"]
    assert {(e["cat"], e["name"]) for e in events} >= {
        (s, f"frame {n}") for s in STAGES for n in range(19)
    }
    if not overlap:
        assert 1000 / found["fps"] == pytest.approx(work_ms, rel=0.5)


@pytest.mark.parametrize("pace", [False, True])
def test_streams_of_a_session(
    case: Callable[..., Case], pace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed_s: defaultdict[int, list[float]] = defaultdict(list)
    pulled_s: list[float] = []
    open_stream, push_frame, pull = Session.open_stream, Stream.push_frame, Stream.pull

    def opened(session: Session, *arguments: Any, **options: Any) -> Stream:
        stream = open_stream(session, *arguments, **options)
        pushed_s[id(stream)].append(time.perf_counter())
        return stream

    def pushed(stream: Stream, *arguments: Any) -> bool:
        pushed_s[id(stream)].append(time.perf_counter())
        return push_frame(stream, *arguments)

    def pulled(stream: Stream) -> Any:
        frame = pull(stream)
        pulled_s.append(time.perf_counter())
        return frame

    monkeypatch.setattr(Session, "open_stream", opened)
    monkeypatch.setattr(Stream, "push_frame", pushed)
    monkeypatch.setattr(Stream, "pull", pulled)
    frames = 48 if pace else 16  # most of them wait for sound that comes in time
    found = measure(case("sessions", streams=2, pace=pace, frames=frames))
    assert frames <= found["frames"] <= 2 * frames
    count = found["frames"]
    assert count / (pulled_s[-1] - pulled_s[0]) < found["fps"]
    assert found["fps"] < 1.25 * (count + 2) / (pulled_s[-1] - pulled_s[-count - 2])
    assert found["latency_ms"]["p50"] > 0
    for times_s in pushed_s.values():
        assert len(times_s) == 1 + 3 + frames
        if pace:  # none before its time; frames wait for sound that is spoken after them
            assert times_s[-1] - times_s[0] > (3 + frames - 1) / 25
    if pace:
        assert found["latency_ms"]["p50"] > 300


def test_a_case_that_fails_says_with_what(case: Callable[..., Case]) -> None:
    with pytest.raises(StreamError, match=r"'a case' failed: .*huge"):
        run_case(case(checkpoint="huge"))
    with pytest.raises(ConfigError, match="frames must be at least 1"):
        case(frames=0)
    with pytest.raises(ConfigError, match="must warm up"):
        case(warm_up=0)


class Page(HTMLParser):
    """Collects a page's tags and checks that each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_from_the_command_to_the_page(
    case: Callable[..., Case],
    checkpoint_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = case()
    common = ["--video", made.video, "--audio", made.audio, "--checkpoint", str(checkpoint_file)]
    common += ["--backend", "torch", "--steps", "1"]
    common += ["--frames", "4", "--warm-up", "1", "--threads", "1"]
    stream, sessions = tmp_path / "stream.json", tmp_path / "sessions.json"
    trace, page = tmp_path / "trace.json", tmp_path / "bench.html"
    command = ["stream", *common, "--paper-frames", "1", "-o", str(stream), "--trace", str(trace)]
    assert cli.main(command) == 0
    assert cli.main(["sessions", *common, "--streams", "1", "-o", str(sessions)]) == 0
    printed = capsys.readouterr().out
    assert "torch, 1 step, side by side: " in printed
    assert "paper's setting: torch, 250 steps, in turn: " in printed
    assert json.loads(trace.read_text())["traceEvents"]
    values = json.loads(stream.read_text())
    assert [r["steps"] for r in values["results"]] == [1, 1, 250]
    assert {"cpu", "cores", "gpu", "commit", "packages", "python"} <= values["machine"].keys()
    # One of the cases failed in a second file: its figures are missing, not the page.
    values["results"][1] = {"case": "torch <b>", "error": "it broke & fell"}
    stream.write_text(json.dumps(values))
    assert cli.main(["report", str(stream), str(sessions), "-o", str(page)]) == 0
    parser, text = Page(), page.read_text()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert parser.tags.count("svg") >= 6
    assert "it broke & fell" in "".join(parser.text)
    assert "extrapolated from 1 frames" in "".join(parser.text)
    assert not {name for name, _ in parser.attributes} & {"src", "href"}  # it fetches nothing
    assert "http" not in text
    assert "nan" not in text.lower().replace("nano", "")


def test_results_of_another_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("text.json", "no"), ("old.json", '{"schema": 0}'), ("list.json", "[]")):
        path = tmp_path / name
        path.write_text(content)
        assert cli.main(["report", str(path), "-o", str(tmp_path / "bench.html")]) == 2
        assert name in capsys.readouterr().err
    assert not (tmp_path / "bench.html").exists()
    assert cli.main(["stream", "--backend", "tensorrt"]) == 2
    assert "needs --bundle" in capsys.readouterr().err


def test_bars_are_as_long_as_their_values() -> None:
    (axes,) = bars([Bar("a", 10.0), Bar("b", 20.0, ticks=(30.0,))], unit="ms").axes
    assert [bar.get_width() for bar in axes.patches] == [10, 20]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.yaxis_inverted()  # the first on top
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] > 30


def test_blocks_of_a_timeline_lie_where_the_work_was() -> None:
    spans = [
        {"stage": "b", "frame": 1, "start": 10.0, "end": 14.0},
        {"stage": "a", "frame": 0, "start": 0.0, "end": 4.0},
        {"stage": "b", "frame": 11, "start": 14.0, "end": 15.0},
    ]
    (axes,) = timeline(spans).axes
    blocks = [(bar.get_y() + bar.get_height() / 2, bar.get_x()) for bar in axes.patches]
    assert [(round(row), start) for row, start in blocks] == [(1, 10), (0, 0), (1, 14)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["1", "0", "11"]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]


def test_a_plot_takes_the_colours_of_its_page() -> None:
    drawing = as_svg(bars([Bar("a < b & c", 1.0)], unit="ms", mark=(2.0, "here")))
    assert drawing.startswith("<svg ")
    assert "a &lt; b &amp; c</text>" in drawing
    for colour, name in COLOURS.items():
        assert colour not in drawing
        assert f"{name}:" in render([])
    assert "fill: var(--bar)" in drawing
    assert drawing == as_svg(bars([Bar("a < b & c", 1.0)], unit="ms", mark=(2.0, "here")))


def test_a_page_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[bench\]'"):
        bars([Bar("a", 1.0)], unit="ms")
