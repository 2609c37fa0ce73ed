"""The `bundler key` commands: make, show, trust, revoke and change the keys that sign bundles."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bundler.errors import RecipeError, TrustError

if TYPE_CHECKING:
    from bundler.manifest import Manifest
    from bundler.pipeline import Sign

_MOST_KEY_LETTERS = 5000
_A_KEY = "a key is a line of 56 characters that begins with RW, as `bundler key new` prints it"

app = typer.Typer(help="Keys that sign bundles, and those that are believed.", no_args_is_help=True)

KeysFolder = Annotated[
    Path | None,
    typer.Option(
        "--keys", help="Where keys lie.", envvar="BUNDLER_KEYS",
        show_default="the user's configuration directory",
    ),
]  # fmt: skip
NoPassword = Annotated[bool, typer.Option("--no-password", help="Keep the secret key unencrypted.")]


def keys_folder(given: Path | None) -> Path:
    """Return where this user's keys lie."""
    import platformdirs

    return given or Path(platformdirs.user_config_dir("bundler"))


def ask_password() -> str:
    """Return the password of the signing key, from the environment or the terminal.

    Raises:
        TrustError: there is nobody to ask.
    """
    given = os.environ.get("BUNDLER_KEY_PASSWORD")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise TrustError(
            "the signing key has a password, and there is no terminal to ask for it",
            hint="give it as BUNDLER_KEY_PASSWORD",
        )
    return str(typer.prompt("Password of the signing key", hide_input=True, err=True))


def signer(folder: Path) -> Sign | None:
    """Return what signs a manifest with this user's key, None when there is no key.

    The password is asked for here, before hours of work, not after them.
    """
    from bundler.media.keys import has_secret_key, open_secret_key, read_ring, sign_bundle

    if not has_secret_key(folder):
        return None
    read_ring(folder)  # damaged: said now
    key = open_secret_key(folder, ask_password)
    return lambda manifest, data: sign_bundle(folder, key, manifest, data)


def signed_by(
    bundle: Path, keys: Path | None, *, allow_older: bool,
    read: tuple[Manifest, bytes] | None = None,
) -> str:  # fmt: skip
    """Say by whom a bundle is signed, and keep that it was seen.

    With `read`, it is said of that manifest and its bytes, as its content was verified by them:
    what a medium answers when it is asked again may be something else.

    Raises:
        TrustError: it is not to be believed on this machine.
    """
    from bundler.media.keys import judge_bundle
    from bundler.verify import read_manifest_with_data

    manifest, data = read or read_manifest_with_data(bundle)
    verdict = judge_bundle(bundle, data, manifest, keys_folder(keys), allow_older=allow_older)
    whose = f" ({verdict.key.label})" if verdict.key.label else ""
    return f"signed with key {verdict.key.key_id}{whose}, which is trusted here"


def _new_password(*, none: bool) -> str:
    if none:
        return ""
    given = os.environ.get("BUNDLER_KEY_PASSWORD")
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise TrustError(
            "there is no terminal to ask for a password",
            hint="give one as BUNDLER_KEY_PASSWORD, or --no-password to keep the key unencrypted",
        )
    return str(
        typer.prompt(
            "Password for the new key (empty for none)", default="", show_default=False,
            hide_input=True, confirmation_prompt=True, err=True,
        )
    )  # fmt: skip


@app.command()
def new(
    label: Annotated[str, typer.Option(help="Whose key it is, for your own list.")] = "me",
    no_password: NoPassword = False, keys: KeysFolder = None,
) -> None:  # fmt: skip
    """Make a key; every bundle that is built from now on is signed with it."""
    from bundler.console import Screen
    from bundler.media.keys import check_no_key, new_key

    folder = keys_folder(keys)
    check_no_key(folder)
    key = new_key(folder, _new_password(none=no_password), label)
    screen = Screen("plain")
    screen.say(f"key {key.key_id} signs your bundles from now on; it lies in {folder}")
    screen.say(f"give others this line, by another way than the bundle itself:\n  {key.public_key}")


@app.command()
def show(
    keys: KeysFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the list as JSON.")] = False,
) -> None:
    """List the keys that are known here: your own, trusted and revoked ones."""
    from bundler.console import Screen
    from bundler.media.keys import own_key_id, read_ring

    folder = keys_folder(keys)
    ring, own, screen = read_ring(folder), own_key_id(folder), Screen("plain")
    if as_json:
        found = [key.model_dump(mode="json") for _, key in sorted(ring.keys.items())]
        screen.json({"own": own, "keys": found})
        return
    if not ring.keys:
        screen.say("no key is known here; make one: bundler key new")
        return
    for key_id, key in sorted(ring.keys.items()):
        state = "signs here" if key_id == own else key.status
        # A line of its own, never shortened: it is there to be copied.
        screen.data(f"{key_id}  {state}  {key.label}\n  {key.public_key}\n")


def _key_text(given: str) -> str:
    """Return the key itself, or what the file of this name holds.

    Raises:
        RecipeError: it is neither.
    """
    from bundler.media.signature import read_public_key

    path = Path(given)
    there = path.is_file()
    text = path.read_text(errors="replace")[:_MOST_KEY_LETTERS] if there else given
    try:
        read_public_key(text)
    except TrustError as error:
        if there:
            raise RecipeError("holds no public key", where=given, hint=_A_KEY) from error
        raise RecipeError(f"{given!r:.80} is no public key, and no file", hint=_A_KEY) from error
    return text


@app.command()
def trust(
    key: Annotated[str, typer.Argument(help="A line that begins with RW, or a .pub file.")],
    label: Annotated[str, typer.Option(help="Whose key it is.")] = "",
    keys: KeysFolder = None,
) -> None:
    """Believe bundles that are signed with a key."""
    from bundler.console import Screen
    from bundler.media import keyring
    from bundler.media.ring_file import change_ring
    from bundler.media.signature import key_id, read_public_key

    text = _key_text(key)
    trusted = key_id(read_public_key(text))
    before: list[keyring.Keyring] = []

    def change(ring: keyring.Keyring) -> keyring.Keyring:
        before.append(ring)
        return keyring.trust(ring, text, label)

    change_ring(keys_folder(keys), change)
    known = before[0].keys.get(trusted)
    new = known is None or known.status != "trusted"
    said = f"key {trusted} is trusted here from now on" if new else "that key was known already"
    Screen("plain").say(said)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `bundler key show` prints.")],
    reason: Annotated[str, typer.Option(help="Why; it is shown whenever the key is met.")] = "",
    keys: KeysFolder = None,
) -> None:
    """Believe a key no more, for good. Of an own key, bundles to come tell others so."""
    from bundler.console import Screen
    from bundler.media.keys import read_ring, revoke_key
    from bundler.media.signature import key_id_of

    folder = keys_folder(keys)
    told = revoke_key(folder, key_id, reason, ask_password)
    screen = Screen("plain")
    screen.say(f"key {key_id_of(key_id)} is believed no more on this machine")
    for key in read_ring(folder).successors_of(key_id_of(key_id)):
        if key.status == "doubted":
            screen.say(f"nor is {key.key_id}, for which it vouched; if you know that one to be the")
            screen.say(f"maker's by another way: bundler key trust {key.public_key}")
    if told:
        screen.say("bundles that you build from now on tell other machines so")


@app.command()
def rotate(no_password: NoPassword = False, keys: KeysFolder = None) -> None:
    """Change to a new signing key, which the old one vouches for."""
    from bundler.console import Screen
    from bundler.media.keys import rotate_key

    folder = keys_folder(keys)
    old, key = rotate_key(folder, ask_password, lambda: _new_password(none=no_password))
    screen = Screen("plain")
    screen.say(f"key {key.key_id} signs your bundles from now on, in the place of {old}")
    screen.say("machines that trust the old key will follow when they meet your next bundle")
    screen.say(f"if the old one is in wrong hands: bundler key revoke {old} --reason …")
