"""Seconds from a prompt to the first key pose shown, to motion, to video, through the server and a browser.

  python scripts/bench_app.py [CONFIG.yaml] [key=value ...]

The first scene is cold (the networks are read for it), the second warm. Times are those of the page: from the click
until the picture is in the document. A moved joint is timed as well, until new motion is there.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.__main__ import bind, make_server
from configs.app_schema import AppConfig
from configs.cli import run_script, split_arguments
from configs.loader import load_typed
from modules.errors import UserError
from modules.reports import Column, Row, Table

PROMPT = (
    "A woman in a red shirt and blue trousers waves her left hand for 4 seconds in front of a gray wall, seen from the "
    "front."
)
_SHOWN = {
    "first key pose": "document.querySelector('#strip button')",
    "motion": "document.querySelector('article svg[aria-label^=\"Motion, frame\"]')",
    "video": "document.querySelector('video:not([hidden])')?.videoWidth",
}
_FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


def measure(page: Any, seed: int) -> dict[str, float]:
    """Seconds until each of _SHOWN."""
    page.goto(page.url.split("?")[0])
    page.wait_for_selector("body[data-ready]")
    page.fill("#prompt", PROMPT)
    page.fill("#seed", str(seed))
    shown = ", ".join(f'"{name}": () => {test}' for name, test in _SHOWN.items())
    return page.evaluate(
        """async () => {
          const started = performance.now(), times = {};
          const shown = {SHOWN};
          document.getElementById("generate").click();
          while (Object.keys(times).length < Object.keys(shown).length) {
            await new Promise(requestAnimationFrame);
            for (const [name, test] of Object.entries(shown)) {
              if (!(name in times) && test()) times[name] = (performance.now() - started) / 1000;
            }
          }
          return times;
        }""".replace("SHOWN", shown)
    )


def measure_edit(page: Any) -> dict[str, float]:
    """Seconds from the change of a joint to new motion (the video is left out)."""
    page.uncheck("#auto-render")
    seconds = page.evaluate(
        """async () => {
          const state = () => fetch("/api/a/state").then((r) => r.json());
          const before = (await state()).version, started = performance.now();
          const field = document.getElementById("joint-x");
          field.value = Number(field.value) + 3;
          field.dispatchEvent(new Event("change"));
          for (let s = await state(); s.version === before || !s.dense; s = await state());
          return (performance.now() - started) / 1000;
        }"""
    )
    return {"motion": seconds}


def main(arguments: list[str]) -> None:
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]  # the extra `browser`

    from app.server import make_app

    paths, items, _ = split_arguments(arguments)
    config = load_typed(AppConfig, paths or ["configs/app/demo.yaml"], items)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise UserError("there is no chromium on this machine: apt-get install chromium")
    app, sock = make_app(config), bind("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    table = Table("seconds after the click", [Column(name, "px") for name in _SHOWN])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
        page: Any = None
        for seed, name in enumerate(("cold", "warm")):
            page = browser.new_context().new_page()
            page.set_default_timeout(300_000)
            for _ in range(50):  # until the server listens
                try:
                    page.goto(f"http://127.0.0.1:{sock.getsockname()[1]}/")
                    break
                except Exception:
                    time.sleep(0.1)
            table.rows.append(Row(name, measure(page, seed)))
        table.rows.append(Row("a joint moved", measure_edit(page)))
        browser.close()
    server.should_exit = True
    thread.join(10)
    print("\n".join(table.lines()))


if __name__ == "__main__":
    run_script(main, __doc__)
