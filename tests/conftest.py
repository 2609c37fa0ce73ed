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


@pytest.fixture(scope="session")
def demo():
    """The embedded example's bundle: read it, copy it, but do not change it."""
    return demo_bundle()
