"""Shards that are named by patterns, or that are somewhere else.

A remote shard is copied to a local folder when it is first needed, whole: training reads samples in any order.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from modules.errors import UserError
from modules.files import atomic_path

# Where copies are kept; DIRECTOR_CACHE names another folder.
_CACHE = "DIRECTOR_CACHE"
_URL = re.compile(r"[a-z][a-z0-9+]*://")


def is_remote(name: str) -> bool:
    """A URL or a `pipe:` command."""
    return name.startswith("pipe:") or _URL.match(name) is not None


def expand(pattern: str) -> list[str]:
    """Names that a pattern with braces (`{000..009}`) and, for files, wildcards stands for, in order.

    Raises:
        UserError: a URL with wildcards whose file system is not installed or does not answer.
    """
    names: list[str] = []
    try:
        expanded = list(braceexpand(pattern))
    except ValueError:  # a name with a brace in it
        expanded = [pattern]
    for name in expanded:
        if name.startswith("pipe:") or not re.search(r"[*?\[]", name):
            names += [name] if is_remote(name) or Path(name).exists() or not name.endswith(".tar") else []
        elif is_remote(name):
            system, protocol = _file_system(name)
            try:
                names += sorted(f"{protocol}{found.removeprefix(protocol)}" for found in system.glob(name))
            except Exception as error:  # each file system has errors of its own
                raise UserError(f"{name} cannot be listed ({error}); check the address and your access") from error
        else:
            names += sorted(found for found in glob.glob(name) if not Path(found).name.startswith("."))
    return names


def _file_system(url: str) -> tuple[Any, str]:
    protocol = _URL.match(url)
    assert protocol is not None
    try:
        fsspec = importlib.import_module("fsspec")
        return fsspec.filesystem(protocol[0].removesuffix("://")), protocol[0]
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url} cannot be reached ({error}); install fsspec and its package for this kind of address"
        ) from error


@functools.cache
def _cache_folder() -> Path:
    named = os.environ.get(_CACHE)
    return Path(named) if named else Path(tempfile.gettempdir()) / f"director-shards-{os.getuid()}"


def local_copy(shard: str) -> str:
    """Path of a shard on this machine; a remote one is copied first, unless it already was.

    Raises:
        UserError: it cannot be copied.
    """
    if not is_remote(shard):
        return shard
    path = _cache_folder() / f"{hashlib.sha256(shard.encode()).hexdigest()[:24]}.tar"
    if not path.is_file():
        with atomic_path(path) as temporary:
            _copy(shard, temporary)
    return str(path)


def _copy(shard: str, path: Path) -> None:
    if shard.startswith("pipe:"):
        # The user's own command, as in WebDataset.
        with path.open("wb") as file:
            status = subprocess.run(shard.removeprefix("pipe:"), shell=True, stdout=file, check=False).returncode
        if status:
            raise UserError(f"{shard} failed with exit status {status}; run the command by hand to see why")
        return
    system, _ = _file_system(shard)
    try:
        with system.open(shard, "rb") as source, path.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
    except Exception as error:  # each file system has errors of its own
        raise UserError(f"{shard} cannot be copied ({error}); check the address and your access to it") from error
