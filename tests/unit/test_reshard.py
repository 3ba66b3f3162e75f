"""Existing tars joined, re-sharded, split into parallel tars, captioned again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import webdataset

import prepare
from datamodules.shards import find_shards, read_shard
from datamodules.webdataset import iter_clips
from modules.errors import UserError
from tests.unit.test_data_faults import shard_with
from tests.unit.test_datamodule import module


def run(*items: object) -> None:
    prepare.main(["shards", "workers=1", *map(str, items)])


def content(folder: Path, split: str = "train") -> dict[str, tuple[bytes, str, bytes | None]]:
    samples = [r.sample() for s in find_shards(folder, split) for r in read_shard(s, ("pose", "video"))]
    return {s.key: (s.poses.tobytes(), s.captions[0], s.video) for s in samples}


def test_shards_are_joined_and_parted_again(make_shards, tmp_path, capsys):
    path = make_shards(train=(3, 5), val=(1, 4), video=b"film")
    before = content(path)
    run(f"tars=['{path}/*.tar']", f"out={tmp_path}/big", "shard_size=100")
    assert "15 train, 4 val, 0 test clips in 2 shards" in capsys.readouterr().out
    assert content(tmp_path / "big") == before
    run(f"tars=['{tmp_path}/big/train-{{000000..000000}}.tar']", f"out={tmp_path}/p", "layout=parallel", "shard_size=4")
    tars = sorted(p.name for p in (tmp_path / "p" / "train").iterdir())
    assert tars == [f"{column}-{n:06d}.tar" for column in ("caption", "pose", "video") for n in range(4)]
    assert content(tmp_path / "p") == before
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    assert manifest["samples"]["train"] == 15
    assert sum(len(b["key"]) for b in module(tmp_path / "p", batch_size=5).train_dataloader()) == 15
    run(f"tars=['{tmp_path}/p/train/pose-*.tar']", f"out={tmp_path}/again", "shard_size=100")
    assert (tmp_path / "again/train-000000.tar").read_bytes() == (tmp_path / "big/train-000000.tar").read_bytes()


def test_new_captions_change_the_caption_tars_alone(make_shards, tmp_path):
    path = make_shards(train=(2, 3), video=b"film")
    run(f"tars=['{path}/*.tar']", f"out={tmp_path}/one", "layout=parallel")
    (tmp_path / "c.csv").write_text("name,caption\n" + "".join(f"train{i},New {i}.\n" for i in range(6)))
    run(f"tars=['{path}/*.tar']", f"out={tmp_path}/two", "layout=parallel", f"captions={tmp_path}/c.csv")
    assert [clip.caption for clip in iter_clips(tmp_path / "two", "train")] == [f"New {i}." for i in range(6)]
    for column in ("pose", "caption", "video"):
        one, two = (tmp_path / d / "train" / f"{column}-000000.tar" for d in ("one", "two"))
        assert (one.read_bytes() == two.read_bytes()) == (column != "caption")
    (tmp_path / "c.csv").write_text("name,caption\ntrain0,x\n")
    with pytest.raises(UserError, match=r"train1: has no row in captions="):
        run(f"tars=['{path}/*.tar']", f"out={tmp_path}/three", f"captions={tmp_path}/c.csv")


def test_what_cannot_be_joined(make_shards, tmp_path):
    one, two = make_shards("one", train=(1, 3)), make_shards("two", train=(1, 3))
    with pytest.raises(UserError, match=r"two/train-000000.tar: the key train0 comes in .*one/train-000000.tar, too"):
        run(f"tars=['{one}/*.tar','{two}/*.tar']", f"out={tmp_path}/out")
    with pytest.raises(UserError, match=r"names no file"):
        run(f"tars=['{tmp_path}/nothing-*.tar']", f"out={tmp_path}/out")
    with pytest.raises(UserError, match="tars are missing"):
        run(f"out={tmp_path}/out")
    shard_with(tmp_path / "bad" / "train-000000.tar", {"pose.npy": b""}, good=3)
    with pytest.raises(UserError, match="bad: its pose.npy cannot be read"):
        run(f"tars=['{tmp_path}/bad/*.tar']", f"out={tmp_path}/out")
    run(f"tars=['{tmp_path}/bad/*.tar']", f"out={tmp_path}/out", "skip_bad=true")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rejected"] == {"damaged or without caption": 1}
    assert manifest["samples"]["train"] == 3


def test_webdataset_reads_our_shards(make_shards):
    shards = find_shards(make_shards(train=(2, 3)), "train")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"train{i}" for i in range(6)]
    assert set(samples[0]) >= {"json", "pose.npy"}
