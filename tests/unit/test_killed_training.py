"""A training that is killed in the middle of an epoch goes on with the same samples and the same losses."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import train as script
from callbacks.guard import KEYS
from datamodules.synthetic.build import SyntheticConfig, build
from modules.evaluator.module import EvaluatorModule
from tests.tiny import newest_checkpoint, short_run

# 32 samples in batches of 4: 8 batches an epoch, a step of each.
OPTIONS = ("data.num_workers=2", "trainer.accumulate=1", "trainer.max_steps=20", "trainer.save_every=3")
RARE = ("trainer.val_every=20", "trainer.sample_every=0")


def train(shards: Path, runs: Path, log: Path, kill_at: int) -> None:
    """Trains and notes step, samples and loss of each batch; kills itself after step `kill_at`."""
    original = EvaluatorModule.training_step

    def step(self: EvaluatorModule, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        with log.open("a") as file:
            file.write(json.dumps([self.global_step, batch[KEYS], float(loss.detach()).hex()]) + "\n")
        if self.global_step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    EvaluatorModule.training_step = step  # type: ignore[method-assign]
    try:
        script.train(short_run(shards, runs, *RARE, *OPTIONS))
    finally:
        EvaluatorModule.training_step = original  # type: ignore[method-assign]


def noted(log: Path) -> dict[int, Any]:
    """Samples and loss of each step; those of the run that went on where a step was made twice."""
    return {step: rest for step, *rest in map(json.loads, log.read_text().splitlines())}


@pytest.mark.timeout(300)
def test_a_killed_training_goes_on_with_the_same_samples_and_losses(tmp_path: Path) -> None:
    shards, runs, log = tmp_path / "data", tmp_path / "killed", tmp_path / "killed.jsonl"
    build(SyntheticConfig(out=str(shards), train=32, val=8, test=0, shard_size=8, workers=1), progress=False)
    process = multiprocessing.get_context("spawn").Process(target=train, args=(shards, runs, log, 13))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert newest_checkpoint(runs / "evaluator/smoke")["global_step"] == 12  # of 16 at the end of the epoch
    before = noted(log)
    assert sorted(before) == list(range(14))
    train(shards, runs, log, -1)
    after = noted(log)
    train(shards, tmp_path / "whole", tmp_path / "whole.jsonl", -1)
    whole = noted(tmp_path / "whole.jsonl")
    assert sorted(whole) == list(range(20))
    assert after == whole
    assert {step: whole[step] for step in before} == before
    weights = [tmp_path / name / "evaluator/smoke/export/model.safetensors" for name in ("killed", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
