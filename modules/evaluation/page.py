"""A report as one HTML file that needs nothing else: tables, curves as SVG, strips and videos inlined, no script."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from modules.evaluation.shown import Shown
from modules.files import atomic_write
from modules.pose.draw import pose_strip, poses_video
from modules.pose.scene import Scene
from modules.pose.video import encode_video
from modules.reports import Report, Table

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 340, 180, 46, 26
_COLORS = ("#2563a8", "#b4451f", "#2f7d4f", "#7a3f9d", "#8a6d00", "#3f6f7d")
_POSE = 160  # px, height of a pose

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --line: #d8dde2; --back: #ffffff; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b0; --line: #343b43; --back: #14181c; --band: #1d2329; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1240px; color: var(--ink); background: var(--back);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p, li { color: var(--soft); margin: 4px 0; } code { font-size: 12px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
td:first-child { position: sticky; left: 0; background: var(--back); white-space: normal; min-width: 130px; }
tr.ours td { background: var(--band); font-weight: 600; } td small { color: var(--soft); font-weight: 400; }
td.best { text-decoration: underline; text-underline-offset: 3px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; }
figure { margin: 0; } figcaption { font-size: 13px; color: var(--soft); } svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.strip img { height: 150px; width: auto; max-width: none; display: block; } video { height: 192px; background: #000; }
nav a { margin-right: 14px; color: #2563a8; } @media (prefers-color-scheme: dark) { nav a { color: #7fb2e5; } }
"""


def write_page(
    directory: str | Path, report: Report, shown: Sequence[Shown] = (), histories: Mapping[str, Path] | None = None
) -> Path:
    """Write `<split>.html`; gives its path.

    Args:
        shown: captions with their motions and videos.
        histories: stage -> `history.jsonl` of its run, shown as curves.
    """
    path = Path(directory) / f"{report.split}.html"
    with atomic_write(path) as file:
        file.write(render_page(report, shown, histories or {}))
    return path


def render_page(report: Report, shown: Sequence[Shown], histories: Mapping[str, Path]) -> str:
    """The page as text."""
    title = f"{report.stage} on {report.split}"
    sections = [(table.title, _table(table)) for table in report.tables]
    charts = [chart for table in report.tables for chart in _bars(table)]
    curves = [curve for stage, path in histories.items() for curve in _curves(stage, path)]
    if shown:
        sections.append(("Motions and videos", "".join(_example(example) for example in shown)))
    if charts:
        sections.append(("Figures with 95 % intervals", f'<div class="charts">{"".join(charts)}</div>'))
    if curves:
        sections.append(("Validation during training", f'<div class="charts">{"".join(curves)}</div>'))
    inputs = "".join(f"<li>{_text(name)}: <code>{_text(value)}</code></li>" for name, value in report.inputs.items())
    sections.append(("What was scored", f"<ul>{inputs}</ul>"))
    names = [(f"s{number}", name, body) for number, (name, body) in enumerate(sections)]
    links = "".join(f'<a href="#{key}">{_text(name)}</a>' for key, name, _ in names)
    body = "".join(f'<section id="{key}"><h2>{_text(name)}</h2>{content}</section>' for key, name, content in names)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{_text(title)}</h1>"
        f"<p>{report.clips} clips, {report.seconds:.0f} s. Arrows: which way is better. Bold: ours. Underlined: the "
        f"best of ours and the rivals.</p><nav>{links}</nav>{body}</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value))


def _is_ours(name: str) -> bool:
    return name.startswith("ours")


def _table(table: Table) -> str:
    heading = "".join(f"<th>{_text(text)}</th>" for text in ["", *(column.heading for column in table.columns)])
    best = _best(table)
    rows = []
    for row in table.rows:
        cells = [f"<td>{_text(row.name)}</td>"]
        for column, text in zip(table.columns, table.cells(row), strict=True):
            value, _, half = text.partition(" ± ")
            bounds = row.intervals.get(column.name)
            tip = f' title="{bounds[0]:.6g} to {bounds[1]:.6g}"' if bounds else ""
            mark = ' class="best"' if (row.name, column.name) in best else ""
            cells.append(f"<td{mark}{tip}>{_text(value)}{f' <small>± {_text(half)}</small>' if half else ''}</td>")
        rows.append(f"<tr{' class=ours' if _is_ours(row.name) else ''}>{''.join(cells)}</tr>")
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    return f'<div class="scroll"><table><tr>{heading}</tr>{"".join(rows)}</table></div>{notes}'


def _generated(name: str) -> bool:
    """Rows that are made of a caption alone: ours and the rivals."""
    return _is_ours(name) or name.startswith("rival")


def _best(table: Table) -> set[tuple[str, str]]:
    """The best of ours and the rivals in each column, underlined."""
    found = set()
    for column in table.columns:
        values = {
            row.name: row.values[column.name]
            for row in table.rows
            if _generated(row.name) and isinstance(row.values.get(column.name), int | float)
        }
        if column.better and len(values) > 1:
            top = max(values.values()) if column.better == "up" else min(values.values())
            found |= {(name, column.name) for name, value in values.items() if value == top}
    return found


def _bars(table: Table) -> list[str]:
    """For each column of which more, or less, is better: the rows as dots with whiskers."""
    charts = []
    for column in table.columns:
        rows = [row for row in table.rows if column.name in row.intervals]
        certain = all(np.ptp(row.intervals[column.name]) == 0 for row in rows)
        if len(rows) < 2 or not column.better or certain:
            continue
        ends = [end for row in rows for end in (*row.intervals[column.name], row.values[column.name])]
        low, high = min(ends), max(ends)
        span = (high - low) or 1.0
        height, left = 18 * len(rows) + 30, 176
        marks = []
        for number, row in enumerate(rows):
            a, v, b = (
                left + (x - low) / span * (_WIDTH - left - 14)
                for x in (row.intervals[column.name][0], row.values[column.name], row.intervals[column.name][1])
            )
            y, color = 16 + 18 * number, _COLORS[1] if _is_ours(row.name) else _COLORS[0]
            label = _text(row.name if len(row.name) <= 25 else row.name[:24] + "…")
            label += f"<title>{_text(row.name)}</title>"
            marks.append(
                f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>'
                f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>'
                f'<circle cx="{v:.1f}" cy="{y}" r="3.5" fill="{color}"/>'
            )
        axis = (
            f'<text x="{left}" y="{height - 6}">{_text(column.show(low))}</text>'
            f'<text x="{_WIDTH - 14}" y="{height - 6}" text-anchor="end">{_text(column.show(high))}</text>'
        )
        charts.append(
            f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{_text(column.name)}">'
            f"{''.join(marks)}{axis}</svg><figcaption>{_text(f'{table.title}: {column.heading}')}</figcaption></figure>"
        )
    return charts


def _curves(stage: str, path: Path) -> list[str]:
    """Validation scores of a run over its steps, at most four of them."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        for name, value in entry.items():
            if name.startswith("val/") and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, []).append((float(entry["step"]), float(value)))
    return [_curve(f"{stage}: {name}", points) for name, points in list(series.items())[:4] if len(points) > 1]


def _curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    placed = " ".join(
        f"{_LEFT + (x - min(xs)) / span_x * (_WIDTH - _LEFT - 8):.1f},"
        f"{8 + (high - y) / span_y * (_HEIGHT - _BOTTOM - 16):.1f}"
        for x, y in points
    )
    floor = _HEIGHT - _BOTTOM
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(title)}">'
        f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{floor}" y2="{floor}" stroke="#8888"/>'
        f'<polyline points="{placed}" fill="none" stroke="{_COLORS[0]}" stroke-width="2"/>'
        f'<text x="{_LEFT - 4}" y="14" text-anchor="end">{high:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 8}" text-anchor="end">step {max(xs):g}</text>'
        f"</svg><figcaption>{_text(title)}</figcaption></figure>"
    )


def _example(example: Shown) -> str:
    """Strips of the poses, one below the other, and the video."""
    parts = [f"<h3>{_text(example.caption)}</h3>"]
    for name, scene in example.scenes.items():
        if scene.persons:
            strip = pose_strip(scene, count=8, size=(_POSE, max(1, round(_POSE * scene.width / scene.height))))
            picture = f'<div class="scroll strip"><img alt="{_text(name)}" src="{_png(strip)}"></div>'
        else:
            picture = "<p>nobody</p>"
        parts.append(f"<figure><figcaption>{_text(name)}</figcaption>{picture}</figure>")
    if example.video is not None:
        video = inline_video(example.video, example.fps)
        parts.append(f"<figure><figcaption>ours, rendered</figcaption>{video}</figure>")
    return "".join(parts)


def motion_video(scene: Scene, size: int = 192) -> str:
    """A scene's skeletons as a `<video>`, ten frames a second."""
    step = max(round(scene.fps / 10), 1)
    shown = scene.at(np.arange(0, scene.num_frames, step)) if scene.num_frames > step else scene
    width = max(2, round(size * scene.width / scene.height / 2) * 2)
    return inline_video(poses_video(shown, (size, width)), scene.fps / step)


def _png(picture: np.ndarray) -> str:
    data = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


def inline_video(frames: np.ndarray, fps: float) -> str:
    """A `<video>` that holds its data, small canvases enlarged; until it plays, its middle frame is shown."""
    scale = max(1, 192 // frames.shape[1])
    large = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    data = base64.b64encode(encode_video(large, fps)).decode()
    source, poster = f"data:video/mp4;base64,{data}", _png(large[len(large) // 2])
    return f'<video controls loop muted playsinline preload="metadata" poster="{poster}" src="{source}"></video>'
