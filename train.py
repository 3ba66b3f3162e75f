"""Train one stage: python train.py CONFIG.yaml [OVERLAY.yaml ...] [key=value ...] [--show] [--deterministic]

  --show            print the resolved configuration, parameters and memory, and exit
  --deterministic   the same as trainer.deterministic=true: the same bits in every run

Exit status: 0 finished; 2 a mistake that you can mend; 75 told to stop (SIGTERM, SIGUSR1): it has saved, and the same
command goes on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from callbacks.checkpoints import newest_readable
from callbacks.console import quiet, say
from configs.cli import run_script, split_arguments
from configs.loader import load_config, to_plain
from configs.run import RunFolder, summary
from configs.schema import DataConfig, RunConfig
from configs.show import show
from datamodules.fingerprint import data_fingerprint
from datamodules.folds import Folds
from datamodules.keys import KeyedCollate, KeyedEncode
from datamodules.shards import find_shards
from datamodules.webdataset import PoseDataModule, iter_clips
from modules.pose.scene import Clip
from modules.strategy import read_checkpoint
from training.results import build_module, collect_metrics, export
from training.trainer import build_trainer


def train(cfg: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, or go on training, or do nothing where the run is finished.

    Returns:
        What `metrics.json` holds, and what was built: module, run and, unless the run was finished, datamodule and
        trainer.

    Raises:
        UserError: a run of this name was started with another configuration or other data; input is missing.
        BadStepsError: loss or gradients stayed NaN or infinite.
        RunStopped: the run was told to stop, and has saved.
    """
    quiet()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    run = RunFolder(cfg)
    module = build_module(cfg)
    data = cfg.data
    splits = [(path, data.train_split) for path in data.train_paths]
    splits += [(data.path, data.val_split)] if data.folds == 0 else []
    for path, split in splits:
        find_shards(path, split)  # raises where there are none
    started_with = run.started_with(data_fingerprint(splits))
    # A job that SLURM has started again goes on with what it did before.
    fresh = cfg.fresh and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
    metrics = None if fresh else run.metrics()
    last = None if fresh or metrics is not None else newest_readable(run.checkpoints)
    if last is not None or metrics is not None:
        run.check_same(started_with)
    objects: dict[str, Any] = {"module": module, "run": run}
    if metrics is not None:
        say(f"{run.root} is finished: {summary(metrics)}; fresh=true trains it again")
        if not run.export.exists():
            export(run, metrics)
            say(f"exported to {run.export}")
        return metrics, objects

    if last is not None:
        module.on_load_checkpoint(read_checkpoint(last, weights=False))  # what `encode` needs
    else:
        if hasattr(module, "setup_data"):
            module.setup_data(functools.partial(training_clips, data, module.columns))
        rank_zero_only(run.start)(started_with)
    encode, collate = KeyedEncode(module.encode), KeyedCollate(module.collate)
    datamodule = PoseDataModule(
        **to_plain(data), seed=cfg.seed, columns=module.columns, encode=encode, collate=collate
    )
    trainer, parts = build_trainer(cfg, run, module.monitor)
    ranks = f" on {trainer.world_size} ranks" if trainer.world_size > 1 else ""
    say(f"{run.root}: {f'goes on from {last}' if last else f'starts, {cfg.trainer.max_steps} steps'}{ranks}")
    trainer.fit(module, datamodule, ckpt_path=last, weights_only=True)

    checkpoints = parts.checkpoints
    if trainer.is_global_zero:
        metrics = collect_metrics(cfg, trainer, checkpoints.best or checkpoints.path(trainer.global_step), parts)
        export(run, metrics)
        run.finish(metrics)
        say(f"{run.root}: {summary(metrics)}; exported to {run.export}")
    return metrics or {}, {**objects, "datamodule": datamodule, "trainer": trainer}


def training_clips(data: DataConfig, columns: tuple[str, ...]) -> Iterator[Clip]:
    """All clips that a stage learns its vocabulary from."""
    for path in data.train_paths:
        yield from iter_clips(
            path, data.train_split, columns, data.num_frames, min_confidence=data.min_confidence,
            train_split=data.train_split, val_split=data.val_split, folds=Folds(data.group, data.folds, data.fold),
        )  # fmt: skip


def main(arguments: list[str]) -> None:
    paths, items, flags = split_arguments(arguments, ("--show", "--deterministic"))
    items += ["trainer.deterministic=true"] if "--deterministic" in flags else []
    cfg = load_config(paths, items)
    if "--show" in flags:
        print(show(cfg))
    else:
        train(cfg)


if __name__ == "__main__":
    run_script(main, __doc__)
