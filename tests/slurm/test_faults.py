"""Whatever happens to a job, the run ends with the bits that it would have had.

SLURM_TEST_REPEATS=5 repeats each race between a signal and the run so often (1).
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.checkpoints import find_checkpoints
from tests.slurm.conftest import Folder, Job, node_daemons, note, scontrol, wait

pytestmark = pytest.mark.slurm

REPEATS = int(os.environ.get("SLURM_TEST_REPEATS", "1"))
STEPS = 30
# The validations are long, so that signals can meet them: six batches a rank, and pictures.
ARGS = (
    f"trainer.max_steps={STEPS} trainer.val_every=10 trainer.limit_val_batches=6 data.val_split=train "
    "data.batch_size=4 trainer.ema_decay=0.9 trainer.log_every=1 trainer.keep_checkpoints=3"
)


def bits(run: Path) -> str:
    """A hash of all that the last checkpoint and the export hold."""
    content = torch.load(find_checkpoints(run / "checkpoints")[0], weights_only=True)
    assert content["global_step"] == STEPS
    digest = hashlib.sha256((run / "export/model.safetensors").read_bytes())
    digest.update((run / "history.jsonl").read_bytes())
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "random_states")
    add(digest, [content[key] for key in kept] + [content["callbacks"]["EMA"]])
    return digest.hexdigest()[:12]


def add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(value.detach().numpy().tobytes())
    elif isinstance(value, dict | list | tuple):
        for entry in value.items() if isinstance(value, dict) else value:
            add(digest, entry)
    else:
        digest.update(repr(value).encode())


@pytest.fixture(scope="module")
def unbroken(folder: Folder) -> Callable[[str], str]:
    """Bits of a run that nothing happens to, by its further make variables."""
    known: dict[str, str] = {}

    def get(more: str = "") -> str:
        if more not in known:
            (job,) = folder.submit("train-vqvae", f"unbroken{len(known)}", ARGS, *more.split())
            assert job.wait_end() == "COMPLETED", job.said()
            known[more] = bits(job.run)
        return known[more]

    return get


def start(folder: Folder, name: str, *more: str) -> Job:
    (job,) = folder.submit("train-vqvae", name, ARGS, *more)
    return job


def judge(fault: str, job: Job, wanted: str, again: Job | None = None) -> None:
    """Waits for the end, notes a row, and compares."""
    last = again or job
    state = last.wait_end()
    said = job.said() + (again.said() if again else "")
    found = bits(last.run) if state == "COMPLETED" else state
    note(fault, said, STEPS, "equal" if found == wanted else f"DIFFERENT ({found})")
    assert state == "COMPLETED", said
    assert found == wanted, said


def middle(job: Job) -> None:
    """Waits until some step between validations is done."""
    job.wait_said(rf"^step {random.choice([2, 5, 7, 12, 16, 18])}/")


@pytest.mark.parametrize("repeat", range(REPEATS))
@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM], ids=lambda value: value.name)
def test_signal_in_a_step(folder: Folder, unbroken: Callable[..., str], sent: signal.Signals, repeat: int) -> None:
    wanted = unbroken()
    job = start(folder, f"step-{sent.name}-{repeat}")
    middle(job)
    job.signal(sent)
    judge(f"{sent.name} amid training", job, wanted)
    assert job.field("Restarts") == "1"


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_requeue_by_an_administrator(folder: Folder, unbroken: Callable[..., str], repeat: int) -> None:
    wanted = unbroken()
    job = start(folder, f"requeue-{repeat}")
    middle(job)
    scontrol("requeue", job.id)
    judge("scontrol requeue (SIGTERM)", job, wanted)
    assert job.field("Restarts") == "1"


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_signal_in_a_validation(folder: Folder, unbroken: Callable[..., str], repeat: int) -> None:
    wanted = unbroken()
    job = start(folder, f"validation-{repeat}")
    job.wait_said(r"^step (10|20)/30  loss")
    time.sleep(repeat * 0.05)
    job.signal(signal.SIGUSR1)
    judge("SIGUSR1 in a validation", job, wanted)


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_signal_in_the_first_second(folder: Folder, unbroken: Callable[..., str], repeat: int) -> None:
    sent = (signal.SIGUSR1, signal.SIGTERM)[repeat % 2]
    wanted = unbroken()
    job = start(folder, f"first-{sent.name}-{repeat}")
    wait(lambda: len(job.processes()) > 0, 30, "a process of the run")
    time.sleep(repeat * 0.25)
    job.signal(sent)
    judge(f"{sent.name} in the first second", job, wanted)
    assert job.field("Restarts") == "1"


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_ranks_out_of_step(folder: Folder, unbroken: Callable[..., str], repeat: int) -> None:
    wanted = unbroken()
    job = start(folder, f"apart-{repeat}")
    middle(job)
    late = job.processes()[1]
    os.kill(late, signal.SIGSTOP)
    time.sleep(0.3)  # rank 0 waits for it in its backward pass
    job.signal(signal.SIGUSR1)
    time.sleep(0.5)
    os.kill(late, signal.SIGCONT)
    judge("SIGUSR1 while rank 0 waits for rank 1", job, wanted)


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_signal_to_one_rank(folder: Folder, unbroken: Callable[..., str], repeat: int) -> None:
    wanted = unbroken()
    job = start(folder, f"one-{repeat}")
    middle(job)
    os.kill(job.processes()[repeat % 2], signal.SIGUSR1)
    judge(f"SIGUSR1 to rank {repeat % 2} alone", job, wanted)


@pytest.mark.parametrize("repeat", range(REPEATS))
def test_with_workers(folder: Folder, unbroken: Callable[..., str], repeat: int) -> None:
    sent = (signal.SIGTERM, signal.SIGUSR1)[repeat % 2]
    wanted = unbroken("WORKERS=2")
    job = start(folder, f"workers-{sent.name}-{repeat}", "WORKERS=2")
    middle(job)
    job.signal(sent)
    judge(f"{sent.name}, 2 data loader workers a rank", job, wanted)
    assert job.field("Restarts") == "1"


def test_time_limit(folder: Folder, unbroken: Callable[..., str]) -> None:
    wanted = unbroken()
    (job,) = folder.submit("train-vqvae", "limit", ARGS, "TIME=2")  # the lead of 120 s is the whole time
    judge("SIGUSR1 by the time limit", job, wanted)
    if job.field("Restarts") != "1":
        pytest.skip("the run was over before SLURM looked at its time, which it does every half minute")


def test_preemption(folder: Folder, unbroken: Callable[..., str]) -> None:
    wanted = unbroken()
    job = start(folder, "preempted", "PARTITION=main")
    middle(job)
    command = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 2"]
    subprocess.run([*command, "--output=/dev/null"], check=True, capture_output=True)
    judge("preempted by a higher partition", job, wanted)
    assert job.field("Restarts") == "1"


def test_one_rank_killed(folder: Folder, unbroken: Callable[..., str]) -> None:
    wanted = unbroken()
    job = start(folder, "killed")
    job.wait_said(r"^step 14/")
    os.kill(job.processes()[1], signal.SIGKILL)
    judge("kill -9 of one rank", job, wanted)
    assert job.field("Restarts") == "1"


def test_whole_job_killed(folder: Folder, unbroken: Callable[..., str]) -> None:
    wanted = unbroken()
    job = start(folder, "all-killed")
    job.wait_said(r"^step 14/")
    for process in job.everything():
        os.kill(process, signal.SIGKILL)
    assert job.wait_end() == "FAILED"
    again = start(folder, "all-killed")
    judge("kill -9 of the whole job, submitted again", job, wanted, again)


@pytest.mark.parametrize("how", ["told so", "dead"])
def test_node_down(folder: Folder, unbroken: Callable[..., str], how: str) -> None:
    wanted = unbroken()
    job = start(folder, f"down-{how.replace(' ', '-')}")
    job.wait_said(r"^step 14/")
    if how == "told so":
        scontrol("update", "nodename=n2", "state=down", "reason=test")
    else:
        for process in [*node_daemons("n2"), job.processes()[1]]:
            os.kill(process, signal.SIGKILL)
    wait(lambda: job.field("Restarts") == "1", 90, "a restart")
    time.sleep(1)
    if how == "told so":
        subprocess.run(["scontrol", "update", "nodename=n2", "state=resume"])  # refused where it is up again by itself
    else:
        subprocess.run(["slurmd", "-c", "-N", "n2"], check=True)
    judge(f"a node goes down ({how})", job, wanted)


def test_cancelled_stays_cancelled_and_has_saved(folder: Folder, unbroken: Callable[..., str]) -> None:
    wanted = unbroken()
    job = start(folder, "cancelled")
    middle(job)
    assert f"cancelled {job.id}" in folder.make("cancel", "NAME=cancelled")
    assert job.wait_end() == "CANCELLED"
    time.sleep(6)
    assert job.state == "CANCELLED"
    again = start(folder, "cancelled")
    judge("scancel, submitted again", job, wanted, again)
