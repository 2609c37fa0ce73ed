"""What a machine knows of keys and bundles: whom it trusts, whom no longer, what it has seen. Pure.

A signature proves only that some key made it. Whether that key is believed, and whether an older
bundle is put in the place of a newer one, is for the machine that reads it to say; so this state
lies on the machine, never on the stick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from bundler.errors import TrustError
from bundler.media import signature
from bundler.value import Value, canonical_json

MAX_STATEMENTS = 64
"""A key that was changed more often than this is not followed."""


class KnownKey(Value):
    """A key this machine has heard of."""

    key_id: str
    public_key: str
    """As minisign writes it: 56 characters that begin with `RW`."""
    label: str = ""
    status: Literal["trusted", "revoked"] = "trusted"
    reason: str = ""
    successor_of: str = ""
    """The key that vouched for this one, when it came by rotation."""


class Seen(Value):
    """The latest bundle of one name by one maker."""

    version: str
    created: int
    manifest_sha256: str


class Keyring(Value):
    """Everything that is known. A new value for every change."""

    schema_version: Literal[1] = 1
    keys: Mapping[str, KnownKey] = Field(default_factory=dict)
    """By key id."""
    seen: Mapping[str, Seen] = Field(default_factory=dict)
    """By `<id of the maker's first key>/<bundle name>`."""
    statements: tuple[Mapping[str, Any], ...] = ()
    """Signed rotations and revocations of own keys, for the bundles to come."""

    def with_key(self, key: KnownKey) -> Keyring:
        """Return the ring with a key added or changed."""
        return self.model_copy(update={"keys": {**self.keys, key.key_id: key}})

    def first_of(self, key_id: str) -> str:
        """Return the first key of a maker: a rotation does not make another maker of them."""
        for _ in range(MAX_STATEMENTS):
            key = self.keys.get(key_id)
            if key is None or not key.successor_of:
                break
            key_id = key.successor_of
        return key_id


class Statement(Value):
    """What a key says of keys, signed by it: that another follows it, or that it is void."""

    kind: Literal["rotation", "revocation"]
    key_id: str
    """Who says it."""
    new_key_id: str = ""
    new_public_key: str = ""
    reason: str = ""
    created: int

    def data(self) -> bytes:
        """Return the bytes that are signed."""
        return canonical_json(self)

    def comment(self) -> str:
        """Return the trusted comment of its signature."""
        return f"bundler-key {self.kind} {self.key_id} {self.new_key_id}".rstrip()


def trust(ring: Keyring, public_key: str, label: str = "") -> Keyring:
    """Return the ring with one more trusted key.

    Raises:
        TrustError: it is no key, or one that was revoked, or its id stands for another key.
    """
    key = signature.read_public_key(public_key)
    found = KnownKey(key_id=signature.key_id(key), public_key=key.to_base64().decode(), label=label)
    known = ring.keys.get(found.key_id)
    if known is not None and known.public_key != found.public_key:
        raise TrustError(
            f"another key with the id {found.key_id} is known here",
            hint="ids are chance and do not collide by accident: ask the maker by another way",
        )
    if known is not None and known.status == "revoked":
        raise TrustError(
            f"key {found.key_id} was revoked{f': {known.reason}' if known.reason else ''}",
            hint="a revoked key stays revoked; ask the maker for the key that follows it",
        )
    return ring.with_key(
        found if known is None else known.model_copy(update={"label": label or known.label})
    )


def revoke(ring: Keyring, key_id: str, reason: str) -> Keyring:
    """Return the ring with a key that is believed no more.

    Raises:
        TrustError: the key is not known.
    """
    known = ring.keys.get(signature.key_id_of(key_id))
    if known is None:
        there = ", ".join(sorted(ring.keys)) or "none"
        raise TrustError(f"no key {key_id!r} is known here", hint=f"known keys: {there}")
    return ring.with_key(known.model_copy(update={"status": "revoked", "reason": reason}))


def hear(ring: Keyring, statements: Iterable[Mapping[str, Any]]) -> Keyring:
    """Return the ring after what trusted keys say of keys; all else is passed over.

    A statement is heard only when its signature is right and its key is trusted here, so a stick
    can bring any number of them without anything being believed. A key that is revoked here
    already names no successor; one that names its successor and is then revoked in the same breath
    does, since that is what a maker says who changes keys for good.
    """
    signed = [pair for given in list(statements)[:MAX_STATEMENTS] if (pair := _read(given))]
    for kind in ("rotation", "revocation"):
        for _ in range(len(signed)):  # a chain may come in any order
            before = ring
            for statement, text in signed:
                if statement.kind == kind:
                    ring = _heard(ring, statement, text)
            if ring == before:
                break
    return ring


def _read(given: Mapping[str, Any]) -> tuple[Statement, bytes] | None:
    try:
        text = given["signature"]
        return Statement.model_validate(given["statement"]), str(text).encode()
    except (KeyError, TypeError, ValueError):
        return None


def _heard(ring: Keyring, statement: Statement, text: bytes) -> Keyring:
    key = ring.keys.get(statement.key_id)
    if key is None or key.status != "trusted":
        return ring
    try:
        comment = signature.check(statement.data(), text, signature.read_public_key(key.public_key))
        if comment != statement.comment():
            return ring
        if statement.kind == "revocation":
            return revoke(ring, statement.key_id, statement.reason)
        new = signature.read_public_key(statement.new_public_key)
        if signature.key_id(new) != statement.new_key_id or statement.new_key_id in ring.keys:
            return ring
    except TrustError:
        return ring  # what is not proved is not believed, and an attacker may write anything
    return ring.with_key(
        KnownKey(
            key_id=statement.new_key_id,
            public_key=new.to_base64().decode(),
            label=key.label,
            successor_of=statement.key_id,
        )
    )
