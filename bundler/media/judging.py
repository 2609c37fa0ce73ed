"""Whether a bundle may be believed on this machine. Pure; says no with the way forward."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256 as sha256_of
from typing import Any

from bundler.errors import TrustError
from bundler.manifest import Manifest
from bundler.media import signature
from bundler.media.keyring import Keyring, KnownKey, Seen, hear
from bundler.value import Value

WORD_OF_MOUTH = (
    "ask its maker for the key by another way than this stick (their voice, paper), "
    "then: bundler key trust <key>"
)


class Verdict(Value):
    """A bundle that is believed: by whom it was signed, and what was learned from it."""

    key: KnownKey
    claim: signature.Claim
    ring: Keyring
    """The ring as it should be kept: keys that were heard of, and this bundle as seen."""


def judge(
    ring: Keyring, data: bytes, manifest: Manifest, signed: bytes | None,
    statements: tuple[Mapping[str, Any], ...] = (), *, allow_older: bool = False,
) -> Verdict:  # fmt: skip
    """Return the verdict on a bundle whose manifest is `data`.

    Args:
        ring: what this machine knows.
        data: the bytes of `manifest.json`.
        manifest: the same, read.
        signed: the bytes of `manifest.json.minisig`, None when there is none.
        statements: what the bundle brings of rotations and revocations.
        allow_older: accept a bundle that is older than one seen before, or may be.

    Raises:
        TrustError: it is unsigned, signed by nobody who is trusted here, changed, signed as
            another bundle, or not later than another one that was seen.
    """
    if signed is None:
        raise TrustError(
            "the bundle is not signed: its digests find accidents, not what somebody changed",
            hint="sign it where it was made: bundler key new, then build again; "
            "to look for accidents alone: the same command with --unsigned",
        )
    ring = hear(ring, statements)
    key = trusted_key(ring, signature.signer(signed))
    comment = signature.check(data, signed, signature.read_public_key(key.public_key))
    claim = signature.read_claim(comment)
    _check_claim(claim, data, manifest)
    return Verdict(key=key, claim=claim, ring=_remember(ring, key, claim, allow_older=allow_older))


def trusted_key(ring: Keyring, key_id: str) -> KnownKey:
    """Return a key that is believed here.

    Raises:
        TrustError: it is not known, was revoked, or is in doubt.
    """
    key = ring.keys.get(key_id)
    if key is None:
        raise TrustError(f"signed with key {key_id}, which is not known here", hint=WORD_OF_MOUTH)
    if key.status == "revoked":
        why = f": {key.reason}" if key.reason else ""
        raise TrustError(
            f"signed with key {key_id}, which was revoked{why}",
            hint="get a bundle that is signed with the key that follows it; " + WORD_OF_MOUTH,
        )
    if key.status == "doubted":
        raise TrustError(
            f"signed with key {key_id}, which is in doubt: {key.reason}",
            hint="somebody may have signed with a stolen key; " + WORD_OF_MOUTH,
        )
    return key


def _check_claim(claim: signature.Claim, data: bytes, manifest: Manifest) -> None:
    said = (claim.name, claim.version, claim.created, claim.manifest_sha256)
    found = (manifest.name, manifest.version, manifest.created, sha256_of(data).hexdigest())
    if said != found:
        raise TrustError(
            f"the signature is for {claim.name} {claim.version}, this is {manifest.name} "
            f"{manifest.version}",
            hint="parts of two bundles were mixed; get this one anew from its maker",
        )


def _remember(
    ring: Keyring, key: KnownKey, claim: signature.Claim, *, allow_older: bool
) -> Keyring:
    place = f"{ring.first_of(key.key_id)}/{claim.name}"
    last = ring.seen.get(place)
    if last is not None and claim.order <= last.order:
        if claim.manifest_sha256 != last.manifest_sha256 and not allow_older:
            raise _not_later(claim, last)
        return ring
    seen = Seen(
        version=claim.version, created=claim.created, sealed=claim.sealed,
        manifest_sha256=claim.manifest_sha256,
    )  # fmt: skip
    return ring.model_copy(update={"seen": {**ring.seen, place: seen}})


def _not_later(claim: signature.Claim, last: Seen) -> TrustError:
    other = last.version if last.version != claim.version else "another build of it"
    if claim.order < last.order:
        return TrustError(
            f"{claim.name} {claim.version} is older than {other}, which was seen here",
            hint="if the older one is what you want, add --allow-older (bundler verify --allow-older)",
        )
    return TrustError(
        f"{claim.name} {claim.version} was made from the same lock as {other}, which was seen here, "
        "and nothing that is signed says which is the later one",
        hint="ask its maker to build the later one again with a bundler of today; "
        "if this one is what you want, add --allow-older (bundler verify --allow-older)",
    )
