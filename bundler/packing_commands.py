"""The commands `bundler pack` and `bundler unpack`: a bundle as one file, for who must send one."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import typer

from bundler import key_commands
from bundler.errors import Problem, RecipeError, TrustError, UnsafeInput

if TYPE_CHECKING:
    from bundler.console import Screen
    from bundler.manifest import Manifest
    from bundler.packing.packer import Told

ProgressMode = Annotated[
    Literal["auto", "tty", "plain", "quiet", "json"],
    typer.Option("--progress", help="How to show what is going on.", envvar="BUNDLER_PROGRESS"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout.")]
_EVERY_SECONDS = 0.1


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    program.command()(pack)
    program.command()(unpack)


def pack(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.", metavar="BUNDLE")],
    file: Annotated[
        str, typer.Argument(help="The file to make, as home.tar.zst; - for stdout.", metavar="FILE")
    ],
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=0, max=64, help="Threads that pack; 0: one a core.")
    ] = 0,
    progress: ProgressMode = "auto",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write a bundle as one .tar.zst file, the same bytes each time; every byte is checked."""
    from bundler.console import Screen
    from bundler.packing.packer import pack_bundle
    from bundler.value import format_size
    from bundler.verify import read_manifest_with_data

    if file == "-" and (as_json or progress == "json"):
        raise RecipeError("stdout cannot carry the file and JSON at once", where="--json")
    manifest, data = read_manifest_with_data(bundle)
    workers = jobs or os.cpu_count() or 1
    with Screen(progress) as screen, _target(file) as stream:
        written = pack_bundle(
            bundle, manifest, data, stream, workers=workers, told=_told(screen, "pack")
        )
    size = sum(one.size_bytes for one in manifest.files)
    if file == "-":
        return
    if as_json or screen.mode == "json":
        screen.json({"file": file, "size_bytes": written, "bundle_bytes": size})
    else:
        screen.say(f"{file}: {format_size(written)} for a bundle of {format_size(size)}")


def unpack(
    file: Annotated[str, typer.Argument(help="A packed bundle; - for stdin.", metavar="FILE")],
    directory: Annotated[
        Path | None, typer.Argument(help="Directory to make. [default: its name]", metavar="DIR")
    ] = None,
    list_only: Annotated[
        bool, typer.Option("--list", help="Only list what it holds; write nothing.")
    ] = False,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Do not ask who made the bundle.")
    ] = False,
    allow_older: Annotated[
        bool,
        typer.Option("--allow-older", help="Accept a bundle older than one that was seen here."),
    ] = False,
    keys: key_commands.KeysFolder = None,
    progress: ProgressMode = "auto",
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a bundle from its packed file; every byte is checked before the bundle has its name."""
    from bundler.console import Screen
    from bundler.packing.frames import Frames
    from bundler.packing.unpacker import open_pack, unpack_bundle
    from bundler.value import format_size

    said: list[str] = []

    def judge(folder: Path, manifest: Manifest, data: bytes) -> None:
        if not unsigned:
            read = (manifest, data)
            with _named(file):
                said.append(
                    key_commands.signed_by(folder, keys, allow_older=allow_older, read=read)
                )

    with Screen(progress) as screen, _source(file) as stream:
        frames = Frames(stream)
        opened = open_pack(frames)
        if list_only:
            _list(screen, opened.manifest, as_json=as_json)
            return
        output = directory or Path(opened.manifest.name)
        unpack_bundle(frames, opened, output, judge, told=_told(screen, "unpack"))
    size = sum(one.size_bytes for one in opened.manifest.files)
    if as_json or screen.mode == "json":
        screen.json({
            "output": str(output), "bundle": opened.manifest.name, "signed": bool(said),
            "version": opened.manifest.version, "size_bytes": size,
        })  # fmt: skip
    else:
        screen.say(f"{output}: {len(opened.manifest.files)} files ({format_size(size)}), all right")
        screen.say(*said or ["[dim]nobody was asked who made it: --unsigned[/]"])


def _list(screen: Screen, manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        screen.json([{"path": f.path, "size_bytes": f.size_bytes} for f in manifest.files])
        return
    for one in manifest.files:
        screen.data(f"{one.size_bytes:>14}  {one.path}\n")


def _told(screen: Screen, step: str) -> Told:
    """Return what shows progress, at most ten times a second."""
    from bundler.events import Progress

    last = [0.0]

    def told(done: int, total: int) -> None:
        now = time.monotonic()
        if done == total or now - last[0] > _EVERY_SECONDS:
            last[0] = now
            screen.report(Progress(step, done, total))

    return told


@contextmanager
def _named(file: str) -> Iterator[None]:
    """Let what is said of trust name the packed file, and this command's way on."""
    try:
        yield
    except TrustError as error:
        raise TrustError(
            [Problem(p.message, file, p.hint.replace("bundler verify", "bundler unpack"))
             for p in error.problems]
        ) from error  # fmt: skip


@contextmanager
def _target(file: str) -> Iterator[BinaryIO]:
    """Open what is written: stdout, or a file that gets its name when it is whole."""
    if file == "-":
        if sys.stdout.isatty():
            raise RecipeError(
                "a packed bundle is not for a screen", hint="bundler pack BUNDLE - | …"
            )
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    if path.exists() or path.is_symlink():
        hint = "give another name, or remove it yourself"
        raise UnsafeInput("is there already, not overwritten", where=file, hint=hint)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _source(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as stream:
        yield stream
