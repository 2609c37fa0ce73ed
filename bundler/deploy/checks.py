"""What speaks against copying a bundle to a target, all at once, before anything is written. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bundler.deploy.ground import Ground
from bundler.deploy.survey import Survey
from bundler.errors import BundlerError, DoesNotFit, Problem, StepFailed, UnsafeInput
from bundler.events import Note
from bundler.manifest import Manifest
from bundler.planning.filesystems import FAT32_MAX_FILE_BYTES
from bundler.value import format_size

_FOLDER_BYTES = 32 << 10  # a folder takes a cluster; 32 KiB is the largest that FAT32 has
_MOST_NAMED = 5
_MORE_FILES = 16  # folders of the bundle, and what stands beside its files
ALL_NAMED = 200

EXFAT = (
    "format the stick with exFAT, which all systems of the last ten years read "
    "(this deletes everything on it). Linux: mkfs.exfat -n BUNDLE {source}; macOS: diskutil "
    "eraseDisk ExFAT BUNDLE MBR /dev/diskN (find N with `diskutil list`); Windows: format X: /FS:exFAT "
    "/Q (with the stick's letter)"
)
"""Said, never run."""


def room_needed(
    survey: Survey, beside: Mapping[str, bytes], cluster_bytes: int, *, deleting: bool = False
) -> int:
    """Return how many bytes must be free on the target.

    What shrinks is written first, so its room counts; what is replaced whole needs its own.
    """

    def rounded(size_bytes: int) -> int:
        return -(-size_bytes // cluster_bytes) * cluster_bytes

    grown = sum(rounded(t.file.size_bytes) - rounded(t.there_bytes) for t in survey.tasks)
    folders = {t.file.path.rpartition("/")[0] for t in survey.tasks}
    said = 3 * sum(rounded(len(data)) for data in beside.values())
    freed = sum(rounded(left.size_bytes) for left in survey.leftovers) if deleting else 0
    freed += sum(rounded(size) for size in survey.stale.values())
    return max(0, grown + len(folders) * max(cluster_bytes, _FOLDER_BYTES) + said - freed)


def objections(
    ground: Ground, manifest: Manifest, survey: Survey, beside: Mapping[str, bytes], *,
    file_limit_bytes: int | None = None, delete: bool = False,
) -> Iterator[BundlerError]:  # fmt: skip
    """Yield every reason not to begin.

    Args:
        ground: the target's filesystem.
        manifest: what is to be copied.
        survey: what is there already.
        beside: the files that the manifest does not list.
        file_limit_bytes: the largest file this process may write (RLIMIT_FSIZE), None without one.
        delete: whether the person agreed to deleting what an older version left.
    """
    where = str(ground.target)
    if survey.changes_nothing and not survey.leftovers:
        return
    if ground.read_only:
        yield StepFailed(
            "is read-only", where=where,
            hint="look for a switch on the stick, or mount it writable: "
            f"mount -o remount,rw {ground.mount_point or where}",
        )  # fmt: skip
    elif not ground.writable:
        yield StepFailed(
            "may not be written by you", where=where,
            hint="mount it for your user (desktops do that by themselves; by hand: mount -o uid=$(id -u) "
            "for FAT and exFAT), or make a folder there that is yours",
        )  # fmt: skip
    yield from (UnsafeInput(problem) for problem in survey.in_the_way[:ALL_NAMED])
    needed = room_needed(survey, beside, ground.cluster_bytes, deleting=delete)
    if ground.free_bytes is not None and needed > ground.free_bytes:
        yield DoesNotFit(_too_little(ground, survey, needed, delete=delete))
    made = sum(1 for task in survey.tasks if task.base != "taken") + _MORE_FILES
    if survey.tasks and ground.free_files is not None and made > ground.free_files:
        yield DoesNotFit(
            f"{made} files are to be made and the filesystem has room for {ground.free_files}",
            where=where, hint="format the stick anew; with exFAT there is no such limit",
        )  # fmt: skip
    yield from too_large_files(ground, manifest, file_limit_bytes)
    if survey.leftovers and not delete:
        yield UnsafeInput(_left_over(where, survey))


def _too_little(ground: Ground, survey: Survey, needed: int, *, delete: bool) -> Problem:
    free = ground.free_bytes or 0
    hint = "use a larger stick, remove something from this one, or build with a smaller bundle.max_size"
    left = sum(left.size_bytes for left in survey.leftovers)
    if left and not delete and needed - left <= free:
        hint = (
            f"--delete removes {format_size(left)} that an older version of this bundle left there"
        )
    return Problem(
        f"{format_size(needed)} are to be written and {format_size(free)} are free: "
        f"{format_size(needed - free)} too little",
        str(ground.target), hint,
    )  # fmt: skip


def too_large_files(
    ground: Ground, manifest: Manifest, file_limit_bytes: int | None
) -> Iterator[DoesNotFit]:
    """Yield the files that the filesystem, or a limit of the shell, cannot hold."""
    for file in manifest.files:
        if ground.is_fat and file.size_bytes > FAT32_MAX_FILE_BYTES:
            yield fat_refuses(ground, file.path, file.size_bytes)
        elif file_limit_bytes is not None and file.size_bytes > file_limit_bytes:
            yield DoesNotFit(
                f"{file.path} has {format_size(file.size_bytes)}; this shell allows files of "
                f"{format_size(file_limit_bytes)}",
                where=str(ground.target), hint="ulimit -f unlimited",
            )  # fmt: skip


def fat_refuses(ground: Ground, path: str, size_bytes: int) -> DoesNotFit:
    """Return the error of one file that a filesystem without files of 4 GiB cannot hold."""
    source = ground.source if ground.source.startswith("/dev/") else "/dev/sdX1"
    advice = EXFAT.format(source=source)
    if path.endswith(".gguf") and path.rpartition("/")[2].startswith(("projector-", "adapter-")):
        advice = f"what a model runs with cannot be cut: {advice}"
    elif path.endswith(".gguf"):
        advice = (
            'build for it: with the line filesystem = "fat32" below [bundle] in the recipe, this '
            "model is cut into files below 4 GiB, which open as one (finished steps are kept); or "
            f"keep the bundle and {advice}"
        )
    elif path.endswith(".zim"):
        advice = f"a library this large cannot go on FAT32, only a smaller one: {advice}"
    return DoesNotFit(
        f"{path} has {format_size(size_bytes)}; this filesystem holds no file of 4 GiB or more",
        where=str(ground.target), hint=advice,
    )  # fmt: skip


def _left_over(where: str, survey: Survey) -> Problem:
    size = sum(left.size_bytes for left in survey.leftovers)
    return Problem(
        f"{len(survey.leftovers)} files ({format_size(size)}) of an older version of this bundle "
        f"would be left: {named([left.path for left in survey.leftovers])}",
        where,
        "to delete exactly these (--dry-run lists them): the same command with --delete",
    )


def remarks(ground: Ground, survey: Survey) -> Iterator[Note]:
    """Yield what a person should know although it is no reason not to begin."""
    where = str(ground.target)
    if ground.with_system:
        yield Note(
            f"{where} is a folder on the disk that the system itself is on: no stick is mounted there",
            "warning", "if it should be a stick: look where it is mounted (`lsblk`, `df`)",
        )  # fmt: skip
    elif not ground.on_device:
        yield Note(
            f"{where} ({ground.kind or 'of unknown kind'}) lies on no disk that the system knows of",
            "warning", "what is copied there may not last, and nothing of it can be proven",
        )  # fmt: skip
    elif ground.removable is False:
        yield Note(f"{where} ({ground.source}) is on a disk that is built in, as far as it says")
    if survey.foreign:
        yield Note(
            f"{where} has {len(survey.foreign)} files in the bundle's folder that are not of it: "
            f"{named(survey.foreign)}",
            "warning", "they are left alone, and `bundler verify` will name them: move them elsewhere",
        )  # fmt: skip


def named(paths: Sequence[str]) -> str:
    """Return a few paths as words."""
    more = len(paths) - _MOST_NAMED
    return ", ".join(paths[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
