"""Where a folder lies: the mount that holds it, the device below, and how much that was read."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_ESCAPED = re.compile(r"\\([0-7]{3})")
_SECTOR_BYTES = 512  # of /sys/…/stat, whatever the device's own are (Documentation/block/stat.rst)
MEMORY_KINDS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
NETWORK_KINDS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse.sshfs", "afs"})


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    device: str
    """Major and minor number as `8:1`; major 0 is no device."""
    kind: str
    """What the kernel calls the filesystem: `ext4`, `vfat`, `fuseblk`."""
    source: str
    """What was mounted: `/dev/sdb1`, or a word."""
    options: frozenset[str]


def parse_mountinfo(text: str) -> list[Mount]:
    """Return the mounts of /proc/self/mountinfo, in its order; lines it cannot read are left out."""
    found = []
    for line in text.splitlines():
        left, dash, right = line.partition(" - ")
        fields, rest = left.split(), right.split(" ")
        if dash and len(fields) >= 6 and len(rest) >= 2:
            options = {*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ())}
            found.append(
                Mount(_plain(fields[4]), fields[2], rest[0], _plain(rest[1]), frozenset(options))
            )
    return found


def _plain(text: str) -> str:
    raw = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
    return raw.encode("latin-1", "surrogateescape").decode("utf-8", "surrogateescape") if (
        raw != text
    ) else text  # fmt: skip


def mount_of(folder: Path, root: Path = Path("/")) -> Mount | None:
    """Return the mount that holds `folder`; None where the system does not tell.

    Args:
        folder: where to look; it must exist.
        root: read the system's files below this.
    """
    try:
        text = (root / "proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    place = folder.resolve()
    holding = [mount for mount in parse_mountinfo(text) if place.is_relative_to(mount.point)]
    # Of two at one point the later one hides the earlier.
    return max(reversed(holding), key=lambda m: len(Path(m.point).parts), default=None)


def block_device(mount: Mount) -> str:
    """Return the numbers of the block device below a mount, empty when there is none.

    A filesystem of its own numbers (btrfs) still names its device as what was mounted.
    """
    if not mount.device.startswith("0:"):
        return mount.device
    try:
        info = Path(mount.source).stat() if mount.source.startswith("/dev/") else None
    except OSError:
        return ""
    if info is None or not os.major(info.st_rdev):
        return ""
    return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"


def is_removable(device: str, root: Path = Path("/")) -> bool | None:
    """Tell whether a block device can be pulled out: it says so, or hangs on USB; None if unknown."""
    place = (root / "sys/dev/block" / device).resolve() if device else None
    if place is None or not place.is_dir():
        return None
    for folder in (place, place.parent):  # a partition lies in its disk's folder
        try:
            if (folder / "removable").read_text().strip() == "1":
                return True
        except OSError:
            continue  # partitions have no such file
    return any(part.startswith("usb") for part in place.parts)


def bytes_read_from(device: str, root: Path = Path("/")) -> int | None:
    """Return how many bytes were ever read from a block device, by the kernel's own account."""
    if not device:
        return None
    try:
        fields = (root / "sys/dev/block" / device / "stat").read_text().split()
        return int(fields[2]) * _SECTOR_BYTES
    except (OSError, ValueError, IndexError):
        return None
