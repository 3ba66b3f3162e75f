"""A session of the director's desk: settings, and the plans one after another with undo and redo.

A session file holds all of it. Motion and video are not in it: they follow from a plan, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.errors import UserError
from modules.files import atomic_write
from modules.pose.checks import fail, get, is_number, is_whole, load_json, short
from modules.pose.io import Plan, plan_from_dict, plan_to_dict
from modules.text import MAX_PROMPT_CHARACTERS

SESSION_VERSION = 1
MAX_VERSIONS = 50  # older plans are forgotten


@dataclass
class Settings:
    """What a scene is asked for."""

    prompt: str = ""
    seed: int = 0
    people: int | None = None  # None: as the prompt says
    seconds: float | None = None
    guidance: float | None = None  # of the text in the video; None: the configuration's
    checkpoint: str = ""  # name of the exports; empty: the first

    def __post_init__(self) -> None:
        """Raises UserError for values of a wrong kind: settings come from files and from the page."""
        checks = {
            "prompt": (isinstance(self.prompt, str) and len(self.prompt) <= MAX_PROMPT_CHARACTERS,
                       f"a text of at most {MAX_PROMPT_CHARACTERS} characters"),
            "seed": (is_whole(self.seed) and 0 <= self.seed < 2**31, "a whole number from 0 to 2147483647"),
            "people": (self.people is None or is_whole(self.people) and self.people > 0, "a whole number above 0"),
            "seconds": (self.seconds is None or is_number(self.seconds) and self.seconds > 0, "a number above 0"),
            "guidance": (self.guidance is None or is_number(self.guidance) and 0 <= self.guidance <= 30,
                         "a number from 0 to 30"),
            "checkpoint": (isinstance(self.checkpoint, str) and len(self.checkpoint) <= 200, "a name"),
        }  # fmt: skip
        for name, (good, allowed) in checks.items():
            if not good:
                fail("settings", f"'{name}' is {short(getattr(self, name))}, allowed is {allowed}", "correct it")


def settings_from(data: Any, where: str = "settings") -> Settings:
    """Settings out of JSON.

    Raises:
        UserError: an unknown setting, or one of a wrong kind.
    """
    known = [entry.name for entry in dataclasses.fields(Settings)]
    if not isinstance(data, dict):
        fail(where, f"is {short(data)}, allowed is an object {{...}}", "compare it with a file that the page saved")
    if unknown := [name for name in data if name not in known]:
        fail(where, f"'{unknown[0]}' is unknown", f"known are {', '.join(known)}")
    return Settings(**data)


@dataclass(eq=False)
class Version:
    """A plan, and how it came to be."""

    plan: Plan
    label: str
    number: int = 0  # unlike every other of its session


@dataclass(eq=False)
class Session:
    """Settings and plans; `cursor` is the plan at hand, those after it can be had again by `redo`."""

    settings: Settings = field(default_factory=Settings)
    versions: list[Version] = field(default_factory=list)
    cursor: int = -1
    count: int = 0  # versions ever made

    @property
    def current(self) -> Version | None:
        return self.versions[self.cursor] if self.versions else None

    def push(self, plan: Plan, label: str) -> Version:
        """A new plan after the one at hand; what could be redone is gone."""
        self.count += 1
        version = Version(plan, label, self.count)
        self.versions = [*self.versions[: self.cursor + 1], version][-MAX_VERSIONS:]
        self.cursor = len(self.versions) - 1
        return version

    @property
    def can_undo(self) -> bool:
        return self.cursor > 0

    @property
    def can_redo(self) -> bool:
        return self.cursor + 1 < len(self.versions)

    def move(self, step: int) -> None:
        """One back (-1) or on (1).

        Raises:
            UserError: there is nothing to go to.
        """
        if not 0 <= self.cursor + step < len(self.versions):
            raise UserError("there is nothing to undo" if step < 0 else "there is nothing to redo")
        self.cursor += step

    def to_dict(self) -> dict[str, Any]:
        """The content of a session file."""
        return {
            "session": SESSION_VERSION,
            "settings": dataclasses.asdict(self.settings),
            "cursor": self.cursor,
            "versions": [{"label": v.label, "plan": plan_to_dict(v.plan)} for v in self.versions],
        }


def session_from_dict(data: Any, name: str = "session") -> Session:
    """Inverse of `Session.to_dict`.

    Raises:
        UserError: anything in it that is missing or not allowed.
    """
    if not isinstance(data, dict) or data.get("session") != SESSION_VERSION:
        found = data.get("session") if isinstance(data, dict) else data
        fail(name, f"'session' is {short(found)}, allowed is {SESSION_VERSION}", "give a file that the page saved")
    session = Session(settings_from(data.get("settings"), f"{name}: settings"))
    entries = get(data, "versions", "list", name)
    if len(entries) > MAX_VERSIONS:
        fail(name, f"has {len(entries)} versions, allowed are {MAX_VERSIONS}", "remove the oldest")
    for i, entry in enumerate(entries):
        where = f"{name}: version {i}"
        label = get(entry, "label", "text", where)[:200]
        session.push(plan_from_dict(entry.get("plan"), f"{where}, plan"), label)
    cursor = get(data, "cursor", "integer", name)
    if not 0 <= cursor < len(entries):
        fail(name, f"'cursor' is {cursor}, allowed is 0 to {len(entries) - 1}", "correct it")
    session.cursor = cursor
    return session


def write_session(path: str | Path, session: Session) -> None:
    """Write a session file, complete or not at all."""
    with atomic_write(path) as file:
        json.dump(session.to_dict(), file, ensure_ascii=False, allow_nan=False)


def read_session(path: str | Path) -> Session:
    """Read and check a session file.

    Raises:
        UserError: names the place of the mistake.
    """
    return session_from_dict(load_json(Path(path)), str(path))
