"""The commands `bundler diff`, `bundler update make` and `bundler update apply`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bundler.key_commands import KeysFolder, ask_password, keys_folder

if TYPE_CHECKING:
    from bundler.media.keyring import Keyring
    from bundler.update.applying import Applied
    from bundler.update.making import Made
    from bundler.update.vouching import SignText

app = typer.Typer(
    help="Bring a bundle elsewhere to its next version by a second stick with what changed.",
    no_args_is_help=True,
)

ProgressMode = Annotated[
    Literal["auto", "tty", "plain", "quiet", "json"],
    typer.Option("--progress", help="How to show what is going on.", envvar="BUNDLER_PROGRESS"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON to stdout.")]
OldVersion = Annotated[
    Path,
    typer.Argument(help="The older version: its directory or its manifest.json.", metavar="OLD"),
]


def add_to(program: typer.Typer) -> None:
    """Add these commands to the program."""
    program.command()(diff)
    program.add_typer(app, name="update")


def diff(
    old: OldVersion,
    new: Annotated[
        Path, typer.Argument(help="The newer one: its directory or manifest.json.", metavar="NEW")
    ],
    as_json: AsJson = False,
) -> None:
    """Say what differs between two versions of a bundle, item by item and in bytes."""
    from hashlib import sha256

    from bundler.console import Screen
    from bundler.update.delta import side_of
    from bundler.update.difference import difference, difference_lines
    from bundler.update.making import read_version

    (before, _), (after, _) = read_version(old), read_version(new)
    sides = [side_of(v.manifest, sha256(v.data).hexdigest()) for v in (before, after)]
    found = difference(before.manifest, after.manifest, *sides)
    screen = Screen("plain")
    if as_json:
        screen.json(found.model_dump(mode="json"))
    else:
        screen.data("".join(f"{line}\n" for line in difference_lines(found)))


@app.command()
def make(
    old: OldVersion,
    new: Annotated[Path, typer.Argument(help="The newer version's directory.", metavar="NEW")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to make.")],
    smallest: Annotated[
        bool,
        typer.Option("--smallest", help="Pack articles anew at the far end: few bytes, much time."),
    ] = False,
    keys: KeysFolder = None, progress: ProgressMode = "auto", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write what changed between two versions, signed, to be applied where the older one lies.

    With the older version's directory at hand, only changed bytes travel; with its manifest.json
    alone (and its signature beside it), whole changed segments do.
    """
    from bundler.console import Screen
    from bundler.media.keys import read_ring
    from bundler.update.doors import doors
    from bundler.update.making import make_delta

    folder = keys_folder(keys)
    sign = _signer(folder)
    with Screen(progress) as screen:
        made = make_delta(
            old, new, output, sign=sign, makers=_makers(folder, read_ring(folder)), doors=doors(),
            smallest=smallest, report=screen.report,
        )  # fmt: skip
    if as_json or screen.mode == "json":
        screen.json(_made_as_json(made))
        return
    for line in _made_in_words(made):
        screen.say(line)


def _signer(folder: Path) -> SignText | None:
    """Return what signs a delta with this user's key; None when there is no key."""
    from bundler.media.keys import has_secret_key, open_secret_key

    if not has_secret_key(folder):
        return None
    key = open_secret_key(folder, ask_password)

    def sign(data: bytes, comment: str) -> bytes:
        words = "signature of an update of a bundle"
        return bytes(key.sign(data, untrusted_comment=words, trusted_comment=comment)) + b"\n"

    return sign


def _makers(folder: Path, ring: Keyring) -> tuple[str, ...]:
    """Return our own public keys: today's, and those that it follows."""
    from bundler.media.keys import own_key_id

    keys, key_id = [], own_key_id(folder)
    while key_id in ring.keys and ring.keys[key_id].public_key not in keys:
        keys.append(ring.keys[key_id].public_key)
        key_id = ring.keys[key_id].successor_of
    return tuple(keys)


def _made_as_json(made: Made) -> dict[str, object]:
    delta = made.delta
    return {
        "output": str(made.root), "from": delta.before.model_dump(mode="json"),
        "to": delta.after.model_dump(mode="json"), "signed": made.signed,
        "size_bytes": made.size_bytes, "content_bytes": delta.stored_bytes,
        "moved": len(delta.moved), "rebuilt": len(delta.rebuilt),
        "new_version_bytes": made.new_version_bytes,
    }  # fmt: skip


def _made_in_words(made: Made) -> list[str]:
    from bundler.value import format_bytes

    share = 100 * made.size_bytes / max(1, made.new_version_bytes)
    lines = [
        f"[bold green]{made.root}[/] leads from {made.delta.before} to {made.delta.after}",
        f"{format_bytes(made.size_bytes)} travel instead of "
        f"{format_bytes(made.new_version_bytes)} ({share:.1f} %)",
        f"[dim]there: sh {made.root.name}/update.sh BUNDLE, "
        f"or: bundler update apply {made.root.name} BUNDLE[/]",
    ]
    if not made.signed:
        lines.append("[dim]it is not signed; to sign what you make: bundler key new[/]")
    return lines


@app.command()
def apply(
    delta: Annotated[Path, typer.Argument(help="What `update make` wrote.", metavar="DELTA")],
    bundle: Annotated[Path, typer.Argument(help="The bundle to update.", metavar="BUNDLE")],
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Look for accidents only; trust nobody.")
    ] = False,
    same_maker: Annotated[
        bool,
        typer.Option("--same-maker", help="Believe the key that signed the bundle there."),
    ] = False,
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Let a newer version be replaced by an older one.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at everything; change nothing.")
    ] = False,
    keys: KeysFolder = None, progress: ProgressMode = "auto", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Bring a bundle to the version an update leads to; the old one is kept until that is whole."""
    from bundler.console import Screen
    from bundler.media.keys import read_ring, write_ring
    from bundler.update.applying import Trust, applied_as_json, applied_in_words, apply_delta

    folder = keys_folder(keys)
    ring = read_ring(folder)
    trust = Trust(
        ring, unsigned=unsigned, same_maker=same_maker, allow_older=allow_older,
        learned=lambda told: write_ring(folder, told),
    )  # fmt: skip
    with Screen(progress) as screen:
        done: Applied = apply_delta(delta, bundle, trust, screen.report, dry_run=dry_run)
    if done.ring != ring and not dry_run:
        write_ring(folder, done.ring)
    if as_json or screen.mode == "json":
        screen.json(applied_as_json(done, dry_run=dry_run))
        return
    from rich.markup import escape

    for line in applied_in_words(done, dry_run=dry_run):
        screen.say(escape(line))
