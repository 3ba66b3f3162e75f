"""The server of the page, without a browser: what it makes, what it keeps apart, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[app]'")

from fastapi.testclient import TestClient

from app.jobs import Busy, Job, JobQueue
from app.server import make_app
from app.visitors import Visitors
from configs.app_schema import AppConfig
from configs.loader import load_typed
from modules.pose.io import plan_from_dict
from tests.tiny import ROOT

PROMPT = "A man in a red shirt walks to the left for 2 seconds."
SETTINGS = {"prompt": PROMPT, "seconds": 1, "people": 1, "seed": 3}
LIMITS = ["desk.max_upload_mb=0.5", "desk.max_waiting=3", "desk.folder=desk"]


@pytest.fixture
def app(tiny_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    for name in ("runs", "data"):
        (tmp_path / name).symlink_to(tiny_chain / name)
    found = make_app(load_typed(AppConfig, [str(ROOT / "configs/app/smoke.yaml")], ["name=tiny", *LIMITS]))
    yield found
    found.state.visitors.queue.close()


def visitor(app: Any) -> TestClient:
    return TestClient(app, headers={"X-Desk": "1"})


@pytest.fixture
def client(app: Any) -> TestClient:
    return visitor(app)


def post(client: TestClient, action: str, status: int = 200, side: str = "a", **data: Any) -> dict[str, Any]:
    response = client.post(f"/api/{side}/{action}", json=data)
    assert response.status_code == status, response.text
    return response.json()


def wait(client: TestClient, side: str = "a") -> dict[str, Any]:
    """The state when the job at work has ended."""
    state, until = client.get(f"/api/{side}/state").json(), time.monotonic() + 60
    while state["job"] and state["job"]["active"]:
        assert time.monotonic() < until
        state = client.get(f"/api/{side}/state", params={"since": state["revision"]}).json()
    return state


def made(client: TestClient, **settings: Any) -> dict[str, Any]:
    post(client, "generate", settings={**SETTINGS, **settings}, render=False)
    state = wait(client)
    assert state["job"]["state"] == "done", state["job"]
    return state


def poses(client: TestClient) -> np.ndarray:
    return np.load(io.BytesIO(client.get("/api/a/file/poses.npy").content), allow_pickle=False)


def test_from_a_prompt_to_every_file(client: TestClient) -> None:
    post(client, "generate", settings=SETTINGS)
    state = wait(client)
    assert state["job"]["state"] == "done"
    assert list(state["job"]["times"]) == ["first_key", "dense", "video"]
    assert (state["dense"], state["video"]) == (True, True)
    assert state["settings"]["prompt"] == PROMPT
    for name, start in {"video.mp4": b"ftyp", "video.gif": b"GIF89a", "sheet.png": b"\x89PNG"}.items():
        assert start in client.get(f"/api/a/file/{name}").content[:12]
    plan = plan_from_dict(client.get("/api/a/file/plan.json").json())
    assert (len(plan.scene_keys.persons), plan.scene_keys.num_frames, plan.seed) == (1, 3, 3)
    dense = client.get(f"/api/a/dense/{state['version']}")
    values = np.frombuffer(dense.content, "<f4").reshape([int(n) for n in dense.headers["x-shape"].split(",")])
    np.testing.assert_array_equal(values, poses(client))


def test_an_edit_leaves_the_rest_and_undo_brings_it_back(client: TestClient) -> None:
    made(client, seconds=3)
    before = poses(client)
    edit = {"op": "move_joint", "person": 0, "key": 6, "joint": "r_wrist", "x": 3, "y": 4}
    state = post(client, "edit", edits=[edit], render=False)
    assert state["plan"]["persons"][0]["keys"][6]["joints"][4] == [3, 4, 1]
    wait(client)
    changed = np.flatnonzero((poses(client) != before).any((0, 2, 3)))
    assert changed.min() > 40
    assert changed.max() < 80
    post(client, "undo", render=False)
    wait(client)
    np.testing.assert_array_equal(poses(client), before)
    assert post(client, "undo", 400)["error"] == "there is nothing to undo"
    post(client, "redo", render=False)
    assert wait(client)["versions"][-1]["label"] == "joint moved"


def test_guidance_renders_anew_without_new_motion(client: TestClient) -> None:
    made(client)
    post(client, "render")
    first = client.get("/api/a/file/video.mp4") if wait(client)["video"] else None
    post(client, "render", guidance=9)
    state = wait(client)
    assert state["settings"]["guidance"] == 9
    assert first is not None
    assert client.get("/api/a/file/video.mp4").content != first.content
    assert "guidance" in post(client, "render", 400, guidance="x")["error"]


def test_two_visitors_see_only_their_own(app: Any) -> None:
    first, second = visitor(app), visitor(app)
    made(first)
    state = second.get("/api/a/state").json()
    assert state["plan"] is None
    assert "no plan yet" in second.get("/api/a/file/plan.json").json()["error"]
    assert second.get("/api/a/dense/1").status_code == 400
    cookie = first.cookies["desk"]
    assert len(cookie) == 32
    assert cookie != second.cookies["desk"]
    # Nor does anything on disk give the cookie away.
    kept = [path for path in Path("desk").rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if cookie in str(path) or cookie in path.read_text()]


def test_a_desk_outlives_the_server(client: TestClient) -> None:
    made(client)
    before = client.get("/api/a/file/session.json").json()
    again = TestClient(
        make_app(load_typed(AppConfig, [str(ROOT / "configs/app/smoke.yaml")], ["name=tiny", *LIMITS])),
        headers={"X-Desk": "1"}, cookies={"desk": client.cookies["desk"]},
    )  # fmt: skip
    assert again.get("/api/a/file/session.json").json() == before


def test_a_link_gives_a_copy(app: Any, client: TestClient) -> None:
    assert "no plan to share" in post(client, "share", 400)["error"]
    made(client)
    link = post(client, "share")["link"]
    other = visitor(app)
    state = post(other, "open", token=link.removeprefix("?open="), render=False)
    assert state["settings"] == client.get("/api/a/state").json()["settings"]
    wait(other)
    np.testing.assert_array_equal(poses(other), poses(client))
    post(other, "edit", edits=[{"op": "set_prompt", "prompt": "other"}], render=False)
    assert client.get("/api/a/state").json()["plan"]["prompt"] == PROMPT
    for token in ("", "../../../etc/passwd", "a" * 32, None, ["x"]):
        assert "link" in post(other, "open", 400, token=token)["error"]


def test_sessions_that_nobody_opens_are_deleted(app: Any, client: TestClient) -> None:
    visitors: Visitors = app.state.visitors
    made(client)
    old, used = (post(client, "share")["link"].removeprefix("?open=") for _ in range(2))
    files = [visitors.folder / "shared" / f"{token}.json" for token in (old, used)]
    gone = visitors.folder / "visitors" / ("0" * 32) / "a.json"
    gone.parent.mkdir()
    gone.write_bytes(files[0].read_bytes())
    (own,) = [path for path in visitors.folder.glob("visitors/*/a.json") if path != gone]
    month = time.time() - 31 * 86400
    for path in (*files, gone, own):
        os.utime(path, (month, month))
    visitors.shared(used)
    visitors._cleaned = -1e9
    visitors.clean()
    assert [path.is_file() for path in (*files, gone, own)] == [False, True, False, True]  # an open desk stays
    assert not gone.parent.exists()
    assert "deleted" in post(visitor(app), "open", 400, token=old)["error"]


@pytest.mark.parametrize("name", ["plan.json", "session.json", "poses.json", "poses.npy"])
def test_what_goes_out_comes_in(app: Any, client: TestClient, name: str) -> None:
    made(client)
    content = client.get(f"/api/a/file/{name}").content
    other = visitor(app)
    url = f"/api/a/import?name=..%2F..%2F{name}&render=0&prompt=A%20man%20walks."
    response = other.post(url, content=content)
    assert response.status_code == 200, response.text
    assert wait(other)["dense"]
    if name in ("plan.json", "session.json"):
        np.testing.assert_array_equal(poses(other), poses(client))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.json", b"{", "plan.json is not JSON"),
        ("plan.json", b"[" * 100_000, "plan.json is not JSON"),
        ("plan.json", b'{"persons": [], "version": 1}', "plan.json: 'prompt' is missing"),
        ("poses.json", b'{"people": [{"pose_keypoints_2d": [1, 2]}]}', "poses.json, person 0: 'pose_keypoints_2d'"),
        ("poses.npy", b"\x93NUMPY\x01\x00", "poses.npy: is not a .npy file"),
        ("session.json", b'{"session": 1, "settings": {"a": 1}}', "session.json: settings: 'a' is unknown"),
        ("../../etc/passwd", b"x", "passwd is neither .json nor .npy"),
        ("plan.json", b"0" * 600_000, "larger than 0.5 MB"),
    ],
)
def test_wrong_files_are_answered_with_what_is_wrong(
    client: TestClient, name: str, content: bytes, message: str
) -> None:
    response = client.post("/api/a/import", params={"name": name, "prompt": "x"}, content=content)
    assert response.status_code == (413 if "larger" in message else 400)
    assert message in response.json()["error"]
    assert "/tmp" not in response.json()["error"]
    assert client.get("/api/a/state").json()["plan"] is None


def test_limits_of_uploaded_plans(client: TestClient) -> None:
    made(client)
    data = client.get("/api/a/file/plan.json").json()
    for change, message in (
        ({"stride": 100_000, "persons": timed(data, 100_000)}, "allowed are 20 s"),
        ({"width": 4096, "height": 4096}, "the canvas is 4096 x 4096"),
        ({"persons": [{**data["persons"][0], "id": i} for i in range(7)]}, "has 7 people"),
        ({"seed": -1}, "the seed is -1"),
    ):
        response = client.post("/api/a/import?name=plan.json", content=json.dumps({**data, **change}))
        assert message in response.json()["error"]


def timed(data: dict[str, Any], stride: int) -> list[dict[str, Any]]:
    keys = [{**key, "time": k * stride / 30} for k, key in enumerate(data["persons"][0]["keys"])]
    return [{**data["persons"][0], "keys": keys}]


def test_cancel_stops_between_steps(app: Any, client: TestClient) -> None:
    app.state.visitors.checkpoints("").config.render.steps = 500
    post(client, "generate", settings=SETTINGS)
    while client.get("/api/a/state").json()["job"]["stage"] != "video":
        time.sleep(0.02)
    post(client, "cancel")
    state = wait(client)
    assert state["job"]["state"] == "cancelled"
    assert (state["dense"], state["video"]) == (True, False)  # what was finished stays
    app.state.visitors.checkpoints("").config.render.steps = 2
    post(client, "render")
    assert wait(client)["video"]


def test_the_queue_has_a_limit(app: Any) -> None:
    queue = JobQueue(max_waiting=3)
    hold = threading.Event()
    busy = Job("busy", lambda _: (hold.wait(), None)[1], lambda: None)
    queue.submit(busy)
    while busy.state == "waiting":
        time.sleep(0.01)
    jobs = [Job("job", lambda _: None, lambda: None) for _ in range(3)]
    for job in jobs:
        queue.submit(job)
    assert [queue.position(job) for job in jobs] == [0, 1, 2]
    with pytest.raises(Busy, match="3 scenes are waiting"):
        queue.submit(Job("job", lambda _: None, lambda: None))
    queue.submit(again := Job("job", lambda _: None, lambda: None), replaces=jobs[1])
    hold.set()
    assert again.finished.wait(5)
    assert [job.state for job in (*jobs, again)] == ["done", "cancelled", "done", "done"]
    queue.close()


def test_a_full_queue_changes_nothing(app: Any, client: TestClient) -> None:
    state = made(client)
    visitors: Visitors = app.state.visitors
    visitors.queue.max_waiting = 0
    edit = {"op": "move_person", "person": 0, "dx": 1, "dy": 0}
    assert "scenes are waiting" in post(client, "edit", 429, edits=[edit])["error"]
    assert client.get("/api/a/state").json()["versions"] == state["versions"]


def test_requests_of_other_sites_are_refused(app: Any, client: TestClient) -> None:
    plain = TestClient(app)
    assert plain.post("/api/a/cancel", json={}).status_code == 403
    assert client.get("/api/a/state", headers={"Host": "evil.example"}).status_code == 400
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "httponly" in client.get("/api/a/state").headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2f..%2fpyproject.toml",
        "/api/a/file/..%2fplan.json", "/api/a/file/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/api/c/state",
        "/api/gallery/..%2f..%2fserver.webp", "/static//etc/passwd", "/openapi.json",
    ],
)  # fmt: skip
def test_no_path_leaves_the_folder(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code in (404, 422)
    assert "import" not in response.text
    assert "root:" not in response.text


def test_wrong_requests_are_answered(client: TestClient) -> None:
    assert "no action 'explode'" in post(client, "explode", 400)["error"]
    assert "'seed' is -1" in post(client, "generate", 400, settings={"prompt": "x", "seed": -1})["error"]
    assert "prompt is empty" in post(client, "generate", 400, settings={})["error"]
    assert "allowed are 20" in post(client, "generate", 400, settings={"prompt": "x", "seconds": 1e6})["error"]
    assert "no plan yet" in post(client, "edit", 400, edits=[])["error"]
    assert "checkpoint is" in post(client, "generate", 400, settings={"prompt": "x", "checkpoint": "../x"})["error"]
    assert client.post("/api/a/edit", content=b"[]").status_code == 400
    post(client, "generate", settings={**SETTINGS, "people": 9})
    assert "num_people is 9" in wait(client)["job"]["error"]


def test_facts_examples_and_reports(client: TestClient) -> None:
    facts = client.get("/api/facts").json()
    assert (len(facts["joints"]), facts["checkpoints"]) == (18, ["tiny"])
    examples = client.get("/api/gallery").json()
    assert len(examples) >= 4
    assert client.get(f"/api/gallery/{examples[0]['name']}.webp").headers["content-type"] == "image/webp"
    post(client, "example", name=examples[0]["name"], render=False)
    assert wait(client)["plan"]["prompt"] == examples[0]["prompt"]
    assert "no such example" in post(client, "example", 400, name="../x")["error"]
    assert isinstance(client.get("/api/reports").json(), list)
