"""Validation scores of a run, one line of JSON for each validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L


class History(L.Callback):
    """Appends `{"step": ..., "val/...": ...}` to a file and remembers the rows in checkpoints."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.rows.append({"step": trainer.global_step, **values})
        if trainer.is_global_zero:
            self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def at(self, step: int) -> dict[str, float]:
        """Scores of the validation at `step`; empty if there was none."""
        rows = [row for row in self.rows if row["step"] == step]
        return {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
