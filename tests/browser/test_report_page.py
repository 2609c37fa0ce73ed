"""The report on a telephone: nothing of a proof lies outside the screen."""

from __future__ import annotations

import pytest

from tests.demo import demo_bundle


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_proof_is_read_without_scrolling_sideways(chromium, screenshots, width, scheme):
    context = chromium.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=True
    )
    page = context.new_page()
    page.goto((demo_bundle() / "report.html").resolve().as_uri())
    page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    rights = page.evaluate(
        "[...document.querySelectorAll('.proof td')].map(c => c.getBoundingClientRect().right)"
    )
    assert len(rights) >= 15
    assert max(rights) <= width
    context.close()
