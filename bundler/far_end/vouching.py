"""Who made a bundle, as far as the computer that it is plugged into can tell."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bundler.errors import TrustError
from bundler.media.copies import Candidate


def keys_folder() -> Path | None:
    """Return where this user's keys lie, as for an installed bundler; None for one without a home."""
    if given := os.environ.get("BUNDLER_KEYS", "").strip():
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "bundler"
    base = os.environ.get("XDG_CONFIG_HOME", "").strip()
    return (Path(base) if base else home / ".config") / "bundler"


def vouched_for(root: Path, believed: Candidate, given: Path | None) -> str:
    """Say who speaks for a bundle; on a computer that knows no keys, that it cannot tell.

    Raises:
        TrustError: this computer knows keys, and none of them speaks for the bundle.
    """
    from bundler.media.ring_file import read_ring
    from bundler.media.signing import judge_bundle

    folder = given or keys_folder()
    if folder is None:
        return "Who made it cannot be told: this user has no home folder, so there are no keys."
    assert believed.manifest is not None
    try:
        verdict = judge_bundle(root, believed.data, believed.manifest, folder)
    except TrustError as error:
        if read_ring(folder).keys:
            raise
        why = error.problems[0].message
        return f"Who made it cannot be told on this computer, which knows no keys: {why}."
    whose = f" ({verdict.key.label})" if verdict.key.label else ""
    return f"Signed with key {verdict.key.key_id}{whose}, which is trusted on this computer."
