"""Writes the sample data: shards of clips, made by several processes, in parts that are complete or not there."""

from __future__ import annotations

import itertools
import json
import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from datamodules.sample import FPS, open_shard, write_sample
from datamodules.synthetic.camera import SIZE
from datamodules.synthetic.clips import VERSION, synthesise
from datamodules.synthetic.splits import SPLITS
from modules.errors import UserError
from modules.files import atomic_write
from modules.pose.video import encode_video

MANIFEST = "manifest.json"
_CRF = 12  # quality of the videos: the sharp edges of the figures stay
# Settings that do not change the content of the data set.
_FREE = ("out", "workers", "overwrite")


@dataclass
class SyntheticConfig:
    """Settings of `prepare.py synthetic`."""

    out: str = "data/sample"  # folder of the shards
    train: int = 4000  # clips
    val: int = 128
    test: int = 256
    seed: int = 0
    shard_size: int = 100  # clips in one shard
    workers: int = 2  # processes; the result does not depend on them
    overwrite: bool = False  # replace a data set made with other settings

    def __post_init__(self) -> None:
        for name, least in (("train", 0), ("val", 0), ("test", 0), ("seed", 0), ("shard_size", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, allowed is {least} or more; for example {name}=100")


def build(config: SyntheticConfig, progress: bool = True) -> dict[str, Any]:
    """Makes what is not there yet and returns the manifest.

    Interrupted, it goes on with the shards that are missing; complete, it does nothing.

    Raises:
        UserError: the folder holds a data set of other settings, or shards of unknown origin.
    """
    out = Path(config.out)
    settings = {"source": "synthetic", "version": VERSION}
    settings |= {key: value for key, value in asdict(config).items() if key not in _FREE}
    manifest = _check(out, settings, config.overwrite)
    if manifest.get("complete") and all((out / name).is_file() for name in manifest["shards"]):
        return manifest
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(".*-*.tar"):
        leftover.unlink(missing_ok=True)
    shards = _shards(config)
    manifest = {
        "complete": False,
        "settings": settings,
        "fps": FPS,
        "width": SIZE,
        "height": SIZE,
        "samples": {split: getattr(config, split) for split in SPLITS},
        "shards": {name: stop - start for name, _, start, stop in shards},
    }
    _write(out, manifest)
    missing = [(str(out / name), config.seed, split, start, stop) for name, split, start, stop in shards]
    missing = [task for task in missing if not Path(task[0]).is_file()]
    total = sum(stop - start for *_, start, stop in shards)
    done = total - sum(task[4] - task[3] for task in missing)
    with tqdm(total=total, initial=done, unit="clip", desc=str(out), disable=not progress, dynamic_ncols=True) as bar:
        if config.workers == 1 or len(missing) < 2:
            for task in missing:
                bar.update(_make_shard(task))
        else:
            with multiprocessing.get_context("spawn").Pool(min(config.workers, len(missing))) as pool:
                for count in pool.imap_unordered(_make_shard, missing):
                    bar.update(count)
    manifest["complete"] = True
    _write(out, manifest)
    return manifest


def _check(out: Path, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The manifest that is there, {} where there is none; an old data set is removed if it may be."""
    path = out / MANIFEST
    shards = sorted(out.glob("*-*.tar"))
    manifest: dict[str, Any] = {}
    if path.is_file():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found = manifest["settings"]
        except (json.JSONDecodeError, KeyError, TypeError):
            found, manifest = {}, {}
        if found == settings:
            return manifest
        keys = [key for key in settings | found if settings.get(key) != found.get(key)]
        differs = ", ".join(f"{key} {found.get(key)!r} there, {settings.get(key)!r} asked for" for key in keys)
    elif shards:
        differs = "shards without a manifest"
    else:
        return {}
    if not overwrite:
        raise UserError(f"{out} holds another data set ({differs}); choose another out=, or add overwrite=true")
    for shard in shards:
        shard.unlink()
    path.unlink(missing_ok=True)
    return {}


def _shards(config: SyntheticConfig) -> list[tuple[str, str, int, int]]:
    """(file name, split, first clip, last clip + 1); equal parts, long splits first."""
    shards = []
    for split in SPLITS:
        count = getattr(config, split)
        edges = np.linspace(0, count, -(-count // config.shard_size) + 1).round().astype(int).tolist()
        parts = itertools.pairwise(edges)
        shards += [(f"{split}-{i:06d}.tar", split, start, stop) for i, (start, stop) in enumerate(parts)]
    return shards


def _make_shard(task: tuple[str, int, str, int, int]) -> int:
    path, seed, split, start, stop = task
    cv2.setNumThreads(1)  # the processes share the machine
    with open_shard(path) as tar:
        for index in range(start, stop):
            clip = synthesise(seed, split, index)
            video = encode_video(clip.frames(), FPS, lossless_colour=True, crf=_CRF, preset="veryfast")
            write_sample(tar, f"{split}{index:06d}", clip.pose, clip.meta, video)
    return stop - start


def _write(out: Path, manifest: dict[str, Any]) -> None:
    with atomic_write(out / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
