"""Keys and signatures: what is believed, what is refused, and what minisign itself says."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler import key_commands
from bundler.errors import BusyError, TrustError, UnsafeInput
from bundler.hardware import Target
from bundler.manifest import Manifest
from bundler.media import keys, ring_file, signature, signing
from bundler.media.judging import judge, trusted_key
from bundler.media.keyring import MAX_STATEMENTS, Keyring, Statement, hear, revoke, trust
from bundler.seal import Layout, seal
from bundler.store import Store
from bundler.value import pretty_json
from bundler.verify import verify_bundle
from bundler.world import World
from tests.demo import bundler

needs_minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="needs minisign")


def no_password():
    raise AssertionError("nobody should be asked")


def manifest_of(name="home", version="1", created=1_000, title=""):
    return Manifest(
        name=name, version=version, title=title, created=created, builder="bundler test",
        target=Target(name="pc", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="0" * 64, models=(), corpora=(), step_keys={}, files=(),
    )  # fmt: skip


class Maker:
    """Somebody who signs bundles."""

    def __init__(self, folder, password=""):
        self.folder = folder
        self.password = password
        self.key = keys.new_key(folder, password, "me")

    def bundle(self, root, sealed=None, **what):
        root.mkdir(parents=True, exist_ok=True)
        manifest = manifest_of(**what)
        data = pretty_json(manifest).encode()
        secret = keys.open_secret_key(self.folder, lambda: self.password)
        files = (
            keys.sign_bundle(self.folder, secret, manifest, data) if sealed is None else
            keys.side_files(manifest, data, secret, keys.read_ring(self.folder), sealed=sealed)
        )  # fmt: skip
        for name, content in {"manifest.json": data, **files}.items():
            (root / name).write_bytes(content)
        return root


def judged(root, folder, **options):
    data = (root / "manifest.json").read_bytes()
    manifest = Manifest.model_validate_json(data)
    return keys.judge_bundle(root, data, manifest, folder, **options)


@pytest.fixture
def maker(tmp_path):
    return Maker(tmp_path / "maker")


@pytest.fixture
def reader(tmp_path, maker):
    folder = tmp_path / "reader"
    keys.write_ring(folder, trust(Keyring(), maker.key.public_key, "my sister"))
    return folder


def test_a_bundle_of_a_trusted_maker_is_believed(maker, reader, tmp_path):
    verdict = judged(maker.bundle(tmp_path / "b"), reader)
    assert verdict.key.key_id == maker.key.key_id
    assert verdict.claim.name == "home"


@needs_minisign
def test_minisign_verifies_our_signature(maker, tmp_path):
    root = maker.bundle(tmp_path / "b")
    done = subprocess.run(
        ["minisign", "-Vm", root / "manifest.json", "-P", maker.key.public_key, "-Q"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(
        r"bundler home version:1 created:1000 sealed:\d{13} sha256:[0-9a-f]{64}$", done.stdout
    )


@needs_minisign
def test_we_verify_what_minisign_signed(tmp_path):
    public, secret = tmp_path / "k.pub", tmp_path / "k.key"
    subprocess.run(["minisign", "-GWfp", public, "-s", secret], check=True, capture_output=True)
    data = tmp_path / "manifest.json"
    data.write_bytes(b"{}")
    subprocess.run(
        ["minisign", "-SHm", data, "-s", secret, "-t", "of minisign"], check=True,
        capture_output=True,
    )  # fmt: skip
    signed = (tmp_path / "manifest.json.minisig").read_bytes()
    key = signature.read_public_key(public.read_text())
    assert signature.check(b"{}", signed, key) == "of minisign"
    assert signature.signer(signed) == signature.key_id(key)
    # minisign leaves leading zeros out; ours have 16 digits, so that they line up.
    printed = public.read_text().splitlines()[0].split()[-1]
    assert signature.key_id(key) == printed.zfill(16)
    assert signature.key_id_of(printed) == signature.key_id(key)


@needs_minisign
def test_minisign_signs_with_our_secret_key(maker, tmp_path):
    data = tmp_path / "x"
    data.write_bytes(b"x")
    subprocess.run(
        ["minisign", "-Sm", data, "-s", maker.folder / "signing.key"], check=True,
        capture_output=True,
    )  # fmt: skip
    key = signature.read_public_key(maker.key.public_key)
    signature.check(b"x", (tmp_path / "x.minisig").read_bytes(), key)


def test_the_secret_key_is_for_its_owner_alone(maker):
    assert (maker.folder / "signing.key").stat().st_mode & 0o077 == 0


def test_a_key_is_never_replaced_by_a_new_one(maker):
    before = (maker.folder / "signing.key").read_bytes()
    with pytest.raises(UnsafeInput, match="already"):
        keys.new_key(maker.folder, "")
    assert (maker.folder / "signing.key").read_bytes() == before


def test_a_key_with_a_password_needs_it(tmp_path):
    maker = Maker(tmp_path / "m", password="tea")
    maker.bundle(tmp_path / "b")
    with pytest.raises(TrustError, match="wrong password"):
        keys.open_secret_key(maker.folder, lambda: "coffee")
    assert b"tea" not in (maker.folder / "signing.key").read_bytes()


# -- part F of the fault catalogue: attacks on trust ---------------------------------------------


@pytest.mark.fault("F1")
def test_f1_changed_content_with_every_checksum_made_anew_is_refused(maker, reader, tmp_path):
    root = maker.bundle(tmp_path / "b")
    changed = (root / "manifest.json").read_bytes().replace(b"bundler test", b"bundler TEST")
    (root / "manifest.json").write_bytes(changed)
    with pytest.raises(TrustError, match="does not belong to these bytes"):
        judged(root, reader)


@pytest.mark.fault("F2")
def test_f2_a_missing_signature_is_refused(maker, reader, tmp_path):
    root = maker.bundle(tmp_path / "b")
    (root / "manifest.json.minisig").unlink()
    with pytest.raises(TrustError, match="not signed") as caught:
        judged(root, reader)
    assert "--unsigned" in caught.value.problems[0].hint


@pytest.mark.fault("F2")
def test_f2_an_unknown_key_is_refused_by_its_id(reader, tmp_path):
    stranger = Maker(tmp_path / "stranger")
    with pytest.raises(TrustError, match=f"key {stranger.key.key_id}, which is not known"):
        judged(stranger.bundle(tmp_path / "b"), reader)


@pytest.mark.fault("F2")
def test_f2_the_same_key_id_with_another_key_is_refused(maker, reader, tmp_path):
    import minisign

    forged = minisign.KeyPair.generate().secret_key
    forged._keynum_sk.key_id[:] = bytes.fromhex(maker.key.key_id)[::-1]
    forged._update_checksum()
    root = maker.bundle(tmp_path / "b")
    data = (root / "manifest.json").read_bytes()
    claim = signature.read_claim(
        signature.check(
            data, (root / "manifest.json.minisig").read_bytes(),
            signature.read_public_key(maker.key.public_key),
        )
    )  # fmt: skip
    (root / "manifest.json.minisig").write_bytes(signature.sign(data, claim, forged))
    with pytest.raises(TrustError, match="does not belong"):
        judged(root, reader)
    with pytest.raises(TrustError, match="another key with the id"):
        trust(keys.read_ring(reader), forged.get_public_key().to_base64().decode())


@pytest.mark.fault("F3")
def test_f3_a_signature_of_another_bundle_is_refused(maker, reader, tmp_path):
    home, away = maker.bundle(tmp_path / "a"), maker.bundle(tmp_path / "b", name="away")
    shutil.copy(away / "manifest.json.minisig", home)
    with pytest.raises(TrustError, match="does not belong"):
        judged(home, reader)


@pytest.mark.fault("F3")
def test_f3_a_claim_about_another_bundle_is_refused(maker, reader):
    manifest = manifest_of()
    data = pretty_json(manifest).encode()
    claim = signature.Claim(name="away", version="1", created=1_000, manifest_sha256="0" * 64)
    secret = keys.open_secret_key(maker.folder, no_password)
    with pytest.raises(TrustError, match="is for away 1, this is home 1"):
        judge(keys.read_ring(reader), data, manifest, signature.sign(data, claim, secret))


@pytest.mark.fault("F4")
def test_f4_an_older_bundle_is_refused_where_a_newer_one_was_seen(maker, reader, tmp_path):
    old = maker.bundle(tmp_path / "old", version="1", created=1_000)
    new = maker.bundle(tmp_path / "new", version="2", created=2_000)
    judged(old, reader)
    judged(new, reader)
    with pytest.raises(TrustError, match="home 1 is older than 2"):
        judged(old, reader)
    judged(old, reader, allow_older=True)
    with pytest.raises(TrustError, match="older"):
        judged(old, reader)  # allowing it once is not allowing it for ever
    judged(new, reader)


@pytest.mark.fault("F4")
def test_f4_of_two_builds_from_one_lock_the_earlier_is_refused_too(maker, reader, tmp_path):
    old = maker.bundle(tmp_path / "old", version="1")
    new = maker.bundle(tmp_path / "new", version="2")
    judged(old, reader)
    judged(new, reader)
    judged(new, reader)
    seen = keys.read_ring(reader).seen
    with pytest.raises(TrustError, match="home 1 is older than 2"):
        judged(old, reader)
    judged(old, reader, allow_older=True)
    assert keys.read_ring(reader).seen == seen
    # The maker goes back on purpose: what is signed last is the later one.
    judged(maker.bundle(tmp_path / "back", version="1", title="again"), reader)
    with pytest.raises(TrustError, match="home 2 is older than 1"):
        judged(new, reader)


def test_what_is_signed_later_is_later_whatever_the_clock_says(maker, monkeypatch):
    made = []
    for clock, version in ((9_000, "1"), (5_000, "2"), (5_000, "2"), (9_500, "3")):
        monkeypatch.setattr(signing.time, "time_ns", lambda now=clock: now * 1_000_000)
        manifest = manifest_of(version=version)
        data = pretty_json(manifest).encode()
        secret = keys.open_secret_key(maker.folder, no_password)
        text = keys.sign_bundle(maker.folder, secret, manifest, data)["manifest.json.minisig"]
        key = signature.read_public_key(maker.key.public_key)
        made.append((signature.read_claim(signature.check(data, text, key)).sealed, text))
    assert [sealed for sealed, _ in made] == [9_000, 9_001, 9_001, 9_500]
    assert made[1] == made[2]  # the same manifest again: the same signature, byte for byte


@pytest.mark.fault("F4")
def test_f4_bundles_of_an_older_bundler_are_believed_and_not_guessed_about(maker, reader, tmp_path):
    one = maker.bundle(tmp_path / "one", version="1", sealed=0)
    two = maker.bundle(tmp_path / "two", version="2", sealed=0)
    later = maker.bundle(tmp_path / "later", version="3", sealed=0, created=2_000)
    judged(one, reader)
    judged(one, reader)
    with pytest.raises(TrustError, match="made from the same lock as 1") as caught:
        judged(two, reader)
    assert "--allow-older" in caught.value.problems[0].hint
    judged(two, reader, allow_older=True)
    judged(maker.bundle(tmp_path / "new", version="2"), reader)
    with pytest.raises(TrustError, match="home 1 is older than 2"):
        judged(one, reader)
    judged(later, reader)


@pytest.mark.fault("F4")
def test_f4_another_makers_bundle_of_the_same_name_is_not_a_rollback(maker, reader, tmp_path):
    other = Maker(tmp_path / "other")
    keys.write_ring(reader, trust(keys.read_ring(reader), other.key.public_key))
    judged(maker.bundle(tmp_path / "a", created=2_000), reader)
    judged(other.bundle(tmp_path / "b", created=1_000), reader)


@pytest.mark.parametrize(("old", "new"), [(b"created:1000", b"created:9999"), (b"home", b"hove")])
@pytest.mark.fault("F5")
def test_f5_an_edited_comment_is_refused(maker, reader, tmp_path, old, new):
    root = maker.bundle(tmp_path / "b")
    text = (root / "manifest.json.minisig").read_bytes()
    first, rest = text.split(b"trusted comment", 1)[0], text.split(b"trusted comment", 1)[1]
    (root / "manifest.json.minisig").write_bytes(
        first + b"trusted comment" + rest.replace(old, new)
    )
    with pytest.raises(TrustError):
        judged(root, reader)


@pytest.mark.fault("F5")
def test_f5_white_space_in_the_manifest_is_a_change(maker, reader, tmp_path):
    root = maker.bundle(tmp_path / "b")
    with (root / "manifest.json").open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(TrustError, match="does not belong"):
        judged(root, reader)


@pytest.mark.fault("F6")
def test_f6_a_rotated_key_is_followed_and_remembered(maker, reader, tmp_path):
    old_id, new = keys.rotate_key(maker.folder, no_password, lambda: "")
    assert old_id == maker.key.key_id != new.key_id
    verdict = judged(maker.bundle(tmp_path / "b"), reader)
    assert verdict.key.key_id == new.key_id
    assert keys.read_ring(reader).keys[new.key_id].successor_of == old_id


@pytest.mark.fault("F6")
def test_f6_two_rotations_are_followed_at_once_and_rollback_is_still_seen(maker, reader, tmp_path):
    judged(maker.bundle(tmp_path / "a", created=2_000), reader)
    keys.rotate_key(maker.folder, no_password, lambda: "")
    keys.rotate_key(maker.folder, no_password, lambda: "")
    with pytest.raises(TrustError, match="older"):
        judged(maker.bundle(tmp_path / "b", created=1_000), reader)
    judged(maker.bundle(tmp_path / "c", created=3_000), reader)


@pytest.mark.fault("F4", "F6")
@pytest.mark.parametrize("seen_before", [False, True])
def test_f6_a_rotation_between_two_keys_trusted_by_hand_hides_no_rollback(
    maker, reader, tmp_path, seen_before
):
    """Whoever was told both keys by voice is no easier to fool than who followed the rotation."""
    old = maker.bundle(tmp_path / "a", created=2_000)
    keys.rotate_key(maker.folder, no_password, lambda: "")
    new = maker.bundle(tmp_path / "b", created=3_000)
    by_hand = keys.read_ring(maker.folder).keys.values()
    ring = keys.read_ring(reader)
    for key in by_hand:
        ring = trust(ring, key.public_key)
    keys.write_ring(reader, ring)
    if seen_before:
        judged(old, reader)
    judged(new, reader)
    with pytest.raises(TrustError, match="older"):
        judged(old, reader)
    assert all(key.by_hand for key in keys.read_ring(reader).keys.values())


@pytest.mark.fault("F6")
def test_f6_a_rotation_that_nobody_trusted_signed_is_not_followed(maker, reader, tmp_path):
    stranger = Maker(tmp_path / "stranger")
    keys.rotate_key(stranger.folder, no_password, lambda: "")
    with pytest.raises(TrustError, match="not known here"):
        judged(stranger.bundle(tmp_path / "b"), reader)


@pytest.mark.fault("F6")
def test_f6_a_revoked_key_is_refused_with_the_reason(maker, reader, tmp_path):
    keys.write_ring(reader, revoke(keys.read_ring(reader), maker.key.key_id, "laptop stolen"))
    with pytest.raises(TrustError, match="revoked: laptop stolen"):
        judged(maker.bundle(tmp_path / "b"), reader)
    with pytest.raises(TrustError, match="revoked"):
        trust(keys.read_ring(reader), maker.key.public_key)


@pytest.mark.fault("F6")
def test_f6_a_stolen_key_that_was_revoked_names_no_successor(maker, reader, tmp_path):
    thief = tmp_path / "thief"
    shutil.copytree(maker.folder, thief)
    keys.write_ring(reader, revoke(keys.read_ring(reader), maker.key.key_id, "stolen"))
    keys.rotate_key(thief, no_password, lambda: "")
    stolen = maker.bundle(tmp_path / "b")
    shutil.copy(maker.bundle(tmp_path / "c") / "manifest.json", stolen)
    statements = json.dumps([dict(s) for s in keys.read_ring(thief).statements])
    (stolen / "manifest.json.keys").write_text(statements)
    with pytest.raises(TrustError, match="revoked"):
        judged(stolen, reader)


@pytest.mark.fault("F6")
def test_f6_a_makers_own_revocation_travels_with_the_next_bundle(maker, reader, tmp_path):
    old = maker.bundle(tmp_path / "old")
    old_id, _ = keys.rotate_key(maker.folder, no_password, lambda: "")
    assert keys.revoke_key(maker.folder, old_id, "retired", no_password)
    judged(old, reader)
    judged(maker.bundle(tmp_path / "new", created=2_000), reader)
    with pytest.raises(TrustError, match="revoked: retired"):
        judged(old, reader)


def test_a_new_key_is_followed_although_the_old_one_was_revoked_with_it(maker, reader, tmp_path):
    """A machine that missed the rotation hears of both at once, from one bundle."""
    old_id, new = keys.rotate_key(maker.folder, no_password, lambda: "")
    keys.revoke_key(maker.folder, old_id, "retired", no_password)
    assert judged(maker.bundle(tmp_path / "b"), reader).key.key_id == new.key_id


# -- a key in the hands of two ---------------------------------------------------------------------


def pairs(count):
    import minisign

    return [minisign.KeyPair.generate() for _ in range(count)]


def line(pair):
    return pair.public_key.to_base64().decode()


def id_of(pair):
    return signature.key_id(pair.public_key)


def said(pair, kind, new=None, **more):
    """Return a statement as it lies beside a manifest."""
    named = {"new_key_id": id_of(new), "new_public_key": line(new)} if new is not None else {}
    made = Statement(kind=kind, key_id=id_of(pair), created=1, **named, **more)
    signed = pair.secret_key.sign(made.data(), trusted_comment=made.comment())
    return {
        "statement": made.model_dump(mode="json"), "signature": bytes(signed).decode() + "\n",
    }  # fmt: skip


def statuses(ring, *asked):
    return [ring.keys[id_of(pair)].status if id_of(pair) in ring.keys else "" for pair in asked]


@pytest.mark.parametrize("thief_first", [True, False])
@pytest.mark.fault("F6")
def test_f6_two_different_successors_of_one_key_are_both_doubted(thief_first):
    first, mine, thiefs, next_of_thief = pairs(4)
    told = [said(first, "rotation", mine)], [
        said(first, "rotation", thiefs), said(thiefs, "rotation", next_of_thief)
    ]  # fmt: skip
    ring = trust(Keyring(), line(first))
    for statements in reversed(told) if thief_first else told:
        ring = hear(ring, statements)
    assert statuses(ring, first, mine, thiefs) == ["trusted", "doubted", "doubted"]
    assert statuses(ring, next_of_thief) in (["doubted"], [""])
    with pytest.raises(TrustError, match=r"in doubt: .* named more than one key to follow it"):
        trusted_key(ring, id_of(mine))
    # Nothing on any stick settles it; a person does, and no stick undoes that.
    ring = hear(ring, [said(first, "revocation", thiefs), *told[0], *told[1]])
    assert statuses(ring, first, mine, thiefs) == ["revoked", "doubted", "doubted"]
    ring = hear(trust(ring, line(mine)), [*told[0], *told[1]])
    assert statuses(ring, mine, thiefs) == ["trusted", "doubted"]


@pytest.mark.fault("F6")
def test_f6_a_key_that_a_person_trusted_is_not_doubted_for_what_a_thief_says():
    first, mine, thiefs = pairs(3)
    ring = trust(trust(Keyring(), line(first)), line(mine))
    ring = hear(ring, [said(first, "rotation", thiefs), said(first, "rotation", mine)])
    assert statuses(ring, first, mine, thiefs) == ["trusted", "trusted", "doubted"]


@pytest.mark.fault("F6")
def test_f6_whom_a_revoked_key_vouched_for_is_doubted_but_for_the_one_that_is_named():
    first, heir, next_heir, thiefs = pairs(4)
    followed = hear(trust(Keyring(), line(first)), [said(first, "rotation", thiefs)])
    assert statuses(followed, thiefs) == ["trusted"]
    followed = hear(followed, [said(first, "revocation", reason="stolen")])
    assert statuses(followed, first, thiefs) == ["revoked", "doubted"]
    by_hand = revoke(
        hear(trust(Keyring(), line(first)), [said(first, "rotation", thiefs)]), id_of(first), "lost"
    )
    assert statuses(by_hand, thiefs) == ["doubted"]
    chain = [
        said(first, "rotation", heir), said(first, "revocation", heir, reason="retired"),
        said(heir, "rotation", next_heir),
    ]  # fmt: skip
    ring = hear(trust(Keyring(), line(first)), chain)
    assert statuses(ring, first, heir, next_heir) == ["revoked", "trusted", "trusted"]


def test_what_a_refused_bundle_says_of_keys_is_kept_all_the_same(maker, reader, tmp_path):
    """A stick of a thief's is refused, and its two successors are remembered."""
    judged(maker.bundle(tmp_path / "a"), reader)
    thief = tmp_path / "thief"
    shutil.copytree(maker.folder, thief)
    keys.rotate_key(maker.folder, no_password, lambda: "")
    _, thiefs = keys.rotate_key(thief, no_password, lambda: "")
    judged(maker.bundle(tmp_path / "b", version="2"), reader)
    root = maker.bundle(tmp_path / "c", version="3")
    (root / "manifest.json.keys").write_text(
        json.dumps([dict(s) for s in keys.read_ring(thief).statements])
    )
    with pytest.raises(TrustError, match="in doubt"):
        judged(root, reader)
    assert keys.read_ring(reader).keys[thiefs.key_id].status == "doubted"


@pytest.mark.fault("F6")
def test_f6_the_newest_of_many_statements_are_heard():
    chain = pairs(40)
    told = []
    for old, new in itertools.pairwise(chain):
        told += [said(old, "rotation", new), said(old, "revocation", new, reason="changed")]
    assert len(told) > MAX_STATEMENTS
    for known in (0, 20, 38):
        ring = hear(trust(Keyring(), line(chain[known])), told)
        assert statuses(ring, chain[known], chain[39]) == ["revoked", "trusted"]
    assert ring.first_of(id_of(chain[39])) == id_of(chain[38])
    ring = hear(trust(Keyring(), line(chain[0])), told)
    assert ring.first_of(id_of(chain[39])) == id_of(chain[0])


def test_no_more_statements_are_written_than_are_told_of(maker):
    first, *others = pairs(1 + MAX_STATEMENTS + 6)
    told = tuple(said(first, "rotation", other) for other in others)
    ring = keys.read_ring(maker.folder).model_copy(update={"statements": told})
    manifest = manifest_of()
    secret = keys.open_secret_key(maker.folder, no_password)
    files = keys.side_files(manifest, pretty_json(manifest).encode(), secret, ring)
    assert json.loads(files["manifest.json.keys"]) == list(told[-MAX_STATEMENTS:])


# -- key files, two at a time and cut off ------------------------------------------------------------


def test_what_two_learn_at_the_same_time_is_kept(maker):
    mine, theirs, third = pairs(3)
    before = trust(trust(keys.read_ring(maker.folder), line(mine)), line(theirs))
    keys.write_ring(maker.folder, before)
    keys.write_ring(maker.folder, revoke(before, id_of(mine), "stolen"))
    keys.write_ring(maker.folder, trust(before, line(third)))  # by one who read it before
    keys.write_ring(maker.folder, revoke(before, id_of(theirs), "lost"))
    assert statuses(keys.read_ring(maker.folder), mine, theirs, third) == [
        "revoked", "revoked", "trusted",
    ]  # fmt: skip


def test_who_types_a_password_undoes_nothing_that_happens_meanwhile(tmp_path):
    maker, (other,) = Maker(tmp_path / "m", password="tea"), pairs(1)
    keys.write_ring(maker.folder, trust(keys.read_ring(maker.folder), line(other)))

    def slowly():
        ring = revoke(keys.read_ring(maker.folder), id_of(other), "stolen")
        keys.write_ring(maker.folder, ring)  # nobody is made to wait for a person
        return "tea"

    keys.revoke_key(maker.folder, maker.key.key_id, "mine too", slowly)
    ring = keys.read_ring(maker.folder)
    assert statuses(ring, other) == ["revoked"]
    assert ring.keys[maker.key.key_id].status == "revoked"


def test_keys_that_are_being_changed_are_waited_for_and_not_for_ever(maker, monkeypatch):
    monkeypatch.setattr(ring_file, "_WAIT_SECONDS", 0.1)
    with ring_file.held(maker.folder), pytest.raises(BusyError, match="changing the keys"):
        keys.write_ring(maker.folder, Keyring())


def test_without_the_list_of_keys_own_statements_are_still_told(maker, reader, tmp_path):
    keys.rotate_key(maker.folder, no_password, lambda: "")
    (maker.folder / "keyring.json").unlink()  # as its own hint says when it is damaged
    old_id, new = keys.rotate_key(maker.folder, no_password, lambda: "")
    assert judged(maker.bundle(tmp_path / "b"), reader).key.key_id == new.key_id
    assert keys.revoke_key(maker.folder, old_id, "retired", no_password)
    judged(maker.bundle(tmp_path / "c", version="2"), reader)


def test_a_public_key_that_is_no_text_is_said(maker):
    (maker.folder / "signing.pub").write_bytes(b"\xff\xfe\0")
    with pytest.raises(TrustError, match="public key is damaged"):
        keys.own_key_id(maker.folder)
    (maker.folder / "statements.json").write_text("{}")
    with pytest.raises(TrustError, match="said of keys is damaged"):
        keys.read_ring(maker.folder)


ROTATE = """
import sys
from pathlib import Path
from bundler.media import keys
keys.rotate_key(Path(sys.argv[1]), lambda: "", lambda: "", now=1)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_change_of_keys_that_is_killed_anywhere_is_finished_or_forgotten(
    maker, reader, tmp_path, call
):
    states, number = set(), 0
    while True:
        number += 1
        folder = tmp_path / f"keys-{number}"
        shutil.copytree(maker.folder, folder)
        done = subprocess.run(
            ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e",
             f"inject={call}:signal=KILL:when={number}", sys.executable, "-c", ROTATE, folder],
            capture_output=True, timeout=120,
        )  # fmt: skip
        if done.returncode == 0:
            break
        states.add(tuple(sorted(path.name for path in folder.iterdir() if path.name[0] != ".")))
        before = keys.own_key_id(folder)
        was_whole = before != maker.key.key_id and not (folder / "next.pub").exists()
        check_signs(folder, reader, tmp_path / f"a-{number}", {maker.key.key_id, before})
        old_id, new = keys.rotate_key(folder, no_password, lambda: "")
        assert keys.own_key_id(folder) == new.key_id
        assert old_id == (before if was_whole else maker.key.key_id)
        check_signs(folder, reader, tmp_path / f"b-{number}", {new.key_id})
        assert not list(folder.glob("next.*"))
    assert number > 6
    assert len(states) >= 4


def check_signs(folder, reader, root, expected):
    """Sign with what lies there; who trusts the first key believes it, and its rightful key alone."""
    one = Maker.__new__(Maker)
    one.folder, one.password = folder, ""
    mine = root.parent / f"{root.name}-reader"
    shutil.copytree(reader, mine)
    assert judged(one.bundle(root), mine).key.key_id in expected
    assert judged(root, folder).key.key_id in expected


def test_endless_and_hostile_statements_do_no_harm(maker, reader, tmp_path):
    root = maker.bundle(tmp_path / "b")
    for text in ("[" * 100_000, "{}", "null", '[1, {}, {"statement": 3}]', "x" * (2 << 20)):
        (root / "manifest.json.keys").write_text(text)
        judged(root, reader)
    assert set(keys.read_ring(reader).keys) == {maker.key.key_id}


def test_an_endless_signature_is_refused(maker, reader, tmp_path):
    root = maker.bundle(tmp_path / "b")
    with (root / "manifest.json.minisig").open("ab") as stream:
        stream.write(b"x" * (1 << 20))
    with pytest.raises(TrustError, match="damaged or is none"):
        judged(root, reader)


def test_bits_of_base64_that_decode_to_nothing_are_a_change_too(maker, reader, tmp_path):
    root = maker.bundle(tmp_path / "b")
    lines = (root / "manifest.json.minisig").read_text().splitlines()
    for number, padding in ((1, "="), (3, "==")):
        body = lines[number].removesuffix(padding)
        other = chr(ord(body[-1]) + 1)  # A, Q, g or w in the place of the last digit: one bit more
        changed = [*lines[:number], body[:-1] + other + padding, *lines[number + 1 :]]
        (root / "manifest.json.minisig").write_text("\n".join(changed) + "\n")
        with pytest.raises(TrustError):
            judged(root, reader)


def test_a_damaged_keyring_is_said_and_nothing_is_guessed(maker, reader, tmp_path):
    (reader / "keyring.json").write_text("{")
    with pytest.raises(TrustError, match="list of trusted keys is damaged"):
        judged(maker.bundle(tmp_path / "b"), reader)


@settings(max_examples=200)
@given(data=st.data())
def test_no_single_flipped_bit_of_a_signature_or_its_manifest_is_believed(tmp_path_factory, data):
    root, reader = _made(tmp_path_factory)
    name = data.draw(st.sampled_from(["manifest.json", "manifest.json.minisig"]))
    whole = (root / name).read_bytes()
    # The first line of a signature is a comment that nobody signs, and says so.
    start = whole.index(b"\n") + 1 if name.endswith("minisig") else 0
    place = data.draw(st.integers(start, len(whole) - 2))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(whole)
    changed[place] ^= 1 << bit
    signed = (root / "manifest.json.minisig").read_bytes()
    original = (root / "manifest.json").read_bytes()
    manifest = Manifest.model_validate_json(original)
    ring = keys.read_ring(reader)
    files = {"manifest.json": original, "manifest.json.minisig": signed, name: bytes(changed)}
    with pytest.raises(TrustError):
        judge(ring, files["manifest.json"], manifest, files["manifest.json.minisig"])


_MADE = {}


def _made(factory):
    if not _MADE:
        folder = factory.mktemp("bits")
        maker = Maker(folder / "m")
        _MADE["it"] = (maker.bundle(folder / "b"), maker.folder)
    return _MADE["it"]


@given(st.lists(st.dictionaries(st.text(), st.one_of(st.none(), st.text(), st.integers()))))
def test_nothing_that_is_unsigned_is_ever_heard(statements):
    ring = Keyring()
    assert hear(ring, statements) == ring


def test_these_tests_use_no_keys_or_settings_of_who_runs_them():
    folder = key_commands.keys_folder(None)
    assert "bundler-tests-" in str(folder) or sys.platform == "darwin"
    assert not keys.has_secret_key(folder)
    assert not {"BUNDLER_KEY_PASSWORD", "BUNDLER_STORE", "BUNDLER_PROGRESS"} & set(os.environ)


# -- the command line ----------------------------------------------------------------------------


def signed_bundle(folder, maker, **what):
    """Return a whole bundle, sealed and signed as a build does it."""
    world = World(store=Store(folder / "store"))
    layout = Layout()
    layout.add_object("models/a.gguf", *world.store.put(b"weights" * 99))
    manifest = manifest_of(**what).model_copy(update={"files": layout.files()})
    sign = key_commands.signer(maker.folder)
    seal(layout, manifest, folder / "b", world, lambda data: sign(manifest, data))
    return folder / "b"


def test_sealing_again_with_another_key_signs_anew_and_leaves_the_rest(maker, tmp_path):
    root = signed_bundle(tmp_path, maker)
    before = (root / "manifest.json.minisig").read_bytes()
    inode = (root / "models/a.gguf").stat().st_ino
    keys.rotate_key(maker.folder, no_password, lambda: "")
    signed_bundle(tmp_path, maker)
    assert (root / "manifest.json.minisig").read_bytes() != before
    assert (root / "manifest.json.keys").exists()
    assert (root / "models/a.gguf").stat().st_ino == inode
    assert verify_bundle(root).findings == ()


def test_a_bundle_goes_from_hand_to_hand_by_the_command_line(tmp_path):
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    made = bundler("key", "new", "--no-password", "--keys", mine)
    assert made.returncode == 0, made.stderr
    line = next(w for w in (made.stdout + made.stderr).split() if w.startswith("RW"))
    own = json.loads(bundler("key", "show", "--json", "--keys", mine).stdout)["own"]

    class Mine:
        folder = mine

    root = signed_bundle(tmp_path, Mine)
    assert bundler("verify", root, "--keys", mine).returncode == 0
    refused = bundler("verify", root, "--keys", yours)
    assert refused.returncode == 7
    assert f"key {own}, which is not known here" in refused.stderr
    assert "another way than this stick" in refused.stderr
    assert bundler("verify", root, "--keys", yours, "--unsigned").returncode == 0
    assert bundler("key", "trust", line, "--label", "sister", "--keys", yours).returncode == 0
    accepted = bundler("verify", root, "--keys", yours)
    assert accepted.returncode == 0
    assert f"signed with key {own} (sister)" in accepted.stdout + accepted.stderr
    assert bundler("key", "revoke", own, "--reason", "lost", "--keys", yours).returncode == 0
    assert bundler("verify", root, "--keys", yours).returncode == 7


@pytest.mark.parametrize("words", [
    ("key", "trust", "nonsense", 2), ("key", "trust", "RWnonsense", 2),
    ("key", "trust", "README.md", 2), ("key", "revoke", "0123", 7), ("key", "rotate", 7),
])  # fmt: skip
def test_wrong_words_about_keys_have_an_error_and_a_way_forward(tmp_path, words):
    *words, code = words
    done = bundler(*words, "--keys", tmp_path / "none")
    assert done.returncode == code
    assert "hint:" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_is_asked_for_a_password_where_nobody_is(tmp_path):
    done = bundler("key", "new", "--keys", tmp_path)
    assert done.returncode == 7
    assert "--no-password" in done.stderr
    assert list(tmp_path.iterdir()) == []
