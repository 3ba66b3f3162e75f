"""Train one stage: python train.py CONFIG.yaml [OVERLAY.yaml ...] [key=value ...] [--show]"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.bad_samples import BadSamples
from callbacks.console import Console, quiet, say
from callbacks.ema import EMA, load
from callbacks.finite import StopAtNonFiniteLoss
from callbacks.history import History
from callbacks.random_state import RandomState
from callbacks.samples import Samples
from callbacks.throughput import Throughput, peak_memory_mb
from configs.cli import run_script, split_arguments
from configs.loader import load_config, to_plain
from configs.run import RunFolder, summary
from configs.schema import DataConfig, RunConfig, stage_module
from configs.show import show
from datamodules.fingerprint import data_fingerprint
from datamodules.folds import Folds
from datamodules.shards import find_shards
from datamodules.webdataset import PoseDataModule, iter_clips
from modules.checkpoint import code_version
from modules.pose.scene import Clip
from modules.strategy import build_strategy, read_checkpoint, resolve_precision


def train(cfg: RunConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, or go on training, or do nothing where the run is finished.

    Returns:
        What `metrics.json` holds, and what was built: module, run and, unless the run was finished, datamodule and
        trainer.

    Raises:
        UserError: a run of this name was started with another configuration or other data; input is missing.
        NonFiniteLossError: the loss became NaN or infinite.
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
    resume = run.last.exists() and not cfg.fresh
    if resume:
        run.check_same(started_with)
    objects: dict[str, Any] = {"module": module, "run": run}
    metrics = run.metrics()
    if resume and metrics is not None:
        say(f"{run.root} is finished: {summary(metrics)}; fresh=true trains it again")
        if not run.export.exists():
            export(run, metrics)
            say(f"exported to {run.export}")
        return metrics, objects

    if resume:
        module.on_load_checkpoint(read_checkpoint(run.last, weights=False))  # what `encode` needs
    else:
        if hasattr(module, "setup_data"):
            module.setup_data(functools.partial(training_clips, data, module.columns))
        rank_zero_only(run.start)(started_with)
    datamodule = PoseDataModule(
        **to_plain(data), seed=cfg.seed, columns=module.columns, encode=module.encode, collate=module.collate
    )
    trainer, parts = build_trainer(cfg, run, module.monitor)
    say(f"{run.root}: " + (f"goes on from {run.last}" if resume else f"starts, {cfg.trainer.max_steps} steps"))
    trainer.fit(module, datamodule, ckpt_path=run.last if resume else None, weights_only=True)

    best = parts["checkpoint"].best_model_path
    if not best:  # nothing was validated
        trainer.save_checkpoint(run.last)
    checkpoint = run.checkpoints / Path(best or run.last).name
    if trainer.is_global_zero:
        metrics = collect_metrics(cfg, trainer, checkpoint, **parts)
        export(run, metrics)
        run.finish(metrics)
        say(f"{run.root}: {summary(metrics)}; exported to {run.export}")
    return metrics or {}, {**objects, "datamodule": datamodule, "trainer": trainer}


def training_clips(data: DataConfig, columns: tuple[str, ...]) -> Iterator[Clip]:
    """All clips that a stage learns its vocabulary from."""
    names = {"train_split": data.train_split, "val_split": data.val_split}
    folds = Folds(data.group, data.folds, data.fold)
    for path in data.train_paths:
        yield from iter_clips(
            path, data.train_split, columns, data.num_frames, min_confidence=data.min_confidence, folds=folds, **names
        )


def build_module(cfg: RunConfig) -> Any:
    """The LightningModule of the stage."""
    return stage_module(cfg.stage)(to_plain(cfg.model), max_steps=cfg.trainer.max_steps)


def build_trainer(cfg: RunConfig, run: RunFolder, monitor: tuple[str, str]) -> tuple[L.Trainer, dict[str, Any]]:
    """The trainer, and those of its callbacks that are asked for results."""
    options = cfg.trainer
    throughput, history = Throughput(options.log_every), History(run.history)
    checkpoint = ModelCheckpoint(run.checkpoints, filename="best-{step}", monitor=monitor[0], mode=monitor[1])
    # After every validation, better or not. It comes second, so that it knows of the best one.
    last = ModelCheckpoint(run.checkpoints, filename=run.last.stem, enable_version_counter=False)
    callbacks = [throughput, Console(throughput, monitor[0], options.log_every), StopAtNonFiniteLoss()]
    callbacks += [Samples(options.sample_every)] if options.sample_every else []
    callbacks += [EMA(options.ema_decay)] if options.ema_decay else []
    callbacks += [history, LearningRateMonitor("step"), BadSamples(), RandomState(), checkpoint, last]
    # Validations are spread evenly, so that the last one is at the last step.
    rounds = max(round(options.max_steps / options.val_every), 1)
    trainer = L.Trainer(
        max_steps=options.max_steps,
        max_epochs=-1,
        val_check_interval=options.max_steps // rounds * options.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=options.limit_val_batches,
        num_sanity_val_steps=0,
        precision=resolve_precision(options.precision, options.accelerator),  # type: ignore[arg-type]  # Lightning checks it
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=build_strategy(options.strategy, offload=options.offload),
        use_distributed_sampler=False,  # the data module shares out the shards
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.gradient_clip or None,
        log_every_n_steps=options.log_every,
        logger=TensorBoardLogger(run.root, name="", version="", sub_dir="logs"),
        callbacks=callbacks,
        default_root_dir=run.root,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, {"throughput": throughput, "history": history, "checkpoint": checkpoint}


def collect_metrics(
    cfg: RunConfig,
    trainer: L.Trainer,
    path: Path,
    *,
    throughput: Throughput,
    history: History,
    checkpoint: ModelCheckpoint,
) -> dict[str, Any]:
    """What `metrics.json` holds: the cost of the run, and the validation scores of the checkpoint that is exported."""
    best_step = read_checkpoint(path)["global_step"]
    return {
        "stage": cfg.stage,
        "name": cfg.name,
        "steps": trainer.global_step,
        "seconds": round(throughput.total_seconds, 2),
        "seconds_per_step": round(throughput.train_seconds / max(trainer.global_step, 1), 5),
        **peak_memory_mb(),
        "checkpoint": path.name,
        "best_step": best_step,
        "monitor": checkpoint.monitor,
        "val": history.at(best_step),
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


def main(arguments: list[str]) -> None:
    paths, items, flags = split_arguments(arguments, ("--show",))
    cfg = load_config(paths, items)
    if "--show" in flags:
        print(show(cfg))
    else:
        train(cfg)


if __name__ == "__main__":
    run_script(main, __doc__)
