"""Captions and labels of videos or motions, from a CSV or JSONL file or from a captioner of the user's."""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.util
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modules.errors import UserError
from modules.pose.checks import fail
from modules.pose.scene import Scene

_TEXTS = ("name", "caption", "label", "split", "group")
_NUMBERS = ("fps", "start", "end")
_KNOWN = (*_TEXTS, "captions", *_NUMBERS)

Captioner = Callable[[Scene, np.ndarray | None], Any]


@dataclass
class Entry:
    """What the file says about one video; several rows of a name are joined."""

    captions: list[tuple[float, float, str]] = field(default_factory=list)  # from, to (seconds), text
    label: str = ""
    split: str = ""  # train, val or test; empty: drawn
    group: str = ""  # what must not be spread over splits, for example a person; empty: the video itself
    fps: float | None = None  # of the video

    def at(self, start: float, stop: float) -> list[str]:
        """Captions of the stretch from `start` to `stop` seconds: those whose time holds its middle."""
        middle = (start + stop) / 2
        return list(dict.fromkeys(text for first, last, text in self.captions if first <= middle < last))


def read_captions(path: str | Path) -> dict[str, Entry]:
    """Entries by name.

    A CSV file with a header, or JSONL with an object a line: `name` and `caption` (or, in JSONL, `captions`, a list);
    optional: `label`, `split`, `group`, `fps`, and `start` and `end` in seconds, where a caption belongs to a part
    of the video.

    Raises:
        UserError: with the file and the line.
    """
    path = Path(path)
    entries: dict[str, Entry] = {}
    for line, row in _rows(path):
        _add(entries, row, f"{path}: line {line}")
    if not entries:
        fail(str(path), "has no rows", "give name and caption of each video")
    return entries


def _rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        fail(str(path), f"cannot be read ({error.strerror})", "give captions=FILE, a CSV or JSONL file")
    except UnicodeDecodeError as error:
        fail(str(path), f"is not UTF-8 ({error.reason} at byte {error.start})", "save it as UTF-8")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    fail(f"{path}: line {number}", f"is not JSON ({error})", "write one object a line")
                if not isinstance(row, dict):
                    fail(f"{path}: line {number}", "is not an object {...}", "write one object a line")
                yield number, row
        return
    reader = csv.DictReader(text.splitlines())
    if not {"name", "caption"} <= set(reader.fieldnames or ()):
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        fail(str(path), f"begins with the columns {found}", "its first line must name the columns name and caption")
    for row in reader:
        if None in row:
            fail(f"{path}: line {reader.line_num}", "has more values than columns", "put texts with commas into quotes")
        yield reader.line_num, {key: value for key, value in row.items() if value not in (None, "")}


def _add(entries: dict[str, Entry], row: dict[str, Any], where: str) -> None:
    if unknown := sorted(set(row) - set(_KNOWN)):
        near = difflib.get_close_matches(unknown[0], _KNOWN, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
        fail(where, f"has the column {unknown[0]!r}", f"known are {', '.join(_KNOWN)}{guess}")
    for name in _TEXTS:
        if name in row and not isinstance(row[name], str):
            fail(where, f"its {name} is {row[name]!r}", "give a text")
    if not row.get("name", "").strip():
        fail(where, "has no name", "give the name of the video or motion, without its suffix")
    numbers = {name: _number(row[name], name, where) for name in _NUMBERS if name in row}
    texts = row.get("captions", [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        fail(where, "its captions are not a list of texts", "correct it")
    texts = [text.strip() for text in [*texts, row.get("caption", "")] if text.strip()]
    if row.get("split", "train") not in ("train", "val", "test"):
        fail(where, f"its split is {row['split']!r}", "allowed are train, val and test")
    start, end = numbers.get("start", 0.0), numbers.get("end", float("inf"))
    if start >= end:
        fail(where, f"its start {start} is not before its end {end}", "give seconds from the start of the video")
    entry = entries.setdefault(row["name"].strip(), Entry())
    entry.captions += [(start, end, text) for text in texts]
    for name in ("label", "split", "group"):
        setattr(entry, name, row.get(name, getattr(entry, name)))
    entry.fps = numbers.get("fps", entry.fps)


def _number(value: Any, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number) or number < 0 or (name == "fps" and number == 0):
        fail(where, f"its {name} is {value!r}", "give a number above 0" if name == "fps" else "give seconds")
    return number


def check_names(entries: dict[str, Entry], names: list[str], what: str) -> None:
    """Raises a UserError where some of the names have no entry.

    A name in the file that no video has is no mistake: one file may serve several folders.
    """
    missing = [name for name in names if name not in entries]
    if missing:
        near = difflib.get_close_matches(missing[0], entries, n=1, cutoff=0.3)
        guess = f"; the captions have {near[0]!r}" if near else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"no caption for {what} {missing[0]!r}{more}{guess}; add rows to the captions file")


@functools.lru_cache(maxsize=1)
def load_captioner(path: str) -> Captioner:
    """The function `caption(scene, frames)` of a Python file of the user's.

    `frames` are (T, H, W, 3) uint8 RGB, or None where there is no video; it returns a text or a list of texts.

    Raises:
        UserError: no such file, or no such function in it.
    """
    spec = importlib.util.spec_from_file_location("captioner", path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise UserError(f"captioner={path} is not a Python file; give one that defines caption(scene, frames)")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, "caption", None)
    if not callable(function):
        raise UserError(f"captioner={path} defines no function caption(scene, frames); add it")
    return function

