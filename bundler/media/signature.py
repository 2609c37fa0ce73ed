"""Signatures in minisign's format over a manifest. What is signed binds name, version and clock.

The signature is Ed25519 over the BLAKE2b-512 of `manifest.json` (minisign's prehashed mode, `ED`);
its trusted comment, which is signed too, says which bundle it belongs to, so that a signature can
neither be moved to another bundle nor to another version of it. The C program `minisign` verifies
these files, and we verify its. Format: https://jedisct1.github.io/minisign/#signature-format
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bundler.errors import TrustError
from bundler.value import Name, Sha256, Value

if TYPE_CHECKING:
    from minisign import PublicKey, SecretKey, Signature

MAX_SIGNATURE_BYTES = 16 << 10
"""minisign's own limit on a trusted comment is 8 KiB."""
_COMMENT = re.compile(
    r"bundler ([a-z0-9._-]{1,64}) version:([0-9A-Za-z.+-]{1,64}) created:(\d{1,12}) "
    r"(?:sealed:([1-9]\d{0,15}) )?sha256:([0-9a-f]{64})"
)


class Claim(Value):
    """What a signer says a manifest is."""

    name: Name
    version: str
    created: int
    """The lock's clock: what is built from a later lock is later."""
    sealed: int = 0
    """When it was signed, in milliseconds since 1970, and later than all that its maker signed under
    this name before: it orders what is built from one lock. 0 where an older bundler signed."""
    manifest_sha256: Sha256

    @property
    def order(self) -> tuple[int, int]:
        """Return what is greater of the later one of two bundles."""
        return self.created, self.sealed

    def comment(self) -> str:
        """Return the claim as the trusted comment of a signature."""
        sealed = f"sealed:{self.sealed} " if self.sealed else ""
        return (
            f"bundler {self.name} version:{self.version} created:{self.created} {sealed}"
            f"sha256:{self.manifest_sha256}"
        )


def read_claim(comment: str) -> Claim:
    """Return what a trusted comment says.

    Raises:
        TrustError: it is not one that bundler writes.
    """
    match = _COMMENT.fullmatch(comment)
    if match is None:
        raise TrustError(
            f"the signature says nothing about a bundle: {comment[:80]!r}",
            hint="it was made for something else; get the bundle anew from its maker",
        )
    return Claim(
        name=match[1], version=match[2], created=int(match[3]), sealed=int(match[4] or 0),
        manifest_sha256=match[5],
    )  # fmt: skip


def sign(data: bytes, claim: Claim, key: SecretKey) -> bytes:
    """Return the text of `manifest.json.minisig`; the same for the same key and bytes."""
    made = key.sign(
        data,
        untrusted_comment=f"signature of the bundle {claim.name} {claim.version}",
        trusted_comment=claim.comment(),
    )
    return bytes(made) + b"\n"


def check(data: bytes, signature: bytes, key: PublicKey) -> str:
    """Return the trusted comment of a signature that `key` made over `data`.

    Raises:
        TrustError: it did not, or the file is no signature, or one over the plain bytes (`Ed`).
    """
    import minisign

    parsed = _parsed(signature)
    if not parsed.is_prehashed():
        raise TrustError(
            "the signature is of minisign's old kind, over the plain bytes",
            hint="sign it again with a minisign of 0.10 or later",
        )
    try:
        key.verify(data, parsed)
    except minisign.VerifyError as error:
        raise TrustError(
            "the signature does not belong to these bytes: one of the two was changed",
            hint="do not use what is in here; get the bundle anew from its maker",
        ) from error
    return str(parsed.trusted_comment)


def signer(signature: bytes) -> str:
    """Return the id of the key that a signature says it was made with.

    Raises:
        TrustError: the file is no signature.
    """
    return key_id_text(_parsed(signature)._key_id)


def key_id(key: PublicKey) -> str:
    """Return a public key's id."""
    return key_id_text(key._keynum_pk.key_id)


def key_id_of(text: str) -> str:
    """Return a key id as a person typed it, or as minisign prints it (without leading zeros)."""
    return text.strip().upper().zfill(16)


def key_id_text(raw: bytes) -> str:
    """Return eight bytes as a key id: a little-endian number, 16 hexadecimal digits."""
    return f"{int.from_bytes(raw, 'little'):016X}"


def read_public_key(text: str) -> PublicKey:
    """Return the key in a `.pub` file, or in its second line alone (`RW…`).

    Raises:
        TrustError: it is not one.
    """
    import minisign

    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    try:
        if len(lines) not in (1, 2) or len(text) > 4096:
            raise ValueError("expected one or two lines")
        return minisign.PublicKey.from_base64(lines[-1])
    except ValueError as error:
        raise TrustError(
            f"not a public key of minisign: {lines[-1][:60] if lines else 'empty'!r}",
            hint="it is a line of 56 characters that begins with RW",
        ) from error


def _parsed(signature: bytes) -> Signature:
    import minisign

    try:
        if len(signature) > MAX_SIGNATURE_BYTES:
            raise ValueError("overlong")
        text = signature.replace(b"\r\n", b"\n").rstrip(b"\n")
        parsed = minisign.Signature.from_bytes(text)
        if bytes(parsed) != text:  # base64 has bits that decode to nothing: one text, one meaning
            raise ValueError("not as minisign writes it")
        return parsed
    except ValueError as error:
        raise TrustError(
            "the signature file is damaged or is none",
            hint="get the bundle anew from its maker",
        ) from error
