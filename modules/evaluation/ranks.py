"""Sharing an evaluation out over processes, so that every figure is the same on any number of them.

Work is cut into chunks of clips that do not depend on the number of processes, and whole chunks are dealt out: what is
computed together always is. Figures are put together by the reduced states of the metrics.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

CHUNK = 16  # clips computed together


@dataclass(frozen=True)
class Ranks:
    """This process among those that score together."""

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """From torch.distributed, where it is initialised."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """The process that writes the report."""
        return self.rank == 0

    def chunks(self, count: int, size: int = CHUNK) -> Iterator[range]:
        """The places, of `count`, that this process computes, chunk by chunk; chunk 0 is the first process's."""
        for number, start in enumerate(range(0, count, size)):
            if number % self.world == self.rank:
                yield range(start, min(start + size, count))

    def share(self, count: int, size: int = CHUNK) -> int:
        """How many of `count` this process computes."""
        return sum(len(chunk) for chunk in self.chunks(count, size))


@contextlib.contextmanager
def joined(count: int, arguments: Sequence[str]) -> Iterator[None]:
    """Within it, `count` processes of this script work together by torch.distributed (gloo); 1: this one alone.

    This process becomes the first and starts the others with the same arguments. Under torchrun, which says so by
    WORLD_SIZE and RANK, it joins those that are there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    children: list[subprocess.Popen[bytes]] = []
    if world == 1 and count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        threads = os.environ.get("OMP_NUM_THREADS") or str(max((os.cpu_count() or 1) // count, 1))
        torch.set_num_threads(int(threads))
        together |= {"OMP_NUM_THREADS": threads}
        for rank in range(1, count):
            command = [sys.executable, sys.argv[0], *arguments]
            environment = {**os.environ, **together, "RANK": str(rank)}
            children.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        os.environ.update(together, RANK="0")
        world = count
    if world == 1:
        yield
        return
    # A process without clips has nothing to add up.
    warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
    try:
        # Others may be done long before: the time limit is no sign of a fault, a closed connection is.
        dist.init_process_group("gloo", timeout=datetime.timedelta(days=2))
        yield
        dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
        if children:
            for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"):
                os.environ.pop(name, None)
