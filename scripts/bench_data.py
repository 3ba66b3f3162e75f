"""Speed of reading: python scripts/bench_data.py [data=data/sample] [split=train] [batch_size=64] [workers=[0,1,2]]

Samples per second of the DataModule, of a plain hand-written loop that reads the same tars, applies the same transforms
and makes the same batches in as many processes, and of bare iteration over the tars. All in one run, in turn, so that
the ratios hold on a busy machine; the best of several rounds counts.
"""

from __future__ import annotations

import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from datamodules.sample import FPS, open_shard, parse_sample, write_sample  # noqa: E402
from datamodules.shards import find_shards  # noqa: E402
from datamodules.transforms import to_clip  # noqa: E402
from datamodules.webdataset import PoseDataModule  # noqa: E402
from modules.pose.boxes import normalise  # noqa: E402
from modules.pose.scene import Clip  # noqa: E402

_RANDOM = np.random.default_rng(0)


@dataclass
class BenchConfig:
    data: str = "data/sample"
    split: str = "train"
    batch_size: int = 64
    num_frames: int = 200
    workers: list[int] = field(default_factory=lambda: [0, 1, 2])
    cache_mb: int = 0  # of the DataModule; the plain loop keeps nothing
    rounds: int = 3
    epochs: int = 0  # more than 0: read so many epochs and show the memory after each
    resume: bool = False  # time to the first batch from the beginning, from 10 % and from 90 % of an epoch
    make: int = 0  # MB: make a synthetic set of this size in `data` first, if there is none


def encode(clip: Clip, rng: np.random.Generator, train: bool) -> list[Any]:
    """One item a person: box coordinates and visibility, as the stages have them."""
    return [
        (normalise(p.joints, p.box, p.visibility).astype(np.float32), p.visibility, p.box) for p in clip.scene.persons
    ]


def collate(items: list[Any]) -> dict[str, torch.Tensor]:
    """Padded tensors."""
    length = max(len(item[0]) for item in items)
    poses = np.zeros((len(items), length, 18, 2), np.float32)
    visibility = np.zeros((len(items), length, 18), bool)
    for row, (joints, seen, _) in enumerate(items):
        poses[row, : len(joints)], visibility[row, : len(seen)] = joints, seen
    arrays = {"poses": poses, "visibility": visibility, "boxes": np.stack([item[2] for item in items])}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


class PlainLoop(IterableDataset):
    """What one writes by hand: tarfile, numpy, a list; no shuffling, no checks beyond the parser's, no resuming."""

    def __init__(self, shards: list[str], cfg: BenchConfig) -> None:
        self.shards, self.cfg = shards, cfg

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = get_worker_info()
        part, parts = (info.id, info.num_workers) if info else (0, 1)
        rng, items = np.random.default_rng(part), []
        for shard in self.shards[part::parts]:
            for raw in plain_samples(shard):
                clip = to_clip(parse_sample(raw), num_frames=self.cfg.num_frames, min_confidence=0.1, rng=rng)
                items += encode(clip, rng, True) if clip else []
                while len(items) >= self.cfg.batch_size:
                    yield collate(items[: self.cfg.batch_size])
                    items = items[self.cfg.batch_size :]


def plain_samples(shard: str) -> Iterator[dict[str, Any]]:
    raw: dict[str, Any] = {}
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            if raw.get("__key__", key) != key:
                yield raw
                raw = {}
            if ending in ("json", "pose.npy"):
                raw |= {"__key__": key, "__url__": shard, ending: tar.extractfile(member).read()}  # type: ignore[union-attr]
    yield raw


def measure(batches: Any, limit: int) -> tuple[float, float]:
    """Items a second and processor time an item (microseconds), without the first batch: processes start in it."""
    stream, count = iter(batches), 0
    next(stream)
    start, spent = time.perf_counter(), cpu_seconds()
    for batch in stream:
        count += len(batch["poses"])
        if count >= limit:
            break
    return count / (time.perf_counter() - start), 1e6 * (cpu_seconds() - spent) / count


def cpu_seconds() -> float:
    """Of this process and its children."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def module(cfg: BenchConfig, workers: int) -> PoseDataModule:
    return PoseDataModule(
        path=cfg.data, columns=("pose",), encode=encode, collate=collate, batch_size=cfg.batch_size,
        train_split=cfg.split, num_workers=workers, num_frames=cfg.num_frames, cache_mb=cfg.cache_mb,
    )  # fmt: skip


def bare(shards: list[str]) -> float:
    """Members' bytes per second over the tars: samples per second."""
    start, count = time.perf_counter(), 0
    for shard in shards:
        for _ in plain_samples(shard):
            count += 1
    return count / (time.perf_counter() - start)


def compare(cfg: BenchConfig) -> None:
    shards = find_shards(cfg.data, cfg.split)
    size = sum(Path(shard).stat().st_size for shard in shards) / 2**20
    total = sum(1 for shard in shards for _ in plain_samples(shard))
    print(f"{cfg.data}: {total} samples in {len(shards)} shards, {size:.0f} MiB")
    tars = max(bare(shards) for _ in range(cfg.rounds))
    print(f"bare tar iteration, 1 process: {tars:.0f} samples/s")
    names = ("workers", "DataModule", "plain loop", "ratio", "of bare tars", "us", "us, plain", "ratio")
    print("\nitems a second, and microseconds of processor time an item")
    print("".join(f"{name:>13}" for name in names))
    for workers in cfg.workers:
        ours, plain = [], []
        for _ in range(cfg.rounds):
            loader = module(cfg, workers).train_dataloader()
            ours.append(measure((b for _ in range(4) for b in loader), total))
            loop = DataLoader(
                PlainLoop(shards, cfg), batch_size=None, num_workers=workers, persistent_workers=workers > 0
            )
            plain.append(measure((b for _ in range(4) for b in loop), total))
        speeds = [max(speed for speed, _ in found) for found in (ours, plain)]
        times = [min(used for _, used in found) for found in (ours, plain)]
        values = [f"{speeds[0]:.0f}", f"{speeds[1]:.0f}", f"{speeds[0] / speeds[1]:.0%}", f"{speeds[0] / tars:.0%}"]
        values += [f"{times[0]:.0f}", f"{times[1]:.0f}", f"{times[1] / times[0]:.0%}"]
        print(f"{workers:>13}" + "".join(f"{value:>13}" for value in values), flush=True)


def memory(cfg: BenchConfig) -> None:
    for workers in cfg.workers:
        loader = module(cfg, workers).train_dataloader()
        own = psutil.Process()
        sizes = []
        for _ in range(cfg.epochs):
            for _batch in loader:
                pass
            processes = [own, *own.children(recursive=True)]
            sizes.append(sum(p.memory_full_info().uss for p in processes) / 2**20)
        print(f"{workers} workers, MiB after each epoch: {' '.join(f'{size:.0f}' for size in sizes)}")


def resume(cfg: BenchConfig) -> None:
    for workers in cfg.workers:
        reference = module(cfg, workers).train_dataloader()
        for share in (0.0, 0.1, 0.9):
            chunk = int(share * len(reference))
            lanes = [[(chunk + lane, 0)] * cfg.batch_size for lane in range(max(workers, 1))]
            start, spent = time.perf_counter(), cpu_seconds()
            loader = module(cfg, workers).train_dataloader()
            indexed, index_spent = time.perf_counter(), cpu_seconds()
            loader.load_state_dict({"positions": lanes, "next_lane": 0})
            next(iter(loader))
            end, end_spent = time.perf_counter(), cpu_seconds()
            print(
                f"{workers} workers, from {share:.0%} of {len(reference)} batches: first batch after "
                f"{end - start:.2f} s, {indexed - start:.2f} s of it to find the samples; of processor time "
                f"{end_spent - spent:.2f} s and {index_spent - spent:.2f} s"
            )


def make(cfg: BenchConfig) -> None:
    """Noise in the form of a data set: 1000 samples of 240 frames and 2 people a shard."""
    folder, written, number = Path(cfg.data), 0, 0
    if list(folder.glob(f"{cfg.split}-*.tar")):
        return
    meta = {"caption": "Noise.", "fps": FPS, "width": 64, "height": 64}
    while written < cfg.make * 2**20:
        path = folder / f"{cfg.split}-{number:06d}.tar"
        with open_shard(path) as tar:
            for i in range(1000):
                poses = _RANDOM.uniform(1, 63, (2, 240, 18, 3)).astype(np.float32)
                write_sample(tar, f"s{number:06d}_{i:06d}", poses, meta)
        written, number = written + path.stat().st_size, number + 1


def main(arguments: list[str]) -> None:
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(BenchConfig, [], items)
    torch.set_num_threads(1)
    if cfg.make:
        make(cfg)
    modes: list[Callable[[BenchConfig], None]] = [memory] * bool(cfg.epochs) + [resume] * cfg.resume
    for mode in modes or [compare]:
        mode(cfg)


if __name__ == "__main__":
    run_script(main, __doc__)
