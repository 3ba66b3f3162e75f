"""What a frozen base makes of the videos and captions of a data set, kept in shards of their own.

Training on them runs neither the autoencoder nor the text tower. Letters: T dense frames, N of them kept, C channels,
L tokens, D width of the text states.
"""

from __future__ import annotations

import functools
import hashlib
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.sample import SPLITS, write_sample
from datamodules.shards import columns_of, find_shards, index_shard, read_shard
from datamodules.sources.build import DataSet, Shard, at_least
from modules.errors import UserError
from modules.pose.letterbox import Letterbox
from modules.pose.video import read_frames

_FREE = ("data", "out", "overwrite", "batch", "device", "precision", "base")  # do not change the content by themselves


@dataclass
class LatentsConfig:
    """Settings of `prepare.py latents`."""

    data: str = "data/sample"  # shards with videos
    base: str = "assets/demo_base"  # export whose autoencoder and text tower are run
    out: str = "???"
    every: int = 1  # keep every n-th dense frame; strides in training are multiples of it
    video: bool = False  # keep the videos, too
    batch: int = 32  # frames at once
    device: str = "auto"  # cuda where there is one
    precision: str = "32"  # or auto: bfloat16 where the hardware computes in it
    overwrite: bool = False

    def __post_init__(self) -> None:
        at_least(self, every=1, batch=1)
        if self.precision not in ("32", "auto"):
            raise UserError(f"precision is {self.precision!r}; allowed: 32, auto")


@dataclass
class Encoders:
    """A base's two encoders; the root script makes them."""

    frames: Callable[[np.ndarray], np.ndarray]  # (T, H, W, 3) uint8 -> (T, C, h, w) float16
    captions: Callable[[Sequence[str]], np.ndarray]  # -> (captions, L, D) float16
    width: int  # px
    height: int
    fingerprint: str  # of the base


def build_latents(load: Callable[[LatentsConfig], Encoders], config: LatentsConfig) -> dict[str, Any]:
    """Makes the data set, or the shards of it that are missing, and returns the manifest.

    Raises:
        UserError: no shards, clips without video, or the folder holds another data set.
    """
    shards = _shards(config.data)
    encoders = load(config)
    digest = hashlib.sha256()
    for _, name in shards:
        for tar in columns_of(name).values():
            digest.update(f"{Path(tar).name} {Path(tar).stat().st_size if Path(tar).is_file() else 0}\n".encode())
    settings = {"source": "latents", "version": 1, "inputs": digest.hexdigest()[:16], "base": encoders.fingerprint}
    settings |= {key: value for key, value in asdict(config).items() if key not in _FREE}
    data = DataSet(config.out, settings, config.overwrite)
    if data.complete:
        return data.manifest
    plans: list[Shard] = []
    numbers: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for split, name in shards:
        count = len(index_shard(name, ("pose", "video")).keys)
        plans.append(Shard(f"{split}-{numbers[split]:06d}.tar", split, count, name))
        numbers[split] += 1
    # One process: the networks are in memory once, and use every core.
    return data.write(plans, functools.partial(_write, encoders, config), {}, workers=1)


def _shards(folder: str) -> list[tuple[str, str]]:
    """(split, shard) of all splits that are there."""
    found: list[tuple[str, str]] = []
    problem: UserError | None = None
    for split in SPLITS:
        try:
            found += [(split, shard) for shard in find_shards(folder, split)]
        except UserError as error:
            problem = problem or error
    if not found:
        assert problem is not None
        raise problem
    return found


def _write(encoders: Encoders, config: LatentsConfig, tar: tarfile.TarFile, shard: Shard) -> None:
    for record in read_shard(shard.content, ("pose", "video")):
        sample = record.sample()
        assert sample.video is not None
        chosen = np.arange(0, sample.poses.shape[1], config.every)
        fit = Letterbox((sample.meta["width"], sample.meta["height"]), (encoders.width, encoders.height))
        try:
            frames = fit.frames(read_frames(sample.video, chosen))
        except UserError as error:
            raise UserError(f"{shard.content}: {sample.key}: {error}") from None
        parts = [encoders.frames(frames[i : i + config.batch]) for i in range(0, len(frames), config.batch)]
        cache = {"latents": np.concatenate(parts), "text": encoders.captions(sample.captions)}
        meta = {**sample.meta, "cache": {"every": config.every, "base": encoders.fingerprint}}
        write_sample(tar, sample.key, sample.poses, meta, sample.video if config.video else None, cache)
