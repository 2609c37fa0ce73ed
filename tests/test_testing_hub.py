"""The test hub is itself held to what the real one does: huggingface_hub must be content with it."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.testing.hub import Fault, SparseFile, TestHub
from bundler.testing.hub_content import Bytes, LocalFile, blocks, content_of, git_blob

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
FILES = {"config.json": b"{}", "sub/model.safetensors": WEIGHTS}


@pytest.fixture
def hub() -> Iterator[TestHub]:
    with TestHub() as hub:
        hub.add_repository("owner/name", FILES)
        yield hub


def ask(
    hub: TestHub, path: str, method: str = "GET", origin: str = "", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    split = urlsplit(origin or hub.url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=5)
    try:
        connection.request(
            method, path, headers={n.replace("_", "-"): v for n, v in headers.items()}
        )
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, answer.read()
    finally:
        connection.close()


# -- as the real one ---------------------------------------------------------------------------------


def test_huggingface_hub_reads_the_listing(hub: TestHub) -> None:
    api = huggingface_hub.HfApi(endpoint=hub.url, token=False)
    info = api.repo_info("owner/name", revision="main", files_metadata=True)
    assert info.sha == COMMIT
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    small, large = info.siblings or []
    # `git hash-object` of a file that holds "{}".
    assert (small.rfilename, small.size, small.lfs) == ("config.json", 2, None)
    assert small.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    assert large.lfs is not None
    assert large.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert (large.size, large.lfs.size) == (len(WEIGHTS), len(WEIGHTS))
    bare = api.repo_info("owner/name")
    assert [s.size for s in bare.siblings or []] == [None, None]


def test_huggingface_hub_downloads_from_it(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for name, data in FILES.items():
        path = huggingface_hub.hf_hub_download(
            "owner/name", name, endpoint=hub.url, cache_dir=tmp_path, token=False
        )
        assert Path(path).read_bytes() == data
    blobs = {p.name for p in (tmp_path / "models--owner--name" / "blobs").iterdir()}
    assert hashlib.sha256(WEIGHTS).hexdigest() in blobs


@pytest.mark.parametrize(
    ("options", "name", "revision", "file", "error"),
    [
        ({"gated": True}, "owner/name", "main", "config.json", "GatedRepoError"),
        ({"private": True}, "owner/name", "main", "config.json", "RepositoryNotFoundError"),
        ({}, "owner/missing", "main", "config.json", "RepositoryNotFoundError"),
        ({}, "owner/name", "v9", "config.json", "RevisionNotFoundError"),
        ({}, "owner/name", "main", "missing.json", "RemoteEntryNotFoundError"),
    ],
)
def test_huggingface_hub_understands_its_refusals(
    options: dict[str, bool], name: str, revision: str, file: str, error: str, hub: TestHub
) -> None:
    hub.add_repository("owner/name", FILES, **options)
    url = huggingface_hub.hf_hub_url(name, file, revision=revision, endpoint=hub.url)
    with pytest.raises(getattr(huggingface_hub.errors, error)):
        huggingface_hub.get_hf_file_metadata(url, token=False, endpoint=hub.url)


def test_its_token_opens_gated_and_private_repositories(hub: TestHub) -> None:
    hub.add_repository("owner/name", FILES, gated=True, private=True)
    api = huggingface_hub.HfApi(endpoint=hub.url, token="hf_test")
    assert api.repo_info("owner/name").sha == COMMIT
    url = huggingface_hub.hf_hub_url("owner/name", "config.json", endpoint=hub.url)
    assert huggingface_hub.get_hf_file_metadata(url, token="hf_test", endpoint=hub.url).size == 2


def test_large_files_are_redirected_to_the_other_origin(hub: TestHub) -> None:
    path = f"/owner/name/resolve/{COMMIT}/sub/model.safetensors"
    for method in ("HEAD", "GET"):
        status, headers, body = ask(hub, path, method)
        assert (status, body) == (302, b"")
        assert headers["x-repo-commit"] == COMMIT
        assert headers["x-linked-etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
        assert headers["x-linked-size"] == str(len(WEIGHTS))
        assert headers["location"].startswith(hub.cdn_url)
    assert hub.cdn_url != hub.url
    target = urlsplit(headers["location"]).path
    assert ask(hub, target, origin=hub.cdn_url)[2] == WEIGHTS
    with TestHub(redirects=False) as plain:
        plain.add_repository("owner/name", FILES)
        assert ask(plain, path)[2] == WEIGHTS


def test_small_files_are_served_directly(hub: TestHub) -> None:
    status, headers, body = ask(hub, "/owner/name/resolve/main/config.json")
    assert (status, body, headers["etag"]) == (200, b"{}", f'"{git_blob(Bytes(b"{}"))}"')


# -- ranges ------------------------------------------------------------------------------------------

CDN = "/cdn/owner/name/sub/model.safetensors"


@pytest.mark.parametrize(
    ("range", "status", "content_range", "start", "end"),
    [
        ("bytes=0-0", 206, "bytes 0-0/1048576", 0, 1),
        ("bytes=1000-", 206, "bytes 1000-1048575/1048576", 1000, 1 << 20),
        ("bytes=1000-1999", 206, "bytes 1000-1999/1048576", 1000, 2000),
        ("bytes=1048000-9999999", 206, "bytes 1048000-1048575/1048576", 1048000, 1 << 20),
        ("bytes=1048576-", 416, "bytes */1048576", 0, 0),
        ("lines=1-2", 200, None, 0, 1 << 20),
    ],
)
def test_ranges_are_honoured(
    range: str, status: int, content_range: str | None, start: int, end: int, hub: TestHub
) -> None:
    found, headers, body = ask(hub, CDN, origin=hub.cdn_url, Range=range)
    assert (found, headers.get("content-range")) == (status, content_range)
    assert body == WEIGHTS[start:end]


def test_a_range_of_another_version_gets_the_whole_file(hub: TestHub) -> None:
    etag = ask(hub, CDN, "HEAD", hub.cdn_url)[1]["etag"]
    same = ask(hub, CDN, origin=hub.cdn_url, Range="bytes=5-9", If_Range=etag)
    other = ask(hub, CDN, origin=hub.cdn_url, Range="bytes=5-9", If_Range='"old"')
    assert (same[0], same[2]) == (206, WEIGHTS[5:10])
    assert (other[0], other[2]) == (200, WEIGHTS)


# -- faults ------------------------------------------------------------------------------------------


def broken(hub: TestHub, fault: Fault) -> tuple[str, int]:
    """Return the exception that a plain client meets, and how many bytes came before it."""
    hub.inject(CDN, fault)
    split = urlsplit(hub.cdn_url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=0.3)
    got = 0
    try:
        connection.request("GET", CDN)
        answer = connection.getresponse()
        while block := answer.read1(1 << 16):
            got += len(block)
        return "IncompleteRead" if answer.length else "", got
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__, got
    finally:
        connection.close()


def test_faults_of_the_connection_are_what_they_say(hub: TestHub) -> None:
    assert broken(hub, Fault.reset(300_000)) == ("ConnectionResetError", 300_000)
    assert broken(hub, Fault.early_close(300_000)) == ("IncompleteRead", 300_000)
    assert broken(hub, Fault.stall(300_000)) == ("TimeoutError", 300_000)
    assert broken(hub, Fault.reset()) == ("ConnectionResetError", 0)
    assert broken(hub, Fault.none()) == ("", len(WEIGHTS))


def test_faults_of_the_body_are_what_they_say(hub: TestHub) -> None:
    def get(fault: Fault, **headers: str) -> tuple[int, dict[str, str], bytes]:
        hub.inject(CDN, fault)
        return ask(hub, CDN, origin=hub.cdn_url, **headers)

    status, headers, body = get(Fault.wrong_bytes())
    assert (status, len(body)) == (200, len(WEIGHTS))
    assert sum(a != b for a, b in zip(body, WEIGHTS, strict=True)) == len(WEIGHTS) // 4096
    etag = headers["etag"]
    status, headers, body = get(Fault.changed(b"new"), Range="bytes=1-", If_Range=etag)
    assert (status, body, headers["etag"] != etag) == (200, b"new", True)
    assert get(Fault.ignores_range(), Range="bytes=1-")[0] == 200
    status, headers, body = get(Fault.wrong_range(), Range="bytes=100-")
    assert (status, headers["content-range"]) == (206, "bytes 612-1048575/1048576")
    assert body == WEIGHTS[612:]
    status, headers, _ = get(Fault.status(429, retry_after="7"))
    assert (status, headers["retry-after"]) == (429, "7")
    status, headers, body = get(Fault.captive_page())
    assert (status, headers["content-type"]) == (200, "text/html")
    assert b"Login" in body
    assert get(Fault.gzip())[1]["content-encoding"] == "gzip"
    assert get(Fault.redirect_loop())[1]["location"] == CDN
    assert get(Fault.lying_length(-5))[1]["content-length"] == str(len(WEIGHTS) - 5)


def test_an_endless_body_is_endless(hub: TestHub) -> None:
    hub.inject(CDN, Fault.endless())
    split = urlsplit(hub.cdn_url)
    connection = http.client.HTTPConnection(split.hostname or "", split.port, timeout=5)
    connection.request("GET", CDN)
    answer = connection.getresponse()
    assert answer.getheader("Content-Length") is None
    assert len(answer.read(3 * len(WEIGHTS))) == 3 * len(WEIGHTS)
    connection.close()


def test_faults_come_in_their_order_for_their_paths_and_methods(hub: TestHub) -> None:
    hub.inject("*.json", Fault.status(500), Fault.none(), Fault.status(503))
    path = "/owner/name/resolve/main/config.json"
    assert [ask(hub, path)[0] for _ in range(5)] == [500, 200, 503, 200, 200]
    hub.inject("*.json", Fault.status(500), always=True, method="HEAD")
    assert [ask(hub, path, method)[0] for method in ("GET", "HEAD", "HEAD")] == [200, 500, 500]


# -- the log and the end -----------------------------------------------------------------------------


def test_the_log_has_what_was_asked_and_sent_but_no_token(hub: TestHub) -> None:
    ask(
        hub, f"{CDN}?a=b", origin=hub.cdn_url, Range="bytes=10-19", Authorization="Bearer hf_secret"
    )
    ask(hub, "/nothing")
    first, second = hub.log
    assert (first.method, first.path, first.query, first.start) == ("GET", CDN, "a=b", 10)
    assert (first.status, first.bytes_sent, first.authorized) == (206, 10, True)
    assert (first.origin, second.origin) == (hub.cdn_url, hub.url)
    assert (second.status, second.authorized) == (404, False)
    assert "hf_secret" not in repr(hub.log)
    assert hub.connections == 2
    assert hub.bytes_sent("/cdn/*") == 10
    assert hub.requests("*", "HEAD") == []


def test_plain_files_have_their_digests_and_metalinks_beside_them(hub: TestHub) -> None:
    url = hub.add_file(
        "dir/a&b.zim", WEIGHTS, sha256_beside=True, metalink=True, mirrors=["http://m/?a&b"]
    )
    assert url == f"{hub.url}/files/dir/a%26b.zim"
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert ask(hub, "/files/dir/a%26b.zim")[2] == WEIGHTS
    assert ask(hub, "/files/dir/a%26b.zim.sha256")[2] == f"{sha256}  a&b.zim\n".encode()
    metalink = ask(hub, "/files/dir/a%26b.zim.meta4")[2].decode()
    assert sha256 in metalink
    assert "http://m/?a&amp;b" in metalink


def test_closing_ends_stalled_connections_and_leaves_no_threads() -> None:
    before = threading.active_count()
    hub = TestHub()
    hub.add_repository("owner/name", FILES)
    hub.inject("*", Fault.stall(), always=True)
    waiting = threading.Thread(target=lambda: broken_off(hub))
    waiting.start()
    while not hub.log:
        time.sleep(0.01)
    began = time.monotonic()
    hub.close()
    waiting.join(5)
    while threading.active_count() > before and time.monotonic() - began < 5:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert time.monotonic() - began < 5


def broken_off(hub: TestHub) -> None:
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(hub, "/owner/name/resolve/main/config.json")


def test_a_failure_of_the_hub_itself_fails_the_test() -> None:
    hub = TestHub()
    hub.add_file("x", SparseFile(10, {}, sha256="ab" * 32))
    hub._answer_hub = None  # type: ignore[assignment,method-assign]
    hub._hub.answer = lambda request: 1 / 0  # type: ignore[assignment,return-value]
    with pytest.raises((OSError, http.client.HTTPException)):
        ask(hub, "/files/x")
    with pytest.raises(AssertionError, match="the test hub failed"):
        hub.close()


# -- content -----------------------------------------------------------------------------------------


def test_a_sparse_file_is_served_without_existing(hub: TestHub) -> None:
    size = 16 << 30
    sparse = SparseFile(size, {0: b"head", size - 4: b"tail"}, sha256="ab" * 32)
    hub.add_repository("owner/big", {"m.gguf": sparse})
    path = "/cdn/owner/big/m.gguf"
    status, headers, body = ask(hub, path, origin=hub.cdn_url, Range=f"bytes={size - 6}-")
    assert (status, body) == (206, b"\0\0tail")
    assert headers["content-range"].endswith(f"/{size}")
    listing = json.loads(ask(hub, "/api/models/owner/big?blobs=true")[2])
    assert listing["siblings"][0]["lfs"] == {"sha256": "ab" * 32, "size": size, "pointerSize": 136}


@given(
    size=st.integers(0, 300),
    cuts=st.tuples(st.integers(0, 320), st.integers(0, 320)),
    data=st.data(),
)
def test_a_sparse_file_is_what_its_segments_say(
    size: int, cuts: tuple[int, int], data: st.DataObject
) -> None:
    segments = data.draw(
        st.dictionaries(st.integers(0, size), st.binary(max_size=20), max_size=4).map(
            lambda found: {o: b for o, b in found.items() if o + len(b) <= size}
        )
    )
    plain = bytearray(size)
    for offset, piece in sorted(segments.items()):
        plain[offset : offset + len(piece)] = piece
    sparse = SparseFile(size, segments)
    assert sparse.read(cuts[0], cuts[1]) == plain[cuts[0] : cuts[0] + cuts[1]]
    assert sparse.sha256 == hashlib.sha256(plain).hexdigest()
    assert b"".join(blocks(sparse, 0, size, 7)) == plain


def test_a_segment_outside_of_a_sparse_file_is_refused() -> None:
    with pytest.raises(ValueError, match="lies outside"):
        SparseFile(10, {8: b"abc"})


def test_content_is_made_of_what_a_test_has(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    for given_content in (b"bytes", "bytes", path, Bytes(b"bytes"), LocalFile(path)):
        content = content_of(given_content)
        assert (content.size, content.read(1, 2)) == (5, b"yt")
        assert content.sha256 == hashlib.sha256(b"bytes").hexdigest()
