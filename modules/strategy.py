"""Lightning strategies by name, and the checkpoints that they write."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from modules.errors import UserError
from modules.hardware import native_bfloat16

ZERO_STAGES = {"deepspeed_stage_1": 1, "deepspeed_stage_2": 2, "deepspeed_stage_3": 3}


def build_strategy(
    name: str, *, offload: bool = False, precision: str = "32-true", accelerator: str = "auto"
) -> Strategy | str:
    """A strategy for `L.Trainer`: one of `ZERO_STAGES` (DeepSpeed ZeRO), or a name that Lightning knows.

    `offload` keeps parameters and optimiser state in host memory. The optimiser stays the stage's own AdamW.
    `precision` is one that Lightning knows; a strategy of DeepSpeed brings it along.

    Raises:
        UserError: for DeepSpeed where it cannot be imported, and for `offload` without DeepSpeed.
    """
    if name not in ZERO_STAGES:
        if offload:
            raise UserError(
                f"trainer.offload needs DeepSpeed, trainer.strategy is '{name}'; use one of {', '.join(ZERO_STAGES)}"
            )
        return name
    from modules.zero import build_zero

    on_cpu = accelerator == "cpu" or accelerator == "auto" and not torch.cuda.is_available()
    try:
        return build_zero(ZERO_STAGES[name], offload=offload, precision=precision, on_cpu=on_cpu)
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError(f"trainer.strategy={name} needs DeepSpeed, which cannot be imported: {error}") from None


class CheckpointFile(TorchCheckpointIO):
    """Writes straight to the file that it is given: none in a folder for temporary files.

    Args:
        background: only copy the tensors to host memory, and write them while the training goes on. `wait` before the
            next one.
    """

    def __init__(self, background: bool = False):
        super().__init__()
        self.background = background
        self._writer = ThreadPoolExecutor(1)  # a thread is started with the first task
        self._pending: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if not self.background:
            _write(checkpoint, path)
        else:
            copy = apply_to_collection(checkpoint, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
            self._pending = self._writer.submit(_write, copy, path)

    def then(self, action: Callable[[], None]) -> None:
        """Do something when the file is written."""
        if self._pending is None:
            action()
        else:
            self._pending = self._writer.submit(_after, self._pending, action)

    def wait(self) -> None:
        """Until all is done; raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _write(checkpoint: dict[str, Any], path: Any) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("wb") as file:
        torch.save(checkpoint, file)


def _after(before: Future[None], action: Callable[[], None]) -> None:
    before.result()  # done, as there is one thread; raises where it failed
    action()


def build_plugins(background: bool = False) -> list[Any]:
    """Plugins of the trainer: how files are written; under SLURM, without Lightning's own requeueing.

    `background`: see `CheckpointFile`.
    """
    environment = [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
    return [CheckpointFile(background), *environment]


def resolve_precision(name: str, accelerator: str = "auto") -> str:
    """A precision that Lightning knows: `auto` is bf16-mixed where the hardware computes in bfloat16, else 32-true."""
    if name != "auto":
        return name
    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    return "bf16-mixed" if native_bfloat16(device) else "32-true"


def read_checkpoint(path: Path, *, weights: bool = True) -> dict[str, Any]:
    """A training checkpoint, on the CPU and with all its weights in one place.

    DeepSpeed writes a folder of shards, which its own code puts together in float32 (it unpickles: own runs only).

    Args:
        weights: False leaves out weights that would have to be put together.
    """
    if path.is_file():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    from lightning.pytorch.utilities.deepspeed import ds_checkpoint_dir

    client = min(Path(ds_checkpoint_dir(path)).glob("*_model_states.pt"))
    content = torch.load(client, map_location="cpu", weights_only=False, mmap=True)
    content = {key: value for key, value in content.items() if key not in ("module", "optimizer")}
    if weights:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        said = io.StringIO()  # it tells all that it does
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            state = get_fp32_state_dict_from_zero_checkpoint(str(path)) or {}
        content["state_dict"] = {name.removeprefix("_forward_module."): value for name, value in state.items()}
    return content
