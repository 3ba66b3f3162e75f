"""Shards to batches, with WebDataset.

Training reads an endless stream: pass after pass over the shards, each in a new order, in batches that are always full.
An epoch of the loader is as many batches as one pass over the samples has; a partial batch at the end of a pass is
dropped. The order is a pure function of (seed, pass, part), a part being one worker of one rank, so that a run that was
stopped at any batch continues with exactly the batches that would have come next.

Validation reads every sample once, in the order of the shards, from frame 0.
"""

from __future__ import annotations

import itertools
import logging
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList

from datamodules.readers import init_worker
from datamodules.shards import Record, ShardReader, count_samples, find_shards
from datamodules.transforms import to_clip
from modules.errors import UserError
from modules.pose.scene import Clip

Encode = Callable[[Clip, np.random.Generator, bool], list[Any]]
Collate = Callable[[list[Any]], dict[str, Any]]

log = logging.getLogger(__name__)


def iter_clips(
    path: str | Path,
    split: str,
    columns: Sequence[str] = ("pose",),
    num_frames: int = 200,
    limit: int | None = None,
    min_confidence: float = 0.1,
) -> Iterator[Clip]:
    """The clips of a split in the order of its shards, from frame 0, in this process.

    Args:
        path: folder of the shards.
        split: for example "val".
        columns: see `datamodules.sample`.
        num_frames: longest clip in dense frames.
        limit: stop after so many clips.
        min_confidence: a joint is visible above it.

    Raises:
        UserError: no such shards, or a sample that does not follow the schema.
    """
    reader = ShardReader(columns, cache_mb=0)
    records = itertools.chain.from_iterable(map(reader, find_shards(path, split)))
    clips = (to_clip(r.sample(), num_frames=num_frames, min_confidence=min_confidence) for r in records)
    yield from itertools.islice((clip for clip in clips if clip is not None), limit)


@dataclass(frozen=True)
class StreamConfig:
    """What a stream reads, and how it becomes items."""

    shards: list[str]
    columns: Sequence[str]
    encode: Encode
    collate: Collate
    batch_size: int
    num_frames: int
    min_confidence: float
    shuffle_buffer: int
    cache_mb: int
    seed: int
    rank: int = 0
    world: int = 1


# Where a part of the training stream is: (pass, sample within the pass, items taken of that sample).
Position = tuple[int, int, int]


class _Stream(IterableDataset):
    """What both streams do: split by worker, encode, hand errors of the user over."""

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.config = config
        self.reader = ShardReader(config.columns, config.cache_mb)
        self._empty = 0

    def batches(self, worker: int, num_workers: int) -> Iterator[Any]:
        """The batches of one worker of this rank."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        try:
            yield from self.batches(info.id, info.num_workers) if info else self.batches(0, 1)
        except UserError as error:
            # Raised in a worker process it would come out with a traceback in its message: _batches raises it.
            yield error

    def items(self, record: Record, pass_: int, train: bool) -> list[Any]:
        """Encoded items of a sample. Their randomness depends on (seed, pass, key) alone."""
        config = self.config
        rng = np.random.default_rng([config.seed, pass_, zlib.crc32(record.key.encode())])
        clip = to_clip(
            record.sample(),
            num_frames=config.num_frames,
            min_confidence=config.min_confidence,
            rng=rng if train else None,
        )
        if clip is None:
            self._empty += 1
            if self._empty in (1, 10, 100, 1000, 10000):
                log.warning(
                    "nobody is visible in %d crops so far, the last is of %s", self._empty, record.key
                )
            return []
        return config.encode(clip, rng, train)


class TrainStream(_Stream):
    """Endless full batches of one rank: yields (batch, lane, position after it).

    A lane is what one worker process reads. After a restart the worker with number 0 is asked first, so it takes the
    lane whose turn it is: `first_lane`.
    """

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.first_lane = 0
        self.positions: list[Position] | None = None

    def records(self, pass_: int, part: int, parts: int) -> Iterator[Record]:
        """One pass over the shards of a part, in an order that depends on (seed, pass, part) alone."""
        config = self.config

        def split(shards: Iterable[dict[str, str]]) -> Iterator[dict[str, str]]:
            # WebDataset's own splitters ask the environment, which a spawned worker process does not share.
            yield from itertools.islice(shards, part, None, parts)

        def read(shards: Iterable[dict[str, str]]) -> Iterator[Record]:
            for shard in shards:
                yield from self.reader(shard["url"])

        seed = zlib.crc32(f"{config.seed}/{pass_}".encode())
        size = config.shuffle_buffer
        pipeline = DataPipeline(
            SimpleShardList(config.shards, seed=seed),  # shard shuffle, the same for every part
            split,  # by node and by worker
            read,
            shuffle(size, initial=size, rng=random.Random(f"{seed}/{part}")),
        )
        return iter(pipeline)

    def batches(self, worker: int, num_workers: int) -> Iterator[tuple[Any, int, Position]]:
        config = self.config
        lane = (worker + self.first_lane) % num_workers
        part, parts = config.rank * num_workers + lane, config.world * num_workers
        pass_, skip, taken = self.positions[lane] if self.positions else (0, 0, 0)
        items: list[Any] = []
        while True:
            found = False
            yielded = (skip, taken) != (0, 0)
            for number, record in enumerate(self.records(pass_, part, parts)):
                if number < skip:
                    continue  # before decoding
                new = self.items(record, pass_, train=True)
                found = found or bool(new)
                for i, item in enumerate(new[taken:], start=taken + 1):
                    items.append(item)
                    if len(items) == config.batch_size:
                        yield config.collate(items), lane, (pass_, number, i)
                        items, yielded = [], True
                taken = 0
            if not found and not skip:
                raise UserError(
                    f"no person is visible in {config.shards[0]}; check its poses and data.min_confidence"
                )
            if yielded:
                items = []
            pass_, skip, taken = pass_ + 1, 0, 0


class EvalStream(_Stream):
    """Batches of `batch_size` clips of one rank, each clip once, in order.

    With several ranks each gives the same number of batches: the first samples come again at the end where needed.
    """

    def __init__(self, config: StreamConfig, num_samples: int) -> None:
        super().__init__(config)
        self.num_samples = num_samples
        self.per_rank = -(-num_samples // config.world)

    def batches(self, worker: int, num_workers: int) -> Iterator[Any]:
        config = self.config
        again = itertools.chain.from_iterable(self.records() for _ in itertools.count())
        records = (
            itertools.islice(again, self.per_rank * config.world) if config.world > 1 else self.records()
        )
        mine = (record for number, record in enumerate(records) if number % config.world == config.rank)
        items: list[Any] = []
        for number, record in enumerate(mine):
            # Worker w is asked for batches w, w + num_workers, ...
            if number // config.batch_size % num_workers != worker:
                continue
            items += self.items(record, 0, train=False)
            if number % config.batch_size == config.batch_size - 1 or number == self.per_rank - 1:
                if items:
                    yield config.collate(items)
                items = []

    def records(self) -> Iterator[Record]:
        """All samples in the order of the shards."""
        return itertools.chain.from_iterable(map(self.reader, self.config.shards))


def _loader(stream: _Stream, num_workers: int) -> DataLoader:
    return DataLoader(
        stream,
        batch_size=None,  # the stream makes batches
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # of its own: starting a loader draws no number that a resumed run would miss
        pin_memory=torch.cuda.is_available(),
    )


def _batches(loader: DataLoader) -> Iterator[Any]:
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class TrainLoader:
    """The training stream in epochs, with a state for checkpoints.

    Every iteration over it goes on where the last one ended.
    """

    def __init__(self, stream: TrainStream, num_workers: int, num_samples: int) -> None:
        self.stream = stream
        self.num_workers = num_workers
        self.lanes = max(num_workers, 1)
        self.length = max(num_samples // (stream.config.batch_size * stream.config.world), 1)
        self._positions: list[Position] = [(0, 0, 0)] * self.lanes
        self._next_lane = 0
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.length):
            if self._iterator is None:
                self._iterator = _batches(_loader(self.stream, self.num_workers))
            batch, lane, position = next(self._iterator)
            self._positions[lane] = position
            self._next_lane = (lane + 1) % self.lanes
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where every rank is. All ranks must call it together."""
        config = self.stream.config
        states: list[Any] = [[list(position) for position in self._positions]]
        if config.world > 1:
            states = [None] * config.world
            torch.distributed.all_gather_object(states, [list(position) for position in self._positions])
        return {"positions": states, "next_lane": self._next_lane}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on exactly after the last batch; with another number of ranks or workers, with the next pass."""
        config = self.stream.config
        positions = [[tuple(position) for position in rank] for rank in state["positions"]]
        if len(positions) == config.world and len(positions[0]) == self.lanes:
            self._positions, self._next_lane = positions[config.rank], state["next_lane"]
        else:
            next_pass = max(pass_ for rank in positions for pass_, _, _ in rank) + 1
            log.warning(
                "another number of ranks or workers: the data continue with a new pass (%d)", next_pass
            )
            self._positions, self._next_lane = [(next_pass, 0, 0)] * self.lanes, 0
        self.stream.positions, self.stream.first_lane = list(self._positions), self._next_lane
        self._iterator = None


class EvalLoader:
    """Batches of a whole split in order, the same in every iteration."""

    def __init__(self, stream: EvalStream, num_workers: int) -> None:
        self.length = -(-stream.per_rank // stream.config.batch_size)
        self._loader = _loader(stream, num_workers)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return _batches(self._loader)


class PoseDataModule(L.LightningDataModule):
    """Batches of poses, and of what else a stage asks for, for training and validation.

    Args:
        path: folder of `{split}-*.tar`.
        columns, encode, collate: of the stage. `encode(clip, rng, train)` gives a list of items, `collate` makes a
            batch of items.
        batch_size: items of a training batch, clips of a validation batch (of each rank).
        num_workers: processes that read; each of every rank needs a training shard of its own.
        num_frames: longest crop in dense frames.
        stride: dense frames per key pose; the encoders read it from the stage's own configuration.
        min_confidence: a joint is visible above it.
        shuffle_buffer: samples among which the next one is drawn.
        cache_mb: memory for decoded samples, MB a process; 0: read the shards again in every pass.
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
        num_workers: int = 0,
        num_frames: int = 200,
        stride: int = 10,
        min_confidence: float = 0.1,
        shuffle_buffer: int = 1000,
        cache_mb: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path = path
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.num_workers = num_workers
        self.stride = stride
        self._options = {
            "columns": tuple(columns),
            "encode": encode,
            "collate": collate,
            "batch_size": batch_size,
            "num_frames": num_frames,
            "min_confidence": min_confidence,
            "shuffle_buffer": shuffle_buffer,
            "cache_mb": cache_mb,
            "seed": seed,
        }

    def _config(self, role: str) -> StreamConfig:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return StreamConfig(
            find_shards(self.path, self.splits[role]), **self._options, rank=rank, world=world
        )

    def train_dataloader(self) -> TrainLoader:
        """Raises:
        UserError: no shards, or fewer of them than there are readers.
        """
        config = self._config("train")
        shards, workers = len(config.shards), max(self.num_workers, 1)
        if shards < config.world * workers:
            each = shards // config.world
            remedy = f"lower data.num_workers to {each}" if each else f"train on at most {shards} devices"
            raise UserError(
                f"{self.path} has {shards} shards {self.splits['train']}-*.tar, but {config.world} rank(s) with "
                f"{workers} worker(s) need one each; {remedy}, or write more and smaller shards"
            )
        return TrainLoader(TrainStream(config), self.num_workers, count_samples(config.shards))

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def _eval_loader(self, role: str) -> EvalLoader:
        config = self._config(role)
        return EvalLoader(EvalStream(config, count_samples(config.shards)), self.num_workers)
