"""What can be wrong with shards, made on purpose: an error that names shard and key, or counted and left out."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from callbacks.bad_samples import BadSamples
from datamodules.remote import _cache_folder
from datamodules.sample import open_shard, write_sample
from datamodules.shards import find_shards, index_shard, read_shard
from modules.errors import UserError
from tests.conftest import make_meta, make_poses
from tests.unit.test_datamodule import module, take

GOOD = make_poses(np.random.default_rng(0), 1, 12)


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def meta(**more: Any) -> bytes:
    return json.dumps(make_meta(**more)).encode()


def write_tar(
    path: Path, members: list[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] | None = None
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            tar.addfile(info, io.BytesIO(data))


def huge_header(length: int) -> bytes:
    """An npy file of version 2 that announces a header of so many bytes."""
    return b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b"{}"


# Faults of one sample: name, its files, what the error says. They may be left out up to a share.
SAMPLE_FAULTS: list[tuple[str, dict[str, bytes], str]] = [
    ("dtype", {"pose.npy": npy(GOOD.astype(np.float64))}, r"are float64 .*allowed is float32"),
    ("shape", {"pose.npy": npy(GOOD[0])}, r"float32 \(12, 18, 3\), allowed is"),
    ("joints", {"pose.npy": npy(GOOD[:, :, :17])}, r"\(1, 12, 17, 3\), allowed is"),
    ("zero persons", {"pose.npy": npy(GOOD[:0])}, r"\(0, 12, 18, 3\), allowed is"),
    ("zero frames", {"pose.npy": npy(GOOD[:, :0])}, r"\(1, 0, 18, 3\), allowed is"),
    ("nan", {"pose.npy": npy(np.where(GOOD.max() == GOOD, np.nan, GOOD))}, "is not finite"),
    ("infinite", {"pose.npy": npy(np.where(GOOD.max() == GOOD, np.inf, GOOD))}, "is not finite"),
    ("object array", {"pose.npy": npy(np.array([{}], dtype=object))}, "not a plain array"),
    ("cut array", {"pose.npy": npy(GOOD)[:-100]}, "pose.npy cannot be read"),
    ("empty array", {"pose.npy": b""}, "pose.npy cannot be read"),
    ("npy header of 10 GB", {"pose.npy": huge_header(2**32 - 1)}, "not version 1.0"),
    ("not an array", {"pose.npy": b"\0" * 4000}, "pose.npy cannot be read"),
    ("no poses", {"pose.npy": b"-"}, "has no .pose.npy"),
    ("no json", {"json": b"-"}, "has no .json"),
    ("missing caption", {"json": meta(caption="")}, "has no caption"),
    ("bad UTF-8", {"json": meta(caption="x").replace(b'"x"', b'"caf\xe9"')}, "its json cannot be read .*utf-8"),
    ("cut json", {"json": meta()[:40]}, "its json cannot be read"),
    ("deep json", {"json": b"[" * 100_000}, "its json cannot be read"),
    ("json list", {"json": b"[]"}, "its json is not an object"),
    ("fps", {"json": meta(fps=25)}, "its fps is 25, allowed is 30"),
    ("width", {"json": meta(width=-3)}, "its width is -3"),
    ("num_frames", {"json": meta(num_frames=99)}, "has 12 frames of poses, num_frames is 99"),
]


def shard_with(path: Path, files: dict[str, bytes], good: int = 0) -> None:
    """A shard with the faulty sample "bad" and good ones."""
    content = {"json": meta(), "pose.npy": npy(GOOD), **files}
    members = [(f"bad.{ending}", data) for ending, data in content.items() if data != b"-"]
    for i in range(good):
        members += [(f"good{i}.json", meta()), (f"good{i}.pose.npy", npy(GOOD))]
    write_tar(path, members)


@pytest.mark.parametrize(("files", "message"), [f[1:] for f in SAMPLE_FAULTS], ids=[f[0] for f in SAMPLE_FAULTS])
def test_a_faulty_sample(tmp_path, files, message, caplog):
    path = tmp_path / "train-000000.tar"
    shard_with(path, files)
    with pytest.raises(UserError, match=message) as error:
        [record.sample() for record in read_shard(str(path))]
    assert f"{path}: bad: " in str(error.value)
    assert "\n" not in str(error.value)

    # One in 101 with a limit of 2 %: left out, counted, and named in the log.
    shard_with(path, files, good=100)
    data = module(tmp_path, max_bad_fraction=0.02, batch_size=10)
    loader = data.train_dataloader()
    keys = [key for _ in range(2) for batch in loader for key in batch["key"]]
    assert set(keys) <= {f"good{i}" for i in range(100)}
    assert data.bad_samples == 1
    assert f"damaged sample left out (1 so far): {path}: bad: " in caplog.text
    with pytest.raises(UserError, match=message):
        list(module(tmp_path, max_bad_fraction=0, batch_size=10).train_dataloader())


def as_link(info: tarfile.TarInfo) -> None:
    info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


def claim(size: int) -> Callable[[bytes], bytes]:
    """Changes the size in the first header of a tar, with a valid checksum."""

    def change(data: bytes) -> bytes:
        info = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict")
        info.size = size
        return info.tobuf(tarfile.GNU_FORMAT) + data[512:]

    return change


def flip(position: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


# Faults of a shard: name, more members, a change of the bytes, what the error says. They always stop.
SHARD_FAULTS: list[tuple[str, list[tuple[str, bytes]], Callable[[bytes], bytes] | None, str]] = [
    ("truncated in a file", [], lambda data: data[:3000], "cannot be read as a tar file|cut off"),
    ("truncated between files", [], lambda data: data[:1024], "cut off or damaged at byte 1024"),
    ("no end", [], lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512), "cut off or damaged"),
    ("damaged header", [], flip(1024 + 150), "cut off or damaged at byte 1024"),
    ("not a tar", [], lambda data: b"no archive at all" * 100, "cannot be read as a tar file"),
    ("empty file", [], lambda data: b"", "cannot be read as a tar file"),
    ("a header that claims 10 GB", [], claim(10 * 2**30), "cannot be read as a tar file"),
    ("a negative size", [], claim(-1), "cannot be read as a tar file|cut off"),
    ("duplicate key", [("bad.json", meta()), ("bad.pose.npy", npy(GOOD))], None, r"bad.json comes twice"),
    ("a pickle", [("bad.pkl", b"")], None, "bad.pkl is a pickle, which could run code"),
    ("a pickle in disguise", [("bad.pose.PT", b"")], None, "is a pickle"),
    ("absolute path", [("/etc/x.json", b"{}")], None, "/etc/x.json points out of the archive"),
    ("path upwards", [("a/../../x.json", b"{}")], None, "points out of the archive"),
    ("path of another system", [("C:\\x.json", b"{}")], None, "points out of the archive"),
    ("name that is not UTF-8", [("caf\udce9.json", b"{}")], None, "is not UTF-8"),
]


@pytest.mark.parametrize(
    ("members", "change", "message"), [f[1:] for f in SHARD_FAULTS], ids=[f[0] for f in SHARD_FAULTS]
)
def test_a_faulty_shard(tmp_path, members, change, message):
    path = tmp_path / "train-000000.tar"
    write_tar(path, [("bad.json", meta()), ("bad.pose.npy", npy(GOOD)), *members])
    if change:
        path.write_bytes(change(path.read_bytes()))
    for read in (lambda: list(read_shard(str(path))), lambda: module(tmp_path).train_dataloader()):
        with pytest.raises(UserError, match=message) as error:
            read()
        assert str(path) in str(error.value)


def test_a_link_is_no_file(tmp_path):
    path = tmp_path / "train-000000.tar"
    write_tar(path, [("bad.json", meta()), ("bad.pose.npy", b"")], as_link)
    with pytest.raises(UserError, match="is not a plain file"):
        index_shard(str(path))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_in_the_middle_of_an_epoch(make_shards, workers):
    path = make_shards(train=(80, 3))  # more than are kept open: an open file is read on
    data = module(path, num_workers=workers, cache_mb=0, max_bad_fraction=0.03, batch_size=10, shuffle_buffer=300)
    loader = data.train_dataloader()
    stream = iter(loader)
    next(stream)
    (path / "train-000007.tar").unlink()  # 3 of 240: below the limit
    keys = [key for _ in range(3) for batch in loader for key in batch["key"]]
    assert len(keys) == 720
    assert data.bad_samples <= 3
    for i in range(10, 80):
        (path / f"train-{i:06d}.tar").unlink()
    with pytest.raises(UserError, match=r"of 240 samples are damaged, more than .*train-\d+.tar: train\d+: cannot be"):
        [batch for _ in range(3) for batch in loader]


def test_too_many_damaged_samples_stop_with_a_summary(tmp_path):
    with open_shard(tmp_path / "train-000000.tar") as tar:
        for i in range(200):
            write_sample(tar, f"s{i}", GOOD, make_meta())
    data = bytearray((tmp_path / "train-000000.tar").read_bytes())
    for i in range(0, 200, 25):  # 8 of 200
        place = data.index(b"NUMPY", data.index(f"s{i}.pose.npy".encode()))
        data[place : place + 5] = b"nummy"
    (tmp_path / "train-000000.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"6 of 200 samples are damaged, more than .*s\d+: .*; and 3 more$"):
        list(module(tmp_path, max_bad_fraction=0.025, batch_size=10).train_dataloader())
    assert len(list(module(tmp_path, max_bad_fraction=0.05, batch_size=10).train_dataloader())) == 20


def test_damaged_samples_of_the_validation_are_left_out_too(tmp_path):
    shard_with(tmp_path / "val-000000.tar", {"pose.npy": b""}, good=59)
    data = module(tmp_path, max_bad_fraction=0.02, batch_size=20)
    batches = list(data.val_dataloader())
    assert sum(len(batch["key"]) for batch in batches) == 59
    assert data.bad_samples == 1


def test_the_number_of_damaged_samples_is_logged():
    class Module:
        logged: dict[str, float] = {}

        def log(self, name: str, value: float, **options: Any) -> None:
            self.logged[name] = value

    class Trainer:
        class datamodule:  # noqa: N801  # an attribute of the trainer
            bad_samples = 3

    BadSamples().on_train_batch_end(Trainer(), Module(), None, None, 0)  # type: ignore[arg-type]
    assert Module.logged == {"data/bad_samples": 3.0}


# Parallel tars


def parallel(folder: Path, keys: dict[str, list[str]]) -> Path:
    """`pose-`, `caption-` and `video-000000.tar` with the keys."""
    files = {"pose": ("pose.npy", npy(GOOD)), "caption": ("json", meta()), "video": ("mp4", b"film")}
    for column, names in keys.items():
        ending, data = files[column]
        write_tar(folder / "train" / f"{column}-000000.tar", [(f"{name}.{ending}", data) for name in names])
    return folder


def test_parallel_tars_are_read_as_one(tmp_path):
    path = parallel(tmp_path, {"pose": ["a", "b"], "caption": ["b", "a"], "video": ["a", "b"]})
    (shard,) = find_shards(path, "train")
    assert [r.sample().video for r in read_shard(shard, ("pose", "video"))] == [b"film"] * 2
    (path / "train" / "video-000000.tar").write_bytes(b"never read")
    assert [r.sample().key for r in read_shard(shard)] == ["a", "b"]
    assert sorted(k for b in module(path, batch_size=1).train_dataloader() for k in b["key"]) == ["a", "b"]


def test_keys_that_do_not_match_are_named(tmp_path):
    path = parallel(tmp_path, {"pose": ["a", "b"], "caption": ["a"], "video": ["a", "b", "c"]})
    (shard,) = find_shards(path, "train")
    with pytest.raises(UserError, match=r"caption-000000.tar: has no b, which is in .*pose-000000.tar"):
        index_shard(shard)
    write_tar(path / "train" / "caption-000000.tar", [(f"{k}.json", meta()) for k in "ab"])
    with pytest.raises(UserError, match=r"pose-000000.tar: has no c, which is in .*video-000000.tar"):
        index_shard(shard, ("pose", "video"))
    (path / "train" / "caption-000000.tar").unlink()
    with pytest.raises(UserError, match=r"caption-000000.tar cannot be read"):
        index_shard(shard)


# Names


def test_patterns_and_addresses(make_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("DIRECTOR_CACHE", str(tmp_path / "cache"))
    path = make_shards("set", train=(4, 2))
    make_shards("second", train=(1, 2))
    names = [Path(s).name for s in find_shards(path, "train-{000001..000002}.tar")]
    assert names == ["train-000001.tar", "train-000002.tar"]
    assert len(find_shards(path, "train-*[13].tar")) == 2
    assert len(find_shards(f"{tmp_path}/{{set,second}}", "train")) == 5
    assert len(find_shards(f"{tmp_path}/se*", "train")) == 5
    piped = find_shards(path, f"pipe:cat {path}/train-00000{{0..1}}.tar")
    assert [r.key for shard in piped for r in read_shard(shard)] == [f"train{i}" for i in range(4)]
    with pytest.raises(UserError, match="failed with exit status"):
        index_shard("pipe:false")
    remote = find_shards(f"file://{path}", "train")
    assert len(remote) == 4
    assert [r.key for r in read_shard(remote[0])] == ["train0", "train1"]
    with pytest.raises(UserError, match=r"nosuch://bucket/.* cannot be reached"):
        find_shards("nosuch://bucket", "train")


class Bucket(MemoryFileSystem):
    """What s3fs is to fsspec: another protocol, names without it, errors of its own."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("s3://"))

    def glob(self, path: str, **options: Any) -> list[str]:
        if "/nowhere/" in path:
            raise ConnectionError("Could not connect to the endpoint URL")
        return [name.lstrip("/") for name in super().glob(path, **options)]


def test_object_stores(make_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("DIRECTOR_CACHE", str(tmp_path / "cache"))
    _cache_folder.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", lambda protocol: {"s3": Bucket}[protocol]())
    path = make_shards("set", train=(2, 2), val=(1, 2))
    for shard in path.glob("*.tar"):
        Bucket().pipe(f"s3://bucket/set/{shard.name}", shard.read_bytes())
    shards = find_shards("s3://bucket/set", "train")
    assert shards == [f"s3://bucket/set/train-00000{i}.tar" for i in range(2)]
    assert find_shards("s3://bucket/set", "train-{000000..000001}.tar") == shards
    assert take(module("s3://bucket/set").train_dataloader()) == take(module(path).train_dataloader())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"s3://bucket/set/train-000007.tar cannot be copied .*check the address"):
        list(read_shard("s3://bucket/set/train-000007.tar"))
    with pytest.raises(UserError, match=r"s3://nowhere/set/train-\*.tar cannot be listed \(Could not connect"):
        find_shards("s3://nowhere/set", "train")
    _cache_folder.cache_clear()


def test_the_tables_of_faults_are_true():
    text = (Path(__file__).parents[2] / "docs" / "DATA.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))
    faults = [(name, message) for name, _, message in SAMPLE_FAULTS]
    faults += [(name, message) for name, _, _, message in SHARD_FAULTS]
    for name, message in [*faults, ("link", "is not a plain file")]:
        assert re.search(message, rows[name]), name
    assert len(faults) > 30
