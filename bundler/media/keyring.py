"""What a machine knows of keys and bundles: whom it trusts, whom no longer, what it has seen. Pure.

A signature proves only that some key made it. Whether that key is believed, and whether an older
bundle is put in the place of a newer one, is for the machine that reads it to say; so this state
lies on the machine, never on the stick.

What a key says of keys is heard, and heard with care, since a stolen key says things too: when it
names two different successors, neither is believed; when it is revoked, those it vouched for are
doubted, but for the one that the revocation names. What is in doubt stays so until a person says
which key is the true one. What a person has said here is never put in doubt by a stick.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from bundler.errors import TrustError
from bundler.media import signature
from bundler.value import Value, canonical_json

MAX_STATEMENTS = 64
"""That a bundle carries: the latest ones of its maker."""
_MOST_READ = 4096
"""A bundle's file of statements has room for fewer."""
_MOST_RIVALS = 8
"""Of keys that one key named to follow it: more need not be remembered to doubt them all."""


class KnownKey(Value):
    """A key this machine has heard of."""

    key_id: str
    public_key: str
    """As minisign writes it: 56 characters that begin with `RW`."""
    label: str = ""
    status: Literal["trusted", "doubted", "revoked"] = "trusted"
    reason: str = ""
    successor_of: str = ""
    """The key that vouched for this one, when it came by rotation."""
    by_hand: bool = False
    """Whether a person said here that it is to be trusted, or made it here."""

    @property
    def is_vouched_for(self) -> bool:
        """Tell whether another key's word is all that speaks for it."""
        return bool(self.successor_of) and not self.by_hand


class Seen(Value):
    """The latest bundle of one name by one maker."""

    version: str
    created: int
    sealed: int = 0
    manifest_sha256: str

    @property
    def order(self) -> tuple[int, int]:
        """Return what is greater of the later one of two bundles."""
        return self.created, self.sealed


class Made(Value):
    """The latest bundle of one name that was signed here."""

    sealed: int
    manifest_sha256: str


class Keyring(Value):
    """Everything that is known. A new value for every change."""

    schema_version: Literal[1] = 1
    keys: Mapping[str, KnownKey] = Field(default_factory=dict)
    """By key id."""
    seen: Mapping[str, Seen] = Field(default_factory=dict)
    """By `<id of the maker's first key>/<bundle name>`."""
    made: Mapping[str, Made] = Field(default_factory=dict)
    """By bundle name."""
    statements: tuple[Mapping[str, Any], ...] = ()
    """Signed rotations and revocations of own keys, for the bundles to come."""

    def with_key(self, key: KnownKey) -> Keyring:
        """Return the ring with a key added or changed."""
        return self.model_copy(update={"keys": {**self.keys, key.key_id: key}})

    def first_of(self, key_id: str) -> str:
        """Return the first key of a maker: a rotation does not make another maker of them."""
        met = {key_id}
        while (key := self.keys.get(key_id)) is not None and key.successor_of not in {"", *met}:
            key_id = key.successor_of
            met.add(key_id)
        return key_id

    def successors_of(self, key_id: str) -> list[KnownKey]:
        """Return the keys that one key vouched for."""
        return [key for key in self.keys.values() if key.successor_of == key_id]


class Statement(Value):
    """What a key says of keys, signed by it: that another follows it, or that it is void.

    A revocation names the key that follows, too, if there is one: all others that the revoked key
    may have vouched for are not the maker's.
    """

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
    found = KnownKey(
        key_id=signature.key_id(key), public_key=key.to_base64().decode(), label=label, by_hand=True
    )
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
    if known is None:
        return ring.with_key(found)
    said = {"label": label or known.label, "status": "trusted", "reason": "", "by_hand": True}
    return ring.with_key(known.model_copy(update=said))


def revoke(ring: Keyring, key_id: str, reason: str, keep: Collection[str] = ()) -> Keyring:
    """Return the ring with a key that is believed no more.

    The keys that it alone vouched for are in doubt from then on: whoever has a stolen key can vouch.

    Args:
        ring: what is known.
        key_id: the key.
        reason: why, in words for a person.
        keep: the successors that are known to be the maker's.

    Raises:
        TrustError: the key is not known.
    """
    known = ring.keys.get(signature.key_id_of(key_id))
    if known is None:
        there = ", ".join(sorted(ring.keys)) or "none"
        raise TrustError(f"no key {key_id!r} is known here", hint=f"known keys: {there}")
    ring = ring.with_key(known.model_copy(update={"status": "revoked", "reason": reason}))
    others = [key.key_id for key in ring.successors_of(known.key_id) if key.key_id not in keep]
    return _doubted(ring, others, f"key {known.key_id} vouched for it, and was revoked")


def _doubted(ring: Keyring, key_ids: Iterable[str], why: str) -> Keyring:
    """Return the ring with keys in doubt, and those that they vouched for in turn."""
    pending = list(key_ids)
    while pending:
        key = ring.keys[pending.pop()]
        if key.is_vouched_for and key.status == "trusted":
            ring = ring.with_key(key.model_copy(update={"status": "doubted", "reason": why}))
            pending += [successor.key_id for successor in ring.successors_of(key.key_id)]
    return ring


def hear(ring: Keyring, statements: Iterable[Mapping[str, Any]]) -> Keyring:
    """Return the ring after what trusted keys say of keys; all else is passed over.

    A statement is heard only when its signature is right and its key is trusted here, so a stick
    can bring any number of them without anything being believed; chains begin at the keys that are
    known, wherever in a long list they stand. A key that is revoked here already names no
    successor; one that names its successor and is revoked in the same breath does, since that is
    what a maker says who changes keys for good.
    """
    said: dict[str, list[tuple[Statement, bytes]]] = {}
    for given in islice(statements, _MOST_READ):
        pair = _read(given)
        if pair is not None:
            said.setdefault(pair[0].key_id, []).append(pair)
    pending, heard = sorted(said.keys() & ring.keys.keys()), set[str]()
    while pending:
        key = ring.keys[pending.pop(0)]
        if key.key_id in heard or key.status != "trusted":
            continue
        heard.add(key.key_id)
        ring = _followed(ring, key, [s for s, text in said[key.key_id] if _is_proved(s, text, key)])
        pending += [k.key_id for k in ring.successors_of(key.key_id) if k.key_id in said]
    return ring


def _read(given: Mapping[str, Any]) -> tuple[Statement, bytes] | None:
    try:
        text = given["signature"]
        return Statement.model_validate(given["statement"]), str(text).encode()
    except (KeyError, TypeError, ValueError):
        return None


def _is_proved(statement: Statement, text: bytes, key: KnownKey) -> bool:
    try:
        public = signature.read_public_key(key.public_key)
        return signature.check(statement.data(), text, public) == statement.comment()
    except TrustError:
        return False  # what is not proved is not believed, and an attacker may write anything


def _followed(ring: Keyring, key: KnownKey, proved: list[Statement]) -> Keyring:
    """Return the ring after all that one trusted key says."""
    named = {new.key_id: new for s in proved if (new := _named(ring, s, key)) is not None}
    rivals = {known.key_id for known in ring.successors_of(key.key_id)} | set(named)
    for new_id, new in islice(named.items(), _MOST_RIVALS):
        if new_id not in ring.keys:
            ring = ring.with_key(new)
    if len(rivals) == 1:
        ring = _of_one_maker(ring, key.key_id, *rivals)
    if len(rivals) > 1:
        some = " and ".join(sorted(rivals)[:2])
        why = f"key {key.key_id} named more than one key to follow it: {some}"
        ring = _doubted(ring, [rival for rival in rivals if rival in ring.keys], why)
    voids = [statement for statement in proved if statement.kind == "revocation"]
    if voids:
        ring = revoke(ring, key.key_id, voids[-1].reason, {void.new_key_id for void in voids})
    return ring


def _of_one_maker(ring: Keyring, key_id: str, new_id: str) -> Keyring:
    """Return the ring knowing that a key which a person trusted here follows another one.

    It is believed as before; but what was seen of the maker counts for both keys from now on, or a
    bundle of the old key could take the place of a later one of the new key.
    """
    new = ring.keys.get(new_id)
    if new is None or new.successor_of or ring.first_of(key_id) == new_id:
        return ring
    return _homed(ring.with_key(new.model_copy(update={"successor_of": key_id})))


def _homed(ring: Keyring) -> Keyring:
    """Return the ring with all that was seen filed under its maker's first key."""
    seen: dict[str, Seen] = {}
    for place, last in ring.seen.items():
        key_id, _, name = place.partition("/")
        home = f"{ring.first_of(key_id)}/{name}"
        if home not in seen or seen[home].order < last.order:
            seen[home] = last
    return ring.model_copy(update={"seen": seen})


def _named(ring: Keyring, statement: Statement, key: KnownKey) -> KnownKey | None:
    """Return the key that a statement names to follow; None when it names none that can be."""
    try:
        new = signature.read_public_key(statement.new_public_key)
    except TrustError:
        return None
    found = KnownKey(
        key_id=signature.key_id(new),
        public_key=new.to_base64().decode(),
        label=key.label,
        successor_of=key.key_id,
    )
    known = ring.keys.get(found.key_id)
    if found.key_id != statement.new_key_id or found.key_id == key.key_id:
        return None
    return found if known is None or known.public_key == found.public_key else None


# -- two that know different things --------------------------------------------------------------


def joined(one: Keyring, other: Keyring) -> Keyring:
    """Return all that two rings know: nothing of what either has learned is undone."""
    keys = dict(one.keys)
    for key_id, key in other.keys.items():
        there = keys.get(key_id)
        if there is None or (there.public_key == key.public_key and _weight(key) >= _weight(there)):
            keys[key_id] = key
    seen, made = dict(one.seen), dict(one.made)
    for place, last in other.seen.items():
        if place not in seen or seen[place].order < last.order:
            seen[place] = last
    for name, latest in other.made.items():
        if name not in made or made[name].sealed < latest.sealed:
            made[name] = latest
    return _homed(one.model_copy(update={
        "keys": keys, "seen": seen, "made": made,
        "statements": joined_statements(one.statements, other.statements),
    }))  # fmt: skip


def _weight(key: KnownKey) -> tuple[int, bool]:
    """Return how much stands behind what is known of a key, and whether it is known whom it follows."""
    follows = bool(key.successor_of)
    if key.status == "revoked":
        return 3, follows
    return 2 if key.by_hand else 1 if key.status == "doubted" else 0, follows


def joined_statements(
    one: Iterable[Mapping[str, Any]], other: Iterable[Mapping[str, Any]]
) -> tuple[Mapping[str, Any], ...]:
    """Return both, each statement once, in their order."""
    found = {canonical_json(statement): statement for statement in (*one, *other)}
    return tuple(found.values())
