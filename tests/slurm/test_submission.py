"""Jobs as a user submits them: a chain, its order, what a failure does, what is shown."""

from __future__ import annotations

import json

import pytest

from tests.slurm.conftest import Folder, wait

pytestmark = pytest.mark.slurm
TINY = "trainer.max_steps=4 trainer.val_every=4 trainer.sample_every=0 data.batch_size=2"


def test_a_chain_runs_in_order_and_hands_on_its_exports(folder: Folder) -> None:
    jobs = folder.submit("train", "chain", TINY)
    assert [job.run.parent.name for job in jobs] == ["vqvae", "llm", "interp", "controlnet", "evaluator"]
    shown = folder.make("status", "NAME=chain")
    assert all(job.id in shown for job in jobs)
    (evaluation,) = folder.submit("eval", "chain", "clips=2 videos=1", f"AFTER={jobs[-1].id}", "SPLIT=test")
    for job in jobs:
        assert job.wait_end() == "COMPLETED", job.said()
        assert json.loads((job.run / "metrics.json").read_text())["steps"] == 4
        assert "on 2 ranks" in job.said()
    starts = [job.field("StartTime") for job in jobs]
    ends = [job.field("EndTime") for job in jobs]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    for job, start, end in zip(jobs, starts, ends, strict=True):
        print(f"{job.run.parent.name}: {start} to {end}, {job.said().splitlines()[-1]}")
    assert evaluation.wait_end() == "COMPLETED", evaluation.said()
    assert (folder.path / "runs/chain/chain/eval/test.json").is_file()


def test_a_failing_stage_cancels_the_rest(folder: Folder) -> None:
    jobs = folder.submit("train", "failing", f"{TINY} seed=x")
    assert jobs[0].wait_end() == "FAILED"
    assert "error: command line: seed is 'x'" in jobs[0].said()
    assert "runs/vqvae/failing: not finished" in jobs[0].said()
    wait(lambda: all(job.state == "CANCELLED" for job in jobs[1:]), 60, "the others are cancelled")
    assert "no job is waiting or running" in folder.make("status", "NAME=failing")


def test_a_finished_run_is_not_trained_again(folder: Folder) -> None:
    for _ in range(2):
        (job,) = folder.submit("train-vqvae", "twice", TINY, "NODES=1", "TASKS=2")
        assert job.wait_end() == "COMPLETED"
    assert "runs/vqvae/twice is finished: 4 steps" in job.said()
