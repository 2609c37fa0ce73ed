"""The page's section "Check this bundle": jobs, one at a time, and who may ask for them."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from bundler.station import selftest
from bundler.testing.station_process import running_station
from tests.demo import demo_bundle
from tests.test_far_end import assert_same, damage, link_or_copy

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def stick(tmp_path):
    root = tmp_path / "stick"
    shutil.copytree(demo_bundle(), root, copy_function=link_or_copy)
    return root


def ask(station, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", station.port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {**(JSON if body is not None else {}), **headers})
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    return answer.status, said


def result(station, what, **more):
    """Start a job and return what it says when it has ended."""
    status, said = ask(station, "POST", "/api/check", {"what": what, **more})
    assert status == 202, said
    return ended(station)


def ended(station, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = ask(station, "GET", "/api/check")[1]
        if now["state"] != "running":
            return now
        time.sleep(0.1)
    raise AssertionError(now)


def test_checks_a_selftest_and_a_repair_run_from_the_page(stick):
    with running_station(stick, own_programs=True) as station:
        assert ask(station, "GET", "/api/check")[1] == {"state": "idle"}
        assert result(station, "quick")["result"]["good"]
        tested = result(station, "selftest")
        assert tested["result"]["good"], tested
        assert {item["kind"] for item in tested["items"]} == {"model", "collection"}
        damage(stick, "corpora/handbook.zim")
        found = result(station, "full")
        assert not found["result"]["good"]
        assert any("corpora/handbook.zim is damaged" in line for line in found["result"]["lines"])
        mended = result(station, "repair", confirmed=True)
        assert mended["result"]["good"], mended
        assert "start it again" in mended["result"]["next_step"]
        assert ask(station, "GET", "/api/status")[0] == 200
    assert_same(stick, demo_bundle())


def test_a_repair_has_to_be_confirmed(stick):
    with running_station(stick, own_programs=True) as station:
        status, said = ask(station, "POST", "/api/check", {"what": "repair"})
        assert (status, "confirmed" in said["error"]) == (409, True)


def test_one_job_at_a_time_and_it_can_be_stopped(stick):
    with running_station(stick, own_programs=True) as station:
        assert ask(station, "POST", "/api/check", {"what": "full"})[0] == 202
        status, said = ask(station, "POST", "/api/check", {"what": "quick"})
        assert (status, "running already" in said["error"]) == (409, True)
        assert ask(station, "POST", "/api/check/stop", {})[1]["state"] == "cancelled"
        assert result(station, "quick")["result"]["good"]


@pytest.mark.parametrize("body", [{}, {"what": "rm"}, {"what": ["full"]}, {"what": None}, []])
def test_a_wish_that_is_none_is_refused(stick, body):
    with running_station(stick, own_programs=True) as station:
        assert ask(station, "POST", "/api/check", body)[0] == 400


@pytest.mark.parametrize("path", ["/api/check", "/api/check/stop"])
def test_another_site_may_not_ask_for_anything(stick, path):
    with running_station(stick, own_programs=True) as station:
        body = {"what": "repair", "confirmed": True}
        assert ask(station, "POST", path, body, Origin="http://evil.example")[0] == 403
        assert ask(station, "POST", path, body, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert ask(station, "POST", path, body, Host="evil.example")[0] == 421
        assert ask(station, "POST", path, body, **{"Content-Type": "text/plain"})[0] == 415
        assert ask(station, "GET", "/api/check", Origin="http://evil.example")[0] == 403
        assert ask(station, "GET", "/api/check")[1] == {"state": "idle"}


def test_a_station_for_others_asks_for_its_token_first(stick):
    words = ("--listen", "127.0.0.2", "--token", "a-long-enough-token")
    with running_station(stick, *words, own_programs=True) as station:
        connection = http.client.HTTPConnection("127.0.0.2", station.port, timeout=10)
        connection.request("POST", "/api/check", '{"what": "quick"}', JSON)
        assert connection.getresponse().status == 401
        connection.close()


def may_mount_read_only(folder):
    if os.geteuid():
        return False
    done = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False)
    if done.returncode:
        return False
    subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    return True


@pytest.mark.mounts
def test_a_repair_is_refused_on_a_drive_that_cannot_be_written(stick):
    if not may_mount_read_only(stick):
        pytest.skip("the kernel permits no mounting here")
    try:
        with running_station(stick, own_programs=True) as station:
            body = {"what": "repair", "confirmed": True}
            status, said = ask(station, "POST", "/api/check", body)
            assert (status, "cannot be written" in said["error"]) == (409, True)
            assert result(station, "quick")["result"]["good"]
    finally:
        subprocess.run(["umount", stick], check=True)


def test_a_bundle_without_the_program_says_so(stick):
    with running_station(stick, own_programs=True) as station:
        (stick / "app/main.py").unlink()
        status, said = ask(station, "POST", "/api/check", {"what": "full"})
        assert (status, "no program" in said["error"]) == (409, True)


def test_a_child_that_breaks_is_told(stick):
    with running_station(stick, own_programs=True) as station:
        damage(stick, "app/main.py", lambda data: b"raise SystemExit('broken by the test')")
        said = result(station, "full")["result"]
        assert not said["good"]
        assert any("broken by the test" in line for line in said["lines"])


# -- the computer that is described in a file ---------------------------------------------------------


def station_says(stick, *words):
    return subprocess.run(
        [sys.executable, "-m", "bundler.station", "--bundle", stick, "--no-browser", *words],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_file_that_describes_no_computer_is_refused(stick, tmp_path):
    (tmp_path / "machine.json").write_text('{"ram_bytes": "much"}')
    done = station_says(stick, "--machine", str(tmp_path / "machine.json"))
    assert done.returncode == 2
    assert "ram_bytes" in done.stderr
    assert "\n\n" not in done.stderr
    assert "hint: Give a file that --probe has printed." in done.stderr


def test_a_computer_that_is_described_is_judged_without_starting(stick, tmp_path):
    (tmp_path / "machine.json").write_text(json.dumps({"ram_bytes": 8 * 10**9}))
    done = station_says(stick, "--probe", "--machine", str(tmp_path / "machine.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "http://" not in done.stdout


def test_numbers_that_nobody_can_compute_with_are_none():
    assert selftest._numbers([1, 2.5]) == [1.0, 2.5]
    for wrong in ([10**400], [float("nan")], [float("inf")], ["1"], [True], "12", None):
        assert selftest._numbers(wrong) == []
