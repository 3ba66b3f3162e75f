"""Kills a preparation at random moments: python scripts/kill_prepare.py [kills=5] [out=FOLDER] [make="SOURCE ..."]

Makes a data set once without a disturbance and tells its speed. Then makes it again, kills that with SIGKILL (its
processes with it, or the first one alone, in turn), starts it again, ... After each kill the shards that are there
must be those of the undisturbed data set, byte by byte; at the end all files must be.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from datamodules.sources.build import MANIFEST, sha256  # noqa: E402
from modules.errors import UserError  # noqa: E402

_START = 1.0  # seconds that a kill is later than the start at least: Python is still loading


@dataclass
class KillConfig:
    make: str = "synthetic train=9200 val=400 test=400 workers=2"  # of prepare.py, without out=
    out: str = "outputs/kill"  # folder of both data sets
    kills: int = 5
    seed: int = 0  # of the moments


def start(cfg: KillConfig, folder: Path) -> subprocess.Popen[bytes]:
    """`prepare.py` in a group of processes of its own."""
    command = [sys.executable, "prepare.py", *shlex.split(cfg.make), f"out={folder.resolve()}"]
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Waits for the end, which must be a good one."""
    if code := process.wait():
        raise UserError(f"prepare.py ended with status {code}; {folder}.log says why")


def hashes(folder: Path) -> dict[str, str]:
    """Hash of each file of a data set, by its name; what prepare.py only works with begins with a dot."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): sha256(path)
        for name, path in sorted(names.items())
        if not any(part.startswith(".") for part in name.parts)
    }


def compare(found: dict[str, str], expected: dict[str, str], when: str) -> None:
    """Raises a UserError where a file is not that of the undisturbed data set."""
    if wrong := [name for name, digest in found.items() if expected.get(name) != digest]:
        raise UserError(f"{when}: {', '.join(wrong[:5])} differ from the undisturbed data set")


def main(arguments: list[str]) -> None:
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(KillConfig, [], items)
    whole, killed = Path(cfg.out) / "whole", Path(cfg.out) / "killed"
    if whole.exists() or killed.exists():
        raise UserError(f"{cfg.out} is not empty; remove it, or choose another out=")
    whole.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    finish(start(cfg, whole), whole)
    seconds = time.perf_counter() - begin
    expected = hashes(whole)
    clips = sum(json.loads((whole / MANIFEST).read_text())["samples"].values())
    shards = {name: digest for name, digest in expected.items() if name.endswith(".tar")}
    size = sum((whole / name).stat().st_size for name in shards) / 2**20
    what = f"{clips} clips, {len(shards)} shards, {size:.0f} MiB"
    print(f"undisturbed: {what} in {seconds:.1f} s: {clips / seconds:.1f} clips/s", flush=True)

    moments = random.Random(cfg.seed)
    spent = 0.0
    for number in range(1, cfg.kills + 1):
        # All of these together are shorter than the whole, so that each kill finds work in progress.
        wait = moments.uniform(_START, max(0.95 * seconds / cfg.kills, _START))
        process = start(cfg, killed)
        time.sleep(wait)
        if process.poll() is not None:
            raise UserError(f"start {number} ended before it was killed; give more clips, or fewer kills=")
        alone = number % 2 == 0
        (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
        process.wait()
        spent += wait
        there = {name: digest for name, digest in hashes(killed).items() if name.endswith(".tar")}
        compare(there, shards, f"kill {number}")
        target = "its first process" if alone else "all its processes"
        count = f"{len(there)} of {len(shards)} shards, all as they should be"
        print(f"kill {number}: {target} after {wait:.1f} s; {count}", flush=True)
    begin = time.perf_counter()
    finish(start(cfg, killed), killed)
    spent += time.perf_counter() - begin
    found = hashes(killed)
    compare(found, expected, "at the end")
    if missing := expected.keys() - found.keys():
        raise UserError(f"at the end: {', '.join(sorted(missing)[:5])} are not there")
    print(f"at the end: all {len(found)} files byte-identical; {spent:.1f} s in all, {spent / seconds - 1:.0%} more")


if __name__ == "__main__":
    run_script(main, __doc__)
