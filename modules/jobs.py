"""Runs programs side by side on a few cores, in the order of their dependencies, with a live view of their progress."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from modules.errors import UserError

# What train.py and eval.py print where there is no terminal.
_PROGRESS = re.compile(r"step (\d+)/(\d+)(?:  loss (\S+))?")
_TAIL_LINES = 25
_POLL_SECONDS = 0.2
_MEMORY_SECONDS = 2.0
_LINE_SECONDS = 30.0  # between two lines of a job where there is no terminal


@dataclass
class Job:
    """One program."""

    name: str
    command: list[str]
    log: Path  # all that it prints
    after: tuple[str, ...] = ()  # names of the jobs that it needs
    seconds: float = 0.0


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    started: float
    read: int = 0
    last_line: float = 0.0
    progress: str = "starting"
    loss: str = ""

    def update(self) -> None:
        """Read what the log has gained."""
        with self.job.log.open("rb") as file:
            file.seek(self.read)
            new = file.read()
        self.read += len(new)
        for match in _PROGRESS.finditer(new.decode(errors="replace")):
            step, total, loss = match.groups()
            self.progress, self.loss = f"step {step}/{total}", loss or self.loss

    def line(self) -> str:
        loss = f"loss {self.loss}" if self.loss else ""
        return f"{self.job.name:<18} {clock(time.monotonic() - self.started):>6}  {self.progress:<16}  {loss}"


class JobRunner:
    """Runs jobs, at most `workers` at a time; earlier jobs of the list go first.

    Args:
        workers: programs at a time.
        threads: threads of each program.
    """

    def __init__(self, *, workers: int, threads: int) -> None:
        self.workers = workers
        self.peak_memory = 0  # bytes, all processes together
        self._environment = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
        self._live = sys.stdout.isatty()
        self._drawn = 0
        self._next_memory = 0.0

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs.

        Raises:
            UserError: a job failed; the others are stopped. The message ends with the tail of its log.
        """
        waiting, done, running = list(jobs), set[str](), list[_Running]()
        try:
            while waiting or running:
                ready = [job for job in waiting if set(job.after) <= done][: self.workers - len(running)]
                for job in ready:
                    waiting.remove(job)
                    running.append(self._start(job))
                if not running:
                    raise ValueError(f"jobs that wait for each other: {', '.join(job.name for job in waiting)}")
                time.sleep(_POLL_SECONDS)
                self._sample_memory()
                for item in list(running):
                    item.update()
                    code = item.process.poll()
                    if code is None:
                        continue
                    running.remove(item)
                    self._finish(item, code)
                    done.add(item.job.name)
                self._show(running)
        finally:
            self._stop(running)

    def _start(self, job: Job) -> _Running:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            process = subprocess.Popen(job.command, stdout=log, stderr=subprocess.STDOUT, env=self._environment)
        if not self._live:
            print(f"{job.name}: starts, log in {job.log}", flush=True)
        now = time.monotonic()
        return _Running(job, process, now, last_line=now)

    def _finish(self, item: _Running, code: int) -> None:
        item.job.seconds = time.monotonic() - item.started
        item.update()
        self._erase()
        if code != 0:
            lines = item.job.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            tail = "\n".join(f"  {line}" for line in lines)
            how = f"failed with exit status {code}" if code > 0 else f"was stopped by signal {-code}"
            raise UserError(
                f"{item.job.name} {how}; the end of {item.job.log}:\n{tail}\n"
                f"run it alone with: {' '.join(item.job.command)}"
            )
        print(f"{item.job.name:<18} {item.job.seconds:6.0f} s", flush=True)

    def _show(self, running: Sequence[_Running]) -> None:
        if self._live:
            width = os.get_terminal_size().columns
            self._erase()
            for item in running:
                print(item.line()[: width - 1])
            self._drawn = len(running)
            sys.stdout.flush()
            return
        for item in running:
            if time.monotonic() - item.last_line > _LINE_SECONDS:
                item.last_line = time.monotonic()
                print(item.line(), flush=True)

    def _erase(self) -> None:
        """Take the lines of the live view back."""
        if self._drawn:
            print(f"\x1b[{self._drawn}A\x1b[J", end="")
            self._drawn = 0

    def _sample_memory(self) -> None:
        if time.monotonic() >= self._next_memory:
            self._next_memory = time.monotonic() + _MEMORY_SECONDS
            self.peak_memory = max(self.peak_memory, memory_of_tree())

    def _stop(self, running: Sequence[_Running]) -> None:
        """End what still runs: politely, then by force."""
        for item in running:
            item.process.terminate()
        for item in running:
            try:
                item.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                item.process.kill()
                item.process.wait()


def memory_of_tree() -> int:
    """Memory of this process and all below it in bytes; shared pages count once where the system tells (Linux)."""
    total = 0
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            info = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        total += getattr(info, "pss", info.rss)
    return total


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
