"""Reports: tables of scores as JSON for programs and as Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.files import atomic_write
from modules.metrics.intervals import Estimate

REPORT_VERSION = 1

# How a figure is shown. Shares are kept as 0..1 and shown in per cent.
FORMATS = {"share": "{:.1%}", "number": "{:.3g}", "fine": "{:.4f}", "px": "{:.2f}", "count": "{:d}", "text": "{}"}


@dataclass
class Column:
    """One column of a table."""

    name: str
    kind: str = "number"  # a key of FORMATS
    better: str = ""  # "up", "down" or nothing

    def show(self, value: Any, interval: Sequence[float] | None = None) -> str:
        """A figure as text, with half the width of its interval; None is a figure that makes no sense in this row."""
        if value is None:
            return "-"
        text = FORMATS[self.kind].format(int(value) if self.kind == "count" else value)
        if interval is None:
            return text
        half = (interval[1] - interval[0]) / 2
        return f"{text} ± " + FORMATS[self.kind].format(half).removesuffix("%")

    @property
    def heading(self) -> str:
        return self.name + {"up": " ↑", "down": " ↓", "": ""}[self.better]


@dataclass
class Row:
    """One line of a table: its name, and figures by the name of the column."""

    name: str
    values: dict[str, Any]
    intervals: dict[str, list[float]] = field(default_factory=dict)  # 95 %: lowest and highest, where there is one


@dataclass
class Table:
    """A table of scores. Notes say how the figures were made."""

    title: str
    columns: list[Column]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, **values: Any) -> None:
        """A further row; keyword names are column names with _ for spaces. An `Estimate` brings its interval."""
        known = {column.name.replace(" ", "_"): column.name for column in self.columns}
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"table '{self.title}' has no column {unknown[0]!r}; it has {', '.join(known)}")
        row = Row(name, {})
        for key, value in values.items():
            if isinstance(value, Estimate):
                if value.low is not None and value.high is not None:
                    row.intervals[known[key]] = [value.low, value.high]
                value = value.value
            row.values[known[key]] = value
        self.rows.append(row)

    def cells(self, row: Row) -> list[str]:
        """A row as text, without its name."""
        return [c.show(row.values.get(c.name), row.intervals.get(c.name)) for c in self.columns]

    def lines(self) -> list[str]:
        """The table as aligned Markdown, which also reads well on a console."""
        heading = [self.title, *(column.heading for column in self.columns)]
        body = [[row.name, *self.cells(row)] for row in self.rows]
        widths = [max(len(line[i]) for line in [heading, *body]) for i in range(len(heading))]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        cells = [heading, rule, *body]
        return [
            "| "
            + " | ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            + " |"
            for line in cells
        ]


@dataclass
class Report:
    """The scores of one export, or of the chain, on one split."""

    stage: str
    split: str
    inputs: dict[str, Any]  # what was scored: path and fingerprint of exports, data, settings
    clips: int
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0

    def to_markdown(self) -> str:
        lines = [f"# {self.stage} on {self.split}", "", f"{self.clips} clips, {self.seconds:.0f} s.", ""]
        for table in self.tables:
            lines += [*table.lines(), "", *(f"{note}  " for note in table.notes), ""]
        lines += ["Scored:", "", *(f"- {name}: `{value}`" for name, value in self.inputs.items()), ""]
        return "\n".join(lines)


def write_report(directory: str | Path, report: Report) -> Path:
    """Write `<split>.json` and `<split>.md`; gives the path of the JSON file."""
    path = Path(directory) / f"{report.split}.json"
    with atomic_write(path.with_suffix(".md")) as file:
        file.write(report.to_markdown())
    with atomic_write(path) as file:
        json.dump({"version": REPORT_VERSION, **asdict(report)}, file, indent=1, allow_nan=False)
    return path


def read_report(path: str | Path) -> Report:
    """Inverse of `write_report`.

    Raises:
        UserError: no such file, or not a report of this version.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("version") != REPORT_VERSION:
            raise KeyError("version")
        tables = [
            Table(t["title"], [Column(**c) for c in t["columns"]], [Row(**r) for r in t["rows"]], t["notes"])
            for t in data.pop("tables")
        ]
        return Report(**data, tables=tables)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a report ({error!r}); make it with eval.py") from None
