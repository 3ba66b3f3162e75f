"""The settings of the sample data, and how its shards are filled."""

from __future__ import annotations

import tarfile
from dataclasses import asdict, dataclass
from typing import Any

from datamodules.sample import FPS, SPLITS, write_sample
from datamodules.sources.build import DataSet, Shard, at_least, plan_shards
from datamodules.synthetic.camera import SIZE
from datamodules.synthetic.clips import VERSION, synthesise
from modules.pose.video import encode_video

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
        at_least(self, train=0, val=0, test=0, seed=0, shard_size=1, workers=1)


def build(config: SyntheticConfig, progress: bool = True) -> dict[str, Any]:
    """Makes what is not there yet and returns the manifest.

    Interrupted, it goes on with the shards that are missing; complete, it does nothing.

    Raises:
        UserError: the folder holds a data set of other settings, or shards of unknown origin.
    """
    settings = {"source": "synthetic", "version": VERSION}
    settings |= {key: value for key, value in asdict(config).items() if key not in _FREE}
    data = DataSet(config.out, settings, config.overwrite)
    if data.complete:
        return data.manifest
    shards: list[Shard] = []
    for split in SPLITS:
        items = [(config.seed, split, index) for index in range(getattr(config, split))]
        shards += plan_shards(split, items, config.shard_size)
    info = {"width": SIZE, "height": SIZE}
    return data.write(shards, _write, info, config.workers, progress)


def _write(tar: tarfile.TarFile, shard: Shard) -> None:
    for seed, split, index in shard.content:
        clip = synthesise(seed, split, index)
        video = encode_video(clip.frames(), FPS, lossless_colour=True, crf=_CRF, preset="veryfast")
        write_sample(tar, f"{split}{index:06d}", clip.pose, clip.meta, video)
