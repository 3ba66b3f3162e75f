"""Files that are either complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path that takes the place of `path` when the block ends without an error.

    It is in the same folder and has the same suffix, so that writers which choose a format by it work. Parent
    folders are made. After an error nothing is left, and a file that was there before stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yields an open file that appears at `path` when the block ends without an error.

    Args:
        path: the file to write.
        mode: "w" for UTF-8 text, "wb" for bytes.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write: mode is {mode!r}, allowed are 'w' and 'wb'")
    encoding = "utf-8" if mode == "w" else None
    with atomic_path(path) as temporary, open(temporary, mode, encoding=encoding) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
