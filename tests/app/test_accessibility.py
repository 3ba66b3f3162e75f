"""axe-core finds nothing serious on the page, in both colour schemes and both widths."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

from tests.app.test_page import example


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(page: Any, scheme: str, width: int) -> None:
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed: pip install -e '.[browser]'")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    example(page)
    page.click("#compare")
    page.get_by_role("button", name="Only show side B").click()
    check(page)
    for name in ("show-add", "show-continue", "compare", "show-gallery", "show-reports", "show-help"):
        page.click(f"#{name}")
        page.wait_for_selector("dialog[open]")
        check(page)
        page.keyboard.press("Escape")
    page.click(".menu summary")
    check(page)


def check(page: Any) -> None:
    # As the developer tools would run it: the page's own policy lets no foreign script in.
    source = files("axe_playwright_python").joinpath("axe.min.js").read_text()
    page.evaluate(f"() => {{ if (!window.axe) {{ {source} }} }}")
    found = page.evaluate("axe.run()")["violations"]
    serious = [v for v in found if v["impact"] in ("serious", "critical")]
    assert not [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in serious]
