"""Shards to batches: what a stage trains on and is validated on.

Training reads an endless stream: pass after pass over the samples, each in a new order, in batches that are always
full. An epoch of the loader is as many batches as one pass over the samples has; what is left over at the end of a pass
is dropped, other samples in every pass. The order is a pure function of (seed, global batch): the same for any number
of ranks, and a run that was stopped at any batch continues with exactly the batches that would have come next.

Validation reads every sample once, in the order of the shards, from frame 0.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from datamodules.augment import Augment
from datamodules.folds import Folds, open_split
from datamodules.shards import Samples, read_shard
from datamodules.streams import (
    BadSamples,
    Collate,
    Encode,
    EvalStream,
    Position,
    StreamConfig,
    TrainStream,
    make_loader,
    note_bad,
    results,
)
from datamodules.transforms import to_clip
from modules.errors import UserError
from modules.pose.scene import Clip

log = logging.getLogger(__name__)


def iter_clips(
    path: str | Path,
    split: str,
    columns: Sequence[str] = ("pose",),
    num_frames: int = 200,
    limit: int | None = None,
    min_confidence: float = 0.1,
    *,
    train_split: str = "train",
    val_split: str = "val",
    folds: Folds | None = None,
) -> Iterator[Clip]:
    """The clips of a split in the order of its shards, from frame 0, in this process.

    Args:
        path: folder of the shards.
        split: for example "val".
        columns: see `datamodules.sample`.
        num_frames: longest clip in dense frames.
        limit: stop after so many clips.
        min_confidence: a joint is visible above it.
        train_split, val_split, folds: part of the training split may stand for the validation split.

    Raises:
        UserError: no such shards, or a sample that does not follow the schema.
    """
    shards, select = open_split(str(path), split, train_split=train_split, val_split=val_split, folds=folds)
    records = itertools.chain.from_iterable(read_shard(shard, columns, select) for shard in shards)
    clips = (to_clip(r.sample(), num_frames=num_frames, min_confidence=min_confidence) for r in records)
    yield from itertools.islice((clip for clip in clips if clip is not None), limit)


class TrainLoader:
    """The training stream in epochs, with a state for checkpoints.

    Every iteration over it goes on where the last one ended.
    """

    def __init__(self, stream: TrainStream, num_workers: int) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self.lanes = max(num_workers, 1)
        self.length = max(stream.config.num_samples // stream.global_batch, 1)
        self.bad = BadSamples(stream.bad.limit, stream.bad.total)
        self._positions = stream.start(self.lanes)
        self._next_lane = 0
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.length):
            if self._iterator is None:
                self._iterator = results(make_loader(self.stream, self.num_workers))
            batch, lane, positions, bad = next(self._iterator)
            note_bad(bad, self.bad)
            self._positions[lane] = positions
            self._next_lane = (lane + 1) % self.lanes
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where every slot of the global batch is. All ranks must call it together."""
        config = self.stream.config
        own = [[list(position) for position in lane] for lane in self._positions]
        ranks: list[Any] = [own]
        if config.world > 1:
            ranks = [None] * config.world
            torch.distributed.all_gather_object(ranks, own)
        lanes = [list(itertools.chain.from_iterable(rank[lane] for rank in ranks)) for lane in range(self.lanes)]
        return {"positions": lanes, "next_lane": self._next_lane}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the last batch, also with another number of ranks at the same global batch.

        With another number of workers as well, as long as each sample gave one item; otherwise, and with another
        global batch, with the next pass.
        """
        config, stream = self.stream.config, self.stream
        lanes: list[list[Position]] = [[(chunk, taken) for chunk, taken in lane] for lane in state["positions"]]
        chunks = _in_step(lanes)
        if len(lanes[0]) == stream.global_batch and len(lanes) == self.lanes:
            first = config.rank * config.batch_size
            self._positions = [lane[first : first + config.batch_size] for lane in lanes]
            self._next_lane = state["next_lane"]
        elif len(lanes[0]) == stream.global_batch and chunks:
            self._positions, self._next_lane = stream.start(self.lanes, min(chunks)), 0
        else:
            done = max(chunk for lane in lanes for chunk, _ in lane) * len(lanes[0])
            next_pass = done // config.num_samples + 1
            log.warning("another global batch or other workers: the data continue with a new pass (%d)", next_pass)
            first = -(-next_pass * sum(stream.order.lengths) // stream.global_batch)
            self._positions, self._next_lane = stream.start(self.lanes, first), 0
        stream.positions, stream.first_lane = [list(lane) for lane in self._positions], self._next_lane
        self._iterator = None


def _in_step(lanes: list[list[Position]]) -> list[int]:
    """The next chunk of each lane, where no slot is ahead or behind and they follow one another; else none."""
    chunks = [lane[0][0] for lane in lanes]
    even = all(position == (lane[0][0], 0) for lane in lanes for position in lane)
    return chunks if even and sorted(chunks) == list(range(min(chunks), min(chunks) + len(chunks))) else []


class EvalLoader:
    """Batches of a whole split in order, the same in every iteration."""

    def __init__(self, stream: EvalStream, num_workers: int) -> None:
        self.length = stream.num_batches
        self.bad = BadSamples(stream.bad.limit, stream.bad.total)
        self._loader = make_loader(stream, num_workers)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch, bad in results(self._loader):
            note_bad(bad, self.bad)
            yield batch


class PoseDataModule(L.LightningDataModule):
    """Batches of poses, and of what else a stage asks for, for training and validation.

    Args:
        path: folder of `{split}-*.tar`, see `datamodules.shards.find_shards`.
        columns, encode, collate: of the stage. `encode(clip, rng, train)` gives a list of items, `collate` makes a
            batch of items.
        group, folds, fold: hold part of the training split aside for validation, see `datamodules.folds`.
        batch_size: items of a training batch, clips of a validation batch (of each rank).
        num_workers: processes that read.
        num_frames: longest crop in dense frames.
        stride: dense frames per key pose; the encoders read it from the stage's own configuration.
        min_confidence: a joint is visible above it.
        shuffle_buffer: places by which a sample is moved from the order of its shard, at most.
        cache_mb: memory for decoded samples, MB a process; 0: read the shards again in every pass.
        max_bad_fraction: share of the samples that may be damaged; they are left out, counted and logged.
        mixture: folder -> weight, several data sets to train on; validation is on `path` alone.
        augment: changes of the training samples by chance, see `datamodules.augment`.
        seed: of the run.
    """

    def __init__(
        self,
        *,
        path: str,
        columns: Sequence[str],
        encode: Encode,
        collate: Collate,
        batch_size: int,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str = "test",
        group: str = "",
        folds: int = 0,
        fold: int = 0,
        num_workers: int = 0,
        num_frames: int = 200,
        stride: int = 10,
        min_confidence: float = 0.1,
        shuffle_buffer: int = 1000,
        cache_mb: int = 1024,
        max_bad_fraction: float = 0.01,
        mixture: Mapping[str, float] | None = None,
        augment: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path = path
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.folds = Folds(group, folds, fold)
        self.num_workers = num_workers
        self.stride = stride
        self.mixture = dict(mixture or {})
        self.loaders: dict[str, TrainLoader | EvalLoader] = {}
        self._columns = tuple(columns)
        self._cache_mb = cache_mb
        self._options = {
            "encode": encode,
            "collate": collate,
            "batch_size": batch_size,
            "num_frames": num_frames,
            "min_confidence": min_confidence,
            "shuffle_buffer": shuffle_buffer,
            "seed": seed,
            "augment": Augment(**(augment or {})),
            "max_bad_fraction": max_bad_fraction,
        }
        if {"video", "latents"} & set(self._columns) and self._options["augment"].moves:
            raise UserError(
                "data.augment.mirror, time_warp and camera cannot go with a stage that reads videos; set them to 0"
            )

    @property
    def bad_samples(self) -> int:
        """Damaged samples that were left out so far, in training and validation."""
        return sum(len(loader.bad.messages) for loader in self.loaders.values())

    def _config(self, role: str) -> StreamConfig:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        weights = (self.mixture if role == "train" else {}) or {self.path: 1.0}
        cache_mb = self._cache_mb // len(weights)
        names = {"train_split": self.splits["train"], "val_split": self.splits["val"]}
        sets = []
        for path in weights:
            shards, select = open_split(path, self.splits[role], **names, folds=self.folds)
            sets.append(Samples(shards, self._columns, cache_mb, select))
        return StreamConfig(sets, list(weights.values()), **self._options, rank=rank, world=world)

    def train_dataloader(self) -> TrainLoader:
        """Raises:
        UserError: no shards, or they are damaged.
        """
        self.loaders["train"] = loader = TrainLoader(TrainStream(self._config("train")), self.num_workers)
        return loader

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def _eval_loader(self, role: str) -> EvalLoader:
        self.loaders[role] = loader = EvalLoader(EvalStream(self._config(role)), self.num_workers)
        return loader
