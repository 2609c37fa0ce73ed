"""Starts the station of the bundle this file lies in.

Run by the bundle's own Python, which says where the packages for this machine are: they lie
beside it, in `runtime/<platform>/site`.
"""

import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
site = Path(sys.prefix).resolve().parent / "site"
if not site.is_dir():
    print(
        f"error: {site}: not there\n"
        "hint: start the bundle with its own start script; if that was it, the bundle is damaged",
        file=sys.stderr,
    )
    raise SystemExit(6)
sys.path[:0] = [str(root / "app"), str(site)]

if __name__ == "__main__":
    from bundler.station.__main__ import main

    raise SystemExit(main(["--bundle", str(root), *sys.argv[1:]]))
