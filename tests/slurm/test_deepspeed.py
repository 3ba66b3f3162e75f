"""The director under ZeRO-3 on two nodes: its checkpoints are folders that both ranks write."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.checkpoints import find_checkpoints
from tests.slurm.conftest import Folder, Job, note
from tests.slurm.test_faults import add

pytestmark = pytest.mark.slurm

STEPS = 20
ARGS = (
    f"trainer.max_steps={STEPS} trainer.val_every=10 trainer.limit_val_batches=1 data.batch_size=2 trainer.log_every=1 "
    "trainer.strategy=deepspeed_stage_3 model.vqvae=runs/vqvae/codes/export model.optim.muon_lr=0 trainer.save_every=3"
)


def bits(run: Path) -> str:
    """A hash of the weights and the optimiser state of both ranks, and of the export."""
    last = find_checkpoints(run / "checkpoints")[0]
    assert last.name == f"step-{STEPS:08d}.ckpt"
    digest = hashlib.sha256((run / "export/model.safetensors").read_bytes())
    digest.update((run / "history.jsonl").read_bytes())
    shards = sorted(last.glob("checkpoint/*_optim_states.pt"))
    assert len(shards) == 2
    for shard in shards:
        content: dict[str, Any] = torch.load(shard, weights_only=False)["optimizer_state_dict"]
        add(digest, [content["fp32_flat_groups"], content["optimizer_state_dict"]["state"]])
    return digest.hexdigest()[:12]


def test_signal_and_kill_under_deepspeed(folder: Folder) -> None:
    (codes,) = folder.submit("train-vqvae", "codes", "trainer.max_steps=2 trainer.val_every=2 trainer.sample_every=0")
    assert codes.wait_end() == "COMPLETED", codes.said()

    def start(name: str) -> Job:
        return folder.submit("train-llm", name, ARGS)[0]

    unbroken = start("zero")
    assert unbroken.wait_end() == "COMPLETED", unbroken.said()
    assert "on 2 ranks" in unbroken.said()
    wanted = bits(unbroken.run)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL):
        job = start(f"zero-{number.name}")
        job.wait_said(r"^step 5/")
        if number == signal.SIGKILL:
            os.kill(job.processes()[1], number)
        else:
            job.signal(number)
        assert job.wait_end() == "COMPLETED", job.said()
        found = bits(job.run)
        note(f"{number.name}, ZeRO-3", job.said(), STEPS, "equal" if found == wanted else "DIFFERENT")
        assert found == wanted, job.said()
        assert job.field("Restarts") == "1"
