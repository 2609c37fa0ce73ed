"""`station.json` and runtime descriptions: every wrong field is named, nothing else is thrown."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundler.station.configuration import read_bundle, read_runtime
from bundler.station.fields import is_inside
from bundler.station.problems import StationError

GOOD = {
    "schema_version": 1, "name": "quickstart", "version": "1", "title": "Quickstart",
    "models": [{"name": "chat", "role": "chat", "file": "models/chat.gguf", "context_tokens": 1024,
                "parallel": 2, "kv_cache": "f16", "residency": "resident", "size_bytes": 1,
                "memory_bytes": 2, "quant": "Q4_K_M"}],
    "corpora": [{"name": "handbook", "file": "corpora/handbook.zim", "title": "Handbook",
                 "language": "eng", "articles": 46, "full_text": True}],
    "runtimes": ["xllamacpp"],
}  # fmt: skip


def write(root, document):
    (root / "station.json").write_text(
        document if isinstance(document, str) else json.dumps(document)
    )
    return root


def problems(root, document):
    with pytest.raises(StationError) as caught:
        read_bundle(write(root, document))
    assert caught.value.hint
    return caught.value.problems


def test_a_good_bundle_is_read_whole(tmp_path):
    bundle = read_bundle(write(tmp_path, GOOD))
    assert bundle.models[0].context_tokens == 1024
    assert bundle.corpora[0].articles == 46
    assert bundle.runtimes == ("xllamacpp",)


def test_keys_of_a_newer_builder_are_left_alone(tmp_path):
    assert read_bundle(write(tmp_path, {**GOOD, "later": {"x": 1}})).name == "quickstart"


def test_all_problems_are_said_at_once_with_their_places(tmp_path):
    broken = {
        **GOOD,
        "schema_version": 2,
        "models": [{**GOOD["models"][0], "file": "../../etc/passwd", "context_tokens": "many", "parallel": 0,
                    "residency": "sometimes"}, 7],
        "corpora": [{**GOOD["corpora"][0], "full_text": "yes"}, {**GOOD["corpora"][0], "articles": -1}],
        "runtimes": ["../x"],
    }  # fmt: skip
    assert problems(tmp_path, broken) == (
        "station.json: schema_version: this station reads version 1 only",
        "station.json: models[1]: expected an object",
        "station.json: models[0].residency: expected 'resident' or 'on-demand'",
        "station.json: models[0].file: '../../etc/passwd' is not a path inside the bundle",
        "station.json: models[0].context_tokens: expected a whole number of at least 64",
        "station.json: models[0].parallel: expected a whole number of at least 1",
        "station.json: corpora[0].full_text: expected true or false",
        "station.json: corpora[1].articles: expected a whole number of at least 0",
        "station.json: runtimes: '../x' is not a name (a-z 0-9 . _ -)",
        "station.json: corpora: the name 'handbook' is used twice",
    )


TIER = {"name": "cpu", "title": "Any", "accelerator": "none", "vram_bytes": 0, "ram_bytes": 5}


def test_sets_of_models_are_read_and_told_apart(tmp_path):
    big = {**TIER, "name": "big", "accelerator": "cuda", "vram_bytes": 7, "device_count": 2}
    models = [{**GOOD["models"][0], "tier": "big"}, {**GOOD["models"][0], "tier": "cpu"},
              {**GOOD["models"][0], "name": "words"}]  # fmt: skip
    bundle = read_bundle(write(tmp_path, {**GOOD, "tiers": [big, TIER], "models": models}))
    assert [(tier.name, tier.vram_bytes, tier.device_count) for tier in bundle.tiers] == [
        ("big", 7, 2), ("cpu", 0, 1),
    ]  # fmt: skip
    assert [(m.name, m.tier) for m in bundle.for_tier("cpu").models] == [
        ("chat", "cpu"), ("words", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tiers", "said"),
    [
        (7, "tiers: expected a list"),
        ([7], "tiers[0]: expected an object"),
        ([{**TIER, "name": "../x"}], "tiers[0].name: '../x' is not a name"),
        ([{**TIER, "name": 7}], "tiers[0].name: expected a short text"),
        ([{**TIER, "title": "x" * 5000}], "tiers[0].title: expected a short text"),
        ([{**TIER, "accelerator": "<b>"}], "tiers[0].accelerator: '<b>' is not a name"),
        ([{**TIER, "ram_bytes": -1}], "tiers[0].ram_bytes: expected a whole number"),
        ([{**TIER, "vram_bytes": 2**70}], "tiers[0].vram_bytes: expected a whole number"),
        ([{**TIER, "ram_bytes": True}], "tiers[0].ram_bytes: expected a whole number"),
        ([{**TIER, "ram_bytes": "5 GB"}], "tiers[0].ram_bytes: expected a whole number"),
        ([{**TIER, "device_count": 0}], "tiers[0].device_count: expected a whole number"),
        ([TIER, TIER], "tiers: the name 'cpu' is used twice"),
        ([TIER, {**TIER, "name": ""}], "tiers: one of several has no name"),
        ([{**TIER, "name": f"t{n}"} for n in range(65)], "tiers: expected at most 64"),
    ],
)
def test_a_hostile_set_of_models_is_named_and_refused(tmp_path, tiers, said):
    assert f"station.json: {said}" in "\n".join(problems(tmp_path, {**GOOD, "tiers": tiers}))


def test_a_model_of_no_known_set_and_two_of_one_name_are_refused(tmp_path):
    model = GOOD["models"][0]
    strange = {**GOOD, "tiers": [TIER], "models": [{**model, "tier": "gone"}]}
    assert problems(tmp_path, strange) == ("station.json: models[0].tier: there is no tier 'gone'",)
    twice = {**GOOD, "tiers": [TIER], "models": [{**model, "tier": "cpu"}, model]}
    assert problems(tmp_path, twice) == ("station.json: models: the name 'chat' is used twice",)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "not JSON"), ("{", "not JSON"), ("[]", "expected an object"), ("[" * 100_000, "not JSON"),
     ('"' + "x" * 5_000_000 + '"', "larger than 4,194,304 bytes")],
)  # fmt: skip
def test_a_file_that_is_no_such_thing_is_refused(tmp_path, text, said):
    assert said in problems(tmp_path, text)[0]


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(StationError, match="cannot be read: No such file"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "a/../b", "..", "a//b", "./a", "C:/x", "a\\b", "a\0b", "a:b", "a\n"]
)
def test_a_path_that_could_leave_the_bundle_is_refused(path):
    assert not is_inside(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*GOOD, *GOOD["models"][0], *GOOD["corpora"][0], "x"]),
            inner,
            max_size=8,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(list(GOOD)), json_values, max_size=4))
def test_any_json_is_either_read_or_refused_by_name(tmp_path, changes):
    write(tmp_path, json.dumps({**GOOD, **changes}))
    try:
        bundle = read_bundle(tmp_path)
    except StationError as error:
        assert all(problem.startswith("station.json: ") for problem in error.problems)  # noqa: PT017 - either is right
    else:
        assert all(is_inside(entry.file) for entry in (*bundle.models, *bundle.corpora))


def test_a_runtime_for_another_platform_is_simply_not_there(tmp_path):
    assert read_runtime(tmp_path, "windows-x86_64", "xllamacpp") is None


def test_a_broken_runtime_is_named(tmp_path):
    folder = tmp_path / "runtime" / "linux-x86_64"
    folder.mkdir(parents=True)
    description = {
        "command": [],
        "environment": {"A B": 1},
        "health": "http://evil",
        "api_key_environment": "x y",
    }
    (folder / "r.json").write_text(json.dumps(description))
    with pytest.raises(StationError) as caught:
        read_runtime(tmp_path, "linux-x86_64", "r")
    assert caught.value.problems == (
        "runtime/linux-x86_64/r.json: environment.A B: expected a variable's name and a text",
        "runtime/linux-x86_64/r.json: command: empty; there is nothing to start",
        "runtime/linux-x86_64/r.json: health: not a plain path such as /health",
        "runtime/linux-x86_64/r.json: api_key_environment: not a name of an environment variable",
    )
