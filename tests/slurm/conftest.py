"""A throw-away SLURM cluster, and a working folder from which jobs are submitted as a user would."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from datamodules.synthetic.build import SyntheticConfig, build

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "scripts/slurm_cluster.sh"
# Fault, what the run said, starts of the job, steps that were done again, what came of the weights: a row of a test.
FAULTS: list[tuple[str, str, int, int, str]] = []
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "DEADLINE", "OUT_OF_MEMORY"}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults; SLURM_TEST_TABLE=file.md keeps it."""
    if not FAULTS:
        return
    lines = ["| fault | what the run said | starts | steps again | final bits |", "|---|---|--:|--:|---|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in FAULTS]
    terminalreporter.write_line("\n".join(lines))
    if path := os.environ.get("SLURM_TEST_TABLE"):
        Path(path).write_text("\n".join(lines) + "\n")


def note(fault: str, said: str, steps: int, result: str) -> None:
    """A row of the table, from what the run said."""
    stops = re.findall(r"stopped by (?:SIG\w+|a signal to another rank) .*", said)
    starts = len(re.findall(r"^== job", said, re.M))
    trained = [int(step) for step in re.findall(rf"^step (\d+)/{steps}  loss", said, re.M)]
    repeated = len(trained) - len(set(trained))
    FAULTS.append((fault, stops[0] if stops else "no word of the run", starts, repeated, result))


def wait(condition: Callable[[], bool], seconds: float, what: str, every: float = 0.05) -> None:
    """Returns when the condition holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(every)


def scontrol(*words: str) -> str:
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


def every_process() -> dict[int, tuple[list[str], dict[str, str]]]:
    """Arguments and environment by process, the oldest first."""
    found = {}
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words, values = ((folder / name).read_bytes().decode().split("\0") for name in ("cmdline", "environ"))
        except (OSError, UnicodeDecodeError):
            continue
        found[int(folder.name)] = words, dict(value.partition("=")[::2] for value in values)
    return found


def node_daemons(node: str) -> list[int]:
    """slurmd of a node of this cluster and what it started for jobs."""
    own = int((Path(os.environ["SLURM_TEST_DIR"]) / f"slurmd-{node}.pid").read_text())
    steps = [process for process, (words, values) in every_process().items()
             if words[0].startswith("slurmstepd") and values.get("SLURMD_NODENAME") == node]  # fmt: skip
    return [own, *steps]


@dataclass
class Job:
    """A job by its id, and the run that it trains."""

    id: str
    log: Path
    run: Path

    def field(self, name: str) -> str:
        return re.findall(rf"\b{name}=(\S+)", scontrol("show", "job", self.id))[0]

    @property
    def state(self) -> str:
        return self.field("JobState")

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_said(self, pattern: str, seconds: float = 300) -> None:
        wait(lambda: re.search(pattern, self.said(), re.M) is not None, seconds, f"{pattern} in {self.log}", 0.01)

    def wait_state(self, *states: str, seconds: float = 90) -> None:
        wait(lambda: self.state in states, seconds, f"job {self.id} {states}")

    def wait_end(self, seconds: float = 600) -> str:
        self.wait_state(*ENDED, seconds=seconds)
        return self.state

    def everything(self) -> dict[int, tuple[list[str], dict[str, str]]]:
        """Arguments and environment of all processes of the job, without SLURM's own."""
        mine = {}
        for process, (words, values) in every_process().items():
            if values.get("SLURM_JOB_ID") == self.id and "slurmstepd" not in words[0]:
                mine[process] = words, values
        return mine

    def processes(self) -> dict[int, int]:
        """Process of each rank, without its data loader workers."""
        found: dict[int, int] = {}
        for process, (words, values) in self.everything().items():
            if words[1:2] == ["train.py"]:
                found.setdefault(int(values["SLURM_PROCID"]), process)
        return found

    def signal(self, number: signal.Signals) -> None:
        """To all processes of the run, as SLURM does before the time is over."""
        subprocess.run(["scancel", f"--signal={number.name[3:]}", self.id], check=True)


class Folder:
    """A working folder with the project's programs in it."""

    def __init__(self, path: Path, data: Path):
        self.path, self.data = path, data
        for name in ("Makefile", "train.py", "eval.py", "scripts", "configs", "assets"):
            (path / name).symlink_to(ROOT / name)

    def make(self, *words: str) -> str:
        command = ["make", *words, f"PY={sys.executable}", f"DATA={self.data}"]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, target: str, name: str, args: str, *words: str) -> list[Job]:
        """The jobs of a make target, on CPUs, one process on each of two nodes."""
        small = ("SIZE=smoke", "NODES=2", "GPUS=0", "CPUS=1", "WORKERS=0", "TIME=20")
        given = {word.partition("=")[0] for word in words}
        small = tuple(word for word in small if word.partition("=")[0] not in given)
        said = self.make(target, "CLUSTER=slurm", f"NAME={name}", f"ARGS={args}", *small, *words)
        found = re.findall(r"^(\w+): job (\d+), log (\S+)$", said, re.M)
        return [Job(number, self.path / log, self.path / "runs" / stage / name) for stage, number, log in found]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A running cluster; the test is skipped where there cannot be one."""
    if os.geteuid() != 0:
        pytest.skip("a throw-away SLURM cluster needs root")
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        pytest.skip("SLURM is not installed, and there is no apt-get to install it with")
    installed = subprocess.run([CLUSTER, "install"], capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"SLURM could not be installed: {installed.stderr.strip().splitlines()[-1]}")
    folder = f"/tmp/slurm-test-{os.getpid()}"
    settings = {"SLURM_TEST_DIR": folder, "SLURM_CONF": f"{folder}/slurm.conf", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in settings.items():
            patch.setenv(key, value)
        subprocess.run([CLUSTER, "start"], check=True)
        try:
            yield
        finally:
            subprocess.run([CLUSTER, "stop"], check=True)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    build(SyntheticConfig(out=str(out), train=48, val=8, test=8, shard_size=8, workers=2), progress=False)
    return out


@pytest.fixture(scope="session")
def folder(cluster: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("work"), shards)
