"""Keys on this machine's disk: the secret one that signs, and the ring of those that are believed.

They lie in the user's configuration folder: `signing.key` (minisign's format, readable by the
user alone, encrypted where a password was given), `signing.pub` to hand to others, `keyring.json`
and `statements.json`. A person is asked for passwords before anything is held or changed.

A key is changed in steps of which each can be the last one before the power goes: `next.key` and
`next.pub` are written, then what the old key says of the new one, then the old key is kept under
its id, then the new ones take its place. Who changes keys next goes on from there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundler.errors import BusyError, TrustError, UnsafeInput
from bundler.media import signature
from bundler.media.keyring import Keyring, KnownKey, Statement, revoke, trust
from bundler.media.ring_file import change_ring, held, put_ring, read_ring, write_ring
from bundler.media.signing import judge_bundle, side_files, sign_bundle
from bundler.store import sync_folder, write_durably

if TYPE_CHECKING:
    from minisign import KeyPair, PublicKey, SecretKey

__all__ = [
    "AskPassword", "check_no_key", "has_secret_key", "judge_bundle", "new_key", "open_secret_key",
    "own_key_id", "read_ring", "revoke_key", "rotate_key", "side_files", "sign_bundle", "write_ring",
]  # fmt: skip

SECRET_NAME = "signing.key"  # noqa: S105 - the name of a file
PUBLIC_NAME = "signing.pub"
NEXT_SECRET_NAME = "next.key"  # noqa: S105 - the name of a file
NEXT_PUBLIC_NAME = "next.pub"
_KEY_ID = re.compile(r"[0-9A-F]{16}")

AskPassword = Callable[[], str]


def has_secret_key(folder: Path) -> bool:
    """Tell whether this machine can sign."""
    return (folder / SECRET_NAME).exists()


def own_key_id(folder: Path) -> str:
    """Return the id of the key this machine signs with, "" when it has none.

    Raises:
        TrustError: the public key's file is damaged.
    """
    if not has_secret_key(folder):
        return ""
    # Between the last two steps of a change the new secret key has its place, and this one not yet.
    changed = not (folder / NEXT_SECRET_NAME).exists() and (folder / NEXT_PUBLIC_NAME).exists()
    path = folder / (NEXT_PUBLIC_NAME if changed else PUBLIC_NAME)
    try:
        return signature.key_id(_read_public(path))
    except FileNotFoundError:
        return ""


def _read_public(path: Path) -> PublicKey:
    text = path.read_bytes()[: signature.MAX_SIGNATURE_BYTES].decode("utf-8", "replace")
    try:
        return signature.read_public_key(text)
    except TrustError as error:
        hint = "bring it back from a copy"
        raise TrustError("the public key is damaged", where=str(path), hint=hint) from error


def new_key(folder: Path, password: str, label: str = "") -> KnownKey:
    """Make a key to sign with, and trust it here.

    Raises:
        UnsafeInput: there is one already.
    """
    import minisign

    pair = minisign.KeyPair.generate()
    with held(folder):
        check_no_key(folder)
        ring = trust(read_ring(folder), _public_line(pair.public_key), label)
        put_ring(folder, ring)
        # The secret key comes last: as long as it is not there, there is no key.
        _write_pair(pair, password, folder / SECRET_NAME, folder / PUBLIC_NAME, secret_last=True)
    return ring.keys[signature.key_id(pair.public_key)]


def check_no_key(folder: Path) -> None:
    """Refuse a folder that has a signing key: it is never replaced.

    Raises:
        UnsafeInput: there is one.
    """
    if has_secret_key(folder):
        raise UnsafeInput(
            "there is a signing key already, and it is not replaced",
            where=str(folder / SECRET_NAME),
            hint="to change to a new one: bundler key rotate",
        )


def _public_line(key: PublicKey) -> str:
    return str(key.to_base64().decode())


def _write_pair(
    pair: KeyPair, password: str, secret: Path, public: Path, *, secret_last: bool
) -> None:
    if password:
        pair.secret_key.encrypt(password)
    files = [(secret, bytes(pair.secret_key), 0o600), (public, bytes(pair.public_key), 0o644)]
    for path, data, mode in reversed(files) if secret_last else files:
        write_durably(path, data + b"\n", mode=mode)


def open_secret_key(folder: Path, ask_password: AskPassword) -> SecretKey:
    """Return the key to sign with, decrypted.

    Raises:
        TrustError: there is none, it is damaged, or the password is wrong.
    """
    return _open(folder / SECRET_NAME, ask_password)


def _open(path: Path, ask_password: AskPassword) -> SecretKey:
    import minisign

    try:
        key = minisign.SecretKey.from_bytes(path.read_bytes().rstrip(b"\r\n"))
    except FileNotFoundError as error:
        hint = "bundler key new"
        raise TrustError("there is no signing key", where=str(path), hint=hint) from error
    except ValueError as error:
        hint = "bring it back from a copy"
        raise TrustError("the signing key is damaged", where=str(path), hint=hint) from error
    try:
        if key.is_encrypted():
            key.decrypt(ask_password())
    except ValueError as error:
        raise TrustError(
            "wrong password for the signing key",
            where=str(path),
            hint="it can be given as BUNDLER_KEY_PASSWORD",
        ) from error
    return key


# -- changing keys ---------------------------------------------------------------------------------


def rotate_key(
    folder: Path, ask_password: AskPassword, new_password: AskPassword, *, now: int | None = None
) -> tuple[str, KnownKey]:
    """Make a new signing key which the old one vouches for; return the old id and the new key.

    The statement goes into every bundle to come, so that machines which trust the old key follow.
    The old secret key is kept beside the new one, under its id. A change that was cut off is
    finished, and is the one that is returned.

    Raises:
        TrustError: there is no key, it is damaged, or the password is wrong.
        BusyError: somebody else changed it meanwhile.
    """
    import minisign

    with held(folder):
        finished = _finish_change(folder)
    if finished is not None:
        return finished
    old = open_secret_key(folder, ask_password)
    old_id, password = signature.key_id(old.get_public_key()), new_password()
    with held(folder):
        if own_key_id(folder) not in ("", old_id):
            raise BusyError("somebody else has just changed the signing key", where=str(folder))
        pair = minisign.KeyPair.generate()
        _write_pair(
            pair, password, folder / NEXT_SECRET_NAME, folder / NEXT_PUBLIC_NAME, secret_last=False
        )
        statement = Statement(
            kind="rotation", key_id=old_id, new_key_id=signature.key_id(pair.public_key),
            new_public_key=_public_line(pair.public_key),
            created=int(time.time()) if now is None else now,
        )  # fmt: skip
        ring = _with_own(read_ring(folder), old.get_public_key())
        put_ring(folder, _with_statement(ring, statement, old))
        finished = _finish_change(folder)
    assert finished is not None
    return finished


def _finish_change(folder: Path) -> tuple[str, KnownKey] | None:
    """Put a new key that the old one has vouched for into its place; drop one that it has not."""
    secret, public = folder / NEXT_SECRET_NAME, folder / NEXT_PUBLIC_NAME
    if not public.exists():
        secret.unlink(missing_ok=True)
        return None
    new = _read_public(public)
    ring, new_id = read_ring(folder), signature.key_id(new)
    old_id = next((s["key_id"] for s in _own_words(ring) if s.get("new_key_id") == new_id), "")
    if secret.exists():
        if not old_id:
            public.unlink()
            secret.unlink()
            return None
        kept = folder / f"{old_id}.key"
        if not kept.exists():
            write_durably(kept, (folder / SECRET_NAME).read_bytes(), mode=0o600)
        os.replace(secret, folder / SECRET_NAME)
        sync_folder(folder)
    ring = _with_successor(ring, new, old_id)
    put_ring(folder, ring)
    os.replace(public, folder / PUBLIC_NAME)
    sync_folder(folder)
    return old_id, ring.keys[new_id]


def _own_words(ring: Keyring) -> list[Mapping[str, Any]]:
    said = [entry.get("statement") for entry in ring.statements]
    return [statement for statement in said if isinstance(statement, dict)]


def _with_own(ring: Keyring, key: PublicKey) -> Keyring:
    """Return the ring with one of our own keys, should it have been lost from it."""
    return ring if signature.key_id(key) in ring.keys else trust(ring, _public_line(key))


def _with_successor(ring: Keyring, new: PublicKey, old_id: str) -> Keyring:
    label = ring.keys[old_id].label if old_id in ring.keys else ""
    ring = trust(ring, _public_line(new), label)
    key = ring.keys[signature.key_id(new)]
    return ring.with_key(key.model_copy(update={"successor_of": old_id}))


def revoke_key(
    folder: Path, key_id: str, reason: str, ask_password: AskPassword, *, now: int | None = None
) -> bool:
    """Believe a key no more; return whether bundles to come will tell others so.

    They will when the key is one of our own: then it says so itself, under its own signature, and
    which key follows it.
    """
    key_id = signature.key_id_of(key_id)
    with held(folder):
        _finish_change(folder)
    own = _own_secret(folder, key_id, ask_password)

    def change(ring: Keyring) -> Keyring:
        if own is None:
            return revoke(ring, key_id, reason)
        ring = _with_own(ring, own.get_public_key())
        follower = next((k for k in ring.successors_of(key_id) if _is_own(folder, k.key_id)), None)
        statement = Statement(
            kind="revocation", key_id=key_id, reason=reason,
            new_key_id=follower.key_id if follower else "",
            new_public_key=follower.public_key if follower else "",
            created=int(time.time()) if now is None else now,
        )  # fmt: skip
        return _with_statement(revoke(ring, key_id, reason, {statement.new_key_id}), statement, own)

    change_ring(folder, change)
    return own is not None


def _is_own(folder: Path, key_id: str) -> bool:
    return key_id == own_key_id(folder) or _kept(folder, key_id).exists()


def _kept(folder: Path, key_id: str) -> Path:
    """Return where an own key that was changed is kept; what is no id names nothing that is there."""
    return folder / (f"{key_id}.key" if _KEY_ID.fullmatch(key_id) else "no.key")


def _own_secret(folder: Path, key_id: str, ask_password: AskPassword) -> SecretKey | None:
    """Return one of our own secret keys: today's, or one that was rotated away."""
    if key_id == own_key_id(folder):
        return open_secret_key(folder, ask_password)
    kept = _kept(folder, key_id)
    return _open(kept, ask_password) if kept.exists() else None


def _with_statement(ring: Keyring, statement: Statement, key: SecretKey) -> Keyring:
    made = key.sign(statement.data(), trusted_comment=statement.comment())
    entry = {
        "statement": statement.model_dump(mode="json"),
        "signature": bytes(made).decode() + "\n",
    }
    return ring.model_copy(update={"statements": (*ring.statements, entry)})
