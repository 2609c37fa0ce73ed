"""The files beside a manifest: signs what is made here, and judges what comes from elsewhere."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundler.errors import Problem, TrustError
from bundler.manifest import SIGNATURE_NAME, STATEMENTS_NAME, Manifest
from bundler.media import signature
from bundler.media.judging import Verdict, judge
from bundler.media.keyring import MAX_STATEMENTS, Keyring, Made, hear
from bundler.media.ring_file import change_ring, read_ring, write_ring
from bundler.segments import open_plain
from bundler.value import pretty_json

if TYPE_CHECKING:
    from minisign import SecretKey

MAX_SIDE_FILE_BYTES = 1 << 20


def sign_bundle(folder: Path, key: SecretKey, manifest: Manifest, data: bytes) -> dict[str, bytes]:
    """Return the files beside a manifest, and keep that it was signed.

    What is signed under one name is signed later than all before it, whatever the clock says; the
    manifest that was signed last is signed with the same words again.
    """
    sealed, digest = time.time_ns() // 1_000_000, sha256_of(data).hexdigest()

    def change(ring: Keyring) -> Keyring:
        last = ring.made.get(manifest.name)
        if last is not None and last.manifest_sha256 == digest:
            return ring
        after = sealed if last is None else max(sealed, last.sealed + 1)
        made = Made(sealed=after, manifest_sha256=digest)
        return ring.model_copy(update={"made": {**ring.made, manifest.name: made}})

    ring = change_ring(folder, change)
    return side_files(manifest, data, key, ring, sealed=ring.made[manifest.name].sealed)


def side_files(
    manifest: Manifest, data: bytes, key: SecretKey, ring: Keyring, *, sealed: int | None = None
) -> dict[str, bytes]:
    """Return the files that lie beside a signed manifest and are not listed in it.

    Args:
        manifest: the manifest.
        data: its bytes.
        key: what signs.
        ring: whose statements go along.
        sealed: when, in milliseconds since 1970; now by default, 0 to leave it unsaid.
    """
    claim = signature.Claim(
        name=manifest.name,
        version=manifest.version,
        created=manifest.created,
        sealed=time.time_ns() // 1_000_000 if sealed is None else sealed,
        manifest_sha256=sha256_of(data).hexdigest(),
    )
    files = {SIGNATURE_NAME: signature.sign(data, claim, key)}
    if ring.statements:
        latest = list(ring.statements[-MAX_STATEMENTS:])
        files[STATEMENTS_NAME] = pretty_json(latest).encode()
    return files


def judge_bundle(
    root: Path, data: bytes, manifest: Manifest, folder: Path, *, allow_older: bool = False
) -> Verdict:
    """Return the verdict on the bundle at `root`, and keep what was learned from it.

    What trusted keys say of keys is kept even when the bundle is refused.

    Args:
        root: the bundle, for what lies beside its manifest.
        data: the bytes of the manifest, as its content was verified by them.
        manifest: the same, read.
        folder: where this machine's keys lie.
        allow_older: accept a bundle that is older than one seen before, or may be.

    Raises:
        TrustError: it is not to be believed; says why and what to do.
        UnsafeInput: something that is no file lies where the signature should be.
    """
    signed = _side_file(root / SIGNATURE_NAME)
    statements = _statements(_side_file(root / STATEMENTS_NAME))
    ring = read_ring(folder)
    told = hear(ring, statements)
    try:
        verdict = judge(told, data, manifest, signed, allow_older=allow_older)
    except TrustError as error:
        if told != ring:
            write_ring(folder, told)
        raise TrustError(
            [Problem(p.message, p.where or str(root), p.hint) for p in error.problems]
        ) from error
    if verdict.ring != ring:
        write_ring(folder, verdict.ring)
    return verdict


def _side_file(path: Path) -> bytes | None:
    try:
        with open_plain(path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
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
