"""The Lightning trainer of a run, with its callbacks."""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.bad_samples import BadSamples
from callbacks.checkpoints import Checkpoints
from callbacks.console import Console
from callbacks.ema import EMA
from callbacks.guard import Guard
from callbacks.history import History
from callbacks.random_state import RandomState
from callbacks.requeue import Requeue
from callbacks.samples import Samples
from callbacks.throughput import Throughput
from configs.run import RunFolder
from configs.schema import RunConfig
from modules.strategy import build_plugins, build_strategy, resolve_precision
from modules.zero import is_sharded


@dataclass
class Parts:
    """The callbacks that are asked for results."""

    throughput: Throughput
    history: History
    checkpoints: Checkpoints
    guard: Guard


def build_trainer(cfg: RunConfig, run: RunFolder, monitor: tuple[str, str]) -> tuple[L.Trainer, Parts]:
    """The trainer, and those of its callbacks that are asked for results.

    Args:
        monitor: name of the validation score that decides which checkpoint is best, and "min" or "max".
    """
    options = cfg.trainer
    parts = Parts(
        throughput=Throughput(options.log_every),
        history=History(run.history),
        checkpoints=Checkpoints(run.checkpoints, monitor, options.keep_checkpoints, options.save_every),
        guard=Guard(options.max_skipped, options.spike_sigma),
    )
    callbacks = [parts.throughput, Console(parts.throughput, monitor[0], options.log_every), parts.guard]
    precision = resolve_precision(options.precision, options.accelerator)
    strategy = build_strategy(
        options.strategy, offload=options.offload, precision=precision, accelerator=options.accelerator
    )
    # A network of which each rank holds a part cannot write samples of different lengths; `make eval` shows them.
    callbacks += [Samples(options.sample_every)] if options.sample_every and not is_sharded(strategy) else []
    callbacks += [EMA(options.ema_decay)] if options.ema_decay else []
    callbacks += [parts.history, LearningRateMonitor("step"), BadSamples(), RandomState()]
    callbacks += [Requeue(parts.checkpoints), parts.checkpoints]
    # Validations are spread evenly, so that the last one is at the last step.
    rounds = max(round(options.max_steps / options.val_every), 1)
    trainer = L.Trainer(
        max_steps=options.max_steps,
        max_epochs=-1,
        val_check_interval=options.max_steps // rounds * options.accumulate,
        check_val_every_n_epoch=None,
        limit_val_batches=options.limit_val_batches,
        num_sanity_val_steps=0,
        precision=precision if isinstance(strategy, str) else None,  # type: ignore[arg-type]  # Lightning checks it
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy,
        plugins=build_plugins(options.background_save),
        deterministic=options.deterministic,
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
    return trainer, parts
