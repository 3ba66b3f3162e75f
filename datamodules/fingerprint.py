"""What identifies the data of a run: resuming with other data is noticed."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.remote import is_remote
from datamodules.shards import columns_of, find_shards
from modules.errors import UserError


def data_fingerprint(splits: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Size and, from the manifest of their folder, hash of all shards.

    Both are compared: a shard may be newer than the manifest. A remote shard counts by its address.

    Args:
        splits: folder and split.
    """
    several = len({folder for folder, _ in splits}) > 1
    found: dict[str, str] = {}
    for folder, split in splits:
        try:
            shards = find_shards(folder, split)
        except UserError:  # whoever reads it will say so
            continue
        for tar in (tar for shard in shards for tar in columns_of(shard).values()):
            path = Path(tar)
            if is_remote(tar):
                found[tar] = "remote"
            elif path.is_file():
                name = tar if several else path.relative_to(folder).as_posix() if path.is_relative_to(folder) else tar
                hashes = _hashes(Path(folder))
                digest = hashes.get(path.name, hashes.get(f"{path.parent.name}/{path.name}", ""))[:16]
                found[name] = f"{path.stat().st_size} bytes {digest}".strip()
    _hashes.cache_clear()
    return {"shards": found}


@functools.lru_cache
def _hashes(folder: Path) -> dict[str, str]:
    """Hash by shard, from the manifest; none where there is no manifest, or an old one."""
    try:
        shards = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shards"]
        return {name: str(entry["sha256"]) for name, entry in shards.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
