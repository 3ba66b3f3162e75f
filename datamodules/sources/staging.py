"""Data sets whose number of samples is known when all sources were read: each is read once, then shards are filled.

What a source gives is kept beside the shards until they are complete, so that a run that was killed reads no source
twice.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.sample import open_shard
from datamodules.sources.build import DataSet, Shard, assign_splits, at_least, plan_shards, run_parallel
from datamodules.sources.captions import Entry
from modules.errors import UserError
from modules.files import atomic_write


@dataclass
class SourceConfig:
    """Settings that all sources of shards share."""

    out: str = "???"  # folder of the shards
    val: float = 0.05  # share of the sources (videos, motions) for validation ...
    test: float = 0.05  # ... and for the test; a source is never in two splits
    seed: int = 0  # of that draw
    shard_size: int = 500  # clips in one shard
    workers: int = 2  # processes; the result does not depend on them
    overwrite: bool = False  # replace a data set that was made with other settings
    preview: int = 0  # clips to draw for a look, in out/preview

    def __post_init__(self) -> None:
        at_least(self, val=0, test=0, seed=0, shard_size=1, workers=1, preview=0)
        if self.val + self.test > 1:
            raise UserError(f"val + test is {self.val + self.test}, allowed is at most 1; for example val=0.1 test=0.1")


# Settings that do not change the content of a data set.
FREE = ("out", "workers", "overwrite", "preview")

# Fills the samples of a source into a tar and tells what was left out, by reason.
Process = Callable[[Any, tarfile.TarFile], Mapping[str, Any]]


def slug(name: str) -> str:
    """The name as the beginning of a key: letters, digits, _ and - alone, another for every name."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return plain if plain == name else f"{plain}_{zlib.crc32(name.encode()):08x}"


def build_staged(
    data: DataSet,
    sources: Mapping[str, Any],
    entries: Mapping[str, Entry],
    process: Process,
    config: SourceConfig,
    unit: str,
) -> dict[str, Any]:
    """Reads all sources, fills the shards and returns the manifest.

    Args:
        data: not complete yet.
        sources: what `process` reads, by name.
        entries: split and group of the sources, where the user gives them.
        process: writes the samples of a source, see `Process`; its result holds numbers, or numbers by reason.
        config: shares of the splits, processes, ...
        unit: what a source is called.

    Raises:
        UserError: of a source, or nothing is left of all of them.
    """
    names = list(sources)
    data.begin()
    task = functools.partial(_stage, data.work, process)
    items = [(name, sources[name]) for name in names]
    reports: dict[str, dict[str, Any]] = {}
    for name, report in run_parallel(task, items, config.workers, f"{data.out}: reading", unit):
        reports[name] = report
    groups = {name: (entries[name].group if name in entries else "") or name for name in names}
    drawn = assign_splits(groups.values(), config.val, config.test, config.seed)
    split_of = {name: (entries[name].split if name in entries else "") or drawn[groups[name]] for name in names}
    shards = []
    for split in ("train", "val", "test"):
        items = [(slug(name), key) for name in names if split_of[name] == split for key in reports[name]["keys"]]
        shards += plan_shards(split, items, config.shard_size)
    totals = _totals([reports[name] for name in names])
    if not shards:
        raise UserError(f"no clip is left of {len(names)} {unit}s; left out: {tell(totals.get('rejected', {}))}")
    info = {f"{unit}s": len(names), **totals}
    manifest = data.write(shards, functools.partial(_pack, data.work), info, config.workers)
    shutil.rmtree(data.work, ignore_errors=True)
    return manifest


def tell(rejected: Mapping[str, int]) -> str:
    """Reasons and numbers in a line."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(rejected.items())) or "nothing"


def _totals(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    totals: dict[str, Any] = {"rejected": Counter()}
    for report in reports:
        for name, value in report.items():
            if isinstance(value, dict):
                totals.setdefault(name, Counter()).update(value)
            elif isinstance(value, int | float):
                totals[name] = totals.get(name, 0) + value
    return {name: dict(sorted(v.items())) if isinstance(v, Counter) else v for name, v in totals.items()}


def _stage(work: Path, process: Process, item: tuple[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reads one source, unless an earlier run did."""
    name, source = item
    path = work / f"{slug(name)}.json"
    if path.is_file():
        return name, json.loads(path.read_text(encoding="utf-8"))
    with open_shard(path.with_suffix(".tar")) as tar:
        report = dict(process(source, tar))
        report["keys"] = list(dict.fromkeys(member.split(".", 1)[0] for member in tar.getnames()))
    with atomic_write(path) as file:  # last: it says that the source is done
        json.dump(report, file)
    return name, report


def _pack(work: Path, tar: tarfile.TarFile, shard: Shard) -> None:
    """Copies samples, as they are, from the tars of their sources."""
    for source, group in itertools.groupby(shard.content, key=lambda item: item[0]):
        with tarfile.open(work / f"{source}.tar") as staged:
            files: dict[str, list[tarfile.TarInfo]] = {}
            for member in staged:
                files.setdefault(member.name.split(".", 1)[0], []).append(member)
            for _, key in group:
                for member in files[key]:
                    tar.addfile(member, staged.extractfile(member))
