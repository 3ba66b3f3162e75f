"""Jobs on SLURM; `make ... CLUSTER=slurm` calls it.

  scripts/slurm.py submit STAGE [STAGE ...] [size=demo] [name=SIZE] [data=data/sample] [dry=true] [nodes=2 ...] [-- ...]
  scripts/slurm.py submit eval stage=chain split=val
  scripts/slurm.py status [name=]          scripts/slurm.py cancel name=NAME
  scripts/slurm.py done RUN_FOLDER         exit status 0 where all steps of the run are done, else 1

Several stages are a chain: each starts when the one before has done all of its steps. What follows -- goes to train.py
or eval.py. dry=true prints the scripts. Further keys are those of configs/cluster/slurm.yaml.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from configs.schema import STAGES  # noqa: E402
from configs.slurm_schema import SlurmConfig  # noqa: E402
from modules.errors import UserError  # noqa: E402

PASSED_ON = ("mem", "time", "partition", "account", "qos")
PREFIX = "director"
WHAT = (*STAGES, "eval")  # can be submitted
LOGS = Path("runs/logs")
DEFAULTS = "configs/cluster/slurm.yaml"

SCRIPT = """#!/usr/bin/env bash
{options}

set -u
cd "$SLURM_SUBMIT_DIR"
{setup}
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"
export NCCL_DEBUG="${{NCCL_DEBUG:-WARN}}"
echo "== job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${{SLURM_RESTART_COUNT:-0}} + 1)), $(date -Is)"

# SIGTERM is for the run, which saves; this shell waits for it. What comes before the run listens is held back.
trap : TERM
hold="env --block-signal=USR1,TERM"
$hold true 2> /dev/null || hold=""
srun --kill-on-bad-exit=1 $hold \\
    {python} {arguments}
status=$?

{end}
"""
END_OF_EVAL = "exit $status"
END_OF_TRAINING = """# The stage is done when all of its steps are, whatever the exit status.
{python} scripts/slurm.py done {run} && exit 0
case $status in
    0 | 2) again=no ;; # 2: a mistake, which would come again
    75 | 138) again=yes ;; # it has saved and could not reach SLURM; it was told to save before it could listen
    *) again=$([ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ] && echo yes) ;; # it has crashed
esac
# Not where SLURM itself is ending the job.
if [[ $again == yes && "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" == RUNNING ]]; then
    echo "== exit status $status: back into the queue"
    scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit $((status ? status : 1))"""


@dataclass
class Submission:
    """What is submitted, besides its resources."""

    size: str = "demo"
    name: str = ""  # empty: the size
    data: str = "data/sample"
    after: str = ""  # id of a job that must have succeeded first
    dry: bool = False
    python: str = ""  # empty: the one that runs this script
    stage: str = "chain"  # of eval
    split: str = "val"  # of eval
    export: str = ""  # of eval

    def __post_init__(self) -> None:
        self.name = self.name or self.size


def job_name(what: str, name: str) -> str:
    """A SLURM job of this project is told by its name."""
    return f"{PREFIX}-{what}-{name}"


def command(what: str, job: Submission, cluster: SlurmConfig, extra: list[str]) -> list[str]:
    """The arguments of Python."""
    keys = [f"name={job.name}", f"data.path={job.data}"]
    if what == "eval":
        export = [f"export={job.export}"] if job.export else []
        return ["eval.py", f"configs/{job.stage}/{job.size}.yaml", *keys, f"split={job.split}", *export, *extra]
    keys += [
        f"data.num_workers={cluster.workers}",
        f"trainer.accelerator={'gpu' if cluster.gpus else 'cpu'}",
        f"trainer.num_nodes={cluster.nodes}",
        f"trainer.devices={cluster.processes}",
    ]
    return ["train.py", f"configs/{what}/{job.size}.yaml", *keys, *extra]


def render(what: str, job: Submission, cluster: SlurmConfig, extra: list[str]) -> str:
    """The script for sbatch."""
    single = what == "eval"
    gpus = min(cluster.gpus, 1) if single else cluster.gpus
    options = [
        f"--job-name={job_name(what, job.name)}",
        f"--output={LOGS}/%x-%j.log",
        "--open-mode=append",
        f"--nodes={1 if single else cluster.nodes}",
        f"--ntasks-per-node={1 if single else cluster.processes}",
        *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--cpus-per-task={cluster.cpus}",
        *(f"--{key}={getattr(cluster, key)}" for key in PASSED_ON if getattr(cluster, key)),
        f"--signal=USR1@{cluster.signal_seconds}",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        *cluster.options,
    ]
    python = shlex.quote(job.python or sys.executable)
    if cluster.container:
        python = f'apptainer exec {"--nv " if gpus else ""}--bind "$PWD" {shlex.quote(cluster.container)} python'
    arguments = " ".join(map(shlex.quote, command(what, job, cluster, extra)))
    end = END_OF_EVAL if single else END_OF_TRAINING
    run = shlex.quote(f"{value_of('run_dir', extra, 'runs')}/{what}/{job.name}")
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        setup="\n".join(cluster.setup) or ":",
        python=python,
        arguments=arguments,
        end=end.format(python=python, retries=cluster.retries, run=run),
    )


def submit(stages: list[str], items: list[str], extra: list[str]) -> None:
    """Submit a job for each stage, each after the one before."""
    unknown = [stage for stage in stages if stage not in WHAT]
    if unknown or not stages:
        wrong = unknown[0] if unknown else "no stage"
        raise UserError(f"{wrong} is not a stage; known: {', '.join(WHAT)}")
    own = {field.name for field in fields(Submission)}
    job = load_typed(Submission, [], [item for item in items if item.partition("=")[0] in own])
    cluster = load_typed(SlurmConfig, [DEFAULTS], [item for item in items if item.partition("=")[0] not in own])
    if not re.fullmatch(r"[\w.+-]+", job.name):
        raise UserError(f"name is {job.name!r}; letters, digits and . _ + - are allowed")
    after = job.after
    for what in stages:
        script = render(what, job, cluster, extra)
        # singleton: a run never has two jobs at a time.
        dependency = f"--dependency={f'afterok:{after},' if after else ''}singleton"
        if job.dry:
            after = f"<id of {what}>"
            print(f"# sbatch {dependency}\n{script}")
            continue
        LOGS.mkdir(parents=True, exist_ok=True)
        after = call("sbatch", "--parsable", dependency, stdin=script).strip().split(";")[0]
        print(f"{what}: job {after}, log {LOGS}/{job_name(what, job.name)}-{after}.log", flush=True)


def call(*words: str, stdin: str | None = None) -> str:
    """What a command of SLURM prints."""
    if shutil.which(words[0]) is None:
        raise UserError(f"{words[0]} is not found: run this on a login node of a SLURM cluster, or leave CLUSTER empty")
    done = subprocess.run(words, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{words[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def own_jobs(name: str = "") -> list[dict[str, str]]:
    """This user's jobs of this project that are waiting or running."""
    columns = {"id": "%A", "job": "%j", "state": "%T", "time": "%M", "limit": "%l", "nodes": "%D", "where": "%R"}
    lines = call("squeue", "--me", "--noheader", f"--format={'|'.join(columns.values())}").splitlines()
    jobs = [dict(zip(columns, line.split("|", len(columns) - 1), strict=True)) for line in lines]
    wanted = {job_name(what, name) for what in WHAT}
    mine = [job for job in jobs if (job["job"] in wanted if name else job["job"].startswith(f"{PREFIX}-"))]
    return sorted(mine, key=lambda job: int(job["id"]))


def status(name: str) -> None:
    """A line for each job, with the last step in its log."""
    jobs = own_jobs(name)
    if not jobs:
        print("no job is waiting or running" + (f" for name={name}" if name else ""))
        return
    for job in jobs:
        log = LOGS / f"{job['job']}-{job['id']}.log"
        steps = re.findall(r"^step (\d+/\d+)", log.read_text(errors="replace"), re.M) if log.is_file() else []
        job["step"] = steps[-1] if steps else "-"
        job["log"] = str(log) if log.is_file() else "-"
    widths = {key: max(len(key), *(len(job[key]) for job in jobs)) for key in jobs[0]}
    for row in [{key: key for key in widths}, *jobs]:
        print("  ".join(row[key].ljust(width) for key, width in widths.items()).rstrip())


def cancel(name: str) -> None:
    """End the jobs of a name; those that run save first."""
    if not name:
        raise UserError("name= is missing; make cancel NAME=... ends the jobs of that name")
    jobs = own_jobs(name)
    if jobs:
        call("scancel", *(job["id"] for job in jobs))
    print("\n".join(f"cancelled {job['id']} ({job['job']})" for job in jobs) or f"no job of name={name} is there")


def is_done(folder: Path) -> bool:
    """Says how far a run is, and whether that is all of it."""
    try:
        steps = json.loads((folder / "metrics.json").read_text())["steps"]
        wanted = int(re.findall(r"^  max_steps: (\d+)$", (folder / "config.yaml").read_text(), re.M)[0])
    except (FileNotFoundError, ValueError, KeyError, IndexError):
        print(f"{folder}: not finished", flush=True)
        return False
    exported = (folder / "export/export.json").is_file()
    print(f"{folder}: {steps} of {wanted} steps, {'exported' if exported else 'not exported'}", flush=True)
    return steps >= wanted and exported


def value_of(key: str, items: list[str], default: str = "") -> str:
    """The value of a `key=value` of the command line."""
    values = [item.partition("=")[2] for item in items if item.startswith(f"{key}=")]
    return values[-1] if values else default


def main(arguments: list[str]) -> None:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    extra = arguments[cut + 1 :]
    words, items, _ = split_arguments(arguments[:cut])
    if words[:1] == ["submit"]:
        submit(words[1:], items, extra)
    elif words == ["status"]:
        status(value_of("name", items))
    elif words == ["cancel"]:
        cancel(value_of("name", items))
    elif len(words) == 2 and words[0] == "done":
        sys.exit(0 if is_done(Path(words[1])) else 1)
    else:
        raise UserError("submit, status, cancel or done RUN_FOLDER comes first; scripts/slurm.py --help")


if __name__ == "__main__":
    run_script(main, __doc__)
