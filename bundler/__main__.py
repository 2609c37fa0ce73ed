"""The `bundler` program, and `python -m bundler`: what makes it start quickly, before its modules."""

from __future__ import annotations

import gc
import os

_COLLECT_AFTER = 200_000
"""New containers between two looks for cycles. Python's 700 makes hundreds of such looks while
modules are imported, which leave no cycles: a tenth of the time of `bundler plan`."""


def main() -> None:
    """Run the command line, looking for garbage less often, and for no plugins of pydantic.

    Those would be loaded into every validation of a recipe, a lock and a manifest; this program's
    own plugins come through its own doors.
    """
    gc.set_threshold(_COLLECT_AFTER, 20, 20)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from bundler.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
