"""Tables and reports: what is written is what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.errors import UserError
from modules.evaluation.summary import LINES, summarise
from modules.reports import Column, Report, Table, read_report, write_report


def make_report() -> Report:
    table = Table(
        "rendering", [Column("figure IoU", "number", "up"), Column("clothes", "share"), Column("videos", "count")]
    )
    table.columns += [Column("area within 50 %", "share"), Column("background", "share")]
    table.add("control off", figure_IoU=0.25, clothes=None, videos=64)
    table.add("ours", figure_IoU=0.61, clothes=0.875, videos=64)
    table.notes.append("A note.")
    return Report("controlnet", "test", {"controlnet": "runs/x"}, 64, [table], 12.5)


def test_a_report_is_read_back_the_same(tmp_path: Path) -> None:
    report = make_report()
    path = write_report(tmp_path, report)
    assert path == tmp_path / "test.json"
    assert read_report(path) == report


def test_markdown_shows_every_figure(tmp_path: Path) -> None:
    write_report(tmp_path, make_report())
    text = (tmp_path / "test.md").read_text()
    assert "| rendering   | figure IoU ↑ | clothes | videos |" in text
    assert "| ours        |         0.61 |   87.5% |     64 |" in text
    assert "| control off |         0.25 |       - |     64 |" in text
    assert "A note." in text


def test_a_figure_needs_a_column() -> None:
    with pytest.raises(ValueError, match="has no column 'speed'"):
        make_report().tables[0].add("ours", speed=1)


@pytest.mark.parametrize("content", ["", "{}", '{"version": 99, "tables": []}', "[1]"])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "test.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a report"):
        read_report(path)
    with pytest.raises(UserError, match="is not a report"):
        read_report(tmp_path / "missing.json")


def test_the_summary_puts_ours_beside_the_baseline() -> None:
    table = summarise({"controlnet": make_report()})
    row = table.rows[0]
    assert row.name == "renderer: figure IoU"
    assert row.values == {"ours": "0.61", "baseline": "0.25", "baseline is": "control off", "real data": None}
    assert len(table.rows) == len([line for line in LINES if line.report == "controlnet"])
