"""The folder of a data set while it is made: parts are complete or not there, and the manifest says what they are.

Whatever makes a data set plans its shards first (`Shard`), each by arguments that fix its content. Several processes
write them; a run that was killed leaves whole shards, and the next one goes on with those that are missing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from datamodules.sample import FPS, SPLITS, open_shard
from modules.errors import UserError
from modules.files import atomic_write

MANIFEST = "manifest.json"
SCHEMA = 1  # of the manifest and of the samples
_BLOCK = 2**20


@dataclass(frozen=True)
class Shard:
    """A shard to write."""

    name: str  # file name
    split: str
    count: int  # samples
    content: Any  # fixes the samples; handed to another process


Write = Callable[[tarfile.TarFile, Shard], None]


def plan_shards(split: str, items: Sequence[Any], shard_size: int) -> list[Shard]:
    """Parts of equal length, at most `shard_size`, with the items as content."""
    edges = np.linspace(0, len(items), -(-len(items) // shard_size) + 1).round().astype(int).tolist()
    return [
        Shard(f"{split}-{number:06d}.tar", split, stop - start, items[start:stop])
        for number, (start, stop) in enumerate(itertools.pairwise(edges))
    ]


def _count(shards: Sequence[Shard], split: str) -> int:
    """Samples of a split; parallel tars hold the same ones."""
    tars = [shard for shard in shards if shard.split == split]
    poses = [shard for shard in tars if Path(shard.name).name.startswith("pose-")]
    return sum(shard.count for shard in poses or tars)


def sha256(path: str | Path) -> str:
    """Hash of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class DataSet:
    """A data set in the making.

    Args:
        out: folder of the shards.
        settings: all that the content depends on; a data set is never made of two settings.
        overwrite: remove a data set of other settings.

    Raises:
        UserError: the folder holds a data set of other settings, or shards of unknown origin.
    """

    def __init__(self, out: str | Path, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.out = Path(out)
        self.work = self.out / ".work"  # what is needed until the shards are complete
        self.settings = json.loads(json.dumps(settings))
        self.manifest = self._open(overwrite)

    @property
    def complete(self) -> bool:
        """All shards are there, and the manifest is that of this version."""
        return (
            self.manifest.get("complete", False)
            and self.manifest.get("schema") == SCHEMA
            and all((self.out / name).is_file() for name in self.manifest["shards"])
        )

    def begin(self) -> None:
        """Notes the settings, so that nothing of other settings is ever used, and clears what a killed run left."""
        self.out.mkdir(parents=True, exist_ok=True)
        for folder in (self.out, *(self.out / split for split in SPLITS)):
            for leftover in folder.glob(".*-*.tar"):
                leftover.unlink(missing_ok=True)
        if not self.manifest:
            self.manifest = {"complete": False, "settings": self.settings, "shards": {}}
            self._save()

    def write(
        self, shards: Sequence[Shard], write: Write, info: dict[str, Any], workers: int, progress: bool = True
    ) -> dict[str, Any]:
        """Writes the shards that are not there and returns the manifest.

        Args:
            shards: all shards of the data set.
            write: fills one of them; the same content must give the same bytes.
            info: more for the manifest.
            workers: processes.
            progress: show a bar.
        """
        self.begin()
        self.manifest = {
            "complete": False,
            "schema": SCHEMA,
            "skeleton": "coco18",
            "fps": FPS,
            **info,
            "samples": {split: _count(shards, split) for split in SPLITS},
            "settings": self.settings,
            "shards": {shard.name: {"samples": shard.count, "sha256": ""} for shard in shards},
        }
        self._save()
        missing = [shard for shard in shards if not (self.out / shard.name).is_file()]
        counts = {shard.name: shard.count for shard in shards}
        done = sum(counts.values()) - sum(shard.count for shard in missing)
        task = functools.partial(_write_shard, self.out, write)
        with _bar(sum(counts.values()), done, "clip", str(self.out), progress) as bar:
            for name, digest in run_parallel(task, missing, workers):
                self.manifest["shards"][name]["sha256"] = digest
                bar.update(counts[name])
        for name, entry in self.manifest["shards"].items():
            entry["sha256"] = entry["sha256"] or sha256(self.out / name)
        self.manifest["complete"] = True
        self._save()
        return self.manifest

    def _open(self, overwrite: bool) -> dict[str, Any]:
        """The manifest that is there, {} where there is none; an old data set is removed if it may be."""
        path = self.out / MANIFEST
        shards = [*self.out.glob("*-*.tar"), *(tar for split in SPLITS for tar in self.out.glob(f"{split}/*-*.tar"))]
        shards = sorted(shard for shard in shards if not shard.name.startswith("."))
        manifest: dict[str, Any] = {}
        if path.is_file():
            try:
                manifest = json.loads(path.read_text(encoding="utf-8"))
                found = dict(manifest["settings"])
            except (ValueError, KeyError, TypeError):
                found, manifest = {}, {}
            if found == self.settings:
                return manifest
            keys = [key for key in self.settings | found if self.settings.get(key) != found.get(key)]
            differs = ", ".join(f"{key} {found.get(key)!r} there, {self.settings.get(key)!r} asked for" for key in keys)
        else:
            differs = "shards without a manifest"
        if shards and not overwrite:
            remedy = "choose another out=, or add overwrite=true"
            raise UserError(f"{self.out} holds another data set ({differs}); {remedy}")
        for shard in shards:
            shard.unlink()
        path.unlink(missing_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        return {}

    def _save(self) -> None:
        with atomic_write(self.out / MANIFEST) as file:
            file.write(json.dumps(self.manifest, indent=1, ensure_ascii=False) + "\n")


def _write_shard(out: Path, write: Write, shard: Shard) -> tuple[str, str]:
    """Name and hash of the shard that was written."""
    with open_shard(out / shard.name) as tar:
        write(tar, shard)
    return shard.name, sha256(out / shard.name)


def _bar(total: int, done: int, unit: str, what: str, progress: bool) -> tqdm:
    return tqdm(total=total, initial=done, unit=unit, desc=what, disable=not progress, dynamic_ncols=True)


def run_parallel(
    task: Callable[[Any], Any], items: Sequence[Any], workers: int, what: str = "", unit: str = ""
) -> Iterator[Any]:
    """Results of `task` for all items as they come, from several processes; with a bar where `what` is given.

    Raises:
        UserError: of a task, or a process was killed.
    """
    results = _results(task, items, workers)
    yield from tqdm(results, total=len(items), unit=unit, desc=what, dynamic_ncols=True) if what else results


def _results(task: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    if workers == 1 or len(items) < 2:
        yield from map(task, items)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), context, initializer=_init_worker)
    try:
        for future in as_completed([pool.submit(task, item) for item in items]):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that made shards was killed, perhaps for want of memory; run the same command again to go on, "
            "with fewer workers="
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    cv2.setNumThreads(1)  # the processes share the machine
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent leaves nobody to tell its processes that there is no more work."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def at_least(config: Any, **limits: float) -> None:
    """Checks settings of a source.

    Raises:
        UserError: the first that is below its limit.
    """
    for name, least in limits.items():
        if getattr(config, name) < least:
            raise UserError(f"{name} is {getattr(config, name)}, allowed is {least} or more; for example {name}=100")


def assign_splits(groups: Iterable[str], val: float, test: float, seed: int) -> dict[str, str]:
    """A split for each group of samples that belong together: a drawn share of the groups for `test` and for `val`."""
    order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    first, second = round(len(order) * test), round(len(order) * (test + val))
    return {
        group: "test" if place < first else "val" if place < second else "train" for place, group in enumerate(order)
    }
