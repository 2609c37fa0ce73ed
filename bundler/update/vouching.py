"""Who vouches for a delta: the same kind of key as for a bundle, over the delta's own list.

The signed comment names both versions and the list's digest, so a delta can neither be given out
for another one nor be put together from two. The new version's manifest is judged besides, as every
bundle is: an update never makes believed what was not believed whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256 as sha256_of
from typing import Any

from bundler.errors import Problem, TrustError
from bundler.manifest import Manifest
from bundler.media import signature
from bundler.media.judging import WORD_OF_MOUTH, judge, trusted_key
from bundler.media.keyring import Keyring, KnownKey, hear, trust
from bundler.update.delta import Delta

SignText = Callable[[bytes, str], bytes]
"""From bytes and a trusted comment to the text of a signature."""


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest with what lies beside it."""

    manifest: Manifest
    data: bytes
    signed: bytes | None
    statements: tuple[Mapping[str, Any], ...] = ()


def delta_comment(delta: Delta, data: bytes) -> str:
    """Return the trusted comment of a delta's signature."""
    return (
        f"bundler-delta {delta.after.name} from:{delta.before.version} to:{delta.after.version} "
        f"from-sha256:{delta.before.manifest_sha256} to-sha256:{delta.after.manifest_sha256} "
        f"sha256:{sha256_of(data).hexdigest()}"
    )


def judge_delta(
    ring: Keyring, delta: Delta, data: bytes, signed: bytes | None, old: SignedManifest,
    new: SignedManifest, *, same_maker: bool = False, allow_older: bool = False,
) -> tuple[KnownKey, Keyring]:  # fmt: skip
    """Return the key that signed a delta, and what this machine will know once it is applied.

    Args:
        ring: what this machine knows.
        delta: the delta.
        data: the bytes of its list.
        signed: the text of its signature, None when there is none.
        old: the version that lies there.
        new: the version that the delta leads to.
        same_maker: believe the key that signed the bundle that lies there, for this once.
        allow_older: let a newer version be replaced by an older one.

    Raises:
        TrustError: the delta or the new version is unsigned, signed by nobody who is trusted here,
            changed, given out for another, or older than what is there or was seen.
    """
    if signed is None:
        raise TrustError(
            "the update is not signed: its digests find accidents, not what somebody changed",
            hint="sign it where it was made: bundler key new, then bundler update make again; "
            "to look for accidents alone: --unsigned",
        )
    judged_by = hear(_believing(ring, delta, old) if same_maker else ring, new.statements)
    try:
        key = trusted_key(judged_by, signature.signer(signed))
    except TrustError as error:
        raise _with_the_other_way(error, ring, delta, old, same_maker) from error
    comment = signature.check(data, signed, signature.read_public_key(key.public_key))
    if comment != delta_comment(delta, data):
        raise TrustError(
            f"the signature is for another update: {comment[:80]!r}",
            hint="parts of two updates were mixed; get this one anew from its maker",
        )
    check_not_older(delta, allow_older=allow_older)
    verdict = judge(
        judged_by, new.data, new.manifest, new.signed, new.statements, allow_older=allow_older
    )
    if not allow_older and verdict.claim.order < _order_of(judged_by, old):
        raise _older(delta)
    return key, (ring if same_maker else verdict.ring)


def check_not_older(delta: Delta, *, allow_older: bool) -> None:
    """Refuse an update that leads back, by the clocks of the two locks.

    Raises:
        TrustError: it does, and nobody asked for that.
    """
    if delta.after.created < delta.before.created and not allow_older:
        raise _older(delta)


def _older(delta: Delta) -> TrustError:
    return TrustError(
        f"{delta.after.version} is older than {delta.before.version}, which lies there",
        hint="if the older one is what you want: --allow-older",
    )


def _order_of(ring: Keyring, old: SignedManifest) -> tuple[int, int]:
    """Return when the version that lies there was made, as far as a known key says so."""
    try:
        key = ring.keys[signature.signer(old.signed or b"")]
        public_key = signature.read_public_key(key.public_key)
        return signature.read_claim(signature.check(old.data, old.signed or b"", public_key)).order
    except (KeyError, TrustError):
        return (0, 0)  # what nobody vouches for orders nothing


def _believing(ring: Keyring, delta: Delta, old: SignedManifest) -> Keyring:
    """Return the ring with the key that signed the bundle that lies there.

    Raises:
        TrustError: no key of the delta did, or it was revoked here.
    """
    for text in delta.makers:
        if old.signed is not None and _made(text, old):
            return trust(ring, text, "made the bundle that lies there")
    raise TrustError(
        "the update does not come from the maker of the bundle that lies there", hint=WORD_OF_MOUTH
    )


def _made(public_key: str, old: SignedManifest) -> bool:
    """Tell whether a key signed the old version."""
    try:
        key = signature.read_public_key(public_key)
        claim = signature.read_claim(signature.check(old.data, old.signed or b"", key))
    except TrustError:
        return False  # another key: the next one may be it
    return claim.manifest_sha256 == sha256_of(old.data).hexdigest()


def _with_the_other_way(
    error: TrustError, ring: Keyring, delta: Delta, old: SignedManifest, same_maker: bool
) -> TrustError:
    """Return the error with a hint at `--same-maker` where that would help."""
    if same_maker or old.signed is None or not any(_made(text, old) for text in delta.makers):
        return error
    known = ring.keys.get(signature.signer(old.signed))
    if known is not None and known.status == "revoked":
        return error
    more = "; it is by the maker of the bundle that lies there: if you trust that, --same-maker"
    return TrustError([Problem(p.message, p.where, p.hint + more) for p in error.problems])
