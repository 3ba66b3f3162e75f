"""A server with tiny exports on a free port, and the system's Chromium."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
# No sandbox where root runs it; no chatter with anybody but the page.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="session")
def desk(tiny_chain: Path) -> Iterator[Any]:
    """The running application; `desk.address` is its URL."""
    pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[browser]'")
    from app.__main__ import bind, make_server
    from app.server import make_app
    from configs.app_schema import AppConfig
    from configs.loader import load_typed
    from tests.tiny import ROOT

    before = Path.cwd()
    os.chdir(tiny_chain)
    config = load_typed(AppConfig, [str(ROOT / "configs/app/smoke.yaml")], ["name=tiny", "desk.compare=[tiny]"])
    app = make_app(config)
    sock = bind("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    app.address = f"http://127.0.0.1:{sock.getsockname()[1]}"  # type: ignore[attr-defined]
    yield app
    server.should_exit = True
    thread.join(10)
    app.state.visitors.queue.close()
    os.chdir(before)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    missing = "playwright is not installed: pip install -e '.[browser]'"
    sync_api = pytest.importorskip("playwright.sync_api", reason=missing)
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(desk: Any, browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens the page as a new visitor. Errors of its scripts fail the test."""
    contexts, problems = [], list[str]()

    def open_page(query: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{desk.address}/{query}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture
def page(visit: Callable[..., Any]) -> Any:
    return visit()
