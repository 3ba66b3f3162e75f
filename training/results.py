"""What a run leaves when all its steps are done: metrics and an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from callbacks.ema import EMA, load
from callbacks.throughput import peak_memory_mb
from configs.loader import to_plain
from configs.run import RunFolder
from configs.schema import RunConfig, stage_module
from modules.checkpoint import code_version
from modules.strategy import read_checkpoint
from training.trainer import Parts


def build_module(cfg: RunConfig) -> Any:
    """The LightningModule of the stage."""
    return stage_module(cfg.stage)(to_plain(cfg.model), max_steps=cfg.trainer.max_steps)


def collect_metrics(cfg: RunConfig, trainer: L.Trainer, path: Path, parts: Parts) -> dict[str, Any]:
    """What `metrics.json` holds: the cost of the run, and the validation scores of the checkpoint that is exported."""
    best_step = read_checkpoint(path, weights=False)["global_step"]
    throughput = parts.throughput
    return {
        "stage": cfg.stage,
        "name": cfg.name,
        "steps": trainer.global_step,
        "skipped_steps": parts.guard.skipped,
        "seconds": round(throughput.total_seconds, 2),
        "seconds_per_step": round(throughput.train_seconds / max(trainer.global_step, 1), 5),
        **peak_memory_mb(),
        "checkpoint": path.name,
        "best_step": best_step,
        "monitor": parts.checkpoints.monitor,
        "val": parts.history.at(best_step),
    }


def export(run: RunFolder, metrics: dict[str, Any]) -> None:
    """Write `export/` from the best checkpoint, with the averaged weights where there are any."""
    content = read_checkpoint(run.checkpoints / metrics["checkpoint"])
    # A new module: that of the training may be spread over devices.
    module = build_module(run.cfg)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=module.strict_loading)
    for name, state in content.get("callbacks", {}).items():
        if name == EMA.__name__:
            load(module, state["average"])
    info = {"step": metrics["best_step"], "metrics": metrics["val"], "data": run.cfg.data.path, "code": code_version()}
    module.eval()
    module.export(run.export, info)
