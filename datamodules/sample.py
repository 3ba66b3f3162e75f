"""The schema of a shard, shared by everything that writes or reads one.

A shard is a tar file. A sample is the files of one key in it:
  {key}.pose.npy  float32 (P, T, 18, 3): x px, y px, confidence; an unseen joint is (0, 0, 0)
  {key}.json      caption (text) or captions (list of texts), fps (30), width, height, num_frames; more is allowed:
                  label, actors (one object a person), ...
  {key}.mp4       optional: the video of the same frames on the same canvas
  {key}.latents.npy, {key}.text.npy   optional, of `prepare.py latents`: float16 (N, C, h, w) of every n-th frame, and
                  (captions, L, D); `cache` in the json says n ("every") and of which base they are ("base")
Letters: P persons, T dense frames, J joints (18).
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from modules.errors import UserError
from modules.files import atomic_path
from modules.pose.skeleton import NUM_JOINTS

FPS = 30
SPLITS = ("train", "val", "test")

# Column -> ending of its file. "pose" (with the json) is always read, other columns only when asked for.
COLUMNS = {"pose": "pose.npy", "video": "mp4", "latents": "latents.npy", "text": "text.npy"}
META = "json"
_MAKE_CACHE = "make them again: python prepare.py latents"

# A dot would end the key, a slash would make a folder.
_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(eq=False)
class Sample:
    """One checked sample."""

    key: str
    poses: np.ndarray  # (P, T, J, 3) float32: x px, y px, confidence; read-only
    captions: list[str]  # at least one
    meta: dict[str, Any]  # the whole json
    video: bytes | None = None  # encoded
    latents: np.ndarray | None = None  # (N, C, h, w) float16, read-only
    text: np.ndarray | None = None  # (captions, L, D) float16, read-only


def suffixes(columns: Sequence[str]) -> tuple[str, ...]:
    """Endings of the files that the columns need.

    Raises:
        ValueError: an unknown column.
    """
    unknown = set(columns) - COLUMNS.keys()
    if unknown:
        raise ValueError(f"unknown column {sorted(unknown)[0]!r}, known are {', '.join(COLUMNS)}")
    return (META, *(COLUMNS[name] for name in COLUMNS if name == "pose" or name in columns))


def parse_sample(raw: Mapping[str, Any], columns: Sequence[str] = ("pose",)) -> Sample:
    """Decodes and checks a sample.

    Args:
        raw: ending -> bytes, with `__key__` and `__url__` (the shard) as WebDataset groups them.
        columns: what to read besides the poses, see `COLUMNS`.

    Raises:
        UserError: a file is missing or does not follow the schema; names the shard, the key and what is wrong.
    """
    where = f"{raw.get('__url__', 'sample')}: {raw.get('__key__', '?')}"
    for suffix in suffixes(columns):
        if suffix not in raw:
            cached = suffix in (COLUMNS["latents"], COLUMNS["text"])
            remedy = "`python prepare.py latents` makes it" if cached else "write the shard again with prepare.py"
            _fail(where, f"has no .{suffix}", remedy)
    meta = _parse_meta(raw[META], where)
    poses = _parse_poses(raw[COLUMNS["pose"]], where)
    if meta.get("num_frames", poses.shape[1]) != poses.shape[1]:
        problem = f"has {poses.shape[1]} frames of poses, num_frames is {meta['num_frames']}"
        _fail(where, problem, "write the shard again with prepare.py")
    captions = meta["captions"] if "captions" in meta else [meta["caption"]]
    video = raw[COLUMNS["video"]] if "video" in columns else None
    latents = _parse_cache(raw, "latents", 4, where) if "latents" in columns else None
    text = _parse_cache(raw, "text", 3, where) if "text" in columns else None
    if latents is not None:
        every = meta.get("cache", {}).get("every")
        if not isinstance(every, int) or every < 1 or len(latents) != -(-poses.shape[1] // every):
            _fail(where, f"has {len(latents)} latents of {poses.shape[1]} frames", _MAKE_CACHE)
    if text is not None and len(text) != len(captions):
        _fail(where, f"has {len(text)} text states, {len(captions)} captions", _MAKE_CACHE)
    return Sample(raw.get("__key__", ""), poses, captions, meta, video, latents, text)


def _fail(where: str, problem: str, remedy: str) -> NoReturn:
    raise UserError(f"{where}: {problem}; {remedy}")


def _parse_meta(data: bytes, where: str) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except (ValueError, RecursionError) as error:
        _fail(where, f"its json cannot be read ({error})", "write the shard again with prepare.py")
    if not isinstance(meta, dict):
        _fail(where, "its json is not an object {...}", "write the shard again with prepare.py")
    captions = meta.get("captions", [meta.get("caption")])
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(c, str) and c.strip() for c in captions)
    ):
        _fail(where, "has no caption", "give 'caption' (a text) or 'captions' (a list of texts) in its json")
    for name in ("width", "height"):
        side = meta.get(name)
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            _fail(where, f"its {name} is {side!r}, allowed are whole pixels above 0", "correct its json")
    if meta.get("fps") != FPS:
        remedy = f"resample it: `python prepare.py SOURCE out=FOLDER` writes {FPS} frames per second"
        _fail(where, f"its fps is {meta.get('fps')!r}, allowed is {FPS}", remedy)
    return meta


def _parse_array(data: bytes, where: str, name: str) -> np.ndarray:
    try:
        # The header's length is at bytes 8 and 9; the header repeats from sample to sample, parsing it is slow.
        start = 10 + int.from_bytes(data[8:10], "little")
        dtype, shape = _parse_header(bytes(data[:start]))
        return np.frombuffer(data, dtype, offset=start).reshape(shape)
    except ValueError as error:
        _fail(where, f"its {name} cannot be read ({error})", "write it with numpy.save(allow_pickle=False)")


def _parse_cache(raw: Mapping[str, Any], column: str, ndim: int, where: str) -> np.ndarray:
    found = _parse_array(raw[COLUMNS[column]], where, COLUMNS[column])
    if found.dtype != np.float16 or found.ndim != ndim or not np.isfinite(found).all():
        problem = f"its {column} are {found.dtype} {found.shape}, allowed are finite float16 of {ndim} axes"
        _fail(where, problem, _MAKE_CACHE)
    return found


def _parse_poses(data: bytes, where: str) -> np.ndarray:
    poses = _parse_array(data, where, COLUMNS["pose"])
    if poses.dtype != np.float32 or poses.ndim != 4 or poses.shape[2:] != (NUM_JOINTS, 3) or not poses.size:
        problem = f"its poses are {poses.dtype} {poses.shape}, allowed is float32 (persons, frames, {NUM_JOINTS}, 3)"
        _fail(where, problem, "convert them with prepare.py")
    if not np.isfinite(poses).all():
        person, frame, joint, _ = np.argwhere(~np.isfinite(poses))[0].tolist()
        problem = f"person {person}, frame {frame}, joint {joint} is not finite"
        _fail(where, problem, "write (0, 0, 0) where a joint was not seen")
    return poses


@functools.lru_cache(maxsize=1024)
def _parse_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0 of the npy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.hasobject:
        raise ValueError("not a plain array in C order")
    return dtype, shape


def write_sample(
    tar: tarfile.TarFile,
    key: str,
    poses: np.ndarray,
    meta: dict[str, Any],
    video: bytes | None = None,
    cache: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Checks a sample and adds it to an open shard. The same input gives the same bytes.

    Args:
        tar: the shard, see `open_shard`.
        key: name of the sample: letters, digits, "_" and "-".
        poses: (P, T, J, 3) float32.
        meta: content of the json; `num_frames` is added.
        video: encoded mp4 of the same frames.
        cache: "latents" and "text", float16.

    Raises:
        UserError: what the reader would refuse.
    """
    if not _KEY.fullmatch(key):
        _fail(f"sample {key!r}", "is not a name for a sample", "use letters, digits, _ and - alone")
    meta = {**meta, "num_frames": int(poses.shape[1]) if poses.ndim > 1 else 0}
    text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
    files = {META: text.encode(), COLUMNS["pose"]: _npy(poses)}
    files |= {} if video is None else {COLUMNS["video"]: video}
    files |= {COLUMNS[column]: _npy(array) for column, array in (cache or {}).items()}
    parse_sample({"__key__": key, "__url__": str(tar.name), **files}, ("pose", *(cache or {})))
    for suffix, data in files.items():
        add_file(tar, f"{key}.{suffix}", data)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file to an open shard, with no time or owner: the same content gives the same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@contextlib.contextmanager
def open_shard(path: str | Path) -> Iterator[tarfile.TarFile]:
    """A new shard for `write_sample`, which appears at `path` when the block ends without an error."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        with tarfile.open(fileobj=file, name=str(path), mode="w") as tar:
            yield tar
        file.flush()
        os.fsync(file.fileno())  # a name without its content would look like a whole shard after a power cut
