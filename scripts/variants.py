"""Training variants of a stage for the same number of steps: what the table scripts have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.cli import split_arguments
from configs.loader import load_typed
from configs.schema import RunConfig
from datamodules.webdataset import PoseDataModule
from modules.errors import UserError
from modules.files import atomic_write

Figures = dict[str, float]


@dataclass
class VariantsConfig:
    """See the scripts' own help."""

    data: str = "???"
    group: str = "subject"
    folds: int = 5
    steps: int = 1000
    batch_size: int = 128
    seed: int = 0
    rows: list[str] = field(default_factory=list)
    out: str = "???"


def read_config(arguments: list[str], known: Collection[str], **defaults: Any) -> VariantsConfig:
    """What the command line asks for.

    Raises:
        UserError: a row that is not known.
    """
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(VariantsConfig, [], [*(f"{name}={value}" for name, value in defaults.items()), *items])
    unknown = set(cfg.rows) - set(known)
    if unknown:
        raise UserError(f"unknown row {sorted(unknown)[0]!r}; known: {', '.join(known)}")
    return cfg


def make_table(
    cfg: VariantsConfig,
    known: Collection[str],
    measure: Callable[[str], Figures],
    header: str,
    line: Callable[[str, Figures], str],
) -> None:
    """Measure the rows that `cfg.out` does not have yet, and print all as Markdown."""
    torch.set_num_threads(1)
    out = Path(cfg.out)
    done: dict[str, Figures] = json.loads(out.read_text()) if out.is_file() else {}
    for name in cfg.rows or known:
        if name not in done:
            done[name] = measure(name)
            with atomic_write(out) as file:
                json.dump(done, file, indent=1)
        print(line(name, done[name]), flush=True)
    print(f"\n{header}\n|---|" + "--:|" * (header.count("|") - 2))
    for name, figures in done.items():
        print(line(name, figures))


def fit(module: Any, run: RunConfig, cfg: VariantsConfig, loss_of: Callable[[Any], Tensor]) -> float:
    """Train, and give the seconds of processor time, from the steps after the first ten."""
    data = PoseDataModule(
        path=run.data.path, columns=module.columns, encode=module.encode, collate=module.collate,
        batch_size=cfg.batch_size, augment=asdict(run.data.augment), group=cfg.group, folds=cfg.folds, seed=cfg.seed,
    )  # fmt: skip
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    loader = data.train_dataloader()
    step, started = 0, 0.0
    module.train()
    while step < cfg.steps:
        for batch in loader:
            started = time.process_time() if step == 10 else started
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), run.trainer.gradient_clip)
            optimizer.step()
            scheduler.step()
            step += 1
            if step % 100 == 0:
                print(f"  step {step}  loss {float(loss):.4f}", flush=True)
            if step == cfg.steps:
                break
    return (time.process_time() - started) * cfg.steps / max(cfg.steps - 10, 1)
