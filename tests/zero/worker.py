"""Trains as train.py does, and notes what tests ask for; each rank is a process that runs this file.

python worker.py FOLDER CONFIG [key=value ...]

`FOLDER/job.json` says what happens on the way: {"kill": [rank, batch], "poison": ..., "signal": ...}, batches from 0,
counted in this process. Rank 0 writes `FOLDER/noted.pt`: the losses of all batches over all ranks, the weights that the
training started with, and the norms of the gradients.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch  # noqa: E402

import train as script  # noqa: E402
from callbacks.guard import Guard  # noqa: E402
from configs.cli import run_script  # noqa: E402
from configs.loader import load_config  # noqa: E402
from modules.llm.module import LLMModule  # noqa: E402
from modules.sharding import gathered  # noqa: E402


def watch(folder: Path) -> None:
    """Patch the stage, so that it notes what it does and has the faults that `job.json` names."""
    job: dict[str, list[int]] = json.loads((folder / "job.json").read_text()) if (folder / "job.json").exists() else {}
    noted: dict[str, Any] = {"losses": [], "norms": [], "steps": []}
    step, start, end = LLMModule.training_step, LLMModule.on_train_start, Guard.on_train_batch_end

    def due(what: str, module: Any, batch: int) -> bool:
        return job.get(what) == [module.global_rank, batch]

    def on_train_start(self: Any) -> None:
        start(self)
        with gathered(self.parameters()):
            noted["start"] = {name: param.detach().float().clone() for name, param in self.named_parameters()}

    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        number = len(noted["losses"])
        if due("kill", self, number):
            os.kill(os.getpid(), signal.SIGKILL)
        if due("signal", self, number):
            os.kill(os.getpid(), signal.SIGTERM)
        loss = step(self, batch, batch_idx)
        noted["losses"].append(float(self.trainer.strategy.reduce(loss.detach().clone(), reduce_op="mean")))
        return loss * float("nan") if due("poison", self, number) else loss

    def on_train_batch_end(self: Any, trainer: Any, *rest: Any) -> None:
        end(self, trainer, *rest)
        noted["steps"].append((trainer.global_step, self.skipped))
        if hasattr(trainer.strategy, "gradient_norm"):
            noted["norms"].append(trainer.strategy.gradient_norm)
        if trainer.is_global_zero:
            torch.save(noted, folder / "noted.pt")

    LLMModule.training_step, LLMModule.on_train_start = training_step, on_train_start  # type: ignore[method-assign]
    Guard.on_train_batch_end = on_train_batch_end  # type: ignore[method-assign]


def main(arguments: list[str]) -> None:
    watch(Path(arguments[0]))
    torch.set_num_threads(1)
    script.train(load_config(arguments[1:2], arguments[2:]))


if __name__ == "__main__":
    run_script(main, __doc__)
