"""Which set of models is in use, on the page: one calm line, the rest on demand, at any width."""

from __future__ import annotations

import json

import pytest

from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import make_bundle, model_entry
from bundler.testing.station_process import running_station

pytestmark = pytest.mark.browser
GB = 10**9
TIERS = [
    {"name": "card-24gb", "title": "A computer with a 24 GB card", "accelerator": "cuda",
     "vram_bytes": 21 * GB, "ram_bytes": GB},
    {"name": "cpu", "title": "Any computer with 8 GB of memory", "ram_bytes": 5 * GB},
]  # fmt: skip


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("ram_gb", [8, 2])
def test_the_set_in_use_is_one_line_and_the_reasons_open_beneath_it(
    watched, tmp_path, screenshots, width, ram_gb
):
    models = [model_entry(tier="card-24gb", quant="Q8_0"), model_entry(tier="cpu")]
    changes = {"tiers": TIERS, "models": models}
    root = make_bundle(tmp_path / "bundle", platform=this_platform(), changes=changes)
    (tmp_path / "machine.json").write_text(json.dumps({"ram_bytes": ram_gb * GB}))
    with running_station(root, "--machine", str(tmp_path / "machine.json")) as station:
        page = watched(viewport={"width": width, "height": 900}).page
        page.goto(station.url + "library")
        details = page.locator("details.tier")
        assert "Any computer with 8 GB of memory" in details.locator("summary").inner_text()
        assert not details.locator("li").first.is_visible()
        details.locator("summary").focus()
        page.keyboard.press("Enter")
        assert "an NVIDIA card is needed" in details.locator("li").first.inner_text()
        assert "./start --tier card-24gb" in details.inner_text()
        assert page.locator("#warnings").is_visible() == (ram_gb == 2)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=screenshots / f"tier-{ram_gb}gb-{width}.png", full_page=True)
