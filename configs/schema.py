"""Run-level configuration. A stage's own part (`model`) is the dataclass in `modules/<stage>/config.py`."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass, field
from typing import Any

from modules.errors import UserError

# Stage -> class names of its configuration and of its LightningModule, imported when the stage is asked for.
STAGES: dict[str, tuple[str, str]] = {
    "vqvae": ("VQVAEConfig", "VQVAEModule"),
    "llm": ("LLMConfig", "LLMModule"),
    "interp": ("InterpConfig", "InterpModule"),
    "base": ("BaseConfig", "BaseModule"),
    "controlnet": ("ControlNetConfig", "ControlNetModule"),
    "evaluator": ("EvaluatorConfig", "EvaluatorModule"),
    "rivals": ("RivalsConfig", "RivalsModule"),
}


@dataclass
class AugmentConfig:
    """Changes of training samples by chance; 0: none. See `datamodules/augment.py`."""

    mirror: float = 0.0  # share of the samples with left and right exchanged, in the captions, too
    jitter: float = 0.0  # noise of the joints: standard deviation in body sizes
    joint_loss: float = 0.0  # share of joints that are unseen for a stretch of time
    side_swap: float = 0.0  # share of frames in which a person's left and right joints are exchanged
    time_warp: float = 0.0  # largest change of speed
    camera: float = 0.0  # largest zoom and shift, as a share of the canvas

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            most = 0.9 if name in ("time_warp", "camera") else 1.0
            if not 0 <= value <= most:
                raise UserError(f"data.augment.{name} is {value}; allowed is from 0 to {most:g}")


@dataclass
class DataConfig:
    """Where the shards are and how they are read."""

    path: str = "data/sample"  # folder of {train,val,test}-*.tar
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "test"
    # Validate on a part of the training split instead: samples are grouped by the field `group` of their json, the
    # groups are dealt into `folds` parts, and part `fold` is held aside. folds 0: val_split validates.
    group: str = ""
    folds: int = 0
    fold: int = 0
    batch_size: int = 32
    num_workers: int = 0
    num_frames: int = 200  # longest crop, dense frames
    stride: int = 10  # dense frames per key pose
    min_confidence: float = 0.1  # a joint is visible above it
    shuffle_buffer: int = 1000
    cache_mb: int = 1024  # memory for samples that were read, MB a process; 0: read the shards again in every pass
    max_bad_fraction: float = 0.01  # share of damaged samples that are left out (counted, logged) before it is an error
    mixture: dict[str, float] = field(default_factory=dict)  # folder: weight, sets to train on; `path` then validates
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _at_least("data", self, batch_size=1, num_workers=0, num_frames=1, stride=1, shuffle_buffer=1, cache_mb=0,
                  folds=0, fold=0)  # fmt: skip
        if self.folds and (self.folds < 2 or self.fold >= self.folds or not self.group):
            raise UserError(
                f"data.folds is {self.folds}, data.fold {self.fold} and data.group '{self.group}'; folds must be 0 or "
                "at least 2, fold below it, and group a field of the samples' json, for example subject"
            )
        if self.folds and self.mixture:
            raise UserError("data.folds cannot go with data.mixture; name one set by data.path")
        if not 0 <= self.max_bad_fraction < 1:
            raise UserError(f"data.max_bad_fraction is {self.max_bad_fraction}; allowed is from 0 to below 1")
        if wrong := [f"{path}: {weight}" for path, weight in self.mixture.items() if not weight > 0]:
            raise UserError(f"data.mixture has {wrong[0]}; weights are above 0")

    @property
    def train_paths(self) -> list[str]:
        """The folders whose training split is read."""
        return list(self.mixture) or [self.path]


@dataclass
class TrainerConfig:
    """How a stage is trained. Steps are optimiser steps."""

    max_steps: int = 1000
    val_every: int = 200
    limit_val_batches: int | None = None  # None: the whole validation split
    precision: str = "32-true"  # any that Lightning knows, or auto: bf16-mixed where the hardware has it
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"  # any name Lightning knows; deepspeed_stage_3 also reads the next line
    offload: bool = False  # DeepSpeed: keep parameters and optimiser state in host memory
    accumulate: int = 1  # batches per optimiser step
    gradient_clip: float = 1.0  # largest norm of the gradient; 0 turns clipping off
    log_every: int = 20
    sample_every: int = 1  # validations between two sets of pictures; 0 for none
    ema_decay: float = 0.0  # 0 turns the moving average of the weights off
    keep_checkpoints: int = 2  # of the newest; the best is kept besides
    save_every: int = 0  # steps between checkpoints besides those of the validations; 0 for none
    background_save: bool = False  # write checkpoints while training goes on, from a copy in host memory
    max_skipped: int = 10  # steps in a row with a loss or gradient that is not finite, before the run ends
    spike_sigma: float = 0.0  # skip steps that far above the last 128 (6 is usual); 0: only what is not finite
    deterministic: bool = False  # slower kernels that give the same bits in every run; an error where there is none

    def __post_init__(self) -> None:
        _at_least(
            "trainer", self, max_steps=1, val_every=1, accumulate=1, devices=1, num_nodes=1, log_every=1,
            sample_every=0, gradient_clip=0, keep_checkpoints=1, save_every=0, max_skipped=1, spike_sigma=0,
        )  # fmt: skip
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"trainer.ema_decay is {self.ema_decay}; it must be from 0 to below 1, for example 0.999")
        if self.ema_decay > 0 and self.strategy.startswith("deepspeed_stage_3"):
            raise UserError("trainer.ema_decay cannot go with deepspeed_stage_3, which shards the weights; set it to 0")
        if self.background_save and self.strategy.startswith("deepspeed"):
            raise UserError("trainer.background_save cannot go with DeepSpeed, which writes by itself; leave it false")
        if self.spike_sigma > 0 and self.strategy.startswith("deepspeed"):
            raise UserError("trainer.spike_sigma cannot go with DeepSpeed, which keeps the gradients; set it to 0")


@dataclass
class RunConfig:
    """One training run, kept in `<run_dir>/<stage>/<name>/`."""

    stage: str = "???"
    name: str = "???"  # the loader takes the name of the config file where none is given
    seed: int = 0
    run_dir: str = "runs"
    fresh: bool = False  # true: throw away this run's folder and start over
    other_data: bool = False  # true: go on although the data are not those that the run began with
    data: DataConfig = field(default_factory=DataConfig)
    model: Any = None  # the stage's own dataclass
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if not self.trainer.strategy.startswith("deepspeed"):
            return
        if self.stage != "llm":
            raise UserError(
                f"trainer.strategy is {self.trainer.strategy} and stage {self.stage}; only llm is trained with "
                "DeepSpeed, the others fit on a device: use auto or ddp"
            )
        if self.model is not None and self.model.optim.muon_lr > 0:
            raise UserError(
                f"model.optim.muon_lr is {self.model.optim.muon_lr}; Muon needs whole matrices, and DeepSpeed cuts "
                "them up: set it to 0 (AdamW)"
            )


def stage_config(stage: str) -> type:
    """Configuration dataclass of a stage."""
    return getattr(importlib.import_module(f"modules.{stage}.config"), STAGES[stage][0])


def stage_module(stage: str) -> type:
    """LightningModule class of a stage."""
    return getattr(importlib.import_module(f"modules.{stage}.module"), STAGES[stage][1])


def _at_least(section: str, config: Any, **limits: int) -> None:
    low = [f"{section}.{key} is {getattr(config, key)}, at least {limit} is needed"
           for key, limit in limits.items() if getattr(config, key) < limit]  # fmt: skip
    if low:
        raise UserError("; ".join(low))
