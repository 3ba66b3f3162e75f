"""Checks of JSON files that people edit, with messages that name the place of a mistake."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from modules.errors import UserError

# Beyond this no coordinate, size or rate makes sense, and float32 could overflow.
_LIMIT = 1e9


def fail(where: str, problem: str, remedy: str) -> NoReturn:
    """Raises the UserError "where: problem; remedy"."""
    raise UserError(f"{where}: {problem}; {remedy}")


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(str(path), f"cannot be read ({error.strerror})", "give the path of a file that exists")
    except (ValueError, RecursionError) as error:
        fail(str(path), f"is not JSON ({error})", "mend the syntax at that place or write the file again")


def is_number(value: Any) -> bool:
    """A finite number, not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LIMIT


def is_whole(value: Any) -> bool:
    """A whole number, not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


_KINDS = {
    "text": (lambda v: isinstance(v, str), "a text"),
    "count": (lambda v: is_whole(v) and is_number(v) and v > 0, "a whole number above 0"),
    "integer": (is_whole, "a whole number"),
    "number": (lambda v: is_number(v) and v > 0, "a number above 0"),
    "list": (lambda v: isinstance(v, list) and len(v) > 0, "a list with at least one entry"),
}


def get(data: Any, name: str, kind: str, where: str) -> Any:
    """The entry `name` of a JSON object, of a kind: "text", "count", "integer", "number" or "list".

    Raises:
        UserError: not an object, no such entry, or of another kind.
    """
    check, allowed = _KINDS[kind]
    if not isinstance(data, dict):
        fail(
            where, f"is {short(data)}, allowed is an object {{...}}", "compare it with a file of generate.py"
        )
    if name not in data:
        fail(where, f"'{name}' is missing", f"add it ({allowed})")
    if not check(data[name]):
        fail(where, f"'{name}' is {short(data[name])}, allowed is {allowed}", "correct it")
    return data[name]


def short(value: Any) -> str:
    """The value as JSON in at most 40 characters."""
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def plain(values: Iterable[Any]) -> list[float]:
    """Shortest decimals that give the same float32 again: exact, and readable for an editor."""
    return [float(str(np.float32(value))) for value in values]
