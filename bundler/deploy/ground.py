"""What a target is, before anything is written to it. Looks; writes nothing."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from bundler.deploy.mounts import MEMORY_KINDS, NETWORK_KINDS, block_device, is_removable, mount_of
from bundler.value import format_size

FAT_KINDS = frozenset({"vfat", "msdos", "fat32", "fuse.fusefat"})
_READ_ONLY = getattr(os, "ST_RDONLY", 1)


@dataclass(frozen=True, slots=True)
class Ground:
    """The filesystem a bundle is to be copied to."""

    target: Path
    kind: str
    """As the kernel calls it; empty when it does not tell."""
    mount_point: str
    device: str
    """Numbers of the block device below, as `8:1`; empty when there is none."""
    source: str
    """What is mounted there: `/dev/sdb1`."""
    free_bytes: int | None
    """None when the filesystem does not tell."""
    total_bytes: int | None
    cluster_bytes: int
    """The least room a file takes."""
    free_files: int | None
    """How many files can be made; None where that has no limit of its own."""
    read_only: bool
    writable: bool
    """Whether this user may make files there."""
    removable: bool | None
    with_system: bool
    """Whether it is the disk that the system itself runs from."""

    def __str__(self) -> str:
        """Say what it is and how much is free."""
        kind = f"{self.kind or 'unknown filesystem'}" + (
            f" on {self.source}" if self.device else ""
        )
        free = (
            "free room unknown"
            if self.free_bytes is None
            else f"{format_size(self.free_bytes)} free"
        )
        return f"{kind}, {free}"

    @property
    def on_device(self) -> bool:
        """Tell whether bytes written here can be read back from a device of this machine."""
        return bool(self.device) and self.kind not in MEMORY_KINDS | NETWORK_KINDS

    @property
    def through_program(self) -> bool:
        """Tell whether a program (FUSE) stands between the kernel and the device."""
        return self.kind == "fuseblk" or self.kind.startswith("fuse.")

    @property
    def is_fat(self) -> bool:
        """Tell whether it is FAT, whose files end below 4 GiB."""
        return self.kind in FAT_KINDS


def look_at(target: Path, root: Path = Path("/")) -> Ground:
    """Return what is known of the filesystem that holds the folder `target`.

    Raises:
        OSError: it cannot be looked at.
    """
    usage, state = shutil.disk_usage(target), os.statvfs(target)
    mount = mount_of(target, root)
    device = block_device(mount) if mount else ""
    # fusefat tells nothing of its size: zero of zero.
    told = usage.total > 0
    return Ground(
        target=target,
        kind=mount.kind if mount else "",
        mount_point=mount.point if mount else "",
        device=device,
        source=mount.source if mount else "",
        free_bytes=usage.free if told else None,
        total_bytes=usage.total if told else None,
        cluster_bytes=max(512, state.f_frsize),
        free_files=state.f_favail if state.f_files and told else None,
        writable=os.access(target, os.W_OK | os.X_OK),
        read_only=bool(state.f_flag & _READ_ONLY),
        removable=is_removable(device, root),
        with_system=target.stat().st_dev in _system_disks(),
    )


def _system_disks() -> set[int]:
    return {place.stat().st_dev for place in (Path("/"), Path.home()) if place.exists()}
