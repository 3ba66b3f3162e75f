"""What a job asks SLURM for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from modules.errors import UserError


@dataclass
class SlurmConfig:
    """Resources and surroundings of a job (`configs/cluster/slurm.yaml`, make variables)."""

    nodes: int = 1
    gpus: int = 1  # of each node; 0: train on CPUs
    tasks: int = 1  # processes of each node where there are no GPUs; with GPUs there is one for each
    cpus: int = 8  # of each process
    workers: int = 4  # processes that read data, for each process that trains
    mem: str = ""  # of each node, for example 64G; empty: what the cluster gives
    time: str = "24:00:00"  # when it is over the run is saved and goes back into the queue
    signal_seconds: int = 120  # so long before the end of `time` the run is told to save
    retries: int = 1  # a run that crashed goes on from its last checkpoint, unless the job has been restarted so often
    partition: str = ""
    account: str = ""
    qos: str = ""
    container: str = ""  # an Apptainer image; empty: the environment that `make` uses
    options: list[str] = field(default_factory=list)  # further lines for sbatch, for example --constraint=a100
    setup: list[str] = field(default_factory=list)  # commands before the run, for example module load cuda

    def __post_init__(self) -> None:
        least = {"nodes": 1, "gpus": 0, "tasks": 1, "cpus": 1, "workers": 0, "retries": 0, "signal_seconds": 1}
        low = [f"{key} is {getattr(self, key)}, at least {value} is needed"
               for key, value in least.items() if getattr(self, key) < value]  # fmt: skip
        if not re.fullmatch(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})", self.time):
            low.append(f"time is {self.time!r}; it must be minutes, hours:minutes:seconds or days-hours")
        if low:
            raise UserError("; ".join(low))

    @property
    def processes(self) -> int:
        """Processes of each node."""
        return self.gpus or self.tasks
