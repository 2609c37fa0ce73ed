"""Keys on this machine's disk: the secret one that signs, and the ring of those that are believed.

They lie in the user's configuration folder: `signing.key` (minisign's format, readable by the
user alone, encrypted where a password was given), `signing.pub` to hand to others, and
`keyring.json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundler.errors import Problem, TrustError, UnsafeInput
from bundler.manifest import SIGNATURE_NAME, STATEMENTS_NAME, Manifest
from bundler.media import signature
from bundler.media.judging import Verdict, judge
from bundler.media.keyring import Keyring, KnownKey, Statement, revoke, trust
from bundler.store import write_durably
from bundler.value import pretty_json

if TYPE_CHECKING:
    from minisign import SecretKey

SECRET_NAME = "signing.key"  # noqa: S105 - the name of a file
PUBLIC_NAME = "signing.pub"
RING_NAME = "keyring.json"
MAX_SIDE_FILE_BYTES = 1 << 20

AskPassword = Callable[[], str]


def read_ring(folder: Path) -> Keyring:
    """Return what this machine knows; an empty ring when it knows nothing yet.

    Raises:
        TrustError: the file is damaged: whom to believe is never guessed.
    """
    path = folder / RING_NAME
    try:
        return Keyring.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Keyring()
    except ValueError as error:
        raise TrustError(
            "the list of trusted keys is damaged",
            where=str(path),
            hint="bring it back from a copy, or remove it and trust the keys anew",
        ) from error


def write_ring(folder: Path, ring: Keyring) -> None:
    """Keep the ring; the old one stays until the new one is on the disk."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(folder / RING_NAME, pretty_json(ring).encode())


def has_secret_key(folder: Path) -> bool:
    """Tell whether this machine can sign."""
    return (folder / SECRET_NAME).exists()


def own_key_id(folder: Path) -> str:
    """Return the id of the key this machine signs with, "" when it has none."""
    try:
        text = (folder / PUBLIC_NAME).read_text()
    except FileNotFoundError:
        return ""
    return signature.key_id(signature.read_public_key(text))


def new_key(folder: Path, password: str, label: str = "") -> KnownKey:
    """Make a key to sign with, and trust it here.

    Raises:
        UnsafeInput: there is one already.
    """
    check_no_key(folder)
    return _make_key(folder, read_ring(folder), password, label)


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


def _make_key(folder: Path, ring: Keyring, password: str, label: str) -> KnownKey:
    import minisign

    pair = minisign.KeyPair.generate()
    public = pair.public_key.to_base64().decode()
    made = trust(ring, public, label)
    key = made.keys[signature.key_id(pair.public_key)]
    if password:
        pair.secret_key.encrypt(password)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(folder / SECRET_NAME, bytes(pair.secret_key) + b"\n", mode=0o600)
    write_durably(folder / PUBLIC_NAME, bytes(pair.public_key) + b"\n")
    write_ring(folder, made)
    return key


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


def rotate_key(
    folder: Path, ask_password: AskPassword, new_password: AskPassword, *, now: int | None = None
) -> tuple[str, KnownKey]:
    """Make a new signing key which the old one vouches for; return the old id and the new key.

    The statement goes into every bundle to come, so that machines which trust the old key follow.
    The old secret key is kept beside the new one, under its id.
    """
    old = open_secret_key(folder, ask_password)
    old_id = signature.key_id(old.get_public_key())
    kept = folder / f"{old_id}.key"
    if kept.exists():
        raise UnsafeInput("an older key of that id is there", where=str(kept))
    password, ring = new_password(), read_ring(folder)
    (folder / SECRET_NAME).rename(kept)
    try:
        key = _make_key(folder, ring, password, ring.keys[old_id].label)
    except BaseException:
        if not has_secret_key(folder):
            kept.rename(folder / SECRET_NAME)
        raise
    statement = Statement(
        kind="rotation", key_id=old_id, new_key_id=key.key_id, new_public_key=key.public_key,
        created=int(time.time()) if now is None else now,
    )  # fmt: skip
    ring = read_ring(folder).with_key(key.model_copy(update={"successor_of": old_id}))
    write_ring(folder, _with_statement(ring, statement, old))
    return old_id, ring.keys[key.key_id]


def revoke_key(
    folder: Path, key_id: str, reason: str, ask_password: AskPassword, *, now: int | None = None
) -> bool:
    """Believe a key no more; return whether bundles to come will tell others so.

    They will when the key is one of our own: then it says so itself, under its own signature.
    """
    ring = revoke(read_ring(folder), key_id, reason)
    key_id = signature.key_id_of(key_id)
    own = _own_secret(folder, key_id, ask_password)
    if own is not None:
        statement = Statement(
            kind="revocation", key_id=key_id, reason=reason,
            created=int(time.time()) if now is None else now,
        )  # fmt: skip
        ring = _with_statement(ring, statement, own)
    write_ring(folder, ring)
    return own is not None


def _own_secret(folder: Path, key_id: str, ask_password: AskPassword) -> SecretKey | None:
    """Return one of our own secret keys: today's, or one that was rotated away."""
    if key_id == own_key_id(folder):
        return open_secret_key(folder, ask_password)
    kept = folder / f"{key_id}.key"
    return _open(kept, ask_password) if kept.exists() else None


def _with_statement(ring: Keyring, statement: Statement, key: SecretKey) -> Keyring:
    made = key.sign(statement.data(), trusted_comment=statement.comment())
    entry = {
        "statement": statement.model_dump(mode="json"),
        "signature": bytes(made).decode() + "\n",
    }
    return ring.model_copy(update={"statements": (*ring.statements, entry)})


# -- beside a manifest -----------------------------------------------------------------------------


def side_files(manifest: Manifest, data: bytes, key: SecretKey, ring: Keyring) -> dict[str, bytes]:
    """Return the files that lie beside a signed manifest and are not listed in it."""
    claim = signature.Claim(
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        manifest_sha256=sha256_of(data).hexdigest(),
    )
    files = {SIGNATURE_NAME: signature.sign(data, claim, key)}
    if ring.statements:
        files[STATEMENTS_NAME] = pretty_json(list(ring.statements)).encode()
    return files


def judge_bundle(
    root: Path, data: bytes, manifest: Manifest, folder: Path, *, allow_older: bool = False
) -> Verdict:
    """Return the verdict on the bundle at `root`, and keep what was learned from it.

    Raises:
        TrustError: it is not to be believed; says why and what to do.
    """
    signed = _side_file(root / SIGNATURE_NAME)
    statements = _statements(_side_file(root / STATEMENTS_NAME))
    ring = read_ring(folder)
    try:
        verdict = judge(ring, data, manifest, signed, statements, allow_older=allow_older)
    except TrustError as error:
        raise TrustError(
            [Problem(p.message, p.where or str(root), p.hint) for p in error.problems]
        ) from error
    if verdict.ring != ring:
        write_ring(folder, verdict.ring)
    return verdict


def _side_file(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_SIDE_FILE_BYTES + 1)
    except FileNotFoundError:
        return None


def _statements(data: bytes | None) -> tuple[Mapping[str, Any], ...]:
    """Return what a bundle says of keys; a damaged file says nothing, and nothing is believed."""
    if data is None or len(data) > MAX_SIDE_FILE_BYTES:
        return ()
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return ()
    return (
        tuple(item for item in found if isinstance(item, dict)) if isinstance(found, list) else ()
    )
