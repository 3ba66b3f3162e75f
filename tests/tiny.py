"""Exports of every stage, tiny: trained for two steps, to drive the whole chain in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import train as train_script
from callbacks.checkpoints import find_checkpoints
from configs.loader import load_config
from configs.schema import RunConfig
from datamodules.synthetic.build import SyntheticConfig, build

ROOT = Path(__file__).parents[1]
# What makes each stage smaller than its smoke.yaml.
TINY = {
    "vqvae": ["model.network.codebook_size=16", "model.network.width=16"],
    "llm": [
        "model.architecture.hidden_size=32",
        "model.architecture.intermediate_size=32",
        "model.text_vocabulary=300",
    ],
    "interp": ["model.network.width=16", "model.network.layers=1"],
    "base": ["model.network.unet.block_out_channels=[16,16]", "model.network.vae.block_out_channels=[8,8,8]"],
    "controlnet": [],
    "evaluator": ["model.network.width=16"],
}
STEPS = [
    "trainer.max_steps=2", "trainer.val_every=2", "trainer.limit_val_batches=1", "trainer.sample_every=0",
    "trainer.log_every=1", "trainer.precision=32-true", "trainer.accelerator=cpu",
]  # fmt: skip
COMMON = ["name=tiny", "data.path=data", "data.batch_size=2"]
UPSTREAM = dict.fromkeys(TINY, list[str]()) | {"controlnet": ["model.base=runs/base/tiny/export"]}


def build_chain(folder: Path) -> Path:
    """Data and an export of every stage in a folder, which is given back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build(SyntheticConfig(out="data", train=8, val=2, test=4, shard_size=4, workers=1), progress=False)
        for stage in ("vqvae", "llm", "interp", "base", "controlnet", "evaluator"):
            train_script.train(
                load_config(
                    [str(ROOT / f"configs/{stage}/smoke.yaml")], [*COMMON, *STEPS, *TINY[stage], *UPSTREAM[stage]]
                )
            )
    return folder


# A training of the evaluator: 6 steps of 2 batches, 4 batches an epoch on 16 clips.
SHORT = (
    "model.network.width=8", "model.network.layers=1", "data.batch_size=4", "data.num_frames=60",
    "trainer.max_steps=6", "trainer.log_every=1", "trainer.accelerator=cpu", "trainer.ema_decay=0.5",
    "trainer.accumulate=2",
)  # fmt: skip


def short_run(shards: Path, runs: Path, *items: str) -> RunConfig:
    """Configuration of that training, in `<runs>/evaluator/smoke`."""
    paths = [str(ROOT / "configs/evaluator/smoke.yaml")]
    return load_config(paths, [f"run_dir={runs}", f"data.path={shards}", *SHORT, *items])


def newest_checkpoint(folder: Path) -> dict[str, Any]:
    """Content of the newest checkpoint of a run."""
    return torch.load(find_checkpoints(folder / "checkpoints")[0], weights_only=True)
