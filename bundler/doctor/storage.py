"""The disks: room for a build, names and sizes of files, and whether they can be written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bundler.doctor.findings import Finding, Topic
from bundler.machine.disk import FAT, MEMORY_FILESYSTEMS, Disk, disk_of, takes_names
from bundler.planning.filesystems import FAT32_MAX_FILE_BYTES
from bundler.value import format_size

_DOES_NOT_FIT = 4


def storage(
    store: Path, output: Path, *, build_bytes: int = 0, bundle_bytes: int = 0,
    largest_file_bytes: int = 0, free_bytes: int | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """Yield what store and output can hold.

    Args:
        store: where bytes rest between builds.
        output: the directory a bundle would become.
        build_bytes: what the store will still take at its fullest.
        bundle_bytes: size of the bundle.
        largest_file_bytes: its largest file.
        free_bytes: take this as what is free on either disk, to ask about another one.
    """
    # Never inside a bundle that is there already: it is looked at beside it, where it is made.
    place = output if output.is_mount() else output.absolute().parent
    disks = {"store": disk_of(store), "output": disk_of(place)}
    if free_bytes is not None:
        disks = {name: disk._replace(free_bytes=free_bytes) for name, disk in disks.items()}
    together = _same_disk(disks["store"].folder, disks["output"].folder)
    needs = {"store": build_bytes, "output": bundle_bytes}
    for name, disk in disks.items():
        need = sum(needs.values()) if together else needs[name]
        yield _room(name, disk, need, together=together)
        yield from _written(name, disk, "output" if name == "output" else "store")
    yield from file_sizes(disks["output"], largest_file_bytes)


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _room(name: str, disk: Disk, need: int, *, together: bool) -> Finding:
    where = f"{disk.folder} ({disk.filesystem or 'filesystem unknown'})"
    free = f"{format_size(disk.free_bytes)} free on {where}"
    if need > disk.free_bytes:
        both = ", store and bundle together" if together else ""
        return Finding(
            topic="build", name=name, state="missing",
            said=f"{free}; {format_size(need)} are needed{both}: "
            f"{format_size(need - disk.free_bytes)} too much",
            remedy=f"free some space, or give another disk with "
            f"{'--store' if name == 'store' else '--output'}",
            exit_code=_DOES_NOT_FIT,
        )  # fmt: skip
    both = " for store and bundle" if together else ""
    said = f"{free}; at most {format_size(need)} needed{both}" if need else free
    return Finding(topic="build", name=name, state="good", said=said)


def _written(name: str, disk: Disk, option: str) -> Iterator[Finding]:
    topic: Topic = "build"
    if disk.read_only:
        yield Finding(
            topic=topic, name=name, state="missing", said=f"{disk.folder} cannot be written",
            remedy=f"give another one with --{option}, or mount it writable",
            exit_code=_DOES_NOT_FIT,
        )  # fmt: skip
        return
    if disk.filesystem in MEMORY_FILESYSTEMS:
        yield Finding(
            topic=topic, name=name, state="warning",
            said=f"{disk.folder} is in main memory ({disk.filesystem}): what lies there is taken "
            "from programs and gone after a restart",
            remedy=f"give a folder on a disk with --{option}",
        )  # fmt: skip
    try:
        wrong = takes_names(disk.folder)
    except OSError as error:
        wrong = f"nothing can be written there ({error.strerror})"
    if wrong:
        yield Finding(
            topic=topic, name=name, state="missing", said=f"{disk.folder}: {wrong}",
            remedy=f"give another folder with --{option}", exit_code=_DOES_NOT_FIT,
        )  # fmt: skip


def file_sizes(disk: Disk, largest_bytes: int) -> Iterator[Finding]:
    """Warn of FAT, or refuse it when a file is too large for it."""
    if disk.filesystem not in FAT:
        return
    remedy = (
        "format the stick with exFAT, which all systems of the last ten years read; or write "
        'filesystem = "fat32" below [bundle] in the recipe: models are then cut into smaller files'
    )
    if largest_bytes > FAT32_MAX_FILE_BYTES:
        yield Finding(
            topic="build", name="output", state="missing",
            said=f"FAT32 holds no file of 4 GiB or more; one has {format_size(largest_bytes)}",
            remedy=remedy, exit_code=_DOES_NOT_FIT,
        )  # fmt: skip
    else:
        yield Finding(
            topic="build", name="output", state="warning",
            said="FAT32 holds no file of 4 GiB or more", remedy=remedy,
        )  # fmt: skip
