"""The order of training: the same for any number of ranks, found again after a stop, mixed by weight."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.order import Order
from datamodules.shards import Samples, find_shards
from datamodules.streams import TrainStream
from datamodules.webdataset import TrainLoader
from modules.errors import UserError
from tests.unit.test_datamodule import encode_clip, encode_people, module, plain


def places(order: Order, count: int, start: int = 0) -> list[int]:
    return [order.at(place).number for place in range(start, start + count)]


def test_a_pass_has_every_sample_once_but_for_the_rest_of_a_batch():
    order = Order([[5, 7, 8]], [1.0], 6, 0, 3)
    passes = [places(order, 18, 18 * p) for p in range(20)]
    assert all(len(set(numbers)) == 18 for numbers in passes)
    assert len({tuple(numbers) for numbers in passes}) == 20
    assert set().union(*passes) == set(range(20)), "others are left out in other passes"


def test_a_window_of_one_keeps_the_order_of_the_shards():
    order = Order([[4, 4]], [1.0], 1, 0, 1)
    assert places(order, 8) in ([0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3])


def test_samples_move_by_the_window_at_most():
    order = Order([[1000]], [1.0], 50, 3, 10)
    assert np.abs(np.array(places(order, 1000)) - np.arange(1000)).max() < 50


def test_any_place_is_found_alone():
    order = Order([[30, 20], [13]], [3.0, 1.0], 8, 1, 4)
    expected = [order.at(place) for place in range(3000)]
    again = pickle.loads(pickle.dumps(Order([[30, 20], [13]], [3.0, 1.0], 8, 1, 4)))
    for place in np.random.default_rng(0).permutation(3000).tolist():
        assert again.at(place) == expected[place]


def test_a_mixture_has_its_weights_and_uses_all_samples_equally():
    order = Order([[30, 20], [13]], [3.0, 1.0], 8, 1, 4)
    found = [order.at(place) for place in range(4096)]
    assert Counter(place.set_ for place in found) == {0: 3072, 1: 1024}
    for set_, size in ((0, 50), (1, 13)):
        counts = Counter(place.number for place in found if place.set_ == set_)
        assert len(counts) == size
        assert max(counts.values()) - min(counts.values()) <= 1


def stream_batches(path: Path, world: int, workers: int, count: int, encode: Any = encode_clip) -> list[Any]:
    """Global batches of 8 as `world` ranks with `workers` processes each make them."""
    config = module(path, encode, batch_size=8 // world)._config("train")
    batches: list[Any] = []
    makers = [
        [TrainStream(dataclasses.replace(config, rank=r, world=world)).batches(w, workers) for w in range(workers)]
        for r in range(world)
    ]
    for number in range(count):
        parts = [next(rank[number % workers])[0] for rank in makers]
        batches.append([(k, s) for part in parts for k, s in zip(part["key"], part["start"], strict=True)])
    return batches


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("encode", [encode_clip, encode_people])
def test_the_order_is_the_same_for_1_2_and_4_ranks(make_shards, workers, encode):
    path = make_shards(train=(5, 7))
    one, two, four = (stream_batches(path, world, workers, 15, encode) for world in (1, 2, 4))
    assert one == two == four
    if encode is encode_clip:
        assert one == stream_batches(path, 1, 3, 15)  # one item a sample: for any number of workers, too
        for epoch in (one[:4], one[4:8], one[8:12]):
            assert len({key for batch in epoch for key, _ in batch}) == 32


def test_another_number_of_ranks_continues_exactly(make_shards):
    path = make_shards(train=(3, 8))

    def loader(rank: int, world: int) -> TrainLoader:
        config = module(path, encode_people, batch_size=4 // world)._config("train")
        return TrainLoader(TrainStream(dataclasses.replace(config, rank=rank, world=world)), 0)

    whole = loader(0, 1)
    expected = plain([batch for _ in range(3) for batch in whole])
    first = loader(0, 1)
    for _, _batch in zip(range(5), (b for _ in range(3) for b in first), strict=False):
        pass
    state = json.loads(json.dumps(first.state_dict()))
    halves = []
    for rank in (0, 1):
        part = loader(rank, 2)
        part.load_state_dict(state)
        halves.append(plain([batch for _ in range(2) for batch in part]))
    joined = [
        {name: a[name] + b[name] for name in ("key", "start")} for a, b in zip(halves[0], halves[1], strict=True)
    ]
    assert joined[:10] == expected[5:15]


def test_mixtures_in_the_data_module(make_shards):
    one, two = make_shards("one", train=(2, 6), val=(1, 3)), make_shards("two", other=(1, 4), val=(1, 3))
    (two / "other-000000.tar").rename(two / "train-000000.tar")
    data = module(one, mixture={str(one): 3, str(two): 1}, batch_size=4)
    loader = data.train_dataloader()
    assert len(loader) == 4
    keys = Counter(key for _ in range(64) for batch in loader for key in batch["key"])
    shares = sum(count for key, count in keys.items() if key.startswith("other")) / keys.total()
    assert len(keys) == 16
    assert shares == pytest.approx(0.25, abs=0.01)
    assert [key for batch in data.val_dataloader() for key in batch["key"]] == ["val0", "val1", "val2"]


def test_samples_can_be_chosen(make_shards):
    shards = find_shards(make_shards(train=(3, 4)), "train")
    some = Samples(shards, ("pose",), select=lambda key: int(key[5:]) % 3 == 0)
    assert [some[i].key for i in range(len(some))] == ["train0", "train3", "train6", "train9"]
    assert some.sizes == [2, 1, 1]
    with pytest.raises(UserError, match="no sample of .* is chosen"):
        Samples(shards, ("pose",), select=lambda key: False)
