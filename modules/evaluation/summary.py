"""The few figures of all reports that tell how good a chain is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modules.evaluation.names import OURS, PLAN, REAL, RETRIEVAL
from modules.reports import FORMATS, Column, Report, Table

COLUMNS = [
    Column("ours", "text"),
    Column("baseline", "text"),
    Column("baseline is", "text"),
    Column("real data", "text"),
]


@dataclass(frozen=True)
class Line:
    """One line of the summary: which cells of which report it shows."""

    name: str
    report: str
    table: str
    column: str
    ours: str
    baseline: str = ""
    real: str = ""


_PLAN, _DENSE, _REAL, _RETRIEVAL = PLAN, OURS, REAL, RETRIEVAL

LINES = (
    Line("vqvae: MPJPE, px", "vqvae", "reconstruction", "MPJPE px", "ours", "mean pose"),
    Line("plan: valid", "chain", "chain", "valid", _PLAN),
    Line("plan: number of people", "chain", "chain", "people", _PLAN, _RETRIEVAL, _REAL),
    Line("plan: duration", "chain", "chain", "duration", _PLAN, _RETRIEVAL, _REAL),
    Line("plan: box IoU", "chain", "chain", "box IoU", _PLAN, _RETRIEVAL, _REAL),
    Line("dense: action", "chain", "chain", "action", _DENSE, _RETRIEVAL, _REAL),
    Line("dense: direction", "chain", "chain", "direction", _DENSE, _RETRIEVAL, _REAL),
    Line("dense: side", "chain", "chain", "side", _DENSE, _RETRIEVAL, _REAL),
    Line("dense: whole caption", "chain", "chain", "whole caption", _DENSE, _RETRIEVAL, _REAL),
    Line("dense: novelty", "chain", "chain", "novelty", _DENSE, "", _REAL),
    Line("dense: R-precision@1", "chain", "text and motion", "R@1", _DENSE, _RETRIEVAL, _REAL),
    Line("dense: FID", "chain", "text and motion", "FID", _DENSE, _RETRIEVAL, _REAL),
    Line("dense: KID", "chain", "text and motion", "KID", _DENSE, _RETRIEVAL, _REAL),
    Line("interp: MPJPE, stride 10", "interp", "stride 10", "MPJPE", "ours", "PCHIP"),
    Line("renderer: figure IoU", "controlnet", "rendering", "figure IoU", "ours", "control off", "real video"),
    Line("renderer: figure IoU", "controlnet", "rendering", "figure IoU", "ours", "another clip's poses", "real video"),
    Line(
        "renderer: area within 50 %", "controlnet", "rendering", "area within 50 %", "ours", "control off", "real video"
    ),
    Line("renderer: background", "controlnet", "rendering", "background", "ours", "control off", "real video"),
    Line("renderer: clothes", "controlnet", "rendering", "clothes", "ours", "", "real video"),
    Line("chain: figure IoU of its videos", "chain", "videos of generated scenes", "figure IoU", "ours"),
    Line("evaluator: R-precision@1", "evaluator", "text-motion matching", "R@1", "real", "shuffled captions"),
    Line("evaluator: accuracy", "evaluator", "action classifier", "dense poses", "ours", "always"),
)


def summarise(reports: Mapping[str, Report]) -> Table:
    """One line a figure, ours beside the trivial baseline and, where it says something, real data."""
    table = Table("scores", COLUMNS)
    for line in LINES:
        if line.report not in reports:
            continue
        ours = _cell(reports[line.report], line, line.ours)
        baseline, name = (
            _cell(reports[line.report], line, line.baseline),
            _row_name(reports[line.report], line, line.baseline),
        )
        table.add(
            line.name,
            ours=ours,
            baseline=baseline,
            baseline_is=name,
            real_data=_cell(reports[line.report], line, line.real),
        )
    return table


def _table(report: Report, line: Line) -> Table | None:
    return next((table for table in report.tables if table.title == line.table), None)


def _row_name(report: Report, line: Line, start: str) -> str | None:
    table = _table(report, line)
    rows = table.rows if table is not None and start else []
    names = [row.name for row in rows if row.name.startswith(start)]
    return start if start in names else next(iter(names), None)


def _cell(report: Report, line: Line, start: str) -> str | None:
    """A figure as its table shows it, from the row `start`, else the first whose name begins so."""
    table, name = _table(report, line), _row_name(report, line, start)
    if table is None or name is None:
        return None
    column = next(column for column in table.columns if column.name == line.column)
    value = next(row.values.get(line.column) for row in table.rows if row.name == name)
    return None if value is None else FORMATS[column.kind].format(value)
