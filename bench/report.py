"""The page of a measurement: one HTML file that contains its plots and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from dithead.bench.case import PAPER_STEPS
from dithead.bench.plot import Bar, as_svg, bars, timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "stages": "Stages, one after the other",
    "stream": "End to end, from files to a file",
    "sessions": "Streams of one session",
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2230; --soft: #5b6577; --line: #d9dee7;
  --paper: #ffffff; --panel: #f5f7fa; --bar: #3566c9; --tick: #16294f; --mark: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf2; --soft: #9aa5b8; --line: #333c4d;
  --paper: #12161f; --panel: #1a202c; --bar: #6f9bf5; --tick: #dbe6ff; --mark: #fb923c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 1040px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 24px 0 6px; } p { margin: 6px 0; max-width: 72ch; }
.soft, figcaption { color: var(--soft); } .error { color: var(--mark); }
.headline { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.headline div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 16px; } .headline b { display: block; font-size: 24px; }
figure { margin: 8px 0 20px; } svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; }
dt { color: var(--soft); } dd { margin: 0; }
"""


def render(found: Sequence[dict[str, Any]]) -> str:
    """Results of ``dithead-bench`` -> HTML."""
    sections = "\n".join(_section(part) for part in found)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>DiT-Head benchmarks</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        "<h1>DiT-Head benchmarks</h1>\n"
        '<p class="soft">Latency lasts from the start of a frame\'s decoding, or its push, to when '
        "the encoder has it, or to its pull. The real-time factor is time spent for a second of "
        "video: below 1 is faster than real time. Figures leave the warm-up frames out, all but "
        f"the first frame's time and the peak of memory.</p>\n{sections}\n</body>\n</html>\n"
    )


def _section(part: dict[str, Any]) -> str:
    done = [result for result in part["results"] if "error" not in result]
    pieces = [f"<h2>{escape(_TITLES[part['command']])}</h2>", _machine(part["machine"])]
    pieces.append(f"<p>Included: {escape(part['included'])}.</p>")
    pieces += [
        f'<p class="error">{escape(result["case"])} failed: {escape(result["error"])}</p>'
        for result in part["results"]
        if "error" in result
    ]
    pieces.append(_headline(done))
    real_time = done[0]["video_fps"]
    pieces.append(
        _figure(
            "Frames per second",
            bars(
                [Bar(_label(r), r["fps"], note=_speed_note(r)) for r in done],
                mark=(real_time, f"real time: {real_time:.2f}"),
                unit="fps",
            ),
        )
    )
    pieces.append(
        _figure(
            "Latency of a frame: the bar is the median, the strokes the 95th and 99th percentile",
            bars([_latency_bar(_label(r), r["latency_ms"]) for r in done], unit="ms"),
        )
    )
    for result in done:
        if "stages_ms" in result:
            times = result["stages_ms"] | {"of track: judging": result["judge_ms"]}
            pieces.append(
                _figure(
                    f"Time in each stage: {_label(result)}",
                    bars(
                        [_latency_bar(n, ms) for n, ms in times.items()],
                        unit="ms",
                    ),
                )
            )
        if result.get("spans") and result["case"]["overlap"]:
            pieces.append(
                _figure(
                    f"When each stage worked on which frame: {_label(result)}",
                    timeline(result["spans"]),
                )
            )
    pieces.append(_table(done))
    return "\n".join(pieces)


def _label(result: dict[str, Any]) -> str:
    return str(result["case"]["label"])


def _speed_note(result: dict[str, Any]) -> str:
    frames = result["frames"]
    return f" (extrapolated from {frames} frames)" if _is_paper(result) else ""


def _is_paper(result: dict[str, Any]) -> bool:
    return bool(result["steps"] >= PAPER_STEPS)


def _latency_bar(name: str, times: dict[str, float]) -> Bar:
    return Bar(name, times["p50"], ticks=(times["p95"], times["p99"]))


def _headline(done: Sequence[dict[str, Any]]) -> str:
    """Ratios within the run: the only figures that can be compared across machines."""
    files = [r for r in done if r["case"]["kind"] == "file"]
    paper = [r for r in files if _is_paper(r)]
    overlapped = [r for r in files if r["case"]["overlap"]]
    in_turn = [r for r in files if not r["case"]["overlap"] and r not in paper]
    figures: list[tuple[str, str]] = []
    best = max(overlapped or in_turn or done, key=lambda r: r["fps"])
    figures.append((f"{best['fps']:.1f} fps", _label(best)))
    figures.append((f"{best['cores_busy']:.2f} of {best['cores']}", "cores busy in that run"))
    same = [
        r
        for r in in_turn
        if (r["case"]["backend"], r["case"]["steps"], r["case"]["generate_every"])
        == (best["case"]["backend"], best["case"]["steps"], best["case"]["generate_every"])
    ]
    if overlapped and same:
        turn = max(same, key=lambda r: r["fps"])
        figures.append((f"{best['fps'] / turn['fps']:.2f}x", f"against {_label(turn)}"))
    if paper:
        figures.append((f"{best['fps'] / paper[0]['fps']:.0f}x", f"against {_label(paper[0])}"))
    slowest = max(best.get("stages_ms", {}).items(), key=lambda item: item[1]["mean"], default=None)
    if slowest is not None:
        figures.append(
            (f"{slowest[1]['mean']:.1f} ms", f"a frame in the slowest stage, {slowest[0]}")
        )
    cells = "".join(f"<div><b>{escape(a)}</b>{escape(b)}</div>" for a, b in figures)
    return f'<div class="headline">{cells}</div>'


def _machine(machine: dict[str, Any]) -> str:
    gpu = machine["gpu"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    rows = {
        "Taken": machine["taken_at"],
        "Processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "GPU": "none"
        if gpu is None
        else f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
        f"{gpu['memory_gib']} GiB, CUDA {gpu['cuda']}",
        "System": f"{machine['system']}, Python {machine['python']}",
        "Packages": packages,
        "Commit": machine["commit"] or "an installed package",
    }
    cells = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows.items())
    return f"<dl>{cells}</dl>"


def _figure(caption: str, drawing: Figure) -> str:
    return f"<h3>{escape(caption)}</h3>\n<figure>{as_svg(drawing)}</figure>"


def _table(done: Sequence[dict[str, Any]]) -> str:
    heads = ["case", "precision", "steps", "size", "frames", "fps", "real-time factor"]
    heads += ["latency p50", "p95", "p99 ms", "first frame s", "load s", "cores busy"]
    heads += ["host MiB", "GPU MiB", "GPU J/frame"]
    rows = []
    for result in done:
        latency, joules = result["latency_ms"], result["gpu_joules"]
        device = result["device_peak_mib"]
        cells = [
            _label(result),
            result["precision"],
            str(result["steps"]),
            "x".join(map(str, result["size"])),
            str(result["frames"]),
            f"{result['fps']:.2f}",
            f"{result['real_time_factor']:.2f}",
            *(f"{latency[name]:.1f}" for name in ("p50", "p95", "p99")),
            f"{result['first_frame_s']:.2f}",
            f"{result['load_s']:.2f}",
            f"{result['cores_busy']:.2f} of {result['cores']}",
            f"{result['host_peak_mib']:.0f}",
            "-" if device is None else f"{device:.0f}",
            "-" if joules is None else f"{joules / result['frames']:.2f}",
        ]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(rows)
    return (
        f'<h3>All figures</h3>\n<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
