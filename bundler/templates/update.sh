#!/bin/sh
# Brings a bundle to the next version, with the bundle's own programs. Needs nothing installed.
#
#   sh update.sh BUNDLE            BUNDLE is the folder of the bundle, as /media/stick/clinic
#   sh update.sh BUNDLE --dry-run  only looks; README.txt says what else there is
set -u

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3:-1}"
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P) || fail "$0: its folder cannot be entered" "copy the whole folder to a disk and start it there"
case "${1:-}" in
    "" | -*) fail "no bundle was named" "sh update.sh BUNDLE, with the folder of the bundle that is to be updated" 2 ;;
esac
bundle=$(CDPATH='' cd -- "$1" && pwd -P) || fail "$1: not a folder that can be entered" "give the folder of the bundle that is to be updated" 2
shift

case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux amd64") platform=linux-x86_64 ;;
    "Linux aarch64" | "Linux arm64") platform=linux-aarch64 ;;
    "Darwin arm64") platform=macos-arm64 ;;
    "Darwin x86_64") platform=macos-x86_64 ;;
    *) platform=unknown ;;
esac
runtime=$bundle/runtime/$platform
python=$runtime/python/bin/python3
if [ ! -f "$python" ]; then
    fail "$python: not there" "the bundle has no programs for this computer: use one that it was made for, or one with bundler: bundler update apply" 4
fi
if [ ! -f "$bundle/app/bundler/update/far_end.py" ]; then
    fail "$bundle: made before bundles could update themselves" "on a computer that has bundler: bundler update apply $here $bundle" 4
fi
for program in "$python" "$runtime"/python/glibc/ld-*; do
    if [ -f "$program" ] && [ ! -x "$program" ]; then
        chmod a+x "$program" 2>/dev/null || true
    fi
done
if [ ! -x "$python" ]; then
    fail "$bundle: this place does not let programs run (mounted with 'noexec')" \
        "as administrator: mount -o remount,exec PLACE; or on a computer that has bundler: bundler update apply"
fi

# Its programs may be replaced while they run, so nothing of them is read later than at the start.
exec "$python" -I -B -X utf8 -c '
import sys
sys.path[:0] = sys.argv[1:3]
from bundler.update.far_end import main
raise SystemExit(main(sys.argv[3:]))
' "$bundle/app" "$runtime/site" "$here" "$bundle" "$@"
