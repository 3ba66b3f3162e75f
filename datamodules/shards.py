"""Finding, counting and reading shards. Nothing in a shard is trusted: no pickles, no paths out of the archive."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from datamodules.sample import Sample, parse_sample, suffixes
from modules.errors import UserError

_PICKLES = {"pickle", "pkl", "pyd", "pth", "pt", "joblib", "dill"}


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
    """Shards `{split}-*.tar` of a folder, in order.

    Raises:
        UserError: there are none; names the splits that are there.
    """
    path = Path(path)
    shards = sorted(str(shard) for shard in path.glob(f"{split}-*.tar"))
    if not shards:
        splits = sorted({shard.name.rsplit("-", 1)[0] for shard in path.glob("*-*.tar")})
        found = f"it has the splits {', '.join(splits)}" if splits else "it has no shards"
        if not path.is_dir():
            found = "there is no such folder"
        raise UserError(
            f"no shards {path / split}-*.tar: {found}; `make sample-data` makes data/sample, "
            "`python prepare.py` makes shards from your own videos"
        )
    return shards


def count_samples(shards: Sequence[str], select: Callable[[str], bool] | None = None) -> int:
    """Number of samples, from the manifest of the folder where it has them, else from the headers of the archives.

    Args:
        select: count only samples of these keys; None: all.
    """
    count = 0
    folders = {Path(shard).parent for shard in shards}
    known = {folder: _manifest(folder) if select is None else {} for folder in folders}
    for shard in shards:
        if isinstance(number := known[Path(shard).parent].get(Path(shard).name), int):
            count += number
            continue
        keys = set()
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    if member.isreg():
                        keys.add(base_plus_ext(member.name)[0])
        except (tarfile.TarError, OSError) as error:
            raise _damaged(shard, error) from error
        keys.discard(None)
        count += len(keys) if select is None else sum(map(select, keys))
    return count


def _manifest(folder: Path) -> dict[str, Any]:
    """Samples by shard, as the writers of shards leave them in `manifest.json`."""
    try:
        shards = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return shards if isinstance(shards, dict) else {}


def _damaged(shard: str, error: Exception) -> UserError:
    return UserError(f"{shard} cannot be read as a tar file ({error}); write this shard again")


def _refuse(name: str) -> str | None:
    """Why a member of a shard is refused, or None."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name):
        return "points out of the archive"
    if set(parts[-1].lower().split(".")[1:]) & _PICKLES if parts else False:
        return "is a pickle, which could run code"
    return None


def read_shard(shard: str, columns: Sequence[str] = ("pose",)) -> Iterator[Record]:
    """The samples of a shard in order, with the files of `columns` alone.

    Raises:
        UserError: a damaged archive, a key that comes twice, a pickle, a path out of the archive, no sample at all.
    """
    wanted = suffixes(columns)

    def select(name: str) -> bool:
        # What is refused must come through here, or it would be left out in silence.
        return base_plus_ext(name)[1] in wanted or _refuse(name) is not None

    def members(file: Any) -> Iterator[dict[str, Any]]:
        for member in tar_file_iterator(file, select_files=select):
            reason = _refuse(member["fname"])
            if reason:
                raise UserError(f"{shard}: {member['fname']} {reason}; make the shard again without it")
            yield {**member, "__url__": shard}

    empty = True
    try:
        with open(shard, "rb") as file:
            for raw in group_by_keys(members(file)):
                empty = False
                yield Record(raw, columns)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{shard}: {error.args[0]}; write this shard again") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise _damaged(shard, error) from error
    if empty:
        raise UserError(f"{shard} has no sample with .{wanted[1]}; write this shard again")


class ShardReader:
    """Reads shards, and keeps the decoded samples of as many of them as fit in memory.

    Args:
        columns: see `datamodules.sample`.
        cache_mb: memory for samples in MB (of every worker process), 0 for none.
        select: only samples of these keys; None: all.
    """

    def __init__(
        self, columns: Sequence[str], cache_mb: int, select: Callable[[str], bool] | None = None
    ) -> None:
        self.columns = tuple(columns)
        self.select = select
        self._left = cache_mb * 2**20
        self._cache: dict[str, list[Record]] = {}

    def __call__(self, shard: str) -> Iterator[Record]:
        if shard in self._cache:
            yield from self._cache[shard]
            return
        kept: list[Record] = []
        size = 0
        for record in read_shard(shard, self.columns):
            if self.select is not None and not self.select(record.key):
                continue
            size += record.size
            if size <= self._left:
                kept.append(record)
            else:
                kept.clear()
            yield record
        # Only whole shards are kept: a part of one would not save the reading.
        if size <= self._left:
            self._left -= size
            self._cache[shard] = kept
