"""Where a bundle comes from: reproducible, complete, without secrets, and signed with the rest."""

import json
import os
import subprocess
import sys

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from bundler.attest.provenance import PROVENANCE_NAME, uri_of
from bundler.lock import Lock, LockedFile, Resolution
from bundler.manifest import BESIDE
from bundler.verify import read_manifest
from tests.demo import ROOT, demo_bundle, quickstart
from tests.fake_build import run

SETTINGS = {
    "umask": ("umask 077", {}),
    "time zone and language": ("true", {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "LANG": "C"}),
    "order of sets": ("true", {"PYTHONHASHSEED": "4711"}),
    "one processor": ("taskset -p 1 $$ >/dev/null", {}),
}


def built_elsewhere(folder, first="true", **environment):
    done = subprocess.run(
        ["sh", "-c", f'{first}; exec "$0" -m tests.fake_build "$1"', sys.executable, folder],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_place_and_store_give_the_same_manifest_digest(tmp_path, setting):
    first, environment = SETTINGS[setting]
    one = built_elsewhere(tmp_path / "one")
    two = built_elsewhere(tmp_path / "another" / "place", first, **environment)
    assert len(one) == 64
    assert one == two


def statement_of(bundle):
    return json.loads((bundle / PROVENANCE_NAME).read_bytes())


def test_the_statement_has_the_form_of_in_toto_and_slsa(tmp_path):
    statement = statement_of(run(tmp_path).output)
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert set(statement["predicate"]) == {"buildDefinition", "runDetails"}
    definition = statement["predicate"]["buildDefinition"]
    assert set(definition) == {"buildType", "externalParameters", "resolvedDependencies"}
    assert ":" in definition["buildType"]
    assert ":" in statement["predicate"]["runDetails"]["builder"]["id"]


def test_its_subjects_are_all_files_but_itself_and_parity(tmp_path):
    output = run(tmp_path).output
    listed = {file.path: file.sha256 for file in read_manifest(output).files}
    subjects = {one["name"]: one["digest"]["sha256"] for one in statement_of(output)["subject"]}
    left_out = {path for path in listed if path.startswith("parity/")} | {PROVENANCE_NAME}
    assert subjects == {path: sha for path, sha in listed.items() if path not in left_out}
    assert PROVENANCE_NAME in listed
    assert PROVENANCE_NAME not in BESIDE


def test_it_names_every_locked_file_the_lock_and_the_recipe(tmp_path):
    output = run(tmp_path).output
    (lock_file,) = tmp_path.glob("*.lock")
    lock = Lock.model_validate_json(lock_file.read_bytes())
    definition = statement_of(output)["predicate"]["buildDefinition"]
    named = {one["digest"]["sha256"] for one in definition["resolvedDependencies"]}
    bodies = [*(m.resolution for m in lock.models.values()), *lock.corpora.values(),
              *lock.texts.values(), *lock.runtimes.values()]  # fmt: skip
    assert named == {file.sha256 for body in bodies for file in body.files}
    assert definition["externalParameters"]["lock"]["sha256"] == lock.inputs_sha256


@pytest.mark.parametrize(("source", "reference", "address", "expected"), [
    ("hf", "hf:owner/name@main", "https://hub/x", "pkg:huggingface/owner/name@c0ffee"),
    ("http", "x", "https://me:secret@host.example/a/b.zim?token=secret#secret",
     "https://host.example/a/b.zim"),
    ("pypi", "x", "pypi:nh3==0.3.8/nh3-0.3.8.whl#sha256=" + "0" * 64, "pkg:pypi/nh3@0.3.8"),
    ("path", "path:../secret", "/home/me/secret/file", ""),
])  # fmt: skip
def test_where_a_file_is_from_is_said_without_secrets(source, reference, address, expected):
    file = LockedFile(path="f", size_bytes=1, sha256="0" * 64, addresses=(address,))
    body = Resolution(source=source, reference=reference, revision="c0ffee", files=(file,))
    assert uri_of(body, file) == expected


def test_the_example_says_where_it_comes_from_and_nothing_of_this_machine():
    statement = statement_of(demo_bundle())
    names = {
        one["name"] for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    }
    lock = Lock.model_validate_json(quickstart().with_suffix(".lock").read_bytes())
    assert {f"models.chat/{f.path}" for f in lock.models["chat"].resolution.files} <= names
    assert str(ROOT) not in json.dumps(statement)


def test_the_bill_of_materials_has_digests_purls_and_spdx_expressions():
    bundle = demo_bundle()
    text = (bundle / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {one["name"]: one for one in json.loads(text)["components"]}
    digests = {file.path: file.sha256 for file in read_manifest(bundle).files}
    assert parts["Field handbook"]["hashes"][0]["content"] == digests["corpora/handbook.zim"]
    assert parts["starlette"]["purl"].startswith("pkg:pypi/starlette@")
    expression = "Apache-2.0 OR BSD-3-Clause"
    assert parts["cryptography"]["licenses"] == [{"expression": expression}]


def test_the_example_has_a_licence_text_for_every_part_or_says_that_it_has_none():
    from bundler.attest.verdicts import verdicts

    bundle = demo_bundle()
    page = (bundle / "licenses/INDEX.txt").read_text()
    found = verdicts(read_manifest(bundle))
    assert len(found) > 30
    for one in found:
        assert one.terms.answer in ("yes", "conditions"), one
        assert f"{one.item}: {one.licence}" in page
        assert one.texts, one.item
        for path in one.texts:
            assert (bundle / path).stat().st_size > 0
    assert list(bundle.glob("runtime/*/licenses/SOURCES.txt"))
