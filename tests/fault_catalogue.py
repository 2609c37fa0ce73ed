"""The faults and abuses that bundler promises to withstand, by number.

A test that tries one is marked `@pytest.mark.fault("A5")`. `make faults` runs all of those, long
sweeps included, and prints for each number how many cases were tried and how many held. A test
counts as one case unless it says otherwise through the fixture `cases_tried`.
"""

CATALOGUE = {
    "A1": "build: kill -9 at every nth fsync, rename, open",
    "A2": "build: kill -9 within each step",
    "A3": "build: Ctrl-C and SIGTERM",
    "A4": "build: the disk is full at different moments",
    "A5": "build: an I/O error at every nth read, write, fsync",
    "A6": "build: rename across filesystems",
    "A7": "build: a child runs out of memory",
    "A8": "build: two builds of one recipe at once",
    "A9": "build: two recipes share a model; a lock of a dead process",
    "A10": "build: the power goes at random moments",
    "A11": "build: read-only folders, clocks ten years off",
    "A12": "build: a bit flips in the store between two steps",
    "A13": "build: the same lock in another place gives the same bytes",
    "B1": "hub: stalls for ever",
    "B2": "hub: 500, 502, 503 once, thrice, always",
    "B3": "hub: 429 with and without Retry-After",
    "B4": "hub: a body cut short, a connection reset",
    "B5": "hub: the right size and wrong bytes",
    "B6": "hub: the content changes while it is fetched",
    "B7": "hub: ranges ignored, or wrong",
    "B8": "hub: redirects in circles, to others, to plain HTTP",
    "B9": "hub: bodies without end, lying lengths",
    "B10": "hub: no access, gated, no such revision",
    "B11": "hub: offline opens no connection",
    "B12": "hub: a mirror with other bytes",
    "B13": "hub: kill -9 within a file resumes it",
    "B14": "hub: its cache on this disk is damaged",
    "C1": "medium: pulled out while it is written",
    "C2": "medium: too small",
    "C3": "medium: files of 4 GiB at most",
    "C4": "medium: names that it cannot hold",
    "C5": "medium: no executable bit, no links",
    "C6": "medium: one flipped bit anywhere",
    "C7": "medium: files missing, extra, renamed, swapped, empty",
    "C8": "medium: damage within the parity's budget, parity damaged too",
    "C9": "medium: damage above the budget",
    "C10": "medium: repair with no room for copies",
    "C11": "medium: pulled out while it serves",
    "C12": "medium: made by an enemy, at every door",
    "E1": "files: malformed GGUF",
    "E2": "files: GGUF tensors beyond the end",
    "E3": "files: malformed safetensors",
    "E4": "files: a repository with code and pickles",
    "E5": "files: a pickle under another name",
    "E6": "files: listings that lie",
    "E7": "files: malformed ZIM",
    "E8": "files: documents that are bombs",
    "E9": "files: archives that write elsewhere",
    "F1": "trust: content changed, every checksum made anew",
    "F2": "trust: no signature, an unknown key, a forged key id",
    "F3": "trust: parts of different bundles together",
    "F4": "trust: an older bundle where a newer was seen",
    "F5": "trust: a comment or white space changed",
    "F6": "trust: keys rotated and revoked",
    "F7": "trust: the programs on the stick were changed",
}  # fmt: skip
"""Number → what is tried. D and G, recipes and the station's web side, have tests of their own."""

PARTS = {
    "A": "build",
    "B": "hub",
    "C": "medium",
    "E": "files of others",
    "F": "trust",
}

NOT_HERE: dict[str, tuple[str, ...]] = {
    "A10": (
        "a device that loses or reorders what it said was on it: that takes dm-flakey or LazyFS, and "
        "no kernel of our test machines has the one, no package the other",
    ),
    "C1": ("a real stick pulled from its port: no test machine has one; killed, unmounted and cut off instead",),
    "C3": ("a FAT filesystem in the kernel: not in ours; fusefat and a limit on file sizes stand for it",),
    "E7": ("the 44 invalid files of zim-testing-suite: no package brings them; forged ones of our own",),
    "C5": ("Windows and macOS: no test machine has them",),
}  # fmt: skip
"""Number → what of it cannot be tried on any machine of ours, and why. Printed, never counted as held."""
