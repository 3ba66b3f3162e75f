"""Training and validation streams: which process makes which batch, and where a stopped run goes on.

A global batch of G = batch_size * ranks items has G slots. Sample number q * G + s of the order (`order.py`) belongs to
slot s of chunk q; rank r fills slots r * batch_size ... of every batch. As long as each sample gives one item, batch
q is chunk q. A sample that gives several items, or none, moves its own slot alone back or ahead. So the batches are
the same for any number of ranks, nobody decodes what another rank trains on, and the place of every slot is all that
a checkpoint needs.

Worker processes take the batches in turn; what one of them makes is a lane. A lane has chunks lane, lane + lanes, ...
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.augment import Augment
from datamodules.order import Order
from datamodules.readers import init_worker
from datamodules.shards import Record, Samples
from datamodules.transforms import to_clip
from modules.errors import UserError
from modules.pose.scene import Clip

Encode = Callable[[Clip, np.random.Generator, bool], list[Any]]
Collate = Callable[[list[Any]], dict[str, Any]]
# Where a slot is: (chunk, items taken of its sample).
Position = tuple[int, int]

log = logging.getLogger(__name__)


@dataclass
class StreamConfig:
    """What a stream reads, and how it becomes items."""

    sets: list[Samples]  # one, or those of a mixture
    weights: Sequence[float]
    encode: Encode
    collate: Collate
    batch_size: int
    num_frames: int
    min_confidence: float
    shuffle_buffer: int
    seed: int
    augment: Augment
    max_bad_fraction: float
    rank: int = 0
    world: int = 1

    @property
    def num_samples(self) -> int:
        return sum(len(samples) for samples in self.sets)


class BadSamples:
    """Damaged samples that were left out, each counted once.

    Args:
        limit: so many are allowed; with the next one it stops. With less than one allowed, the first one is raised as
            it is.
        total: samples in the data, for the message.
    """

    def __init__(self, limit: float, total: int) -> None:
        self.limit, self.total = limit, total
        self.messages: dict[str, str] = {}  # by shard and key

    def add(self, name: str, message: str) -> None:
        """Raises:
        UserError: there are too many.
        """
        if name in self.messages:
            return
        self.messages[name] = message
        if self.limit < 1:
            raise UserError(message)
        if len(self.messages) > self.limit:
            raise UserError(self.summary())

    def summary(self) -> str:
        """How many, and the first of them."""
        some = list(self.messages.values())
        more = f"; and {len(some) - 3} more" if len(some) > 3 else ""
        return (
            f"{len(some)} of {self.total} samples are damaged, more than data.max_bad_fraction allows: "
            f"{'; '.join(some[:3])}{more}"
        )


class _Stream(IterableDataset):
    """What both streams do: split by worker, encode, hand errors of the user over."""

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.config = config
        self.bad = BadSamples(config.max_bad_fraction * config.num_samples, config.num_samples)
        self._empty = 0

    def batches(self, worker: int, num_workers: int) -> Iterator[Any]:
        """The batches of one worker of this rank, each with the damaged samples found on the way."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        try:
            yield from self.batches(info.id, info.num_workers) if info else self.batches(0, 1)
        except UserError as error:
            # Raised in a worker process it would come out with a traceback in its message: _batches raises it.
            yield error

    def items(self, samples: Samples, number: int, pass_: int, train: bool, bad: dict[str, str]) -> list[Any]:
        """Encoded items of a sample. Their randomness depends on (seed, pass, key) alone."""
        config = self.config
        try:
            record: Record = samples[number]
            sample = record.sample()
        except UserError as error:
            name = samples.name(number)
            self.bad.add(name, str(error))
            bad[name] = str(error)
            return []
        rng = np.random.default_rng([config.seed, pass_, zlib.crc32(record.key.encode())])
        if train and config.augment.active:
            sample = config.augment(sample, rng)
        clip = to_clip(
            sample,
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
    """Endless full batches of one rank: yields (batch, lane, position of every slot after it, damaged samples).

    After a restart the worker with number 0 is asked first, so it takes the lane whose turn it is: `first_lane`.
    """

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.first_lane = 0
        self.positions: list[list[Position]] | None = None  # by lane and slot of this rank
        self.global_batch = config.batch_size * config.world
        sizes = [samples.sizes for samples in config.sets]
        self.order = Order(sizes, config.weights, config.shuffle_buffer, config.seed, self.global_batch)

    def start(self, lanes: int, chunk: int = 0) -> list[list[Position]]:
        """Positions of a stream that begins with a chunk."""
        return [[(chunk + lane, 0)] * self.config.batch_size for lane in range(lanes)]

    def batches(self, worker: int, num_workers: int) -> Iterator[Any]:
        config = self.config
        lane = (worker + self.first_lane) % num_workers
        positions = list((self.positions or self.start(num_workers))[lane])
        waiting: list[list[Any] | None] = [None] * config.batch_size  # items of each slot's sample, once it is encoded
        bad: dict[str, str] = {}
        while True:
            items = []
            for slot in range(config.batch_size):
                chunk, taken = positions[slot]
                empty = 0
                while True:
                    found = waiting[slot]
                    if found is None:
                        place = self.order.at(chunk * self.global_batch + config.rank * config.batch_size + slot)
                        found = self.items(config.sets[place.set_], place.number, place.pass_, True, bad)
                    if taken < len(found):
                        break
                    chunk, taken, waiting[slot] = chunk + num_workers, 0, None
                    empty += not found
                    if empty > config.num_samples:
                        raise UserError(
                            f"no person is visible in {config.num_samples} samples one after another, the last is "
                            f"{config.sets[0].name(0)}; check the poses and data.min_confidence"
                        )
                items.append(found[taken])
                waiting[slot], positions[slot] = found, (chunk, taken + 1)
            yield config.collate(items), lane, _advance(positions, waiting, num_workers), bad
            bad = {}


def _advance(positions: list[Position], waiting: list[list[Any] | None], step: int) -> list[Position]:
    """Positions, with slots whose sample is used up at the beginning of the next one."""
    for slot, (chunk, taken) in enumerate(positions):
        if taken == len(waiting[slot] or ()):
            positions[slot], waiting[slot] = (chunk + step, 0), None
    return list(positions)


class EvalStream(_Stream):
    """Batches of `batch_size` clips of one rank, each clip once, in order: yields (batch, damaged samples).

    With several ranks each gives the same number of batches: the first samples come again at the end where needed.
    """

    def __init__(self, config: StreamConfig) -> None:
        super().__init__(config)
        self.per_rank = -(-config.num_samples // config.world)
        self.num_batches = -(-self.per_rank // config.batch_size)

    def batches(self, worker: int, num_workers: int) -> Iterator[Any]:
        config, samples = self.config, self.config.sets[0]
        for number in range(worker, self.num_batches, num_workers):
            items: list[Any] = []
            bad: dict[str, str] = {}
            last = min((number + 1) * config.batch_size, self.per_rank)
            for place in range(number * config.batch_size, last):
                which = (place * config.world + config.rank) % len(samples)
                items += self.items(samples, which, 0, False, bad)
            if items:
                yield config.collate(items), bad


def make_loader(stream: _Stream, num_workers: int) -> DataLoader:
    """What a stream yields, from several processes."""
    return DataLoader(
        stream,
        batch_size=None,  # the stream makes batches
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # of its own: starting a loader draws no number that a resumed run would miss
        pin_memory=torch.cuda.is_available(),
    )


def results(loader: DataLoader) -> Iterator[Any]:
    """What the stream yields; raises its errors."""
    for result in loader:
        if isinstance(result, UserError):
            raise result
        yield result


def note_bad(found: dict[str, str], total: BadSamples) -> None:
    """Counts damaged samples that a worker left out, and says so: the first ones each, then at round numbers."""
    for name, message in found.items():
        if name not in total.messages:
            total.add(name, message)
            count = len(total.messages)
            if count <= 5 or count in (10, 100, 1000):
                log.warning("damaged sample left out (%d so far): %s", count, message)
