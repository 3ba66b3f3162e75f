"""The figures of a report in TensorBoard."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from modules.reports import Report


def log_report(directory: str | Path, report: Report) -> None:
    """One scalar a figure, `<table>/<column>/<row>`, in `<directory>/tensorboard/<split>`; the tables as text."""
    folder = Path(directory) / "tensorboard" / report.split
    with SummaryWriter(str(folder)) as writer:
        for table in report.tables:
            for row in table.rows:
                for name, value in row.values.items():
                    if isinstance(value, int | float):
                        writer.add_scalar(f"{_tag(table.title)}/{_tag(name)}/{_tag(row.name)}", value)
            writer.add_text(f"{report.stage} on {report.split}/{table.title}", "\n".join(table.lines()))


def _tag(text: str) -> str:
    return text.replace("/", " ")
