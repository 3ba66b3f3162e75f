"""What packing is worth: python scripts/bench_packing.py configs/llm/demo.yaml data.path=data/cmu [batches=4]

Training steps (forward and backward, no optimiser) of the same batches of real captions and scenes: packed, with
samples one after another and attention within each, and as rows padded to the longest. Tokens are real tokens. The
losses of every sample must be the same.

  batches=4   of data.batch_size clips of the training split, each counted `repeats=2` times
"""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

import numpy as np  # noqa: E402
import torch  # noqa: E402

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_config, load_typed  # noqa: E402
from modules.errors import UserError  # noqa: E402
from modules.hardware import native_bfloat16  # noqa: E402
from modules.llm.data import Collate  # noqa: E402
from modules.llm.module import LLMModule  # noqa: E402
from train import training_clips  # noqa: E402
from training.results import build_module  # noqa: E402

PACKINGS = {"packed": 0, "padded": 1}  # a row is never shorter than a sample: 1 gives each its own


@dataclass
class BenchConfig:
    batches: int = 4
    repeats: int = 2


def step(module: LLMModule, batch: dict[str, Any], half: bool) -> float:
    """Seconds of a forward and a backward pass."""
    module.zero_grad()
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = module.model_step(batch)
    found.losses.mean().backward()
    return time.perf_counter() - started


def sample_losses(module: LLMModule, items: list[dict[str, Any]], collate: Collate) -> torch.Tensor:
    """Mean loss of each sample of a batch, in float32."""
    batch = collate(items)
    owners = batch["sample_ids"]
    with torch.no_grad():
        found = module.model_step(batch)
    follows = (owners[:, 1:] == owners[:, :-1]) & (owners[:, 1:] >= 0)
    samples = owners[:, 1:][follows]
    assert len(samples) == len(found.losses), "model.loss_on must be all, without a depth head"
    sums = torch.zeros(len(items)).index_add_(0, samples, found.losses)
    return sums / torch.bincount(samples, minlength=len(items))


def main(arguments: list[str]) -> None:
    paths, items, _ = split_arguments(arguments)
    if not paths:
        raise UserError("no config file is named; for example configs/llm/demo.yaml")
    names = {field.name for field in fields(BenchConfig)}
    options = load_typed(BenchConfig, [], [item for item in items if item.partition("=")[0] in names])
    rest = [item for item in items if item.partition("=")[0] not in names]
    cfg = load_config(paths, [*rest, "model.loss_on=all", "model.depth_head.num_layers=0"])
    torch.manual_seed(cfg.seed)
    module = build_module(cfg)
    module.setup_data(lambda: training_clips(cfg.data, module.columns))
    module.setup("fit")
    module.on_fit_start()
    collates = {}
    for name, length in PACKINGS.items():
        collates[name] = Collate(pack_length=length)
        collates[name].bind(grammar=module.grammar, context=module.network.config.max_position_embeddings)
    rng = np.random.default_rng(cfg.seed)
    clips = itertools.islice(training_clips(cfg.data, module.columns), options.batches * cfg.data.batch_size)
    found = [item for clip in clips for item in module.encode(clip, rng, True)]
    size = cfg.data.batch_size
    batches = [found[start : start + size] for start in range(0, len(found) - size + 1, size)]
    half = cfg.trainer.precision == "auto" and native_bfloat16("cpu") or cfg.trainer.precision.startswith("bf16")
    seconds, tokens, places = dict.fromkeys(PACKINGS, 0.0), 0, dict.fromkeys(PACKINGS, 0)
    apart = 0.0
    step(module, collates["padded"](batches[0]), half)
    for batch in batches:
        for name, collate in collates.items():
            # The fastest of a few, in turns: other programs slow down both alike.
            times = [step(module, collate(batch), half) for _ in range(options.repeats)]
            seconds[name] += min(times)
            places[name] += collate(batch)["input_ids"].numel()
        tokens += int((collates["packed"](batch)["sample_ids"] >= 0).sum())
        losses = [sample_losses(module, batch, collate) for collate in collates.values()]
        apart = max(apart, float((losses[0] - losses[1]).abs().max()))
    print(f"{len(batches)} batches of {size}, {tokens} tokens, {'bfloat16' if half else 'float32'}")
    for name in PACKINGS:
        print(f"{name}: {tokens / seconds[name]:8.0f} tokens/s, {places[name] / tokens:.2f} places a token")
    ratio = seconds["padded"] / seconds["packed"]
    print(f"packed is {ratio:.2f} times as fast; losses of samples at most {apart:.1e} apart")
    if apart > 1e-3:
        raise UserError("the losses of samples differ")


if __name__ == "__main__":
    run_script(main, __doc__)
