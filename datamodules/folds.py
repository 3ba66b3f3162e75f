"""Holding groups of the training split aside: cross-validation by subject, by recording, by any field of the metadata.

With folds, "validation" is a part of the training split, and a real validation split stays untouched until the end.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datamodules.shards import find_shards, read_shard
from modules.errors import UserError

Select = Callable[[str], bool]  # key of a sample -> is it read?


@dataclass(frozen=True)
class Folds:
    """Which part of the training split validates.

    Groups (samples with the same value of `group` in their json) are dealt into `folds` parts of about the same number
    of samples, and part `fold` is held aside; `folds` 0 holds nothing aside.
    """

    group: str = ""
    folds: int = 0
    fold: int = 0

    def held_aside(self, shards: Sequence[str]) -> frozenset[str]:
        """Keys of the samples of the part.

        Raises:
            UserError: a sample without the field, or fewer groups than folds.
        """
        groups = read_groups(shards, self.group)
        if len(groups) < self.folds:
            raise UserError(
                f"data.folds is {self.folds}, but the training split has {len(groups)} different values of "
                f"'{self.group}'; lower data.folds"
            )
        parts: list[list[str]] = [[] for _ in range(self.folds)]
        for _, keys in sorted(groups.items(), key=lambda entry: (-len(entry[1]), entry[0])):
            min(parts, key=len).extend(keys)
        return frozenset(parts[self.fold])


def read_groups(shards: Sequence[str], group: str) -> dict[str, list[str]]:
    """Value of the field `group`, as JSON text -> keys of its samples.

    Raises:
        UserError: a sample without the field, or a damaged one.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for shard in shards:
        for record in read_shard(shard):
            meta = record.sample().meta
            if group not in meta:
                raise UserError(f"{shard}: {record.key}: its json has no '{group}', by which data.group divides")
            groups[json.dumps(meta[group])].append(record.key)
    return groups


def open_split(
    path: str, split: str, *, train_split: str, val_split: str, folds: Folds | None
) -> tuple[list[str], Select | None]:
    """Shards of a split, and which of their samples belong to it; None: all.

    With folds, the validation split is the part of the training split that is held aside, and the training split is
    the rest of it.

    Raises:
        UserError: no such shards, or the groups cannot be dealt out.
    """
    if folds is None or folds.folds == 0 or split not in (train_split, val_split):
        return find_shards(path, split), None
    shards = find_shards(path, train_split)
    held = folds.held_aside(shards)
    return shards, held.__contains__ if split == val_split else lambda key: key not in held
