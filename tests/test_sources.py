"""What sources make of references: hostile listings, closed doors, links, published digests."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.sources import HttpSource, HubSource, PathSource, bundler_sources
from bundler.builtin.sources.connection import (
    Client,
    origin,
    proxy_for,
    redirected,
    retry_after_seconds,
)
from bundler.builtin.sources.hub_files import choose
from bundler.builtin.sources.naming import check_listing, check_names
from bundler.builtin.sources.published import metalink_for, sha256_for
from bundler.errors import DamagedError, PassingFault, RecipeError, SourceError, UnsafeInput
from bundler.lock import Resolution
from bundler.pacing import Bandwidth, Patience, patiently
from bundler.recipe import SourceReference
from bundler.store import Store
from bundler.testing.hub import Fault, SparseFile, TestHub
from bundler.transfer import fetch
from bundler.value import check_relative_path
from bundler.world import World

FAST = Patience(attempts=3, first_delay_seconds=0.01, longest_delay_seconds=0.01)
HUB = HubSource(stall_seconds=2, patience=FAST)
HTTP = HttpSource(stall_seconds=2, patience=FAST)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = b"weights" * 1000
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"[1]",
    "model.safetensors": WEIGHTS,
    "README.md": b"# model",
    "LICENSE": b"Apache",
}


@pytest.fixture
def hub() -> Iterator[TestHub]:
    with TestHub() as hub:
        yield hub


@pytest.fixture
def world(hub: TestHub, tmp_path: Path) -> World:
    folder = tmp_path / "recipe"
    folder.mkdir()
    return World(Store(tmp_path / "store"), {"HF_ENDPOINT": hub.url}, folder=folder)


def reference(text: str, **more: object) -> SourceReference:
    return SourceReference.model_validate(
        {**SourceReference.model_validate(text).model_dump(), **more}
    )


def with_token(world: World, token: str = "hf_test") -> World:
    return World(world.store, {**world.environment, "HF_TOKEN": token}, folder=world.folder)


def names(resolution: Resolution) -> list[str]:
    return [file.path for file in resolution.files]


def test_the_sources_have_different_names() -> None:
    assert [source.name for source in bundler_sources()] == ["path", "http", "hf", "shipped"]


def test_importing_the_sources_loads_no_http_library() -> None:
    code = (
        "import sys, bundler.builtin.sources, bundler.transfer;"
        "print([m for m in ('httpx2', 'huggingface_hub', 'ssl') if m in sys.modules and m != 'ssl'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"


# -- the hub -----------------------------------------------------------------------------------------


def test_a_repository_is_pinned_to_its_commit_with_every_size_and_digest(
    hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", MODEL)
    resolution = HUB.resolve(reference("hf:owner/name@main"), world)
    assert resolution.revision == COMMIT
    assert resolution.licence == "Apache-2.0"
    assert resolution.licence_url == f"{hub.url}/owner/name/blob/{COMMIT}/LICENSE"
    assert {f.path: (f.size_bytes, f.sha256) for f in resolution.files} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in MODEL.items()
    }
    assert resolution.files[-1].addresses == (
        f"{hub.url}/owner/name/resolve/{COMMIT}/tokenizer.json",
    )


def test_no_weights_are_read_to_lock_them(hub: TestHub, world: World) -> None:
    hub.add_repository(
        "owner/name", {**MODEL, "model.safetensors": SparseFile(16 << 30, {}, sha256="ab" * 32)}
    )
    resolution = HUB.resolve(reference("hf:owner/name"), world)
    assert resolution.size_bytes > 16 << 30
    assert hub.requests("/cdn/*") == []
    assert sum(request.bytes_sent for request in hub.log) < 10_000


def test_small_files_are_in_the_store_after_locking(hub: TestHub, world: World) -> None:
    hub.add_repository("owner/name", MODEL)
    HUB.resolve(reference("hf:owner/name"), world)
    assert world.store.has(hashlib.sha256(b"{}").hexdigest())
    assert not world.store.has(hashlib.sha256(WEIGHTS).hexdigest())


def test_a_small_file_with_other_bytes_than_listed_is_not_believed(
    hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", MODEL)
    hub.inject("*/tokenizer.json", Fault.wrong_bytes())
    assert len(HUB.resolve(reference("hf:owner/name"), world).files) == 5
    hub.inject("*/tokenizer.json", Fault.wrong_bytes(), always=True)
    with pytest.raises(SourceError, match="not the file that is listed"):
        HUB.resolve(reference("hf:owner/name"), world)


@pytest.mark.parametrize(
    "fault",
    [Fault.status(503), Fault.status(429, retry_after="0"), Fault.reset(), Fault.early_close(10)],
    ids=lambda fault: fault.kind,
)
@pytest.mark.fault("B2")
def test_a_passing_fault_of_the_listing_is_waited_out(
    fault: Fault, hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", MODEL)
    hub.inject("/api/*", fault)
    assert HUB.resolve(reference("hf:owner/name"), world).revision == COMMIT


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.captive_page(), "no listing"),
        (Fault.status(500), "answered 500"),
        (Fault.redirect_loop(), "redirect"),
        (Fault.stall(), "connection failed"),
    ],
    ids=lambda given: getattr(given, "kind", ""),
)
@pytest.mark.fault("B2")
def test_a_listing_that_never_comes_is_a_clear_error(
    fault: Fault, said: str, hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", MODEL)
    hub.inject("/api/*", fault, always=True)
    source = HubSource(stall_seconds=0.2, patience=FAST)
    with pytest.raises(SourceError, match=said):
        source.resolve(reference("hf:owner/name"), world)


def test_an_endless_listing_is_cut_off(
    hub: TestHub, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundler.builtin.sources.hub_listing._LISTING_BYTES", 1 << 20)
    hub.add_repository("owner/name", MODEL)
    hub.inject("/api/*", Fault.endless(), always=True)
    with pytest.raises(UnsafeInput, match="longer than"):
        HUB.resolve(reference("hf:owner/name"), world)


@pytest.mark.fault("E4")
def test_only_safe_files_are_ever_asked_for(hub: TestHub, world: World) -> None:
    unsafe = ["pytorch_model.bin", "model.pt", "data.pkl", "modeling.py", "setup.sh", "x.onnx"]
    hub.add_repository("owner/name", {**MODEL, **dict.fromkeys(unsafe, b"x")})
    resolution = HUB.resolve(reference("hf:owner/name"), world)
    fetch([(HUB, file) for file in resolution.files], world, step="fetch")
    assert names(resolution) == sorted(MODEL)
    asked = {request.path.rpartition("/")[2] for request in hub.log if "api" not in request.path}
    assert asked == set(MODEL)


@pytest.mark.parametrize("include", [(), ("*.bin",), ("*.py",)])
@pytest.mark.fault("E4")
def test_a_repository_with_pickles_only_is_refused(
    include: tuple[str, ...], hub: TestHub, world: World
) -> None:
    files = {"config.json": b"{}", "pytorch_model.bin": b"x", "model.pt": b"x", "m.py": b"x"}
    hub.add_repository("owner/name", files)
    with pytest.raises(UnsafeInput, match="no safe weights"):
        HUB.resolve(reference("hf:owner/name", include=include), world)
    assert hub.requests("*/resolve/*") == []


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "a.Q4.gguf"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "original/consolidated.00.pth"], ["model.safetensors"]),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
          "consolidated-00001-of-00001.safetensors", "original/model.safetensors"],
         ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
        (["a.Q4.gguf", "a.Q8.gguf"], ["a.Q4.gguf", "a.Q8.gguf"]),
        (["model.safetensors", "2_Dense/model.safetensors", "onnx/model.safetensors"],
         ["2_Dense/model.safetensors", "model.safetensors"]),
        (["consolidated.safetensors", "params.json"], ["consolidated.safetensors"]),
        (["weights.safetensors"], ["weights.safetensors"]),
    ],
)  # fmt: skip
def test_each_weight_is_taken_once(files: list[str], weights: list[str]) -> None:
    chosen = choose(files, (), "here")
    assert [name for name in chosen if name.endswith((".safetensors", ".gguf"))] == weights


def test_shards_are_those_that_the_index_names(hub: TestHub, world: World) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index),
        "model-1-of-2.safetensors": b"1",
        "model-2-of-2.safetensors": b"2",
        "model-1-of-1.safetensors": b"3",
    }
    hub.add_repository("owner/name", files)
    found = names(HUB.resolve(reference("hf:owner/name"), world))
    assert "model-1-of-1.safetensors" not in found
    assert len(found) == 4
    del files["model-2-of-2.safetensors"]
    hub.add_repository("owner/name", files)
    with pytest.raises(SourceError, match=r"names 1 files which it does not have: model-2-of-2"):
        HUB.resolve(reference("hf:owner/name"), world)


def test_an_index_that_is_none_is_refused(hub: TestHub, world: World) -> None:
    hub.add_repository(
        "owner/name",
        {"model-1-of-1.safetensors": b"1", "model.safetensors.index.json": b"[" * 100_000},
    )
    with pytest.raises(UnsafeInput, match="not an index of shards"):
        HUB.resolve(reference("hf:owner/name"), world)


def test_include_chooses_and_a_pattern_without_a_match_is_named(hub: TestHub, world: World) -> None:
    hub.add_repository("owner/name", {"a.Q4.gguf": b"4", "a.Q8.gguf": b"8", "README.md": b""})
    found = HUB.resolve(reference("hf:owner/name", include=("*Q4.gguf", "*.md")), world)
    assert names(found) == ["README.md", "a.Q4.gguf"]
    with pytest.raises(SourceError) as caught:
        HUB.resolve(reference("hf:owner/name", include=("*Q4.gguf", "*Q5*", "*Q6*")), world)
    assert [p.message for p in caught.value.problems] == [
        "no file matches the pattern '*Q5*'",
        "no file matches the pattern '*Q6*'",
    ]


@pytest.mark.parametrize(
    "name",
    ["../evil.json", "/etc/passwd.json", "a/../../b.json", "a\r\nX: y.json", "a\\..\\b.json",
     "con.json", "a//b.json", "x\0.json", "C:evil.json", "./a.json"],
)  # fmt: skip
@pytest.mark.fault("E6")
def test_a_listing_with_an_evil_name_is_refused_and_nothing_is_written(
    name: str, hub: TestHub, world: World, tmp_path: Path
) -> None:
    siblings = [{"rfilename": name, "size": 2, "blobId": "0" * 40}]
    hub.add_repository("owner/name", {name: b"{}"}, siblings=siblings)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeInput):
        HUB.resolve(reference("hf:owner/name"), world)
    assert sorted(tmp_path.rglob("*")) == before
    assert hub.requests("*/resolve/*") == []


@pytest.mark.parametrize(
    "sibling",
    [
        {"rfilename": "a.json"}, {"rfilename": "a.json", "size": -1},
        {"rfilename": "a.json", "size": "5"}, {"rfilename": "a.json", "size": 1 << 60},
        {"rfilename": 5, "size": 5},
        {"rfilename": "a.gguf", "size": 5, "lfs": {"sha256": "x", "size": 5, "pointerSize": 1}},
    ],
)  # fmt: skip
@pytest.mark.fault("E6")
def test_a_listing_that_lies_is_refused(
    sibling: dict[str, object], hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", {"a.json": b"{}"}, siblings=[sibling])
    with pytest.raises(UnsafeInput, match="cannot be"):
        HUB.resolve(reference("hf:owner/name"), world)


@pytest.mark.fault("E6")
def test_a_listing_of_more_than_100_000_files_is_refused(hub: TestHub, world: World) -> None:
    siblings = [{"rfilename": f"{n}.json", "size": 1} for n in range(100_001)]
    hub.add_repository("owner/name", {}, siblings=siblings)
    with pytest.raises(UnsafeInput, match="lists 100001 files"):
        HUB.resolve(reference("hf:owner/name"), world)


@pytest.mark.fault("E6")
def test_a_size_that_is_not_true_is_an_error(hub: TestHub, world: World) -> None:
    siblings = [{"rfilename": "a.json", "size": 5, "blobId": ""}]
    hub.add_repository("owner/name", {"a.json": b"{}"}, siblings=siblings)
    with pytest.raises(SourceError, match="has not the 5 bytes that are listed"):
        HUB.resolve(reference("hf:owner/name"), world)


@pytest.mark.parametrize(
    ("options", "text", "token", "said", "hint"),
    [
        ({"gated": True}, "hf:owner/name", "", "is gated", "hf auth login"),
        ({"gated": True}, "hf:owner/name", "hf_other", "is gated", "check that the token"),
        ({"private": True}, "hf:owner/name", "", "does not exist, or is private", "hf auth login"),
        ({}, "hf:owner/missing", "", "does not exist, or is private", "check the spelling"),
        ({}, "hf:owner/missing", "hf_test", "does not exist", "the token may not reach it"),
        ({}, "hf:owner/name@v9", "", "has no revision 'v9'", "/commits"),
    ],
)
@pytest.mark.fault("B10")
def test_a_closed_door_is_explained(
    options: dict[str, bool],
    text: str,
    token: str,
    said: str,
    hint: str,
    hub: TestHub,
    world: World,
) -> None:
    hub.add_repository("owner/name", MODEL, **options)
    with pytest.raises(SourceError, match=said) as caught:
        HUB.resolve(reference(text), with_token(world, token) if token else world)
    [problem] = caught.value.problems[:1]
    assert hint in problem.hint
    assert hub.url in problem.where
    assert token == "" or token not in str(caught.value) + problem.hint


@pytest.mark.fault("B10")
def test_a_gate_closed_after_locking_is_explained_too(hub: TestHub, world: World) -> None:
    repository = hub.add_repository("owner/name", MODEL)
    files = HUB.resolve(reference("hf:owner/name"), world).files
    repository.gated = True
    with pytest.raises(SourceError, match="is gated"):
        fetch([(HUB, file) for file in files], world, step="fetch", patience=FAST)


@pytest.mark.fault("B8")
def test_the_token_opens_the_gate_and_never_reaches_another_host(
    hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", MODEL, gated=True)
    logged_in = with_token(world)
    files = HUB.resolve(reference("hf:owner/name"), logged_in).files
    fetch([(HUB, file) for file in files], logged_in, step="fetch")
    there = [request for request in hub.log if request.origin == hub.cdn_url]
    assert there
    assert not any(request.authorized for request in there)
    assert all(request.authorized for request in hub.log if request.origin == hub.url)
    assert "hf_test" not in repr([(r.path, r.query, r.headers) for r in hub.log])
    assert "hf_test" not in repr(files)


@pytest.mark.fault("B8")
def test_a_listing_that_redirects_elsewhere_gets_no_token_there(hub: TestHub, world: World) -> None:
    with TestHub() as evil:
        evil.add_repository("owner/name", MODEL)
        settings = HUB._settings(with_token(world))
        assert settings.client._headers(f"{hub.url}/api", "")["Authorization"] == "Bearer hf_test"
        assert "Authorization" not in settings.client._headers(f"{evil.url}/api", "")
        away = World(
            world.store,
            {"HF_ENDPOINT": f"{hub.url}/away", "HF_TOKEN": "hf_test"},
            folder=world.folder,
        )
        hub.add_redirect(
            "/away/api/models/owner/name", f"{evil.url}/api/models/owner/name?blobs=true"
        )
        hub.add_redirect(
            f"/away/owner/name/resolve/{COMMIT}/*", f"{evil.url}/owner/name/resolve/{COMMIT}/"
        )
        HUB.resolve(reference("hf:owner/name"), away)
        assert evil.log
        assert not any(request.authorized for request in evil.log)


def test_the_token_file_of_hf_auth_login_is_read(
    hub: TestHub, world: World, tmp_path: Path
) -> None:
    hub.add_repository("owner/name", MODEL, private=True)
    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/token").write_text("hf_test\n")
    (tmp_path / "elsewhere").write_text("hf_test\n")
    for more in (
        {"HOME": str(tmp_path)},
        {"HF_TOKEN_PATH": str(tmp_path / "elsewhere")},
        {"HF_HOME": str(tmp_path / ".cache/huggingface")},
        {"XDG_CACHE_HOME": str(tmp_path / ".cache")},
        {"HUGGING_FACE_HUB_TOKEN": "hf_test"},
        {"HOME": str(tmp_path), "HF_HOME": "~/.cache/huggingface"},
    ):
        settled = World(world.store, {**world.environment, **more}, folder=world.folder)
        assert HUB.resolve(reference("hf:owner/name"), settled).files
    silent = {"HOME": str(tmp_path), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    with pytest.raises(SourceError, match="private"):
        HUB.resolve(reference("hf:owner/name"), World(world.store, {**world.environment, **silent}))


def test_an_impossible_token_is_not_sent_and_not_shown(world: World) -> None:
    with pytest.raises(SourceError) as caught:
        HUB.resolve(reference("hf:owner/name"), with_token(world, "secret\r\nX-Evil: 1"))
    assert "secret" not in str(caught.value) + repr(caught.value.problems)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.fault("B11")
def test_offline_variables_keep_the_hub_from_being_asked(
    name: str, hub: TestHub, world: World
) -> None:
    offline = World(world.store, {**world.environment, name: "1"})
    with pytest.raises(SourceError, match="no connection may be opened"):
        HUB.resolve(reference("hf:owner/name"), offline)
    with pytest.raises(SourceError, match="no connection may be opened"):
        HUB.open("x", start=0, end=None, validator=None, world=offline)
    assert hub.connections == 0


@pytest.mark.parametrize(
    "locator", ["../x", "a/b/c", "/etc", "a b", "owner/..", "", "a/b?x", "é/x"]
)
def test_what_cannot_be_a_repository_is_refused(locator: str, hub: TestHub, world: World) -> None:
    bad = SourceReference.model_construct(source="hf", locator=locator)
    with pytest.raises(UnsafeInput, match="cannot be a repository"):
        HUB.resolve(bad, world)
    assert hub.connections == 0


@pytest.mark.parametrize("endpoint", ["ftp://x", "file:///etc", "http://u:p@h", "x", "https://h?q"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str, world: World) -> None:
    with pytest.raises(SourceError, match="HF_ENDPOINT"):
        HUB.resolve(reference("hf:owner/name"), World(world.store, {"HF_ENDPOINT": endpoint}))


def test_a_large_file_without_a_digest_is_not_taken(hub: TestHub, world: World) -> None:
    hub.add_repository("owner/name", {"a.gguf": SparseFile(65 << 20, {}, sha256="ab" * 32)}, lfs=[])
    with pytest.raises(SourceError, match=r"nothing states .* a\.gguf"):
        HUB.resolve(reference("hf:owner/name"), world)


@pytest.mark.parametrize(
    ("card", "licence", "url"),
    [
        ({"license": "mit"}, "MIT", "/blob/"),
        ({"license": "llama3.1", "license_link": "https://x/L"}, "llama3.1", "https://x/L"),
        ({"license": "other", "license_name": "own-words", "license_link": "README.md"},
         "own-words", "README.md"),
        ({"license": ["mit", "apache-2.0"]}, "mit AND apache-2.0", "/blob/"),
        ({"license": "a\nb", "license_link": "javascript:alert(1)"}, "unknown", "/blob/"),
        ({"license": None}, "unknown", "/blob/"),
    ],
)  # fmt: skip
def test_the_licence_comes_from_the_card(
    card: dict[str, object], licence: str, url: str, hub: TestHub, world: World
) -> None:
    hub.add_repository("owner/name", MODEL, card=card)
    found = HUB.resolve(reference("hf:owner/name"), world)
    assert found.licence == licence
    assert url in found.licence_url
    assert "javascript" not in found.licence_url


# -- web servers -------------------------------------------------------------------------------------


def test_a_digest_published_beside_the_file_is_enough(hub: TestHub, world: World) -> None:
    url = hub.add_file("wiki a.zim", WEIGHTS, sha256_beside=True)
    found = HTTP.resolve(reference(url), world)
    [file] = found.files
    assert (file.path, file.size_bytes) == ("wiki a.zim", len(WEIGHTS))
    assert file.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert found.revision == f"sha256:{file.sha256}"
    fetch([(HTTP, file)], world, step="fetch")
    assert hub.bytes_sent("/files/*.zim") == len(WEIGHTS)


def test_a_metalink_gives_size_digest_and_mirrors(hub: TestHub, world: World) -> None:
    mirrors = ["http://one.example/w.zim", "ftp://two.example/w.zim", "http://u:p@x/w.zim"]
    url = hub.add_file("w.zim", WEIGHTS, metalink=True, mirrors=mirrors)
    [file] = HTTP.resolve(reference(url), world).files
    assert file.addresses == (url, "http://one.example/w.zim")
    assert file.size_bytes == len(WEIGHTS)
    assert [r.path for r in hub.log] == ["/files/w.zim.meta4"]


def test_the_digest_of_the_recipe_is_enough(hub: TestHub, world: World) -> None:
    url = hub.add_file("w.zim", WEIGHTS)
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    [file] = HTTP.resolve(reference(url, sha256=sha256), world).files
    assert file.sha256 == sha256
    hub.inject("/files/w.zim", Fault.status(405), method="HEAD")
    assert HTTP.resolve(reference(url, sha256=sha256), world).files == (file,)


def test_a_digest_against_the_publishers_is_an_error(hub: TestHub, world: World) -> None:
    url = hub.add_file("w.zim", WEIGHTS, sha256_beside=True)
    with pytest.raises(DamagedError, match="publisher states"):
        HTTP.resolve(reference(url, sha256="ab" * 32), world)


def test_an_address_alone_is_not_locked_and_the_way_out_is_told(hub: TestHub, world: World) -> None:
    url = hub.add_file("w.zim", WEIGHTS)
    with pytest.raises(SourceError, match="nothing states what its bytes should be") as caught:
        HTTP.resolve(reference(url), world)
    assert "sha256" in caught.value.problems[0].hint


def test_a_page_in_place_of_a_digest_is_none(hub: TestHub, world: World) -> None:
    url = hub.add_file("w.zim", WEIGHTS)
    hub.inject("*.meta4", Fault.captive_page(), always=True)
    hub.inject("*.sha256", Fault.captive_page(), always=True)
    with pytest.raises(SourceError, match="nothing states"):
        HTTP.resolve(reference(url), world)


@pytest.mark.parametrize(
    "url", ["https://user:pw@host/f", "http:///f", "https://h:99999/f", "http://h/a b"]
)
def test_an_address_that_must_not_go_into_a_lock_is_refused(url: str, world: World) -> None:
    with pytest.raises(SourceError) as caught:
        HTTP.resolve(reference(url), world)
    assert "pw" not in repr(caught.value.problems)


@pytest.mark.parametrize("name", ["%2e%2e", "", "con", "a%0d%0ab", "a%00"])
def test_a_name_in_an_address_that_cannot_be_a_file_is_refused(name: str, world: World) -> None:
    with pytest.raises(UnsafeInput):
        HTTP.resolve(reference(f"https://host.example/dir/{name}"), world)


def test_a_file_without_a_length_is_not_locked(hub: TestHub, world: World) -> None:
    url = hub.add_file("w.zim", WEIGHTS)
    hub.inject("/files/w.zim", Fault.endless(), always=True)
    with pytest.raises(SourceError, match="does not say how long"):
        HTTP.resolve(reference(url, sha256="ab" * 32), world)


def test_an_endless_digest_is_cut_off(hub: TestHub, world: World) -> None:
    url = hub.add_file("w.zim", WEIGHTS, sha256_beside=True)
    hub.inject("*.sha256", Fault.endless(), always=True)
    with pytest.raises(SourceError, match="longer than"):
        HTTP.resolve(reference(url), world)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{sha}", True), ("{sha}\n", True), ("{sha}  w.zim", True), ("{sha} *w.zim\r\n", True),
        ("{sha}  ./dir/w.zim", True), ("SHA256 (w.zim) = {sha}", True), ("{upper}  w.zim", True),
        ("{other}  v.zim\n{sha}  w.zim\n", True), ("{sha}  v.zim", False), ("", False),
        ("{sha}\n{other}\n", False), ("<html>{sha}</html>", False), ("{sha}0", False),
    ],
)  # fmt: skip
def test_checksum_lists_are_read_as_people_write_them(text: str, found: bool) -> None:
    sha, other = "ab" * 32, "cd" * 32
    given = text.format(sha=sha, other=other, upper=sha.upper())
    assert sha256_for(given, "w.zim") == (sha if found else None)


def test_a_metalink_with_a_document_type_is_refused() -> None:
    bomb = (
        b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa">]><metalink xmlns="urn:ietf:params:xml:ns:metalink"/>'
    )
    with pytest.raises(UnsafeInput, match="document type"):
        metalink_for(bomb, "w.zim", "here")


def test_a_metalink_of_another_file_says_nothing() -> None:
    text = (
        b'<metalink xmlns="urn:ietf:params:xml:ns:metalink"><file name="v.zim"><size>5</size>'
        b'<hash type="sha-256">' + b"ab" * 32 + b"</hash></file></metalink>"
    )
    assert metalink_for(text, "w.zim", "here") is None
    found = metalink_for(text, "v.zim", "here")
    assert found is not None
    assert (found.size_bytes, found.sha256) == (5, "ab" * 32)
    with pytest.raises(SourceError, match="not a Metalink"):
        metalink_for(b"<html>", "w.zim", "here")


@given(st.binary(max_size=300), st.text(max_size=300))
def test_published_texts_of_any_kind_end_in_a_value_or_our_error(data: bytes, text: str) -> None:
    try:
        metalink_for(data, "w", "here")
    except (SourceError, UnsafeInput):
        pass
    found = sha256_for(text, "w")
    assert found is None or len(found) == 64


# -- connections -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://a/x/y", "z", "https://a/x/z"),
        ("https://a/x", "https://b/y", "https://b/y"),
        ("http://a/x", "https://a/x", "https://a/x"),
        ("http://a/x", "//b/y", "http://b/y"),
    ],
)
def test_a_redirect_leads_where_it_says(url: str, location: str, target: str) -> None:
    assert redirected(url, location) == target


@pytest.mark.parametrize(
    "location", ["http://a/x", "ftp://a/x", "file:///etc/passwd", "", "data:x"]
)
@pytest.mark.fault("B8")
def test_a_redirect_that_weakens_is_not_followed(location: str) -> None:
    with pytest.raises(SourceError, match="redirects"):
        redirected("https://a/x", location)


def test_a_token_belongs_to_scheme_host_and_port() -> None:
    client = Client({}, token="t", token_origin=origin("https://hub.example"))
    assert "Authorization" in client._headers("https://HUB.example:443/x", "")
    for other in ("http://hub.example/", "https://hub.example:444/", "https://evil/hub.example",
                  "https://hub.example.evil/", "https://hub.example@evil/"):  # fmt: skip
        assert "Authorization" not in client._headers(other, "")


def test_a_validator_is_only_sent_to_the_host_it_came_from() -> None:
    client = Client({})
    validator = 'https://one.example:443 "etag"'
    assert client._headers("https://one.example/f", validator)["If-Range"] == '"etag"'
    assert "If-Range" not in client._headers("https://two.example/f", validator)


def test_retry_after_is_read_in_both_forms_and_capped() -> None:
    now = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
    assert retry_after_seconds("7", now) == 7
    assert retry_after_seconds("Sun, 22 Nov 2026 12:01:00 GMT", now) == 60
    assert retry_after_seconds("Sun, 22 Nov 2020 12:01:00 GMT", now) == 0
    assert [retry_after_seconds(t, now) for t in ("", "soon", "-5", "1e9", "Sun, 99 Foo")] == [
        None
    ] * 5
    assert Patience().delay_seconds(1, 1e9) == 300


def test_delays_grow_with_jitter_up_to_a_limit() -> None:
    low, high = Patience(random=lambda: 0.0), Patience(random=lambda: 0.999999)
    assert [low.delay_seconds(n, None) for n in (1, 2, 3, 9)] == [0.25, 0.5, 1.0, 15.0]
    assert [round(high.delay_seconds(n, None), 3) for n in (1, 2, 3, 9)] == [0.5, 1, 2, 30]


def test_patience_ends() -> None:
    waits: list[float] = []

    def never() -> None:
        raise PassingFault("no", retry_after_seconds=2)

    with pytest.raises(PassingFault):
        patiently(never, Patience(attempts=4), waits.append)
    assert waits == [2, 2, 2]


def test_a_host_whose_name_is_not_known_is_given_up_soon_and_in_plain_words() -> None:
    waits: list[float] = []
    client = Client({})
    with pytest.raises(PassingFault, match=r"no address is known for nowhere\.invalid") as raised:
        patiently(lambda: client.read("https://nowhere.invalid/x", 10), Patience(), waits.append)
    assert len(waits) == 1
    assert "connected to a network" in raised.value.problems[0].hint


def test_bandwidth_is_booked_byte_by_byte() -> None:
    waits: list[float] = []
    bandwidth = Bandwidth(1000)
    for _ in range(5):
        bandwidth.take(100, waits.append)
    assert waits[-1] == pytest.approx(0.5, abs=0.05)


def test_proxies_come_from_the_given_environment() -> None:
    environment = {"HTTPS_PROXY": "http://p:1", "no_proxy": "inside.example,127.0.0.1"}
    assert proxy_for("https://outside.example/x", environment) == "http://p:1"
    assert proxy_for("https://inside.example/x", environment) is None
    assert proxy_for("http://outside.example/x", environment) is None
    assert proxy_for("http://o/x", {"all_proxy": "http://q:2"}) == "http://q:2"


def test_a_host_that_is_not_there_is_a_passing_fault(world: World) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/x"
        with pytest.raises(PassingFault, match="the connection failed"):
            Client({}).read(url, 100)


# -- this machine ------------------------------------------------------------------------------------

PATH = PathSource()


def make(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_a_folder_is_walked_in_order_without_hidden_files(world: World) -> None:
    make(
        world.folder / "docs",
        {"b.md": b"b", "a/c.md": b"c", ".git/x": b"", ".hidden": b"", "z": b""},
    )
    found = PATH.resolve(reference("path:docs"), world)
    assert names(found) == ["a/c.md", "b.md", "z"]
    assert [file.addresses for file in found.files] == [
        ("docs/a/c.md",),
        ("docs/b.md",),
        ("docs/z",),
    ]
    assert str(world.folder) not in found.model_dump_json()


def test_the_same_files_elsewhere_have_the_same_lock(world: World, tmp_path: Path) -> None:
    make(world.folder / "docs", {"a": b"1", "b": b"2"})
    make(tmp_path / "other" / "docs", {"b": b"2", "a": b"1"})
    other = World(world.store, folder=tmp_path / "other")
    first = PATH.resolve(reference("path:docs"), world)
    assert first == PATH.resolve(reference("path:docs"), other)
    (world.folder / "docs/a").write_bytes(b"3")
    assert PATH.resolve(reference("path:docs"), world).revision != first.revision


def test_one_file_and_one_beside_the_recipe_are_found(world: World) -> None:
    make(world.folder.parent, {"beside/wiki.zim": b"zim"})
    found = PATH.resolve(reference("path:../beside/wiki.zim"), world)
    assert [(f.path, f.addresses) for f in found.files] == [("wiki.zim", ("../beside/wiki.zim",))]
    with PATH.open("../beside/wiki.zim", start=1, end=2, validator=None, world=world) as stream:
        assert (stream.start, stream.total_bytes, b"".join(stream.chunks)) == (1, 3, b"i")


def test_include_chooses_files(world: World) -> None:
    make(world.folder / "docs", {"a.md": b"", "b/c.md": b"", "d.txt": b""})
    assert names(PATH.resolve(reference("path:docs", include=("*.md",)), world)) == [
        "a.md",
        "b/c.md",
    ]
    with pytest.raises(SourceError, match=r"no file matches the pattern '\*\.pdf'"):
        PATH.resolve(reference("path:docs", include=("*.md", "*.pdf")), world)


def test_links_that_leave_the_folder_are_refused_all_at_once(world: World, tmp_path: Path) -> None:
    make(world.folder / "docs", {"a.md": b"a"})
    make(tmp_path, {"secret/key": b"k"})
    docs = world.folder / "docs"
    (docs / "file").symlink_to(tmp_path / "secret/key")
    (docs / "folder").symlink_to(tmp_path / "secret")
    (docs / "nothing").symlink_to("gone")
    (docs / "loop").symlink_to("loop")
    with pytest.raises(UnsafeInput) as caught:
        PATH.resolve(reference("path:docs"), world)
    assert [Path(p.where).name for p in caught.value.problems] == [
        "file",
        "folder",
        "loop",
        "nothing",
    ]


def test_a_link_inside_the_folder_gives_the_bytes_it_means(world: World) -> None:
    make(world.folder / "docs", {"sub/a.md": b"a"})
    (world.folder / "docs/link.md").symlink_to("sub/a.md")
    found = PATH.resolve(reference("path:docs"), world)
    assert [(f.path, f.addresses[0]) for f in found.files] == [
        ("link.md", "docs/sub/a.md"),
        ("sub/a.md", "docs/sub/a.md"),
    ]
    fetch([(PATH, file) for file in found.files], world, step="fetch")


def test_a_link_to_a_folder_inside_is_refused(world: World) -> None:
    make(world.folder / "docs", {"sub/a.md": b"a"})
    (world.folder / "docs/again").symlink_to("sub")
    with pytest.raises(UnsafeInput, match="neither a file nor a plain folder"):
        PATH.resolve(reference("path:docs"), world)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_pipes_and_sockets_are_refused_and_never_waited_for(
    kind: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.folder)
    if kind == "pipe":
        os.mkfifo("odd")
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("odd")
    with pytest.raises(UnsafeInput, match="only files and folders"):
        PATH.resolve(reference("path:odd"), world)
    (world.folder / "docs").mkdir()
    Path("odd").rename("docs/odd")
    with pytest.raises(UnsafeInput, match="neither a file"):
        PATH.resolve(reference("path:docs"), world)
    with (
        pytest.raises(UnsafeInput),
        PATH.open("docs/odd", start=0, end=None, validator=None, world=world),
    ):
        raise AssertionError("it was opened")


def test_a_link_in_place_of_a_locked_file_is_not_followed(world: World, tmp_path: Path) -> None:
    make(world.folder, {"a": b"a"})
    [file] = PATH.resolve(reference("path:a"), world).files
    (world.folder / "a").unlink()
    make(tmp_path, {"secret": b"a"})
    (world.folder / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(UnsafeInput):
        fetch([(PATH, file)], world, step="fetch", patience=FAST)


@pytest.mark.fault("C4")
def test_names_that_no_stick_can_hold_are_all_told(world: World) -> None:
    make(world.folder / "docs", {"a:b": b"", "con.txt": b"", "Same": b"", "same": b"", "fine": b""})
    with pytest.raises(UnsafeInput) as caught:
        PATH.resolve(reference("path:docs"), world)
    assert len(caught.value.problems) == 3


@pytest.mark.fault("C4")
@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_a_name_that_is_no_text_is_refused(world: World) -> None:
    make(world.folder / "docs", {"fine": b""})
    with open(os.fsencode(world.folder / "docs") + b"/caf\xe9.txt", "wb"):
        pass
    with pytest.raises(UnsafeInput) as caught:
        PATH.resolve(reference("path:docs"), world)
    str(caught.value).encode()  # it can be shown


def test_a_missing_path_says_where_it_was_looked_for(world: World) -> None:
    with pytest.raises(RecipeError, match=r"no file or folder docs") as caught:
        PATH.resolve(reference("path:docs"), world)
    assert str(world.folder) in caught.value.problems[0].hint
    (world.folder / "docs").mkdir()
    with pytest.raises(SourceError, match="holds no files"):
        PATH.resolve(reference("path:docs"), world)


def test_the_digest_of_the_recipe_is_compared(world: World) -> None:
    make(world.folder, {"a": b"a"})
    good = hashlib.sha256(b"a").hexdigest()
    assert PATH.resolve(reference("path:a", sha256=good), world).files[0].sha256 == good
    with pytest.raises(DamagedError, match="not the one file"):
        PATH.resolve(reference("path:a", sha256="ab" * 32), world)


@given(st.lists(st.text(max_size=30), max_size=5))
def test_names_that_pass_are_safe_paths(listed: list[str]) -> None:
    try:
        check_listing(listed, "here")
        check_names(listed, "here")
    except UnsafeInput:
        return
    for name in listed:
        assert check_relative_path(name)
        assert not (set(name.split("/")) & {"", ".", ".."})
    assert len({name.casefold() for name in listed}) == len(listed)
