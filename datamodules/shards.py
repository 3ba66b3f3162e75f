"""Finding and reading shards. Nothing in a shard is trusted: no pickles, no paths out of the archive.

The files of a sample lie in one tar, `{split}-000000.tar`, or in parallel tars with the same keys: `pose-000000.tar`,
`caption-000000.tar` (the json) and, where there are videos, `video-000000.tar`, in a folder named like the split.
Only headers are read to find the samples; the files of a column that is not asked for are never read.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from webdataset.tariterators import base_plus_ext

from datamodules.remote import expand, is_remote, local_copy
from datamodules.sample import COLUMNS, META, Sample, parse_sample, suffixes
from modules.errors import UserError

_PICKLES = {"pickle", "pkl", "pyd", "pth", "pt", "joblib", "dill"}
_OPEN_FILES = 64  # of each process
_BLOCK = 512  # of a tar file
_NEAR = 8192  # bytes between two files of a sample that are read rather than skipped
# Parallel tars: what the name of each begins with, and the ending of the files in it.
_PARALLEL = {"pose": COLUMNS["pose"], "caption": META, "video": COLUMNS["video"]}


class Record:
    """A sample as it is in its shard; decoded when it is first asked for."""

    def __init__(self, raw: dict[str, Any], columns: Sequence[str]) -> None:
        self.key: str = raw["__key__"]
        self.size = sum(len(data) for data in raw.values() if isinstance(data, bytes))
        self._raw: dict[str, Any] | None = raw
        self._columns = columns
        self._sample: Sample | None = None

    def sample(self) -> Sample:
        """The checked sample.

        Raises:
            UserError: the sample does not follow the schema.
        """
        if self._sample is None:
            assert self._raw is not None
            self._sample = parse_sample(self._raw, self._columns)
            self._raw = None
        return self._sample


def find_shards(path: str | Path, split: str) -> list[str]:
    """Shards of a split in order; of parallel tars, those of the poses.

    Args:
        path: a folder, a pattern of folders with braces or wildcards, or a remote folder (`s3://bucket/data`).
        split: a name, for shards `{split}-*.tar` or `{split}/pose-*.tar`; or a pattern of tar files, with braces or
            wildcards, relative to the folder: `train-{000000..000009}.tar`; or a command: `pipe:cat train.tar`.

    Raises:
        UserError: there are none; names the splits that are there.
    """
    if split.startswith("pipe:"):
        return expand(split)
    shards: list[str] = []
    folders = expand(str(path))
    for folder in folders:
        patterns = [split] if split.endswith(".tar") else [f"{split}-*.tar", f"{split}/pose-*.tar"]
        for pattern in patterns:
            shards += expand(f"{folder.rstrip('/')}/{pattern}" if folder else pattern)
    if not shards:
        local = [Path(folder) for folder in folders if not is_remote(folder)]
        names = [shard.name.rsplit("-", 1)[0] for folder in local for shard in folder.glob("*-*.tar")]
        names += [shard.parent.name for folder in local for shard in folder.glob("*/pose-*.tar")]
        splits = sorted({name for name in names if not name.startswith(".")})
        found = f"it has the splits {', '.join(splits)}" if splits else "it has no shards"
        if local and not any(folder.is_dir() for folder in local):
            found = "there is no such folder"
        raise UserError(
            f"no shards {path}/{split}-*.tar: {found}; `make sample-data` makes data/sample, "
            "`python prepare.py` makes shards from your own videos"
        )
    return shards


def columns_of(shard: str) -> dict[str, str]:
    """The tars of a shard by the beginning of their names ("" for one tar with all files)."""
    head, slash, name = shard.rpartition("/")
    if shard.startswith("pipe:") or not name.startswith("pose-"):
        return {"": shard}
    return {column: f"{head}{slash}{column}-{name.removeprefix('pose-')}" for column in _PARALLEL}


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the samples of a shard are."""

    shard: str
    files: list[str]  # local paths of its tars
    keys: list[str]
    # For each sample and each wanted ending: number of the tar, first byte, length; -1 where there is no such file.
    places: np.ndarray  # (n, S, 3) int64


def index_shard(shard: str, columns: Sequence[str] = ("pose",)) -> ShardIndex:
    """Finds the samples of a shard by the headers of its tars.

    Raises:
        UserError: a damaged archive, a key that comes twice, a pickle, a path out of the archive, no sample at all, or
            parallel tars whose keys differ.
    """
    wanted = suffixes(columns)
    tars = {c: tar for c, tar in columns_of(shard).items() if not c or _PARALLEL[c] in wanted}
    found: dict[str, np.ndarray] = {}
    files: list[str] = []
    first: set[str] = set()
    for column, tar in tars.items():
        local = local_copy(tar)
        endings = [_PARALLEL[column]] if column else wanted
        here: set[str] = set()
        for key, ending, offset, size in _members(tar, local):
            if ending not in endings:
                continue
            row = found.setdefault(key, np.full((len(wanted), 3), -1, np.int64))
            place = wanted.index(ending)
            if row[place, 0] >= 0:
                raise UserError(f"{tar}: {key}.{ending} comes twice (duplicate file name); write this shard again")
            row[place] = len(files), offset, size
            here.add(key)
        first = first if files else here
        if here != first:
            key = min(here ^ first)
            lacking, other = (tar, shard) if key not in here else (shard, tar)
            raise UserError(f"{lacking}: has no {key}, which is in {other}; parallel tars must have the same keys")
        files.append(local)
    if not found:
        raise UserError(f"{shard} has no sample with .{wanted[1]}; write this shard again")
    return ShardIndex(shard, files, list(found), np.stack(list(found.values())))


def _members(tar: str, path: str) -> Iterator[tuple[str, str, int, int]]:
    """(key, ending, first byte, length) of the files in a tar that have a key."""
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                reason = _refuse(member)
                if reason:
                    name = member.name.encode("utf-8", "backslashreplace").decode()
                    raise UserError(f"{tar}: {name} {reason}; make the shard again without it")
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else archive.offset
                key, ending = base_plus_ext(member.name)
                if key and ending and member.isreg():
                    yield key, ending, member.offset_data, member.size
        with open(path, "rb") as file:
            # tarfile takes a damaged header for the end.
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise UserError(f"{tar}: is cut off or damaged at byte {end}; write this shard again")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{tar} cannot be read as a tar file ({error}); write this shard again") from error


def _refuse(member: tarfile.TarInfo) -> str | None:
    """Why a member of a shard is refused, or None."""
    name = member.name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
        return "points out of the archive"
    if set(parts[-1].lower().split(".")[1:]) & _PICKLES if parts else False:
        return "is a pickle, which could run code"
    if not (member.isreg() or member.isdir()):
        return "is not a plain file"
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        return "has a name that is not UTF-8"
    return None


class Files:
    """Files of which parts are read, the last few of them kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of a file.

        Raises:
            OSError: the file is gone, or shorter than that.
        """
        if path not in self._open:
            self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        data = os.pread(self._open[path], size, offset)
        if len(data) != size:
            raise OSError(f"ends at byte {offset + len(data)}, the sample needs {offset + size}")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {"_open": OrderedDict()}  # another process opens its own

    def __del__(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def read_raw(files: Files, index: ShardIndex, number: int, columns: Sequence[str]) -> dict[str, Any]:
    """The files of a sample by their endings, with `__key__` and `__url__`.

    Raises:
        UserError: the shard is gone or was cut off since it was indexed.
    """
    places, wanted = index.places[number], suffixes(columns)
    raw: dict[str, Any] = {"__key__": index.keys[number], "__url__": index.shard}
    try:
        for file in {int(f) for f in places[:, 0]} - {-1}:
            rows: list[int] = np.flatnonzero(places[:, 0] == file).tolist()
            start = places[rows, 1].min()
            stop = (places[rows, 1] + places[rows, 2]).max()
            if stop - start <= places[rows, 2].sum() + _NEAR:  # side by side: one call
                data = files.read(index.files[file], int(start), int(stop - start))
                for row in rows:
                    first = int(places[row, 1] - start)
                    raw[wanted[row]] = data[first : first + int(places[row, 2])]
            else:
                for row in rows:
                    raw[wanted[row]] = files.read(index.files[file], int(places[row, 1]), int(places[row, 2]))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{index.shard}: {index.keys[number]}: cannot be read ({reason}); did the shard change during the run?"
        ) from error
    return raw


def read_shard(
    shard: str, columns: Sequence[str] = ("pose",), select: Callable[[str], bool] | None = None
) -> Iterator[Record]:
    """The samples of a shard in order, with the files of `columns` alone.

    Args:
        select: which keys to read; None: all.

    Raises:
        UserError: as `index_shard`.
    """
    index, files = index_shard(shard, columns), Files()
    for number, key in enumerate(index.keys):
        if select is None or select(key):
            yield Record(read_raw(files, index, number, columns), columns)


class Samples:
    """All samples of some shards by number; decoded ones are kept as far as they fit in memory.

    Args:
        shards: see `find_shards`.
        columns: see `datamodules.sample`.
        cache_mb: memory for samples in MB (of every process), 0 for none.
        select: which keys are samples of this set; None: all.

    Raises:
        UserError: as `index_shard`, or nothing is kept.
    """

    def __init__(
        self,
        shards: Sequence[str],
        columns: Sequence[str],
        cache_mb: int = 0,
        select: Callable[[str], bool] | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self._files = Files()
        self._left = cache_mb * 2**20
        self._cache: dict[int, Record] = {}
        self._indexes = [index_shard(shard, columns) for shard in shards]
        sizes = [len(index.keys) for index in self._indexes]
        self._shard = np.repeat(np.arange(len(sizes)), sizes)  # of each sample
        self._number = np.concatenate([np.arange(size) for size in sizes])  # of each sample within its shard
        if select is not None:
            chosen = np.array([select(key) for index in self._indexes for key in index.keys], bool)
            self._shard, self._number = self._shard[chosen], self._number[chosen]
            if not chosen.any():
                raise UserError(f"no sample of {shards[0]} and the other shards is chosen; check data.*")

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each shard."""
        return np.bincount(self._shard, minlength=len(self._indexes)).tolist()

    def name(self, number: int) -> str:
        """Shard and key of a sample, for messages."""
        index = self._indexes[int(self._shard[number])]
        return f"{index.shard}: {index.keys[int(self._number[number])]}"

    def __getitem__(self, number: int) -> Record:
        if number in self._cache:
            return self._cache[number]
        record = self._read(number)
        if record.size <= self._left:
            self._left -= record.size
            self._cache[number] = record
        return record

    def _read(self, number: int) -> Record:
        index = self._indexes[int(self._shard[number])]
        return Record(read_raw(self._files, index, int(self._number[number]), self.columns), self.columns)
