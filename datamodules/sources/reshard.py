"""Existing tars to a data set: joined, re-sharded, in one tar or in parallel tars.

The files of the samples are copied as they are; each sample is checked on the way.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datamodules.remote import expand, is_remote
from datamodules.sample import COLUMNS, META, SPLITS, add_file, parse_sample, suffixes
from datamodules.shards import Files, columns_of, index_shard, read_raw
from datamodules.sources.build import DataSet, Shard, assign_splits, at_least, plan_shards, run_parallel
from datamodules.sources.captions import Entry, read_captions
from datamodules.sources.preview import write_preview
from modules.errors import UserError


@dataclass
class ShardsConfig:
    """Settings of `prepare.py shards`."""

    tars: list[str] = field(default_factory=list)  # patterns with braces or wildcards; of parallel tars, the pose tars
    out: str = "???"
    captions: str = ""  # CSV or JSONL: other captions, by key
    layout: Literal["joined", "parallel"] = "joined"  # one tar, or {split}/pose-, caption- and video-000000.tar
    video: bool = True  # keep the videos, where there are any
    split: str = ""  # all go to this split; empty: by the names of the tars, or drawn by `source`
    val: float = 0.05
    test: float = 0.05
    seed: int = 0
    shard_size: int = 500
    workers: int = 2
    overwrite: bool = False
    preview: int = 0
    skip_bad: bool = False  # leave damaged samples out, counted; false: stop at the first one

    def __post_init__(self) -> None:
        at_least(self, val=0, test=0, seed=0, shard_size=1, workers=1, preview=0)
        if not self.tars:
            raise UserError("tars are missing; give tars=['data/{a,b}/train-*.tar']")
        if self.split not in ("", *SPLITS):
            raise UserError(f"split is {self.split!r}; allowed are {', '.join(SPLITS)}")


@dataclass(frozen=True)
class _Found:
    """A sample of an existing shard."""

    shard: str
    number: int
    key: str
    split: str
    group: str  # what must not be spread over splits


def build_shards(config: ShardsConfig) -> dict[str, Any]:
    """Makes the data set, or what is missing of it, and returns the manifest.

    Raises:
        UserError: no such tars, damaged ones, keys that do not match or come twice; the folder holds another data set.
    """
    shards = list(dict.fromkeys(name for pattern in config.tars for name in expand(pattern)))
    shards = [name for name in shards if Path(name).name.split("-")[0] not in ("caption", "video")]
    if not shards:
        raise UserError(f"tars={config.tars} names no file; give patterns such as 'old/train-{{000000..000009}}.tar'")
    captions = read_captions(config.captions) if config.captions else {}
    data = DataSet(config.out, _settings(config, shards, captions), config.overwrite)
    manifest = data.manifest
    if not data.complete:
        rejected: Counter[str] = Counter()
        found = _find(shards, config, captions, rejected)
        if not found:
            raise UserError("no sample is left; all are damaged")
        columns = [""]  # one tar with all of them
        if config.layout == "parallel":
            columns = ["pose", "caption", *(["video"] if config.video and _has_video(shards[0]) else [])]
        plans: list[Shard] = []
        for split in SPLITS:
            for plan in plan_shards(split, [f for f in found if f.split == split], config.shard_size):
                for column in columns:
                    name = f"{split}/{column}-{plan.name.rpartition('-')[2]}" if column else plan.name
                    plans.append(Shard(name, split, plan.count, (column, plan.content)))
        write = functools.partial(_write, captions, config.video)
        manifest = data.write(plans, write, {"rejected": dict(rejected)}, config.workers)
    write_preview(data.out, config.preview)
    return manifest


def _settings(config: ShardsConfig, shards: list[str], captions: dict[str, Entry]) -> dict[str, Any]:
    digest = hashlib.sha256(repr(sorted(captions.items())).encode())
    for shard in shards:
        for tar in columns_of(shard).values():
            path = Path(tar)
            digest.update(f"{path.name} {path.stat().st_size if path.is_file() else is_remote(tar)}\n".encode())
    names = ("layout", "video", "split", "val", "test", "seed", "shard_size", "skip_bad")
    settings = {"source": "shards", "version": 1, "inputs": digest.hexdigest()[:16]}
    return settings | {name: getattr(config, name) for name in names}


def _columns(shard: str, video: bool) -> tuple[str, ...]:
    return ("pose", "video") if video and _has_video(shard) else ("pose",)


@functools.lru_cache(maxsize=4096)
def _has_video(shard: str) -> bool:
    """Whether the samples of a shard have videos; all or none must."""
    tars = columns_of(shard)
    if "video" in tars:
        return Path(tars["video"]).is_file() or is_remote(tars["video"])
    index = index_shard(shard, ("pose", "video"))
    return bool((index.places[:, suffixes(("pose", "video")).index(COLUMNS["video"]), 0] >= 0).any())


def _find(
    shards: list[str], config: ShardsConfig, captions: dict[str, Entry], rejected: Counter[str]
) -> list[_Found]:
    """All good samples with their splits."""
    task = functools.partial(_check, config, frozenset(captions))
    results = dict(run_parallel(task, shards, config.workers, f"{config.out}: checking", "shard"))
    found: list[_Found] = []
    seen: dict[str, str] = {}
    for shard in shards:
        samples, bad = results[shard]
        rejected.update(bad)
        for sample in samples:
            if sample.key in seen:
                raise UserError(f"{shard}: the key {sample.key} comes in {seen[sample.key]}, too; keys must differ")
            seen[sample.key] = shard
        found += samples
    drawn = assign_splits((f.group for f in found if not f.split), config.val, config.test, config.seed)
    return [f if f.split else _Found(f.shard, f.number, f.key, drawn[f.group], f.group) for f in found]


def _check(config: ShardsConfig, captions: frozenset[str], shard: str) -> tuple[str, tuple[list[_Found], Counter[str]]]:
    """Reads all samples of a shard once."""
    columns, found, rejected, files = _columns(shard, config.video), [], Counter[str](), Files()
    index = index_shard(shard, columns)
    named = next((s for s in SPLITS if Path(shard).name.startswith(f"{s}-") or Path(shard).parent.name == s), "")
    for number, key in enumerate(index.keys):
        try:
            sample = parse_sample(read_raw(files, index, number, columns), columns)
            if captions and key not in captions:
                raise UserError(f"{shard}: {key}: has no row in captions={config.captions}; add it")
        except UserError:
            if not config.skip_bad:
                raise
            rejected["damaged or without caption"] += 1
            continue
        group = str(sample.meta.get("source") or key)
        found.append(_Found(shard, number, key, config.split or named, group))
    return shard, (found, rejected)


def _write(captions: dict[str, Entry], video: bool, tar: tarfile.TarFile, shard: Shard) -> None:
    """Copies the files of a column, or of all."""
    column, samples = shard.content
    only = {"": None, "pose": COLUMNS["pose"], "caption": META, "video": COLUMNS["video"]}[column]
    files, indexes = Files(), {}
    for found in samples:
        columns = ("pose",) if column in ("pose", "caption") else _columns(found.shard, video)
        if found.shard not in indexes:
            indexes = {found.shard: index_shard(found.shard, columns)}
        raw = read_raw(files, indexes[found.shard], found.number, columns)
        for ending in suffixes(columns):
            if only not in (None, ending):
                continue
            content = raw[ending]
            if ending == META and found.key in captions:
                meta = json.loads(content)
                meta.pop("caption", None)
                meta["captions"] = captions[found.key].at(0, 0)
                meta["label"] = captions[found.key].label or meta.get("label", "")
                content = json.dumps(meta, ensure_ascii=False).encode()
            add_file(tar, f"{found.key}.{ending}", content)
