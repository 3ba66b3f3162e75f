"""Shards in, batches out: order, exactness of resuming, sharing out, refusal of bad data."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from datamodules.sample import open_shard, parse_sample, write_sample
from datamodules.shards import find_shards, read_shard
from datamodules.streams import EvalStream, TrainStream
from datamodules.transforms import to_clip
from datamodules.webdataset import PoseDataModule, TrainLoader, iter_clips
from modules.errors import UserError
from modules.pose.scene import Clip
from tests.conftest import make_meta, make_poses


def encode_clip(clip: Clip, rng: np.random.Generator, train: bool) -> list[Any]:
    """One item a clip: everything that a test wants to see of it."""
    return [{"key": clip.key, "start": clip.start, "noise": float(rng.random()), "frames": clip.scene.num_frames}]


def encode_people(clip: Clip, rng: np.random.Generator, train: bool) -> list[Any]:
    """One item a person, like the tokenizer's."""
    return [{"key": f"{clip.key}/{p}", "start": clip.start} for p in range(len(clip.scene.persons))]


def collate(items: list[Any]) -> dict[str, Any]:
    return {name: [item[name] for item in items] for name in items[0]} | {"tensor": torch.zeros(len(items), 2)}


def module(path: Path, encode: Any = encode_clip, **options: Any) -> PoseDataModule:
    options = {"batch_size": 4, "num_frames": 30, "shuffle_buffer": 6, **options}
    return PoseDataModule(path=str(path), columns=("pose",), encode=encode, collate=collate, **options)


def take(loader: TrainLoader, epochs: int = 1) -> list[Any]:
    return [[key for batch in loader for key in batch["key"]] for _ in range(epochs)]


def plain(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in batch.items() if name != "tensor"} for batch in batches]


def test_an_epoch_has_every_sample_once_in_full_batches(make_shards):
    data = module(make_shards(train=(3, 4)))
    loader = data.train_dataloader()
    assert len(loader) == 3
    epochs = take(loader, 4)
    for keys in epochs:
        assert Counter(keys) == Counter(f"train{i}" for i in range(12))
    assert len({tuple(keys) for keys in epochs}) == 4


def test_a_partial_batch_is_dropped_in_training(make_shards):
    loader = module(make_shards(train=(2, 5))).train_dataloader()
    for batch in [batch for _ in range(3) for batch in loader]:
        assert len(batch["key"]) == 4
    assert all(len(set(keys)) == 8 for keys in take(loader, 3))


def test_a_split_smaller_than_a_batch_fills_it(make_shards):
    loader = module(make_shards(train=(1, 3)), batch_size=8).train_dataloader()
    assert len(loader) == 1
    assert [len(batch["key"]) for _ in range(3) for batch in loader] == [8, 8, 8]


@pytest.mark.parametrize("workers", [0, 2])
def test_order_depends_on_the_seed_alone(make_shards, workers):
    path = make_shards(train=(4, 4))

    def batches(seed: int) -> list[dict[str, Any]]:
        loader = module(path, num_workers=workers, seed=seed).train_dataloader()
        return plain([batch for _ in range(2) for batch in loader])

    assert batches(1) == batches(1)
    assert batches(1) != batches(2)


def test_the_cache_changes_nothing(make_shards):
    path = make_shards(train=(3, 4))
    loaders = [module(path, cache_mb=mb).train_dataloader() for mb in (0, 100)]
    first, second = (plain([batch for _ in range(3) for batch in loader]) for loader in loaders)
    assert first == second


def test_randomness_of_a_clip_changes_with_the_pass(make_shards):
    loader = module(make_shards(train=(2, 4))).train_dataloader()
    noise = [{k: n for batch in loader for k, n in zip(batch["key"], batch["noise"], strict=True)} for _ in range(2)]
    assert noise[0].keys() == noise[1].keys()
    assert all(noise[0][key] != noise[1][key] for key in noise[0])


@pytest.mark.parametrize(
    ("workers", "encode", "stops"),
    [(0, encode_clip, (0, 1, 6, 7, 13)), (0, encode_people, (1, 6, 13)), (2, encode_people, (5,))],
)
def test_a_restart_continues_with_the_next_batch(make_shards, workers, encode, stops):
    path = make_shards(train=(4, 5))

    def loader() -> TrainLoader:
        return module(path, encode, num_workers=workers, batch_size=3).train_dataloader()

    whole = loader()
    expected = plain([batch for _ in range(4) for batch in whole])
    for stop in stops:
        before, after = loader(), loader()
        seen = plain([batch for _, batch in zip(range(stop), (b for _ in range(4) for b in before), strict=False)])
        state = json.loads(json.dumps(before.state_dict()))
        after.load_state_dict(state)
        rest = plain([batch for _ in range(4) for batch in after])
        assert seen == expected[:stop]
        assert rest[: len(expected) - stop] == expected[stop:]


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 3)])
def test_another_number_of_workers_continues_exactly(make_shards, before, after):
    path = make_shards(train=(3, 7))
    whole = module(path).train_dataloader()
    expected = plain([batch for _ in range(4) for batch in whole])
    first, second = (module(path, num_workers=n).train_dataloader() for n in (before, after))
    seen = plain([batch for _, batch in zip(range(7), (b for _ in range(2) for b in first), strict=False)])
    second.load_state_dict(first.state_dict())
    assert seen + plain([b for _ in range(2) for b in second]) == expected[:17]


def test_what_cannot_be_continued_exactly_begins_a_new_pass(make_shards, caplog):
    path = make_shards(train=(2, 8))
    first = module(path, encode_people).train_dataloader()
    take(first, 2)
    for options in ({"num_workers": 2}, {"batch_size": 8}):
        caplog.clear()
        second = module(path, encode_people, **options).train_dataloader()
        second.load_state_dict(first.state_dict())
        assert "new pass (2)" in caplog.text
        chunks = {chunk for lane in second.state_dict()["positions"] for chunk, _ in lane}
        assert chunks == ({8, 9} if "num_workers" in options else {4})


class Recorder(L.LightningModule):
    """Trains on nothing; remembers the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen: list[Any] = []

    def training_step(self, batch: dict[str, Any], index: int) -> torch.Tensor:
        self.seen.append([batch["key"], batch["start"]])
        return self.layer(batch["tensor"]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_resumes_within_an_epoch(make_shards, tmp_path):
    path = make_shards(train=(3, 4))

    def fit(steps: int, ckpt: Path | None = None) -> tuple[L.Trainer, Recorder]:
        trainer = L.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        recorder = Recorder()
        trainer.fit(recorder, module(path), ckpt_path=ckpt, weights_only=True)
        return trainer, recorder

    _, whole = fit(8)
    trainer, first = fit(4)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    _, second = fit(8, tmp_path / "mid.ckpt")
    assert first.seen + second.seen == whole.seen


def parts(path: Path, role: str, world: int, workers: int) -> list[Any]:
    """The stream of every worker of every rank."""
    result = []
    for rank in range(world):
        config = dataclasses.replace(module(path)._config(role), rank=rank, world=world)
        for worker in range(workers):
            if role == "train":
                result.append(TrainStream(config).batches(worker, workers))
            else:
                result.append(EvalStream(config).batches(worker, workers))
    return result


def test_ranks_and_workers_share_out_the_training_shards(make_shards):
    firsts = [next(part)[0]["key"] for part in parts(make_shards(train=(4, 4)), "train", world=2, workers=2)]
    assert [len(keys) for keys in firsts] == [4] * 4
    assert len({key for keys in firsts for key in keys}) == 16


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_evaluation_in_equal_numbers_of_batches(make_shards, world, workers):
    batches = [list(part) for part in parts(make_shards(val=(2, 5)), "val", world, workers)]
    by_rank = [sum(len(part) for part in batches[r * workers : (r + 1) * workers]) for r in range(world)]
    assert len(set(by_rank)) == 1
    keys = Counter(key for part in batches for batch, _ in part for key in batch["key"])
    assert keys.keys() == {f"val{i}" for i in range(10)}
    assert keys.total() == -(-10 // world) * world


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_in_order_from_frame_0(make_shards, workers):
    loader = module(make_shards(val=(2, 5)), num_workers=workers).val_dataloader()
    for _ in range(2):
        batches = list(loader)
        assert [len(batch["key"]) for batch in batches] == [4, 4, 2]
        assert len(loader) == 3
        assert [key for batch in batches for key in batch["key"]] == [f"val{i}" for i in range(10)]
        assert {start for batch in batches for start in batch["start"]} == {0}


def test_people_are_items_of_their_own(make_shards):
    data = module(make_shards(train=(2, 4), val=(1, 4)), encode_people)
    assert [key for batch in data.val_dataloader() for key in batch["key"]] == [
        "val0/0", "val1/0", "val1/1", "val2/0", "val3/0", "val3/1",
    ]  # fmt: skip
    assert all(len(keys) == 8 for keys in take(data.train_dataloader(), 4))


def test_iter_clips_is_the_split_in_order(make_shards):
    path = make_shards(val=(2, 3))
    clips = list(iter_clips(path, "val", num_frames=25))
    assert [clip.key for clip in clips] == [f"val{i}" for i in range(6)]
    assert all(clip.start == 0 and clip.scene.num_frames <= 25 and clip.scene.fps == 30 for clip in clips)
    assert [clip.caption for clip in iter_clips(path, "val", limit=2)] == ["Clip 0.", "Clip 1."]


def test_video_is_handed_over_only_when_asked_for(make_shards):
    path = make_shards(val=(1, 2), video=b"film")
    assert [clip.video for clip in iter_clips(path, "val", ("pose", "video"))] == [b"film"] * 2
    assert [clip.video for clip in iter_clips(path, "val")] == [None] * 2
    with pytest.raises(ValueError, match="unknown column 'sound', known are pose, video"):
        list(iter_clips(path, "val", ("pose", "sound")))


# Crops


def sample(poses: np.ndarray, **more: Any) -> Any:
    buffer = io.BytesIO()
    np.save(buffer, poses)
    return parse_sample({"__key__": "k", "json": json.dumps(make_meta(**more)), "pose.npy": buffer.getvalue()})


def test_random_crops_reach_every_start():
    poses = make_poses(np.random.default_rng(0), 1, 14)
    rng = np.random.default_rng(0)
    clips = [to_clip(sample(poses), num_frames=10, min_confidence=0.1, rng=rng) for _ in range(100)]
    assert {clip.start for clip in clips if clip} == {0, 1, 2, 3, 4}
    for clip in clips:
        assert clip is not None
        expected = poses[:, clip.start : clip.start + 10]
        np.testing.assert_array_equal(clip.scene.joints, expected[..., :2])
        np.testing.assert_array_equal(clip.scene.visibility, expected[..., 2] > 0.1)
        np.testing.assert_array_equal(clip.scene.times, np.arange(10) / 30)


def test_a_joint_is_seen_above_the_confidence():
    poses = make_poses(np.random.default_rng(0), 1, 5)
    poses[0, :, 0] = [30, 30, 0.1]
    poses[0, :, 1] = [30, 30, 0.11]
    clip = to_clip(sample(poses), num_frames=10, min_confidence=0.1)
    assert clip is not None
    assert not clip.scene.visibility[0, :, 0].any()
    assert clip.scene.visibility[0, :, 1].all()
    assert (clip.scene.joints[0, :, 0] == 0).all()


def test_people_never_seen_in_the_crop_are_dropped_with_their_attributes():
    poses = make_poses(np.random.default_rng(0), 3, 20)
    poses[1, :10] = 0
    actors = [{"action": name} for name in ("walk", "wave", "squat")]
    clip = to_clip(sample(poses, actors=actors), num_frames=10, min_confidence=0.1)
    assert clip is not None
    np.testing.assert_array_equal(clip.scene.joints, poses[[0, 2], :10, :, :2])
    assert [actor["action"] for actor in clip.meta["actors"]] == ["walk", "squat"]
    assert to_clip(sample(np.zeros_like(poses)), num_frames=10, min_confidence=0.1) is None


def test_one_of_several_captions_is_drawn_in_training():
    captioned = sample(make_poses(np.random.default_rng(0), 1, 5), captions=["a", "b"])
    rng = np.random.default_rng(0)
    drawn = [to_clip(captioned, num_frames=5, min_confidence=0.1, rng=rng) for _ in range(20)]
    assert {clip.caption for clip in drawn if clip} == {"a", "b"}
    first = to_clip(captioned, num_frames=5, min_confidence=0.1)
    assert first is not None
    assert first.caption == first.scene.prompt == "a"


# What is refused


def test_no_shards(make_shards, tmp_path):
    path = make_shards(train=(1, 1), val_seen=(1, 1))
    with pytest.raises(UserError, match=r"data/val-\*.tar: it has the splits train, val_seen; `make sample-data`"):
        module(path).val_dataloader()
    with pytest.raises(UserError, match="there is no such folder; `make sample-data`"):
        find_shards(tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it has no shards"):
        list(iter_clips(tmp_path / "empty", "train"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_is_one_line(make_shards, workers):
    path = make_shards(train=(1, 2), val=(1, 2))
    bad_shard(path / "train-000000.tar", fps=25)
    bad_shard(path / "val-000000.tar", fps=25)
    data = module(path, num_workers=workers)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        with pytest.raises(UserError, match=r"its fps is 25, allowed is 30; resample it: `python prepare.py") as error:
            list(loader)
        assert "\n" not in str(error.value)


def test_nobody_visible(tmp_path):
    with open_shard(tmp_path / "train-000000.tar") as tar:
        write_sample(tar, "empty", np.zeros((1, 5, 18, 3), np.float32), make_meta())
    with pytest.raises(UserError, match="no person is visible"):
        list(module(tmp_path).train_dataloader())


def bad_shard(path: Path, members: dict[str, bytes] | None = None, **meta: Any) -> None:
    """A shard that `write_sample` would not write: a good sample with other values in its json, and more files."""
    buffer = io.BytesIO()
    np.save(buffer, make_poses(np.random.default_rng(0), 1, 5))
    content = {"a.json": json.dumps(make_meta(**meta)).encode(), "a.pose.npy": buffer.getvalue()}
    with tarfile.open(path, "w") as tar:
        for name, data in {**content, **(members or {})}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.pkl": b""}, "a.pkl is a pickle, which could run code"),
        ({"b.pose.pickle": b""}, "b.pose.pickle is a pickle"),
        ({"a.PYD": b""}, "is a pickle"),
        ({"/etc/x.json": b"{}"}, "/etc/x.json points out of the archive"),
        ({"../x.json": b"{}"}, r"\.\./x.json points out of the archive"),
        ({"b/../../x.txt": b""}, "points out of the archive"),
        ({"a.pose.npy": array(np.array([{}], dtype=object))}, "pose.npy cannot be read .*not a plain array"),
        ({"a.pose.npy": b""}, "pose.npy cannot be read"),
        ({"a.pose.npy": array(np.zeros((1, 5, 18, 3), np.float32))[:-4]}, "pose.npy cannot be read"),
        ({"a.pose.npy": array(np.zeros((1, 5, 18, 3)))}, r"are float64 \(1, 5, 18, 3\), allowed is float32"),
        ({"a.pose.npy": array(np.zeros((5, 18, 3), np.float32))}, r"float32 \(5, 18, 3\), allowed is float32 \(pers"),
        ({"a.pose.npy": array(np.full((1, 5, 18, 3), np.nan, np.float32))}, "person 0, frame 0, joint 0 is not finite"),
        ({"b.json": b"{}"}, "b: has no .pose.npy"),
        ({"a.json": b"{"}, "its json cannot be read"),
        ({"a.json": b"[]"}, "its json is not an object"),
    ],
)
def test_bad_files_are_refused(tmp_path, members, message):
    path = tmp_path / "train-000000.tar"
    bad_shard(path, members)
    with pytest.raises(UserError, match=message) as error:
        [record.sample() for record in read_shard(str(path))]
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"fps": 29.97}, "its fps is 29.97, allowed is 30"),
        ({"caption": ""}, "has no caption"),
        ({"captions": []}, "has no caption"),
        ({"captions": ["a", 3]}, "has no caption"),
        ({"width": 0}, "its width is 0"),
        ({"height": "64"}, "its height is '64'"),
        ({"num_frames": 6}, "has 5 frames of poses, num_frames is 6"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, meta, message):
    path = tmp_path / "train-000000.tar"
    bad_shard(path, **meta)
    with pytest.raises(UserError, match=message):
        [record.sample() for record in read_shard(str(path))]


def test_damaged_archives_are_refused(make_shards, tmp_path):
    path = make_shards(train=(1, 3)) / "train-000000.tar"
    data = path.read_bytes()
    for content in (data[: len(data) // 2], b"no archive at all" * 100, b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"train-000000.tar .*; write this shard again"):
            list(read_shard(str(path)))
    double = tmp_path / "double.tar"
    with open_shard(double) as tar:
        for _ in range(2):
            write_sample(tar, "same", make_poses(np.random.default_rng(0), 1, 5), make_meta())
    with pytest.raises(UserError, match="duplicate file name"):
        list(read_shard(str(double)))


def test_the_writer_refuses_what_the_reader_would(tmp_path):
    poses = make_poses(np.random.default_rng(0), 1, 5)
    path = tmp_path / "train-000000.tar"
    with pytest.raises(UserError, match="letters, digits"), open_shard(path) as tar:
        write_sample(tar, "a.b", poses, make_meta())
    with pytest.raises(UserError, match="float64"), open_shard(path) as tar:
        write_sample(tar, "a", poses.astype(np.float64), make_meta())
    assert not list(tmp_path.iterdir())


def test_shards_are_written_reproducibly(make_shards):
    first, second = make_shards("one"), make_shards("two")
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes()


# Real data


def test_real_motion_is_read_unchanged(shared_dir):
    path = shared_dir / "data" / "cmu"
    clips = list(iter_clips(path, "val", num_frames=240))
    assert len(clips) == 228
    assert {len(clip.scene.persons) for clip in clips} == {1}
    lengths = [clip.scene.num_frames for clip in clips]
    assert min(lengths) >= 60
    assert 200 < max(lengths) <= 240
    assert all(clip.caption == clip.meta["caption"] and clip.label for clip in clips)
    loader = module(path, batch_size=64, num_frames=200).train_dataloader()
    batch = next(iter(loader))
    assert len(batch["key"]) == 64
    assert max(batch["frames"]) == 200
    assert len(loader) == 1796 // 64


def write_subjects(folder: Path, subjects: list[int]) -> Path:
    for shard in range(2):
        with open_shard(folder / f"train-{shard:06d}.tar") as tar:
            for i in range(shard, len(subjects), 2):
                meta = make_meta(f"Clip {i}.", subject=subjects[i])
                write_sample(tar, f"clip{i}", make_poses(np.random.default_rng(i), 1, 20), meta)
    return folder


def test_folds_hold_whole_subjects_aside(tmp_path):
    subjects = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4]
    path = write_subjects(tmp_path / "data", subjects)
    of_clip = {f"clip{i}": subject for i, subject in enumerate(subjects)}
    held_ever: list[str] = []
    for fold in range(3):
        data = module(path, batch_size=1, group="subject", folds=3, fold=fold)
        [trained] = take(data.train_dataloader())
        held = [key for batch in data.val_dataloader() for key in batch["key"]]
        assert sorted(trained + held) == sorted(of_clip)
        assert not {of_clip[key] for key in trained} & {of_clip[key] for key in held}
        assert len(data.train_dataloader()) == len(trained)
        held_ever += held
    assert sorted(held_ever) == sorted(of_clip)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "subject", "folds": 9}, "2 different values of 'subject'"),
        ({"group": "age", "folds": 2}, "has no 'age'"),
    ],
)
def test_folds_that_cannot_be_dealt(tmp_path, options, message):
    path = write_subjects(tmp_path / "data", [0, 0, 1, 1])
    with pytest.raises(UserError, match=message):
        module(path, **options).train_dataloader()
