"""One bundle of the example model for two machines, built and started for real."""

from __future__ import annotations

import functools
import json
import re
import time

import httpx2
import pytest
from filelock import FileLock

from bundler.testing.station_process import running_station
from bundler.verify import read_manifest, verify_bundle
from tests.demo import CACHE, bundler

# With 128 users the KV cache outweighs this small model: 336 MB as f16, 178 MB as q8_0. So a
# machine with 620 MB gets the smaller cache, and both machines the same file.
RECIPE = """\
schema = 1
[bundle]
name = "two-machines"
title = "A model for two machines"
[tiers.desk]
title = "A desktop computer"
ram = "1 GB"
[tiers.pocket]
title = "A very small computer"
ram = "620 MB"
[models.chat]
source = "path:../../examples/model"
quant = "Q8_0"
context_tokens = 1024
parallel = 128
licence = "GPL-3.0-or-later"
[models.chat.gates]
min_top1 = 0.9
[verify]
tokens = 512
"""


@functools.cache
def built(name, recipe):
    """Return the bundle of a recipe and what its build said."""
    folder = CACHE / "tiers"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "demo.lock"):
        path = folder / f"{name}.toml"
        path.write_text(recipe)
        path.with_suffix(".lock").unlink(missing_ok=True)
        output = CACHE / "demo" / f"tiers-{name}"
        done = bundler("build", path, "--output", output, "--store", CACHE / "store",
                       "--progress", "plain")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout + done.stderr


def two_machines():
    return built("two", RECIPE)


def test_both_machines_share_the_file_and_differ_in_the_cache():
    bundle, _ = two_machines()
    manifest = read_manifest(bundle)
    assert [(m.tier, m.quant, m.kv_cache) for m in manifest.models] == [
        ("desk", "Q8_0", "f16"), ("pocket", "Q8_0", "q8_0"),
    ]  # fmt: skip
    assert len({m.file for m in manifest.models}) == 1
    assert [f.name for f in (bundle / "models").rglob("*.gguf")] == ["chat-Q8_0.gguf"]
    assert all(m.proof.gates and m.proof.gates[0].passed for m in manifest.models)
    assert verify_bundle(bundle).findings == ()


def test_work_that_machines_share_is_done_once():
    manifest = read_manifest(two_machines()[0])
    keys = manifest.step_keys
    assert keys["models/chat@desk/quantize"] == keys["models/chat@pocket/quantize"]
    assert keys["models/chat@desk/prove"] != keys["models/chat@pocket/prove"]


def test_another_plan_for_one_machine_leaves_the_other_and_redoes_nothing():
    """The larger cache breaks a gate on memory; the machine that has the smaller one keeps it."""
    gated = RECIPE.replace("min_top1 = 0.9", 'min_top1 = 0.9\nmax_memory = "300 MB"')
    replanned, said = built("gated", gated)
    assert "models.chat (tiers.desk): Q8_0 with f16 KV cache did not pass (max_memory" in said
    assert "tiers.pocket): Q8_0 with q8_0 KV cache did not" not in said
    manifest = read_manifest(replanned)
    assert [(m.tier, m.kv_cache) for m in manifest.models] == [("desk", "q8_0"), ("pocket", "q8_0")]
    keys = manifest.step_keys
    assert keys["models/chat@desk/prove"] == keys["models/chat@pocket/prove"]
    done = re.findall(r"✓ (models/\S+)", said)
    assert len(done) == len(set(done))
    # The second plan finds the proof of its new choice made for the other machine already.
    second = said[said.index("did not pass") :]
    assert "= models/chat@desk/prove  unchanged" in second
    assert "✓ models/" not in second


@pytest.mark.parametrize(
    ("ram_bytes", "tier", "kv_cache"), [(2_000_000_000, "desk", "f16"), (930_000_000, "pocket", "q8_0")]
)  # fmt: skip
def test_the_station_of_the_bundle_takes_what_fits_and_answers(tmp_path, ram_bytes, tier, kv_cache):
    machine = tmp_path / "machine.json"
    machine.write_text(json.dumps({"ram_bytes": ram_bytes}))
    with running_station(two_machines()[0], "--machine", str(machine)) as station:
        url = station.url
        status = wait(url)
        assert status["tier"]["name"] == tier
        assert status["warnings"] == []
        names = [model["id"] for model in httpx2.get(url + "v1/models").json()["data"]]
        assert names == ["chat"]
        answer = httpx2.post(
            url + "v1/completions", json={"model": "chat", "prompt": "Water", "max_tokens": 4},
            timeout=60,
        )  # fmt: skip
        assert answer.status_code == 200, answer.text


def wait(url, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = httpx2.get(url + "api/status").json()
        if status["chat"] != "starting":
            assert status["chat"] == "ready", status
            return status
        time.sleep(0.2)
    raise AssertionError("the model did not start")
