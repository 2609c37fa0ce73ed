import os
import shutil
import signal
import sys
import tempfile

import pytest

from tests.demo import demo_bundle
from tests.fault_catalogue import CATALOGUE

# What a person may say to the tests themselves; all else that is bundler's belongs to who runs them.
FOR_TESTS = {
    "BUNDLER_FAULTS", "BUNDLER_OFFICIAL_CONVERTER", "BUNDLER_REQUIRE_ORACLES", "BUNDLER_SCREENSHOTS",
    "BUNDLER_SLOW_NATIVE", "BUNDLER_SLOW_SWEEP", "BUNDLER_UPDATE_GOLDEN",
}  # fmt: skip
LONGEST = ("test_accelerator_in_software.py", "test_far_end_windows.py")
"""Files of minutes: two processes that share the work must not be left with one of them at the end."""
PLACES = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


def pytest_configure(config):
    _leave_the_persons_own_things_alone(config)
    # A shell that starts us in the background has us ignore Ctrl-C, and our children with us.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests never reach out: a proxy or a token of the person who runs them is not theirs to use.
    for name in (
        "HF_TOKEN",
        "HF_ENDPOINT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
    ):
        os.environ.pop(name, None)


def _leave_the_persons_own_things_alone(config):
    """Keys, rings and settings of who runs the tests are neither read nor changed."""
    for name in [name for name in os.environ if name.startswith("BUNDLER_")]:
        if name not in FOR_TESTS:
            del os.environ[name]
    folder = tempfile.mkdtemp(prefix="bundler-tests-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    for name in PLACES:
        os.environ[name] = f"{folder}/{name.lower()}"
    if sys.platform == "darwin":  # where these names say nothing
        os.environ["BUNDLER_KEYS"] = f"{folder}/keys"


def pytest_collection_modifyitems(config, items):
    """Leave long matrices out unless they are asked for; pytest says how many."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    _only_faults(config, items)
    if os.environ.get("BUNDLER_SLOW_NATIVE") != "1":
        native = [item for item in items if item.get_closest_marker("slow_native")]
        if native:
            items[:] = [item for item in items if item not in native]
            config.hook.pytest_deselected(items=native)
    if os.environ.get("BUNDLER_SLOW_SWEEP") == "1":
        return
    long = [item for item in items if item.get_closest_marker("slow_sweep")]
    if long:
        items[:] = [item for item in items if not item.get_closest_marker("slow_sweep")]
        config.hook.pytest_deselected(items=long)


def _only_faults(config, items):
    """Name a test's numbers in its report; BUNDLER_FAULTS=A5,C leaves all others out."""
    wanted = [word for word in os.environ.get("BUNDLER_FAULTS", "").split(",") if word]
    for item in items:
        numbers = _fault_numbers(item)
        assert set(numbers) <= set(CATALOGUE), f"{item.nodeid}: {numbers}"
        item.user_properties += [("fault", number) for number in numbers]
    if wanted:
        other = [
            item for item in items
            if not any(n in wanted or n[0] in wanted for n in _fault_numbers(item))
        ]  # fmt: skip
        items[:] = [item for item in items if item not in other]
        config.hook.pytest_deselected(items=other)


def _fault_numbers(item):
    return [number for mark in item.iter_markers("fault") for number in mark.args]


@pytest.fixture
def cases_tried(record_property):
    """Say how many cases of the fault catalogue this one test stands for."""
    return lambda count: record_property("cases_tried", count)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where everything must be there (BUNDLER_REQUIRE_ORACLES=1), a skip is a failure.

    What needs an accelerator may still be skipped, since no test machine of ours promises one, and
    what the kernel may refuse: mounting, and running the programs of another system.
    """
    report = yield
    required = os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1"
    kernel = any(item.get_closest_marker(name) for name in ("gpu", "mounts", "wine"))
    excused = kernel or hasattr(report, "wasxfail")
    if report.skipped and required and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, but nothing may be missing here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def demo():
    """The embedded example's bundle: read it, copy it, but do not change it."""
    return demo_bundle()
