"""Fixtures that several tests share: tiny shards, and the real data where it is at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.sample import open_shard, write_sample
from modules.pose.scene import Scene, make_person

WIDTH = HEIGHT = 64


def make_poses(rng: np.random.Generator, persons: int, frames: int) -> np.ndarray:
    """Smooth random motion of random figures: (P, T, 18, 3), some joints unseen."""
    centre = rng.uniform(20, 44, (persons, 1, 1, 2))
    figure = rng.normal(0, 5, (persons, 1, 18, 2))
    time = np.arange(frames)[None, :, None, None] / 30
    sway = 3 * np.sin(2 * np.pi * (rng.uniform(0.3, 1.0, (persons, 1, 18, 2)) * time + rng.uniform(0, 1, 2)))
    seen = rng.random((persons, frames, 18, 1)) > 0.1
    return (np.concatenate([centre + figure + sway, np.ones_like(seen)], -1) * seen).astype(np.float32)


def make_meta(caption: str = "A person waves.", **more: Any) -> dict[str, Any]:
    return {"caption": caption, "label": "wave", "fps": 30, "width": WIDTH, "height": HEIGHT, **more}


@pytest.fixture
def make_scene() -> Callable[..., Scene]:
    """A function that makes a dense random scene."""

    def make(seed: int = 0, persons: int = 2, frames: int = 45, width: int = WIDTH, height: int = HEIGHT) -> Scene:
        poses = make_poses(np.random.default_rng(seed), persons, frames)
        people = [make_person(pose[..., :2], pose[..., 2] > 0, width, height) for pose in poses]
        return Scene(width, height, 30.0, np.arange(frames) / 30, people, "Two people dance.")

    return make


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a folder of tiny shards, `split=(shards, samples in each)`, and gives its path.

    Sample i of a split has the key `{split}{i}`, 1 or 2 persons, and 20 to 60 frames.
    """

    def make(
        name: str = "data", *, video: bytes | None = None, persons: int | None = None, **splits: tuple[int, int]
    ) -> Path:
        folder = tmp_path / name
        for split, (shards, size) in (splits or {"train": (3, 4), "val": (1, 5), "test": (1, 3)}).items():
            for shard in range(shards):
                with open_shard(folder / f"{split}-{shard:06d}.tar") as tar:
                    for i in range(shard * size, (shard + 1) * size):
                        rng = np.random.default_rng(i)
                        people = persons or 1 + i % 2
                        poses = make_poses(rng, people, int(rng.integers(20, 61)))
                        actors = [{"action": f"action{i}_{p}"} for p in range(people)]
                        write_sample(tar, f"{split}{i}", poses, make_meta(f"Clip {i}.", actors=actors), video)
        return folder

    return make


@pytest.fixture
def shared_dir() -> Path:
    """Real data that is not part of the project."""
    value = os.environ.get("DIRECTOR_SHARED")
    if not value:
        pytest.skip("DIRECTOR_SHARED is not set: it names a folder with real motion, data/cmu/*.tar")
    path = Path(value)
    if not path.is_dir():
        pytest.skip(f"DIRECTOR_SHARED names {path}, which is not a folder")
    return path


@pytest.fixture(scope="session")
def tiny_chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data and an export of every stage under `runs/*/tiny`."""
    from tests.tiny import build_chain

    return build_chain(tmp_path_factory.mktemp("chain"))
