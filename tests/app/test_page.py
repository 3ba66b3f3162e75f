"""The page in a browser: from a prompt to a video, by the hand, by the keyboard, and what it refuses."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.pose.io import plan_from_dict

PROMPT = "A man in a red shirt walks to the left."
Visit = Callable[..., Any]


def url(page: Any, path: str) -> str:
    return page.url.split("?")[0].rstrip("/") + path


def state(page: Any, side: str = "a") -> dict[str, Any]:
    return page.request.get(url(page, f"/api/{side}/state")).json()


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Wait for an expression to become true; Playwright's own way needs `eval`, which the page's policy forbids."""
    end = time.monotonic() + 30
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def wait_idle(page: Any) -> None:
    until(page, "document.getElementById('status').hidden")


def poses(page: Any) -> np.ndarray:
    return np.load(io.BytesIO(page.request.get(url(page, "/api/a/file/poses.npy")).body()), allow_pickle=False)


def ask(page: Any, prompt: str = PROMPT, people: str = "1", seconds: str = "1") -> None:
    page.fill("#prompt", prompt)
    page.select_option("#people", people)
    page.fill("#seconds", seconds)
    page.click("#generate")


def example(page: Any, number: int = 0) -> None:
    """A plan that a trained director wrote, without a video."""
    page.uncheck("#auto-render")
    page.click("#show-gallery")
    page.locator("#gallery button").nth(number).click()
    page.wait_for_selector("#strip button")
    settle(page)


def settle(page: Any) -> None:
    """Until motion of the plan at hand is there."""
    until(page, "fetch('/api/a/state').then(r => r.json()).then(s => s.dense && !s.job.active)")
    wait_idle(page)


def on_screen(page: Any, x: float, y: float) -> tuple[float, float]:
    """A point of the 64 x 64 canvas, on the screen."""
    box = page.locator("#stage").bounding_box()
    return box["x"] + x / 64 * box["width"], box["y"] + y / 64 * box["height"]


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.locator("#stage").scroll_into_view_if_needed()
    page.mouse.move(*on_screen(page, *start))
    page.mouse.down()
    page.mouse.move(*on_screen(page, *end), steps=5)
    page.mouse.up()


def wait_versions(page: Any, count: int) -> None:
    asked = "count => fetch('/api/a/state').then(r => r.json()).then(s => s.versions.length == count)"
    until(page, asked, count)
    settle(page)


def test_from_a_prompt_to_a_video(page: Any) -> None:
    ask(page)
    page.wait_for_selector("video:not([hidden])")
    until(page, "document.querySelector('video').videoWidth >= 256")
    assert page.locator("#strip button").count() == 3
    assert page.locator("svg[aria-label='Motion, frame 1 of 30']").count() == 1
    page.click("#play")
    until(page, "Number(document.getElementById('scrub').value) > 0.2")
    page.click("#play")
    page.locator("#strip button").nth(2).click()
    assert page.input_value("#scrub") == "0.667"
    until(page, "Math.abs(document.querySelector('video').currentTime - 0.667) < 0.05")
    with page.expect_download() as download:
        page.click(".menu summary")
        page.get_by_role("button", name="Video (GIF)").click()
    assert Path(download.value.path()).read_bytes()[:6] == b"GIF89a"


def test_dragging_a_joint_changes_the_frames_around_it_alone(page: Any) -> None:
    example(page)
    before, key = poses(page), 5
    page.locator("#strip button").nth(key).click()
    x, y, _ = state(page)["plan"]["persons"][0]["keys"][key]["joints"][4]
    drag(page, (x, y), (x + 8, y - 6))
    wait_versions(page, 2)
    moved = state(page)["plan"]["persons"][0]["keys"][key]["joints"][4]
    np.testing.assert_allclose(moved[:2], [x + 8, y - 6], atol=0.6)
    after = poses(page)
    changed = np.flatnonzero((after != before).any((0, 2, 3)))
    assert changed.size
    assert (changed.min(), changed.max()) > (10 * (key - 2), 0)
    assert changed.max() < 10 * (key + 2)
    page.click("#undo")
    settle(page)
    np.testing.assert_array_equal(poses(page), before)
    page.click("#redo")
    settle(page)
    np.testing.assert_array_equal(poses(page), after)


def test_bodies_and_boxes_are_dragged(page: Any) -> None:
    example(page)
    first = state(page)["plan"]["persons"][0]
    neck, hip = first["keys"][0]["joints"][1], first["keys"][0]["joints"][8]
    middle = ((neck[0] + hip[0]) / 2, (neck[1] + hip[1]) / 2)
    drag(page, middle, (middle[0] + 5, middle[1]))
    wait_versions(page, 2)
    second = state(page)["plan"]["persons"][0]
    assert second["keys"][0]["joints"][1][0] == pytest.approx(neck[0] + 5, abs=0.5)
    assert second["keys"][1] == first["keys"][1]
    assert second["box"] == first["box"]
    page.locator("#box-0").fill("1")
    page.locator("#box-0").press("Enter")
    wait_versions(page, 3)
    x0, y0, x1, y1 = state(page)["plan"]["persons"][0]["box"]
    assert x0 == pytest.approx(1, abs=0.2)
    drag(page, (x0, y0), (x0 + 4, y0 + 4))
    wait_versions(page, 4)
    box = state(page)["plan"]["persons"][0]["box"]
    assert box[2:] == pytest.approx([x1, y1], abs=0.3)
    assert box[0] > x0 + 1


def test_somebody_more_and_somebody_less(page: Any) -> None:
    example(page)
    before = poses(page)
    page.click("#show-add")
    page.select_option("#add-where", "right")
    page.get_by_role("button", name="Add", exact=True).click()
    wait_versions(page, 2)
    both = poses(page)
    assert both.shape[0] == 2
    np.testing.assert_array_equal(both[:1], before)
    page.select_option("#person", "0")
    page.click("#delete-person")
    wait_versions(page, 3)
    np.testing.assert_array_equal(poses(page), both[1:])


def test_from_here_on(page: Any) -> None:
    example(page)
    before = poses(page)
    page.locator("#strip button").nth(6).click()
    page.click("#show-continue")
    page.fill("#continue-prompt", "A person jumps.")
    page.fill("#continue-seed", "8")
    page.get_by_role("button", name="Go on").click()
    wait_versions(page, 2)
    assert state(page)["plan"]["later"] == [{"time": pytest.approx(2.0), "prompt": "A person jumps."}]
    changed = np.flatnonzero((poses(page) != before).any((0, 2, 3)))
    assert changed.min() > 40
    assert page.locator("#strip .other").count() == len(before[0]) // 10 - 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plan.json", b'{"version": 1, "prompt": "x"}', "'seed' is missing"),
        ("poses.npy", b"nonsense", "is not a .npy file"),
        ("holiday.jpg", b"nonsense", "neither .json nor .npy"),
    ],
)
def test_malformed_files(page: Any, name: str, content: bytes, message: str) -> None:
    page.fill("#prompt", PROMPT)
    page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": content})
    page.wait_for_selector("#message:not([hidden])")
    assert message in page.inner_text("#message")
    assert state(page)["plan"] is None


def test_a_hundred_megabytes(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "poses.npy"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    page.set_input_files("#file", path)
    page.wait_for_selector("#message:not([hidden])")
    assert "poses.npy has 100.0 MB; allowed are 8 MB" in page.inner_text("#message")
    # Past the page's own check:
    answer = page.evaluate(
        """async () => {
          const body = new Blob([new Uint8Array(100 * 2 ** 20)]);
          const options = { method: "POST", headers: { "X-Desk": "1" }, body };
          const response = await fetch("/api/a/import?name=poses.npy", options);
          return [response.status, (await response.json()).error];
        }"""
    )
    assert answer == [413, "this is larger than 8 MB, which is the limit here; send a smaller file"]


def test_two_visitors_at_once(visit: Visit) -> None:
    first, second = visit(), visit()
    ask(first, "A man walks.")
    ask(second, "A woman waves.")
    for page in (first, second):
        page.wait_for_selector("video:not([hidden])")
    assert "A man walks." in first.inner_text("#boards")
    assert "A woman waves." in second.inner_text("#boards")
    assert state(first)["versions"] == state(second)["versions"]
    assert "A man" not in json.dumps(state(second))


def test_cancel(desk: Any, page: Any) -> None:
    settings = desk.state.visitors.checkpoints("").config.render
    settings.steps = 900
    try:
        ask(page)
        until(page, "document.getElementById('stage-name').textContent.startsWith('video')")
        page.click("#cancel")
        until(page, "document.getElementById('said').textContent == 'Cancelled.'")
    finally:
        settings.steps = 2
    assert state(page)["dense"]
    assert not state(page)["video"]
    page.click("#render")
    page.wait_for_selector("video:not([hidden])")


def test_no_path_leaves_the_folder(page: Any) -> None:
    static = ("/static/..%2fserver.py", "/static/%2e%2e/server.py")
    for path in (*static, "/api/a/file/..%2f..%2fexport.json", "/..%2f..%2fetc/passwd"):
        response = page.request.get(url(page, path))
        assert response.status in (404, 422), path
    page.set_input_files("#file", {"name": "../../../etc/cron.d/x.json", "mimeType": "text/plain", "buffer": b"{}"})
    page.wait_for_selector("#message:not([hidden])")
    assert not page.inner_text("#message").startswith("..")


def test_a_session_file_and_a_link_restore_everything(visit: Visit) -> None:
    page = visit()
    example(page)
    page.fill("#joint-x", "20")
    page.press("#joint-x", "Enter")
    wait_versions(page, 2)
    page.click("#undo")
    settle(page)
    kept = state(page)
    page.click(".menu summary")
    with page.expect_download() as download:
        page.get_by_role("button", name="Session (everything)").click()
    other = visit()
    other.uncheck("#auto-render")
    other.set_input_files("#file", {
        "name": "session.json", "mimeType": "application/json", "buffer": Path(download.value.path()).read_bytes(),
    })  # fmt: skip
    wait_versions(other, 2)
    page.click(".menu summary")
    page.get_by_role("button", name="Link to this session").click()
    page.wait_for_selector("#link-dialog[open]")
    third = visit("?" + page.input_value("#link").split("?")[1])
    settle(third)
    for found in (other, third):
        again = state(found)
        assert (again["plan"], again["cursor"], again["settings"]) == (kept["plan"], 0, kept["settings"])
        assert again["can_redo"]
        np.testing.assert_array_equal(poses(found), poses(page))
    assert "open=" not in third.url
    page.reload()
    page.wait_for_selector("#strip button")  # nor does a reload lose anything


def test_two_seeds_side_by_side(page: Any) -> None:
    ask(page)
    page.wait_for_selector("video:not([hidden])")
    page.click("#compare")
    page.fill("#compare-seed", "7")
    page.get_by_role("button", name="Compare", exact=True).click()
    until(page, "document.querySelectorAll('video:not([hidden])').length == 2")
    a, b = state(page), state(page, "b")
    assert (a["settings"]["seed"], b["settings"]["seed"]) == (0, 7)
    assert a["plan"]["persons"] != b["plan"]["persons"]
    page.get_by_role("button", name="Side B").click()
    assert page.input_value("#seed") == "7"
    page.click("#end-compare")
    assert page.input_value("#seed") == "0"


def test_the_keyboard_reaches_everything(page: Any) -> None:
    example(page)
    wanted = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea, summary, a, [tabindex="0"]')]
             .filter(n => n.checkVisibility() && !n.disabled).length"""
    )
    page.evaluate("document.activeElement.blur(); window.met = new Set()")
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
        page.evaluate("met.add(document.activeElement)")
    assert page.evaluate("[...met].filter(n => n !== document.body).length") == wanted
    page.focus("#stage")
    page.keyboard.press(".")
    page.keyboard.press("]")
    point = state(page)["plan"]["persons"][0]["keys"][1]["joints"][5]
    page.keyboard.press("Shift+ArrowRight")
    wait_versions(page, 2)
    moved = state(page)["plan"]["persons"][0]["keys"][1]["joints"][5]
    assert moved[:2] == pytest.approx([point[0] + 4, point[1]], abs=0.02)
    assert page.evaluate("document.activeElement.id") == "stage"
    page.keyboard.press("Control+z")
    settle(page)
    assert state(page)["cursor"] == 0
    page.focus("#show-continue")
    page.keyboard.press("Enter")
    page.wait_for_selector("#continue-dialog[open]")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "show-continue"


def test_reports_and_plans_in_and_out(page: Any, desk: Any) -> None:
    page.click("#show-reports")
    page.wait_for_selector("#reports-dialog[open]")
    assert page.inner_text("#reports")
    page.keyboard.press("Escape")
    example(page, 1)
    plan = plan_from_dict(page.request.get(url(page, "/api/a/file/plan.json")).json())
    page.set_input_files("#file", {
        "name": "poses.npy", "mimeType": "application/octet-stream",
        "buffer": page.request.get(url(page, "/api/a/file/poses.npy")).body(),
    })  # fmt: skip
    wait_versions(page, 2)
    assert len(state(page)["plan"]["persons"][0]["keys"]) == plan.scene_keys.num_frames


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    example(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
