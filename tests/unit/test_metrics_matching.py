"""Matching metrics: against scipy and torchmetrics on the same embeddings, and over processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from scipy.stats import hypergeom
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from modules.metrics import embedding as metrics
from modules.metrics.intervals import ClipAverages, ClipTable, Estimate, Units, interval, resample
from modules.metrics.matching import FIGURES, MatchingScores
from modules.pose.scene import Clip

D = 6


def unit(rng: np.random.Generator, count: int, around: np.ndarray | None = None, spread: float = 1.0) -> np.ndarray:
    x = spread * rng.standard_normal((count, D)) + (0 if around is None else around)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return unit(rng, 150, np.array([1, 0, 0, 0, 0, 0])), unit(rng, 120)


class Identity(torch.nn.Module):
    num_features = D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_fid_against_scipy_and_torchmetrics(sets: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = sets
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert metrics.frechet(metrics.Moments.of(a), metrics.Moments.of(b)) == pytest.approx(expected, abs=1e-9)
    own, theirs = metrics.FrechetDistance(D), FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for part in np.array_split(a, 4):
        own.update(torch.from_numpy(part), real=True)
        theirs.update(torch.from_numpy(part), real=True)
    own.update(torch.from_numpy(b), real=False)
    theirs.update(torch.from_numpy(b), real=False)
    assert own.compute() == pytest.approx(expected, abs=1e-9)
    assert float(theirs.compute()) == pytest.approx(expected, abs=1e-4)


def test_fid_of_shifted_normals_is_the_shift() -> None:
    a = np.random.default_rng(1).standard_normal((400, D))
    assert metrics.frechet(metrics.Moments.of(a), metrics.Moments.of(a + 0.5)) == pytest.approx(D * 0.25, abs=1e-9)
    doubled = metrics.Moments.of(a, np.full(len(a), 2.0))  # every row twice
    np.testing.assert_allclose(doubled.mean, a.mean(0))


def test_kid_against_torchmetrics_and_unbiased(sets: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = sets
    a = a[: len(b)]  # theirs takes sets of one size
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b), degree=3, gamma=1.0, coef=1.0)
    assert metrics.kernel_distance(a, b)[0] == pytest.approx(float(expected), abs=1e-9)
    rng = np.random.default_rng(2)
    same = [metrics.kernel_distance(unit(rng, 12), unit(rng, 12))[0] for _ in range(400)]
    assert abs(np.mean(same)) < 3 * np.std(same) / 20  # a biased estimate would be far above 0 with 12 clips
    assert min(same) < 0


def test_kid_leaves_pairs_within_a_trial_out() -> None:
    rng = np.random.default_rng(3)
    base = unit(rng, 20)
    views = np.repeat(base, 4, axis=0)  # four cameras that give the same embedding
    trials = np.repeat(np.arange(20), 4)
    assert metrics.kernel_distance(views, views, trials)[0] == pytest.approx(0, abs=1e-12)
    other = unit(rng, 20, np.ones(D))
    single = metrics.kernel_distance(base, other, np.arange(20))
    fourfold = metrics.kernel_distance(views, np.repeat(other, 4, axis=0), trials)
    assert fourfold[0] == pytest.approx(single[0], abs=1e-12)  # views add nothing
    weights = np.repeat(resample(range(20), 3), 4, axis=1)
    np.testing.assert_allclose(
        metrics.kernel_distance(views, np.repeat(other, 4, axis=0), trials, weights),
        metrics.kernel_distance(base, other, np.arange(20), weights[:, ::4]),
        atol=1e-12,
    )


def test_r_precision_against_scipy() -> None:
    rng = np.random.default_rng(4)
    captions = unit(rng, 32)
    own = rng.integers(0, 32, 90)
    motion = unit(rng, 90, captions[own], 0.4)
    found = metrics.r_precision(motion, own, captions)
    rank = (cdist(motion, captions).argsort(1) == own[:, None]).argmax(1)  # the pool is every caption
    for k in (1, 2, 3):
        assert found.hits[:, k - 1].mean() == pytest.approx((rank < k).mean(), abs=1e-12)
    assert (found.pool, found.chance(3)) == (32, 3 / 32)


def test_r_precision_of_random_pools_is_the_hypergeometric_one() -> None:
    rng = np.random.default_rng(5)
    captions = unit(rng, 100)
    own = np.arange(100)
    motion = unit(rng, 100, captions, 0.6)
    found = metrics.r_precision(motion, own, captions, repeats=400)
    distance = cdist(motion, captions)
    ahead = (distance < distance[own, own][:, None]).sum(1)
    for k in (1, 2, 3):
        expected = hypergeom.cdf(k - 1, 99, ahead, 31)
        assert found.hits[:, k - 1].mean() == pytest.approx(expected.mean(), abs=0.005)


def test_noise_is_at_chance_and_equal_captions_are_no_negatives() -> None:
    rng = np.random.default_rng(6)
    captions = unit(rng, 40)
    chance = metrics.r_precision(unit(rng, 3000), rng.integers(0, 40, 3000), captions)
    assert chance.hits.mean(0) == pytest.approx([1 / 32, 2 / 32, 3 / 32], abs=0.015)
    # Every clip has one of two captions: with the two as the whole pool, the other one is the only negative.
    own = np.arange(50) % 2
    two = metrics.r_precision(captions[own], own, captions[:2])
    assert two.pool == 2
    assert two.hits[:, 0].mean() == 1.0
    # A split of two captions is filled up with others.
    filled = metrics.r_precision(captions[own], own, captions[:2], captions[2:])
    assert filled.pool == 32
    # What lies equally far from all captions has found none.
    nowhere = metrics.r_precision(np.zeros((10, D)), np.arange(10), captions)
    assert nowhere.hits.max() == 0


def test_diversity_and_multimodality_are_mean_distances() -> None:
    x = np.random.default_rng(7).standard_normal((60, D))
    whole = cdist(x, x)[np.triu_indices(60, 1)].mean()
    found = metrics.diversity(x, np.arange(60), np.ones((1, 60)), repeats=60)
    assert found[0] == pytest.approx(whole, rel=0.02)
    groups = x.reshape(15, 4, D)
    expected = [cdist(g, g)[np.triu_indices(4, 1)].mean() for g in groups]
    np.testing.assert_allclose(metrics.multimodality(groups), expected)


def test_fid_needs_ten_windows_a_dimension() -> None:
    rng = np.random.default_rng(8)
    captions = unit(rng, 40)
    for windows, there in ((59, False), (60, True)):
        places = np.repeat(np.arange(windows), 4)  # four views of every window
        scores = MatchingScores(Units(tuple(places), tuple(places)), places % 40, captions)
        scores.update(range(len(places)), unit(rng, len(places)), unit(rng, len(places)))
        found = scores.compute()
        assert (found["FID"] is not None) == there
        assert (scores.reason is None) == there
    scores = MatchingScores(Units(tuple(range(8)), tuple(range(8))), np.arange(8), captions)
    scores.update(range(8), unit(rng, 8), unit(rng, 8))
    assert scores.compute()["FID"] is None
    assert scores.reason == "No FID: 8 independent windows, and 6 dimensions need 60 (10 each). KID has no such bias."


def test_real_motion_has_no_distance_from_itself() -> None:
    rng = np.random.default_rng(9)
    real = unit(rng, 80)
    scores = MatchingScores(Units(tuple(range(80)), tuple(range(80))), np.arange(80), real, repeats=3)
    again = np.full((80, 3, D), np.nan)
    again[:5] = rng.standard_normal((5, 3, D))
    scores.update(range(80), real, real, again)
    found = scores.compute()
    assert set(found) == set(FIGURES)
    assert found["FID"].value == pytest.approx(0, abs=1e-7)  # type: ignore[union-attr]
    kid = found["KID"]
    assert kid is not None
    assert kid.low < 0 < kid.high  # type: ignore[operator]  # the noise floor
    assert found["R@1"] == Estimate(1.0, 1.0, 1.0)
    assert found["Multimodality"].value > 0  # type: ignore[union-attr]


def test_intervals_take_whole_trials() -> None:
    rng = np.random.default_rng(10)
    values = np.repeat(rng.standard_normal(50), 8)  # eight clips of each trial say the same
    trials = np.repeat(np.arange(50), 8)
    averages = ClipAverages(trials.tolist(), ["a", "never"])
    for place, value in enumerate(values):
        averages.add(place, {"a": (float(value), 1.0)})
    found = averages.compute()
    a = found["a"]
    assert a is not None
    assert a.value == pytest.approx(values.mean())
    half = (a.high - a.low) / 2  # type: ignore[operator]
    assert half == pytest.approx(1.96 * values[::8].std() / np.sqrt(50), rel=0.15)  # not of 400 clips
    assert found["never"] is None
    assert interval(1.0, np.array([np.nan, np.nan])) == Estimate(1.0)
    one_trial = ClipAverages([0, 0, 0, 1], ["a"])
    one_trial.add(0, {"a": (2.0, 1.0)})
    assert one_trial.compute()["a"] == Estimate(2.0)


def test_a_clip_that_two_processes_counted_is_an_error() -> None:
    table = ClipTable([0, 1], x=1)
    table.update([1], x=[[2.0]])
    table.update([1], x=[[2.0]])
    with pytest.raises(ValueError, match="clip 1 was counted 2 times"):
        table.compute()
    with pytest.raises(ValueError, match="update takes x"):
        table.update([0], y=1)
    with pytest.raises(ValueError, match="unknown figures: b"):
        ClipAverages([0], ["a"]).add(0, {"b": (1.0, 1.0)})


def test_views_and_windows_of_a_trial_belong_together() -> None:
    metas = [{"source": "a", "window": 0}, {"source": "a", "window": 0}, {"source": "a", "window": 1}, {}]
    units = Units.of([Clip(str(i), None, "", meta=meta) for i, meta in enumerate(metas)])  # type: ignore[arg-type]
    assert str(units) == "4 clips of 3 windows in 2 trials"


COUNT = 37


def _figures(rank: int, world: int, folder: str) -> None:
    """What one of several processes does with its share of 37 clips."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    rng = np.random.default_rng(11)
    captions, motion, real = unit(rng, COUNT), unit(rng, COUNT), unit(rng, COUNT)
    trials = tuple(np.arange(COUNT) // 2)
    scores = MatchingScores(Units(trials, tuple(range(COUNT))), np.arange(COUNT), captions)
    averages, frechet = ClipAverages(trials, ["a", "b"]), metrics.FrechetDistance(D)
    for start in range(8 * rank, COUNT, 8 * world):
        places = range(start, min(start + 8, COUNT))
        part = list(places)
        scores.update(part, motion[part], real[part])
        frechet.update(torch.from_numpy(motion[part]), real=False)
        frechet.update(torch.from_numpy(real[part]), real=True)
        for place in part:
            averages.add(place, {"a": (float(motion[place].sum()), 1.0), "b": (float(place), float(place % 3))})
    found = {name: [v for v in value if v is not None] for name, value in scores.compute().items() if value is not None}
    found |= {name: list(value) for name, value in averages.compute().items() if value is not None}  # type: ignore[misc]
    found["frechet"] = [frechet.compute()]  # type: ignore[list-item]
    Path(f"{folder}/{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_give_the_same_figures(world: int, tmp_path: Path) -> None:
    folders = {}
    for size in (1, world):
        folders[size] = tmp_path / str(size)
        folders[size].mkdir()
        # Forked: the libraries are loaded already.
        mp.start_processes(_figures, args=(size, str(folders[size])), nprocs=size, start_method="fork")  # type: ignore[attr-defined]
    alone = json.loads((folders[1] / "1-0.json").read_text())
    assert {"KID", "R@1", "a", "b", "frechet"} <= set(alone)
    for rank in range(world):
        together = json.loads((folders[world] / f"{world}-{rank}.json").read_text())
        assert set(together) == set(alone)
        for name, values in alone.items():
            assert together[name] == pytest.approx(values, abs=1e-6), name
