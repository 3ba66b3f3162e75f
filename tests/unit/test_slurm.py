"""What is handed to SLURM, without a cluster; tests/slurm has the rest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from callbacks.checkpoints import CHECKSUMS, check, commit, find_checkpoints, newest_readable
from callbacks.requeue import job_id, requeue
from modules.errors import UserError
from scripts import slurm

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def scripts(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    slurm.main(["submit", *arguments[:1], "dry=true", "python=py", *arguments[1:]])
    return capsys.readouterr().out


def test_a_script_has_what_was_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wanted = ("nodes=2", "gpus=4", "cpus=6", "time=1-12", "partition=long", "account=me", "mem=64G", "name=big")
    text = scripts(capsys, "llm", "size=paper", *wanted, "--", "model.pretrained=a b")
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {
        "--job-name=director-llm-big", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=6",
        "--time=1-12", "--partition=long", "--account=me", "--mem=64G", "--signal=USR1@120", "--requeue",
        "--open-mode=append",
    } <= set(lines)  # fmt: skip
    assert "py train.py configs/llm/paper.yaml name=big" in text
    assert "trainer.accelerator=gpu trainer.num_nodes=2 trainer.devices=4 'model.pretrained=a b'" in text
    file = tmp_path / "job.sh"
    file.write_text(text)
    subprocess.run(["bash", "-n", file], check=True)


def test_without_gpus_there_are_processes(capsys: pytest.CaptureFixture[str]) -> None:
    text = scripts(capsys, "vqvae", "gpus=0", "tasks=3")
    assert "--gpus" not in text
    assert "--ntasks-per-node=3" in text
    assert "trainer.accelerator=cpu trainer.num_nodes=1 trainer.devices=3" in text


def test_a_container_and_commands_before_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = scripts(capsys, "vqvae", "container=/img/a.sif", "setup=[module load cuda]")
    assert 'apptainer exec --nv --bind "$PWD" /img/a.sif python train.py' in text
    assert "\nmodule load cuda\n" in text


def test_a_chain_waits_and_an_evaluation_takes_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    slurm.main(["submit", "vqvae", "llm", "dry=true", "after=7"])
    text = capsys.readouterr().out
    assert "# sbatch --dependency=afterok:7,singleton" in text
    assert "# sbatch --dependency=afterok:<id of vqvae>,singleton" in text
    text = scripts(capsys, "eval", "split=test", "nodes=4", "gpus=8")
    assert "eval.py configs/chain/demo.yaml name=demo data.path=data/sample split=test" in text
    assert "--ntasks-per-node=1\n" in text
    assert "--gpus-per-node=1\n" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "vae"], "vae is not a stage; known: vqvae"),
        (["submit", "vqvae", "nodes=0"], "nodes is 0, at least 1 is needed"),
        (["submit", "vqvae", "time=soon"], "time is 'soon'; it must be minutes"),
        (["submit", "vqvae", "gpu=2"], "gpu is unknown; did you mean gpus"),
        (["submit", "vqvae", "name=a b"], "name is 'a b'; letters"),
        (["cancel"], "name= is missing"),
        (["stop"], "submit, status, cancel or done"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        slurm.main(arguments)


def test_without_slurm_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sbatch is not found: run this on a login node"):
        slurm.call("sbatch")


def test_a_stage_is_done_by_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not slurm.is_done(tmp_path)
    (tmp_path / "config.yaml").write_text("trainer:\n  max_steps: 30\n")
    (tmp_path / "metrics.json").write_text(json.dumps({"steps": 20}))
    (tmp_path / "export").mkdir()
    (tmp_path / "export/export.json").touch()
    assert not slurm.is_done(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"steps": 30}))
    assert slurm.is_done(tmp_path)
    assert "20 of 30 steps, exported" in capsys.readouterr().out


SCONTROL = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
[ "$1" = show ] && echo "JobId=1 JobState=$STATE Reason=None"
[ "$1" = show ] || [ "$STATE" != HELD ]
"""


@pytest.mark.parametrize(
    ("state", "calls", "said"),
    [
        ("RUNNING", ["show job 8_3", "requeue 8_3"], "job 8_3 is in the queue again"),
        ("COMPLETING", ["show job 8_3"], "SLURM is ending job 8_3"),  # an administrator requeued it, or it is cancelled
    ],
)
def test_a_job_is_requeued_once_unless_slurm_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, calls: list[str], said: str
) -> None:
    program, log = tmp_path / "scontrol", tmp_path / "calls"
    program.write_text(SCONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    values = {"STATE": state, "CALLS": log, "SLURM_JOB_ID": 9, "SLURM_ARRAY_JOB_ID": 8, "SLURM_ARRAY_TASK_ID": 3}
    for key, value in values.items():
        monkeypatch.setenv(key, str(value))
    assert job_id() == "8_3"
    assert said in requeue()
    assert log.read_text().splitlines() == calls


def test_a_checkpoint_that_is_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As DeepSpeed writes them: shards of several ranks below a folder."""
    for step in (10, 20, 20, 30):  # 20 is written twice
        new = tmp_path / ".new"
        (new / "checkpoint").mkdir(parents=True)
        for rank in range(2):
            (new / f"checkpoint/rank{rank}.pt").write_bytes(bytes([step, rank]) * 1000)
        commit(new, tmp_path / f"step-{step:08d}.ckpt")
    found = find_checkpoints(tmp_path)
    assert [path.name for path in found] == [f"step-{step:08d}.ckpt" for step in (30, 20, 10)]
    assert [check(path) for path in found] == [None] * 3
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in found}

    data = bytearray((found[0] / "checkpoint/rank1.pt").read_bytes())
    data[7] ^= 1
    (found[0] / "checkpoint/rank1.pt").write_bytes(data)
    assert check(found[0]) == "wrong checksum of checkpoint/rank1.pt"
    (found[1] / "checkpoint/rank0.pt").unlink()
    assert check(found[1]) == "rank0.pt is missing"
    assert newest_readable(tmp_path) == found[2]
    assert "step-00000030.ckpt is damaged (wrong checksum of checkpoint/rank1.pt)" in caplog.text
    (found[2] / CHECKSUMS).unlink()
    assert check(found[2]) == f"{CHECKSUMS} is missing"
