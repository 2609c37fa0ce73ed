"""Who may ask the station, how much, and what every answer carries."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import httpx2
import pytest

from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import make_bundle
from bundler.testing.station_process import running_station

# One client for all: making one costs 50 ms. It keeps no connection, so each request stands alone.
CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)
PAGES = [
    "/",
    "/search?q=boil",
    "/library",
    "/read/handbook/boiling.html",
    "/static/ask.js",
    "/nothing",
]
API_READS = [
    "/api/status",
    "/api/suggest?q=bo",
    "/api/open?corpus=handbook&path=boiling.html",
    "/v1/models",
]
API_WRITES = [
    "/api/chat",
    "/api/render",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
]
FOREIGN_HOSTS = [
    "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}",
    "localhost.evil.example:{port}", "0.0.0.0:{port}", "169.254.169.254:{port}", "[::1]:{port}", "",
    "127.0.0.1:{port}.evil.example", "user@127.0.0.1:{port}", "127.1:{port}", "2130706433:{port}",
]  # fmt: skip
FOREIGN_ORIGINS = [
    "http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://127.0.0.1:{content}",
    "http://localhost:{port}", "file://", "http://127.0.0.1:{port}.evil.example", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    root = make_bundle(tmp_path_factory.mktemp("guarded"), platform=this_platform())
    with running_station(root) as running:
        opened = CLIENT.get(running.url + "api/open?corpus=handbook&path=boiling.html").json()
        running.content = httpx2.URL(opened["src"])
        yield running


def request(station, method, path, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    content = b"{}" if method == "POST" else None
    if method == "POST":
        headers = {"Content-Type": "application/json", **headers}
    return CLIENT.request(method, station.url.rstrip("/") + path, headers=headers, content=content)


def raw(port, data, seconds=5.0, limit=2**16):
    """What a server answers to bytes; empty when it hangs up without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as one:
        one.sendall(data)
        received = b""
        try:
            while len(received) < limit and (part := one.recv(65536)):
                received += part
        except (TimeoutError, ConnectionError):
            pass
        return received


@pytest.mark.parametrize("path", PAGES + API_READS)
@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_host_is_refused_on_every_route(station, path, host):
    host = host.format(port=station.port)
    answer = raw(
        station.port, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.split(b" ")[1] in (b"421", b"400"), answer[:200]


@pytest.mark.parametrize("path", API_WRITES)
@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_host_cannot_post(station, path, host):
    host = host.format(port=station.port)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    assert raw(station.port, head.encode()).split(b" ")[1] in (b"421", b"400")


def test_two_hosts_or_none_are_refused(station):
    good = f"Host: {station.host}\r\n"
    assert raw(station.port, f"GET / HTTP/1.1\r\n{good}Host: evil\r\n\r\n".encode()).split(b" ")[
        1
    ] in (b"400", b"421")
    assert raw(station.port, b"GET / HTTP/1.0\r\n\r\n").split(b" ")[1] in (b"400", b"421")


@pytest.mark.parametrize("path", PAGES + API_READS)
def test_localhost_is_this_machine_too(station, path):
    answer = request(station, "GET", path, Host=f"localhost:{station.port}")
    assert answer.status_code == (404 if path == "/nothing" else 200)
    if path == "/":
        assert (
            f"frame-src http://localhost:{station.content.port};"
            in answer.headers["content-security-policy"]
        )


@pytest.mark.parametrize("path", API_READS + API_WRITES)
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_another_sites_page_is_refused(station, path, origin):
    origin = origin.format(port=station.port, content=station.content.port)
    method = "POST" if path in API_WRITES else "GET"
    assert request(station, method, path, Origin=origin).status_code == 403


@pytest.mark.parametrize("path", API_READS + API_WRITES)
@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_what_a_browser_marks_as_foreign_is_refused(station, path, site):
    method = "POST" if path in API_WRITES else "GET"
    assert request(station, method, path, Sec_Fetch_Site=site).status_code == 403


@pytest.mark.parametrize("path", ["/", "/search?q=x", "/static/ask.js"])
def test_another_site_may_link_to_a_page_but_not_load_it(station, path):
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert request(station, "GET", path, **link).status_code == 200
    assert (
        request(
            station, "GET", path, Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors"
        ).status_code
        == 403
    )
    assert request(station, "POST", path, **link).status_code in (403, 405)


def test_our_own_page_and_programs_are_let_in(station):
    own = f"http://{station.host}"
    assert (
        request(
            station, "POST", "/api/render", Origin=own, Sec_Fetch_Site="same-origin"
        ).status_code
        == 400
    )
    assert request(station, "GET", "/v1/models").status_code == 200
    assert request(station, "GET", "/v1/models", Authorization="Bearer anything").status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
@pytest.mark.parametrize("path", API_WRITES)
def test_a_form_cannot_post(station, path, kind):
    assert request(station, "POST", path, Content_Type=kind).status_code == 415


@pytest.mark.parametrize("path", PAGES + API_READS + API_WRITES)
def test_every_answer_carries_the_policy_and_never_lets_other_origins_in(station, path):
    for method in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "TRACE"):
        headers = {"Origin": "http://evil.example"} if method == "OPTIONS" else {}
        answer = request(station, method, path, **headers)
        assert answer.status_code < 500
        policy = answer.headers["content-security-policy"]
        for part in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
                     f"frame-src http://127.0.0.1:{station.content.port}", "base-uri 'none'",
                     "form-action 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"):  # fmt: skip
            assert part in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "geolocation=()" in answer.headers["permissions-policy"]
        assert "server" not in answer.headers
        assert "set-cookie" not in answer.headers
        assert not any(name.startswith("access-control-") for name in answer.headers)


def test_pages_hold_no_inline_script_style_or_handler(station):
    import re

    for path in PAGES[:4]:
        html = request(station, "GET", path).text
        assert not re.search(r"<script(?![^>]*\ssrc=)", html)
        assert "<style" not in html
        assert not re.search(r"\s(on\w+|style)\s*=", html)
        assert not re.search(r"(?:src|href)=\"(?:https?:)?//(?!127\.0\.0\.1)", html)


def memory(station):
    status = Path(f"/proc/{station.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_a_gigabyte_is_refused_by_its_announced_length_and_by_its_real_one(station):
    before = memory(station)
    head = f"POST /api/chat HTTP/1.1\r\nHost: {station.host}\r\nContent-Type: application/json\r\n"
    announced = raw(
        station.port, (head + f"Content-Length: {2**30}\r\n\r\n").encode() + b"{" * 1000
    )
    assert announced.split(b" ")[1] == b"413"
    with socket.create_connection(("127.0.0.1", station.port), timeout=10) as one:
        one.sendall((head + "Transfer-Encoding: chunked\r\n\r\n").encode())
        sent, chunk = 0, b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        answer = b""
        try:
            while sent < 2**30:
                one.sendall(chunk)
                sent += 0x10000
        except OSError:
            pass
        try:
            answer = one.recv(100)
        except OSError:
            pass
    assert sent < 64 * 2**20, "it was read on and on"
    assert answer.split(b" ")[1:2] in ([b"413"], [])
    assert memory(station) - before < 64 * 2**20


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"nul", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000]
)
@pytest.mark.parametrize("path", API_WRITES)
def test_bad_json_is_a_400_in_the_routes_own_form(station, path, body):
    answer = CLIENT.post(
        station.url.rstrip("/") + path, content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (
        error["type"] == "invalid_request_error"
        if path.startswith("/v1")
        else isinstance(error, str)
    )


@pytest.mark.parametrize(
    "body",
    [{}, {"question": ""}, {"question": 7}, {"question": "x", "history": 1}, {"question": "x", "history": [1]},
     {"question": "x", "history": [{"role": "system", "content": "x"}]}, {"question": "x" * 100_001}],
)  # fmt: skip
def test_a_malformed_question_is_a_400(station, body):
    assert CLIENT.post(station.url + "api/chat", json=body).status_code == 400


def test_a_prompt_of_a_million_tokens_is_refused(station):
    body = json.dumps(
        {"model": "chat", "messages": [{"role": "user", "content": "word " * 1_000_000}]}
    )
    answer = CLIENT.post(
        station.url + "v1/chat/completions",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_ten_thousand_header_lines_are_refused(station):
    lines = "".join(f"X-{n}: {n}\r\n" for n in range(10_000))
    answer = raw(station.port, f"GET / HTTP/1.1\r\nHost: {station.host}\r\n{lines}\r\n".encode())
    assert answer == b"" or answer.split(b" ")[1] in (b"400", b"431")


def test_a_request_that_dribbles_in_is_hung_up_on(station):
    with socket.create_connection(("127.0.0.1", station.port)) as one:
        began = time.monotonic()
        one.settimeout(1.0)
        try:
            while time.monotonic() - began < 20:
                one.sendall(b"G" if time.monotonic() - began < 1 else b"E")
                try:
                    if one.recv(100) == b"":
                        break
                except TimeoutError:
                    continue
        except OSError:
            pass
        assert time.monotonic() - began < 14


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
def test_it_listens_on_loopback_only_unless_told_otherwise_with_a_token(tmp_path, address):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    if address == "127.0.0.1":
        with running_station(root) as one:
            assert bound_addresses(one.process.pid) == {"127.0.0.1"}
        return
    with (
        pytest.raises(RuntimeError, match="needs a token"),
        running_station(root, "--listen", address),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="needs a token"),
        running_station(root, "--listen", address, "--token", "short"),
    ):
        pass


def bound_addresses(pid):
    """Local addresses that a process listens on, out of /proc."""
    inodes = {Path(f).readlink().name for f in Path(f"/proc/{pid}/fd").iterdir() if f.is_symlink()}
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
            found.add(socket.inet_ntoa(bytes.fromhex(fields[1].split(":")[0])[::-1]))
    assert Path(f"/proc/{pid}/net/tcp6").read_text().count(" 0A ") >= 0
    return found


@pytest.fixture(scope="module")
def open_station(tmp_path_factory):
    root = make_bundle(tmp_path_factory.mktemp("open"), platform=this_platform(), model=False)
    with running_station(
        root, "--listen", "0.0.0.0", "--token", "correct-horse-battery"
    ) as running:
        yield running


@pytest.mark.parametrize("path", [*PAGES, *API_READS])
def test_with_a_token_nothing_is_shown_without_it(open_station, path):
    answer = request(open_station, "GET", path)
    if path.startswith("/static/"):
        assert answer.status_code == 200
    elif path.startswith(("/api", "/v1")):
        assert answer.status_code == 401
    else:
        assert answer.status_code == 303
        assert answer.headers["location"] == "/sign-in"


@pytest.mark.parametrize("path", API_WRITES)
def test_with_a_token_nothing_is_done_without_it(open_station, path):
    assert request(open_station, "POST", path).status_code == 401
    assert request(open_station, "POST", path, Authorization="Bearer wrong").status_code == 401
    assert request(open_station, "POST", path, Cookie="station=wrong").status_code == 401


def test_the_token_opens_by_bearer_and_by_signing_in(open_station):
    bearer = {"Authorization": "Bearer correct-horse-battery"}
    assert request(open_station, "GET", "/", **bearer).status_code == 200
    wrong = CLIENT.post(open_station.url + "sign-in", json={"token": "guess"})
    assert wrong.status_code == 403
    right = httpx2.post(open_station.url + "sign-in", json={"token": "correct-horse-battery"})
    cookie = right.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "correct-horse" not in cookie
    assert request(open_station, "GET", "/", Cookie=cookie.split(";")[0]).status_code == 200


def test_with_a_token_names_stay_refused_and_addresses_are_let_in(open_station):
    bearer = {"Authorization": "Bearer correct-horse-battery"}
    assert (
        request(
            open_station, "GET", "/", Host=f"evil.example:{open_station.port}", **bearer
        ).status_code
        == 421
    )
    assert (
        request(
            open_station, "GET", "/", Host=f"192.168.1.7:{open_station.port}", **bearer
        ).status_code
        == 200
    )
    assert any("other computers can reach this station" in line for line in open_station.output)
