"""`tests.fake_build`'s fakes as a plugin that is installed: it comes through an entry point."""

from tests.fake_build import fakes

INSTALLED = fakes()
