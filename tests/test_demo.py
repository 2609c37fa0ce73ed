"""The main job on the embedded example, looked at from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from bundler.verify import read_manifest, verify_bundle
from tests.demo import CACHE, ROOT, bundler, quickstart


def test_the_bundle_is_whole_by_our_check_and_by_sha256sum(demo):
    assert verify_bundle(demo).findings == ()
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=demo)
    assert done.returncode == 0


def test_the_plan_forecasts_the_bundles_size_and_rather_too_much(demo):
    """A stick that is called large enough is."""
    recipe = quickstart()
    plan = json.loads(bundler("plan", recipe, "--json", "--locked").stdout)
    (budget,) = (one for one in plan["budgets"] if one["name"] == "bundle on disk")
    real = sum(path.stat().st_size for path in demo.rglob("*") if path.is_file())
    assert real <= budget["used_bytes"] <= 1.1 * real


def test_the_model_arrives_with_evidence(demo):
    (model,) = read_manifest(demo).models
    proof = model.proof
    assert proof.quality.tokens >= 1000
    assert 0 <= proof.quality.kld_mean < 0.05
    assert proof.quality.perplexity < 60  # uniform over the vocabulary would be 4096
    assert proof.speed.generation_tokens_per_second > 0
    assert proof.gates
    assert all(gate.passed for gate in proof.gates)
    assert proof.device.backend_build
    files = {file.path: file.sha256 for file in read_manifest(demo).files}
    assert proof.model_sha256 == files[model.file]
    assert proof.device.peak_memory_bytes <= model.predicted_memory.total_bytes


def test_the_whole_handbook_can_be_searched(demo):
    (corpus,) = read_manifest(demo).corpora
    assert corpus.coverage.articles_found == corpus.coverage.articles_indexed >= 40
    assert corpus.coverage.skipped_total == 0


def test_the_bill_of_materials_is_valid_and_names_everything(demo):
    text = (demo / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    names = {component["name"] for component in json.loads(text)["components"]}
    assert {"chat", "Field handbook", "libzim", "xllamacpp", "starlette"} <= names
    for component in json.loads(text)["components"]:
        assert component["licenses"] or component["type"] != "library", component["name"]


def test_no_trace_of_this_machine_is_in_what_we_write(demo):
    own = [
        path for path in demo.rglob("*")
        if path.is_file() and path.suffix in (".json", ".html", ".toml", ".cmd", ".py", "")
    ]  # fmt: skip
    for path in own:
        data = path.read_bytes()
        if path.name != "python3" and not data.startswith(b"\x7fELF"):
            assert str(ROOT).encode() not in data, path


def test_pages_in_the_bundle_load_nothing_from_elsewhere(demo):
    for name in ("README.html", "report.html"):
        text = (demo / name).read_text()
        assert "<script" not in text
        assert "src=" not in text
        assert "default-src 'none'" in text


def test_the_bundle_holds_no_links_and_no_name_that_a_stick_cannot_hold(demo):
    from bundler.value import check_relative_path

    for path in demo.rglob("*"):
        assert not path.is_symlink()
        check_relative_path(path.relative_to(demo).as_posix())


def protecting(path, manifest):
    """Return the parity sets that a file is in: what is measured is never the same twice in them."""
    return {one.file for one in manifest.parity.sets if path in one.files}


MEASURED = {"report.html", "provenance.intoto.json"}


@pytest.mark.fault("A13")
def test_another_store_and_place_give_the_same_bytes_of_all_that_is_not_measured(demo, tmp_path):
    done = bundler(
        "build", ROOT / "recipes/quickstart.toml", "--store", tmp_path / "store",
        "--output", tmp_path / "other place" / "quickstart", "--frozen", "--jobs", "1", "--share",
        TZ="Pacific/Kiritimati", LC_ALL="C", SOURCE_DATE_EPOCH="12345", PYTHONHASHSEED="7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = read_manifest(demo), read_manifest(tmp_path / "other place" / "quickstart")
    first = {file.path: file.sha256 for file in one.files}
    second = {file.path: file.sha256 for file in two.files}
    # The provenance names the report's digest, and the set of the report may hold it too.
    differing = {
        path for path in first.keys() | second.keys() if first.get(path) != second.get(path)
    }
    assert differing <= MEASURED | set().union(*(protecting(path, one) for path in MEASURED))
    measured = {"speed", "device", "settings", "notes"}
    for a, b in zip(one.models, two.models, strict=True):
        assert a.proof.model_dump(exclude=measured) == b.proof.model_dump(exclude=measured)


def test_a_second_build_finds_everything_done(demo):
    done = bundler(
        "build", ROOT / "recipes/quickstart.toml", "--store", CACHE / "store", "--output", demo
    )
    assert done.returncode == 0
    assert "✓ models" not in done.stderr
    assert "every byte is as it should be" in done.stderr


def test_verify_says_what_is_wrong_and_exits_with_six(demo, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(demo, copy)
    zim = copy / "corpora/handbook.zim"
    zim.chmod(0o644)
    data = bytearray(zim.read_bytes())
    data[len(data) // 2] ^= 4
    zim.write_bytes(data)
    done = bundler("verify", copy)
    assert done.returncode == 6
    assert "changed" in done.stderr
    assert "corpora/handbook.zim" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["README.html", "report.html"])
def test_pages_name_what_they_should(demo, name):
    text = (demo / name).read_text()
    assert "A field handbook that answers questions" in text
    assert "Field handbook" in text


@pytest.mark.timeout(1500)
@pytest.mark.fault("A2")
def test_the_real_build_killed_in_each_step_goes_on_and_ends_in_the_same_bytes(demo, tmp_path):
    """kill -9 of everything as soon as a step begins, one step after the other, then to the end."""
    words = [
        sys.executable, "-m", "bundler", "build", ROOT / "recipes/quickstart.toml", "--frozen",
        "--store", tmp_path / "store", "--output", tmp_path / "dist", "--progress", "json",
    ]  # fmt: skip
    killed = []
    for step in ("models/chat/quantize", "models/chat/prove", "corpora/handbook", "seal"):
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
            start_new_session=True,
        ) as process:  # fmt: skip
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "StepStarted" and event["step"] == step:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(step)
                    break
        assert not (tmp_path / "dist").exists()
    assert len(killed) == 4
    done = bundler(*words[3:-2])
    assert done.returncode == 0, done.stderr
    first = {file.path: file.sha256 for file in read_manifest(demo).files}
    second = {file.path: file.sha256 for file in read_manifest(tmp_path / "dist").files}
    whole = read_manifest(demo)
    expected = MEASURED | set().union(*(protecting(path, whole) for path in MEASURED))
    assert {p for p in first | second if first.get(p) != second.get(p)} <= expected
    assert not list(tmp_path.glob(".dist.*"))
