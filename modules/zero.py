"""DeepSpeed's ZeRO through Lightning: optimiser state, gradients and weights shared out over the ranks (docs/ZERO3.md).

DeepSpeed takes seconds to import: it is imported where a configuration asks for it, and where weights are shared out.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn

from modules.errors import UserError
from modules.files import remove

# Parameters that are gathered, reduced, or updated (with a float32 copy of their gradients) at a time.
BUCKET = 500_000_000
UNIVERSAL = ".universal"  # a checkpoint that is being read by another number of ranks


class ZeroPrecision(DeepSpeedPrecision):
    """Leaves alone what is no weight: scores are summed up, and poses are encoded, in their own precision."""

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module  # DeepSpeed converts the weights


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy, which here also runs on CPUs, accumulates rightly, and resumes on other ranks.

    A step whose loss or gradient is not finite on any rank changes nothing: DeepSpeed checks the norm of the gradient.
    """

    def setup_environment(self) -> None:
        if not isinstance(self.accelerator, CPUAccelerator):
            return super().setup_environment()
        import deepspeed

        # It would compile a faster all-reduce for ranks that share memory: a minute, and a compiler, for nothing here.
        deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]  # made when it is first asked for
        # DeepSpeed wants numbered devices, and Lightning's own check refuses CPUs.
        self.parallel_devices = [torch.device("cpu", index) for index in range(len(self.parallel_devices or []))]
        return DDPStrategy.setup_environment(self)

    def setup(self, trainer: Any) -> None:
        super().setup(trainer)
        writer: Any = self.deepspeed_engine.checkpoint_engine
        writer.save = write_shard

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Lightning decides when a step is complete: at the end of an epoch, too, as without DeepSpeed."""
        return False

    def block_backward_sync(self) -> AbstractContextManager[None]:
        return nullcontext()  # gradients are shared out after every batch

    def backward(self, closure_loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        assert self.lightning_module is not None
        accumulates = self.lightning_module.trainer.fit_loop._should_accumulate()
        self.deepspeed_engine.set_gradient_accumulation_boundary(not accumulates)
        # An infinite loss may have a finite gradient; with this it has none.
        finite = torch.where(closure_loss.detach().isfinite(), 1.0, torch.nan)
        # Lightning has divided the loss by the number of batches already.
        super().backward(closure_loss * finite, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @property
    def step_was_skipped(self) -> bool:
        """Was the last step without effect, because the gradient of some rank was not finite?"""
        optimizer: Any = self.deepspeed_engine.optimizer
        return bool(getattr(optimizer, "overflow", False))

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient at the last step, before clipping."""
        return float(self.deepspeed_engine.get_global_grad_norm() or 0.0)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Goes on from a checkpoint of as many ranks, bit by bit, or of another number of ranks.

        Raises:
            UserError: it cannot be shared out over another number of ranks.
        """
        path = Path(checkpoint_path)
        if len(rank_files(path)) == self.world_size:
            return super().load_checkpoint(path, weights_only)
        universal = path.with_name(f"{UNIVERSAL}-{path.name}")
        problem = self.broadcast(make_universal(path, universal) if self.is_global_zero else None)
        if problem is not None:
            raise UserError(f"{path} cannot be shared out over {self.world_size} ranks: {problem}")
        # A setting of the whole engine; this load alone needs it.
        config: Any = self.deepspeed_engine._config
        wrapped: Any = self.deepspeed_engine.optimizer
        optimizer = wrapped.optimizer
        groups = [{**group} for group in optimizer.param_groups]
        config.load_universal_checkpoint = True
        try:
            content = super().load_checkpoint(universal, weights_only)
        finally:
            config.load_universal_checkpoint = False
        # DeepSpeed gives the settings of the first group to all, which would decay vectors, too; and one counter of
        # steps to all parts, which each of them would count up.
        for group, before in zip(optimizer.param_groups, groups, strict=True):
            group["weight_decay"] = before["weight_decay"]
        for state in optimizer.state.values():
            state["step"] = copy.deepcopy(state["step"])
        self.barrier("universal checkpoint")
        if self.is_global_zero:
            remove(universal)
        return content


def build_zero(stage: int, *, offload: bool, precision: str, on_cpu: bool) -> ZeroStrategy:
    """A strategy of ZeRO stage 1, 2 or 3.

    Raises:
        ImportError: there is no DeepSpeed.
    """
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
    strategy = ZeroStrategy(
        stage=stage,
        offload_optimizer=offload,
        offload_parameters=offload and stage == 3,
        allgather_bucket_size=BUCKET,
        reduce_bucket_size=BUCKET,
        sub_group_size=BUCKET,
        logging_batch_size_per_gpu=1,  # for DeepSpeed's own log, which is off; it cannot be guessed here
        precision_plugin=ZeroPrecision(precision),  # type: ignore[arg-type]  # Lightning checks it
    )
    assert isinstance(strategy.config, dict)
    strategy.config["zero_force_ds_cpu_optimizer"] = False  # the stage's own AdamW, also where it is offloaded
    return strategy


def is_sharded(strategy: Any) -> bool:
    """Are the weights shared out over the ranks (ZeRO-3)?"""
    return isinstance(strategy, ZeroStrategy) and strategy.zero_stage_3


@contextmanager
def sharded_building(strategy: Any) -> Iterator[None]:
    """Within it transformers builds, loads and resizes networks in pieces, each shared out at once.

    No rank ever holds all weights: rank 0 reads the file, the others get their parts. Does nothing without ZeRO-3.
    """
    if not is_sharded(strategy):
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    strategy._init_config_if_needed()
    config = HfDeepSpeedConfig(strategy.config)  # transformers looks for one that is alive
    yield
    del config


def write_shard(state_dict: dict[str, Any], path: str) -> None:
    """Through a file of Python's, which says why it could not be written: torch's own does not."""
    with open(path, "wb") as file:
        torch.save(state_dict, file)


def rank_files(path: Path) -> list[Path]:
    """The optimiser states in a checkpoint, a file for each rank."""
    return sorted(path.glob("checkpoint/*_optim_states.pt"))


def make_universal(path: Path, to: Path) -> str | None:
    """Rewrite a checkpoint for any number of ranks; returns what went wrong, if anything did."""
    remove(to)
    to.mkdir()
    workers = str(min(os.cpu_count() or 1, 8))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(path / "checkpoint"), "--output_folder", str(to / "checkpoint")]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    # A process of its own: forked workers do not go with threads and GPUs that are in use here.
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
