"""Validation scores over training as a picture: python scripts/plot_history.py RUN... [key=value ...]

  python scripts/plot_history.py runs/controlnet/demo runs/controlnet/other scores=[val/iou,val/loss] out=adherence.png

One panel a score, one colour a run (named by its folder); the values are those of `history.jsonl`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from modules.errors import UserError  # noqa: E402
from modules.files import atomic_path  # noqa: E402

_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 480, 320, 60, 40, 40  # px of a panel and its margins
_GREY, _BLACK, _FONT = (200, 200, 200), (40, 40, 40), cv2.FONT_HERSHEY_SIMPLEX


@dataclass
class PlotConfig:
    scores: list[str] = field(default_factory=lambda: ["val/iou", "val/loss"])
    out: str = "history.png"


Curve = list[tuple[float, float]]  # (step, value)


def read_curve(run: Path, score: str) -> Curve:
    """Raises:
    UserError: no such run, or it never measured that score.
    """
    path = run / "history.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist: name folders of runs, for example runs/controlnet/demo")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(float(row["step"]), float(row[score])) for row in rows if score in row]
    if not found:
        known = sorted({key for row in rows for key in row} - {"step"})
        raise UserError(f"{path} has no {score}; it has {', '.join(known)}")
    return found


def panel(title: str, curves: dict[str, Curve]) -> np.ndarray:
    """A line chart (H, W, 3) uint8 RGB."""
    picture = np.full((_HEIGHT, _WIDTH, 3), 255, np.uint8)
    points = np.array([point for curve in curves.values() for point in curve])
    last, low, high = points[:, 0].max(), min(points[:, 1].min(), 0.0), points[:, 1].max() * 1.05
    right, bottom = _WIDTH - 20, _HEIGHT - _BOTTOM

    def place(step: float, value: float) -> tuple[int, int]:
        x = _LEFT + (right - _LEFT) * step / max(last, 1)
        y = bottom - (bottom - _TOP) * (value - low) / max(high - low, 1e-9)
        return round(x), round(y)

    for share in np.linspace(0, 1, 5):
        value, step = low + share * (high - low), share * last
        cv2.line(picture, place(0, value), place(last, value), _GREY, 1)
        cv2.putText(picture, f"{value:.2f}", (8, place(0, value)[1] + 4), _FONT, 0.4, _BLACK, 1, cv2.LINE_AA)
        cv2.putText(picture, f"{step:.0f}", (place(step, low)[0] - 10, bottom + 18), _FONT, 0.4, _BLACK, 1, cv2.LINE_AA)
    cv2.putText(picture, title, (_LEFT, 24), _FONT, 0.55, _BLACK, 1, cv2.LINE_AA)
    for number, (name, curve) in enumerate(curves.items()):
        colour, line = _COLOURS[number % len(_COLOURS)], np.array([place(*point) for point in curve], np.int32)
        cv2.polylines(picture, [line], False, colour, 2, cv2.LINE_AA)
        for x, y in line.tolist():
            cv2.circle(picture, (x, y), 3, colour, -1, cv2.LINE_AA)
        cv2.putText(picture, name, (right - 150, 20 + 16 * number), _FONT, 0.45, colour, 1, cv2.LINE_AA)
    return picture


def main(arguments: list[str]) -> None:
    runs, items, _ = split_arguments(arguments)
    cfg = load_typed(PlotConfig, [], items)
    if not runs:
        raise UserError("no run is named; for example: python scripts/plot_history.py runs/controlnet/demo")
    panels = [panel(score, {Path(run).name: read_curve(Path(run), score) for run in runs}) for score in cfg.scores]
    with atomic_path(cfg.out) as path:
        cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(panels, axis=1), cv2.COLOR_RGB2BGR))
    print(cfg.out)


if __name__ == "__main__":
    run_script(main, __doc__)
