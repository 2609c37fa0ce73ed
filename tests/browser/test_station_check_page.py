"""Checking and mending a bundle on the page, in a real browser, at three widths, light and dark."""

from __future__ import annotations

import shutil

import pytest

from bundler.testing.station_process import running_station
from tests.demo import demo_bundle
from tests.test_far_end import damage, link_or_copy

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_a_person_checks_repairs_and_tests_a_bundle(watched, tmp_path, screenshots, width, scheme):
    root = tmp_path / "stick"
    shutil.copytree(demo_bundle(), root, copy_function=link_or_copy)
    whole = (root / "README.html").read_bytes()
    damage(root, "README.html")
    with running_station(root, own_programs=True) as station:
        page = watched(viewport={"width": width, "height": 900}, color_scheme=scheme).page
        page.goto(station.url + "library")
        section = page.locator("#check")
        section.get_by_role("button", name="Quick check").click()
        result = page.locator("#check-result")
        result.get_by_text("README.html is damaged").wait_for(timeout=60_000)
        page.screenshot(path=screenshots / f"check-{scheme}-{width}.png", full_page=True)
        section.get_by_role("button", name="Repair…").click()
        assert page.locator("#check-yes").is_visible()
        page.locator("#check-sure").scroll_into_view_if_needed()
        page.screenshot(path=screenshots / f"repair-{scheme}-{width}.png", full_page=True)
        page.locator("#check-yes").click()
        result.get_by_text("1 file made right").wait_for(timeout=60_000)
        section.get_by_role("button", name="Selftest").click()
        result.get_by_text("Everything works on this computer").wait_for(timeout=60_000)
        page.screenshot(path=screenshots / f"selftest-{scheme}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (root / "README.html").read_bytes() == whole


def test_a_running_check_shows_how_far_it_is_and_stops(watched, tmp_path, screenshots):
    root = tmp_path / "stick"
    shutil.copytree(demo_bundle(), root, copy_function=link_or_copy)
    with running_station(root, own_programs=True) as station:
        page = watched(viewport={"width": 768, "height": 900}).page
        page.goto(station.url + "library")
        page.get_by_role("button", name="Full check").click()
        page.locator("#check-now").wait_for(state="visible")
        assert page.get_by_role("button", name="Selftest", exact=True).is_disabled()
        page.screenshot(path=screenshots / "checking-768.png", full_page=True)
        page.locator("#check-stop").click()
        page.get_by_text("It was stopped.").wait_for(timeout=20_000)
