import os

import pytest

from tests.demo import demo_bundle


def pytest_configure(config):
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


def pytest_collection_modifyitems(config, items):
    """Leave long matrices out unless they are asked for; pytest says how many."""
    if os.environ.get("BUNDLER_SLOW_SWEEP") == "1":
        return
    long = [item for item in items if item.get_closest_marker("slow_sweep")]
    if long:
        items[:] = [item for item in items if not item.get_closest_marker("slow_sweep")]
        config.hook.pytest_deselected(items=long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where everything must be there (BUNDLER_REQUIRE_ORACLES=1), a skip is a failure.

    Only what needs an accelerator may still be skipped: no test machine of ours promises one.
    """
    report = yield
    required = os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1"
    excused = item.get_closest_marker("gpu") or hasattr(report, "wasxfail")
    if report.skipped and required and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, but nothing may be missing here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def demo():
    """The embedded example's bundle: read it, copy it, but do not change it."""
    return demo_bundle()
