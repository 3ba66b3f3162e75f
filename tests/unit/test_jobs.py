"""Programs that wait for each other."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from modules.errors import UserError
from modules.jobs import Job, JobRunner, memory_of_tree


def job(folder: Path, name: str, code: str, *after: str) -> Job:
    return Job(name, [sys.executable, "-c", code], folder / f"{name}.log", after)


def note(folder: Path, name: str) -> str:
    return f"open({str(folder / 'order')!r}, 'a').write('{name} ')"


def test_a_job_starts_when_those_it_needs_are_done(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "last", note(tmp_path, "last"), "first", "second"),
        job(tmp_path, "second", note(tmp_path, "second"), "first"),
        job(tmp_path, "first", note(tmp_path, "first")),
    ]
    runner = JobRunner(workers=2, threads=1)
    runner.run(jobs)
    assert (tmp_path / "order").read_text() == "first second last "
    assert all(each.seconds > 0 for each in jobs)
    assert runner.peak_memory > 0


def test_a_failure_shows_the_end_of_the_log_and_stops_the_others(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "slow", "import time; time.sleep(60)"),
        job(tmp_path, "broken", "print('step 3/9  loss 0.5'); raise SystemExit('no such shards')"),
        job(tmp_path, "never", note(tmp_path, "never"), "slow"),
    ]
    with pytest.raises(UserError, match="no such shards") as caught:
        JobRunner(workers=2, threads=1).run(jobs)
    assert "broken failed with exit status 1" in str(caught.value)
    assert not (tmp_path / "order").exists()
    assert not [child for child in psutil.Process().children() if "time.sleep(60)" in " ".join(child.cmdline())]


def test_threads_are_those_asked_for(tmp_path: Path) -> None:
    code = f"import os; open({str(tmp_path / 'n')!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    JobRunner(workers=1, threads=3).run([job(tmp_path, "a", code)])
    assert (tmp_path / "n").read_text() == "3"


def test_jobs_in_a_circle_are_an_error(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", "", "b"), job(tmp_path, "b", "", "a")]
    with pytest.raises(ValueError, match="wait for each other"):
        JobRunner(workers=2, threads=1).run(jobs)


def test_memory_counts_this_process() -> None:
    assert memory_of_tree() > 2**20
