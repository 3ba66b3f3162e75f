"""Sessions: undo and redo, and files that restore everything or say what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modules.editing import apply_edits
from modules.errors import UserError
from modules.pose.io import Plan
from modules.pose.scene import Scene
from modules.session import MAX_VERSIONS, Session, Settings, read_session, session_from_dict, write_session


@pytest.fixture
def plan(make_scene: Callable[..., Scene]) -> Plan:
    return Plan(make_scene(frames=30).keys(10), 4, 10)


def test_undo_and_redo(plan: Plan) -> None:
    session = Session()
    assert session.current is None
    first = session.push(plan, "first")
    second = session.push(plan, "second")
    session.move(-1)
    assert session.current is first
    assert (session.can_undo, session.can_redo) == (False, True)
    session.move(1)
    assert session.current is second
    with pytest.raises(UserError, match="nothing to redo"):
        session.move(1)
    session.move(-1)
    third = session.push(plan, "third")
    assert [version.number for version in session.versions] == [1, 3]
    assert session.current is third


def test_old_versions_are_forgotten(plan: Plan) -> None:
    session = Session()
    for _ in range(MAX_VERSIONS + 5):
        session.push(plan, "one more")
    assert len(session.versions) == MAX_VERSIONS
    assert session.current is session.versions[-1]


def test_a_file_restores_everything(tmp_path: Path, plan: Plan) -> None:
    session = Session(Settings("Two people dance.", 7, 2, 3.5, 2.0, "demo"))
    session.push(plan, "from the prompt")
    session.push(apply_edits(plan, [{"op": "delete_person", "person": 0}]), "a person is gone")
    session.move(-1)
    write_session(tmp_path / "session.json", session)
    again = read_session(tmp_path / "session.json")
    assert again.settings == session.settings
    assert again.cursor == 0
    assert again.can_redo
    assert [v.label for v in again.versions] == ["from the prompt", "a person is gone"]
    for mine, theirs in zip(session.versions, again.versions, strict=True):
        np.testing.assert_array_equal(mine.plan.scene_keys.joints, theirs.plan.scene_keys.joints)
        assert mine.plan.ids == theirs.plan.ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(session=9), "'session' is 9, allowed is 1"),
        (lambda d: d["settings"].update(seed=-1), "'seed' is -1"),
        (lambda d: d["settings"].update(guidance="much"), "'guidance' is \"much\""),
        (lambda d: d["settings"].update(path="/etc/passwd"), "'path' is unknown"),
        (lambda d: d.update(settings=[]), r"settings: is \[\]"),
        (lambda d: d.update(cursor=5), "'cursor' is 5, allowed is 0 to 0"),
        (lambda d: d.update(versions=[]), r"'versions' is \[\]"),
        (lambda d: d["versions"][0].update(plan=None), "version 0, plan: "),
        (lambda d: d["versions"][0]["plan"].update(fps=0), "version 0, plan: 'fps' is 0"),
    ],
)
def test_wrong_files_are_refused(plan: Plan, change: Callable[[dict], None], message: str) -> None:
    session = Session()
    session.push(plan, "first")
    data = json.loads(json.dumps(session.to_dict()))
    change(data)
    with pytest.raises(UserError, match=message):
        session_from_dict(data)
