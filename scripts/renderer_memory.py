"""Estimated memory of a ControlNet training step: python scripts/renderer_memory.py [CONFIG.yaml] [key=value ...]

  python scripts/renderer_memory.py                                    configs/controlnet/paper.yaml
  python scripts/renderer_memory.py model.gradient_checkpointing=false data.batch_size=2

Runs forward, backward and the optimiser's step on tensors that have shapes and no content (torch's FakeTensorMode), and
counts the storages that are alive at the same time. It is an estimate: without the work space of kernels, the
fragments of the allocator and the CUDA context (1 to 3 GiB more), and with the attention kernels of a CPU, which keep
as much as flash attention does.
"""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_config  # noqa: E402
from configs.schema import RunConfig  # noqa: E402
from configs.show import build_on_meta  # noqa: E402
from modules.controlnet.diffusion import diffusion_loss  # noqa: E402
from modules.controlnet.module import ControlNetModule  # noqa: E402
from modules.errors import UserError  # noqa: E402

GIB = 2**30


class Alive(TorchDispatchMode):
    """Bytes of the storages that were made within this mode and are still there, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def measure(cfg: RunConfig) -> dict[str, float]:
    """Bytes by kind; "peak" is the most that is alive within a step."""
    if cfg.stage != "controlnet":
        raise UserError(f"the memory of stage controlnet is estimated, not of {cfg.stage}: name configs/controlnet/*")
    half = "16" in cfg.trainer.precision
    module: Any = build_on_meta(cfg).train()
    with FakeTensorMode(), Alive() as alive:
        without_content(module)
        parameters = list(module.parameters())
        found: dict[str, float] = {
            "frozen base": sum(p.nbytes for p in parameters if not p.requires_grad),
            "trained weights": sum(p.nbytes for p in parameters if p.requires_grad),
        }
        optimizer: Any = module.configure_optimizers()["optimizer"]
        loss = forward(module, cfg.data.batch_size, half)
        found["kept for backward"] = alive.now - sum(found.values())
        loss.backward()
        del loss
        found["gradients"] = found["trained weights"]
        optimizer.step()
        optimizer.zero_grad()
        found["optimiser state"] = alive.now - found["frozen base"] - found["trained weights"]
        # The second step finds the optimiser's state in place.
        alive.peak = 0
        forward(module, cfg.data.batch_size, half).backward()
        optimizer.step()
        found["averaged weights"] = found["trained weights"] if cfg.trainer.ema_decay else 0.0
        found["peak"] = alive.peak + found["averaged weights"]
    return found


def without_content(module: nn.Module) -> None:
    """Parameters and buffers of the meta device as fake tensors of the CPU, where autocast acts on them."""
    for part in module.modules():
        for name, value in part.named_parameters(recurse=False):
            fake = torch.empty(value.shape, dtype=value.dtype)
            part.register_parameter(name, nn.Parameter(fake, requires_grad=value.requires_grad))
        for name, value in part.named_buffers(recurse=False):
            part.register_buffer(name, torch.zeros(value.shape, dtype=value.dtype), persistent=False)


def forward(module: ControlNetModule, batch: int, half: bool) -> torch.Tensor:
    """Loss of one batch whose latents and text states are cached."""
    base = module.renderer.base
    config, (height, width) = base.config, base.latent_size
    latents = torch.zeros(batch, config.vae.latent_channels, config.num_frames, height, width)
    text = torch.zeros(batch, base.text.context_length, base.text.width)
    hint = torch.zeros(batch, config.num_frames, 3, config.height, config.width)
    timestep, fps = torch.zeros(batch, dtype=torch.long), torch.zeros(batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        prediction = module.renderer.predict(latents, timestep, text, fps, hint)
        return diffusion_loss(base.schedule, prediction, latents, latents, timestep)["weighted"]


def main(arguments: list[str]) -> None:
    paths, items, _ = split_arguments(arguments)
    cfg = load_config(paths or [str(ROOT / "configs/controlnet/paper.yaml")], items)
    found = measure(cfg)
    peak = found.pop("peak")
    print(f"batch {cfg.data.batch_size}, gradient_checkpointing={str(cfg.model.gradient_checkpointing).lower()}, "
          f"base in {cfg.model.base_precision}, precision {cfg.trainer.precision}")  # fmt: skip
    for kind, size in found.items():
        print(f"  {kind:<18} {size / GIB:7.2f} GiB")
    print(f"  {'peak (estimate)':<18} {peak / GIB:7.2f} GiB")


if __name__ == "__main__":
    run_script(main, __doc__)
