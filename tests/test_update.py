import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundler.errors import (
    BundlerError,
    BusyError,
    DamagedError,
    DoesNotFit,
    RecipeError,
    TrustError,
    UnsafeInput,
)
from bundler.far_end.carried import carried_files
from bundler.hardware import Target
from bundler.manifest import SWITCH_NAME, BundledModel, BundleFile, Manifest, Origin
from bundler.media.keyring import Keyring
from bundler.media.keys import new_key, read_ring, revoke_key, rotate_key, write_ring
from bundler.media.repair import repair_bundle
from bundler.plan import Memory
from bundler.testing.station_bundle import make_zim
from bundler.update import switching
from bundler.update.applying import Trust, apply_delta
from bundler.update.clusters import blobs_of, clusters_of
from bundler.update.delta import (
    DELTA_NAME,
    NEAR_BYTES,
    SPAN_BYTES,
    Delta,
    New,
    pack_name,
    side_of,
)
from bundler.update.difference import difference, difference_lines
from bundler.update.making import make_delta
from bundler.update.staging import STAGING_NAME
from bundler.verify import verify_bundle
from tests import sticks
from tests.media import SEGMENT_BYTES, noise
from tests.update_cases import Case, copied, first_files, flip, second_files, tree, version

UNSIGNED = Trust(unsigned=True)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("update"))


def applied(case, stick, delta=None, **trust):
    return apply_delta(delta or case.made.root, stick, Trust(case.ring, **trust))


# -- what it gives -----------------------------------------------------------------------------------


def test_an_updated_bundle_is_the_new_one_byte_for_byte(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    done = applied(case, stick)
    assert tree(stick) == tree(case.second)
    assert verify_bundle(stick).findings == ()
    assert done.key.label == "the makers"


def test_only_what_changed_travels(case):
    travels = case.made.delta.stored_bytes
    parity = sum(
        file.size_bytes
        for file in verify_bundle(case.second).manifest.files if file.path.startswith("parity/")
    )  # fmt: skip
    assert travels < parity + 9_000 + 8 + 2_000


def test_what_moved_within_a_file_is_found_byte_for_byte(case):
    chat = next(one for one in case.made.delta.rebuilt if one.path.endswith(".gguf"))
    assert [(s.kind, s.size_bytes) for s in chat.spans] == [
        ("old", 100_000), ("new", 8), ("old", 300_000), ("new", 9_000),
        ("old", 12 * SEGMENT_BYTES + 777 - 420_000),
    ]  # fmt: skip


def test_a_renamed_file_does_not_travel(case):
    assert [(m.source, m.path) for m in case.made.delta.moved] == [
        ("corpora/health.zim", "corpora/health-2026.zim")
    ]


def test_a_manifest_alone_is_enough_to_make_an_update(case, tmp_path):
    alone = tmp_path / "out-there"
    alone.mkdir()
    shutil.copy(case.first / "manifest.json", alone)
    made = make_delta(alone / "manifest.json", case.second, tmp_path / "delta", sign=case.sign)
    assert case.made.size_bytes < made.size_bytes < 0.95 * made.new_version_bytes
    assert not [
        span for one in made.delta.rebuilt for span in one.spans if getattr(span, "near", 0)
    ]
    stick = copied(case.first, tmp_path / "stick")
    applied(case, stick, made.root)
    assert tree(stick) == tree(case.second)


def test_an_update_that_was_applied_is_applied_no_more(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    applied(case, stick)
    before = tree(stick)
    assert applied(case, stick).already
    assert tree(stick) == before


def test_looking_changes_nothing_and_says_how_much_room_is_needed(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    before = tree(stick)
    done = apply_delta(case.made.root, stick, Trust(case.ring), dry_run=True)
    rebuilt = {one.path for one in case.made.delta.rebuilt}
    sizes = sum(
        f.size_bytes for f in verify_bundle(case.second).manifest.files if f.path in rebuilt
    )
    assert sizes < done.needed_bytes < sizes + (8 << 20)
    assert tree(stick) == before


def test_files_of_yours_stay(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    (stick / "runtime/old/mine.txt").write_text("mine")
    applied(case, stick)
    assert (stick / "runtime/old/mine.txt").read_text() == "mine"
    assert [f.path for f in verify_bundle(stick).findings] == ["runtime/old/mine.txt"]


# -- libraries -----------------------------------------------------------------------------------------


def library(folder, number, articles):
    zim = make_zim(folder / f"{number}.zim", articles)
    return version(folder, {"corpora/library.zim": zim.read_bytes()}, number, percent=0)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """Two versions of a library: in the second, one word of one article is another."""
    folder = tmp_path_factory.mktemp("libraries")
    words = [
        "water",
        "fire",
        "shelter",
        "radio",
        "food",
        "signal",
        "knot",
        "map",
        "compass",
        "rope",
        "knife",
        "stove",
    ]
    chance = random.Random("library")
    articles = {
        f"Article {n}": {"": [" ".join(chance.choices(words, k=60)) for _ in range(9)]}
        for n in range(200)
    }
    first = library(folder, 1, articles)
    articles["Article 77"][""][3] += " boat"
    return first, library(folder, 2, articles)


def test_a_changed_article_is_packed_anew_at_the_far_end(libraries, tmp_path):
    first, second = libraries
    plain = make_delta(first, second, tmp_path / "plain")
    least = make_delta(first, second, tmp_path / "least", smallest=True)
    assert least.delta.zstd
    assert not plain.delta.zstd
    assert 4 * least.delta.stored_bytes < plain.delta.stored_bytes
    for made in (plain, least):
        stick = copied(first, tmp_path / f"stick-{made.root.name}")
        apply_delta(made.root, stick, UNSIGNED)
        assert tree(stick) == tree(second)


def test_articles_are_not_packed_by_another_zstd(libraries, tmp_path, monkeypatch):
    first, second = libraries
    made = make_delta(first, second, tmp_path / "least", smallest=True)
    monkeypatch.setattr(zstandard, "ZSTD_VERSION", (1, 4, 0))
    stick = copied(first, tmp_path / "stick")
    with pytest.raises(DoesNotFit, match=r"here is 1\.4\.0"):
        apply_delta(made.root, stick, UNSIGNED)
    assert tree(stick) == tree(first)


@given(st.binary(max_size=300))
def test_what_only_begins_like_a_library_is_cut_nowhere(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("zim") / "x.zim"
    path.write_bytes(b"ZIM\x04" + junk)
    for cluster in clusters_of(path):
        assert cluster.end <= path.stat().st_size
    assert all(isinstance(blob, bytes) for blob in blobs_of(junk, extended=False))


# -- what it says --------------------------------------------------------------------------------------


def origin(revision):
    return Origin(reference="path:model", revision=revision, licence="MIT")


def model(**changes):
    said = {
        "name": "chat", "role": "chat", "file": "models/chat/chat-Q4_K_M.gguf", "engine": "llama.cpp",
        "quant": "Q4_K_M", "kv_cache": "f16", "context_tokens": 4096, "parallel": 1,
        "predicted_memory": Memory(weights_bytes=1, kv_cache_bytes=1, compute_bytes=1),
        "bits_per_weight": 4.5, "origin": origin("a" * 40),
    }  # fmt: skip
    return BundledModel(**{**said, **changes})


def listed(path, digit, size_bytes=10):
    return BundleFile(path=path, size_bytes=size_bytes, sha256=digit * 64)


def manifest(number, models, files, components=()):
    return Manifest(
        name="clinic", version=str(number), title="Clinic", created=number, builder="bundler test",
        target=Target(name="t", ram_bytes=1), platforms=("linux-x86_64",),
        recipe_sha256="0" * 64, lock_sha256="1" * 64, models=models, corpora=(), step_keys={},
        files=files, components=components,
    )  # fmt: skip


def said_of(old, new):
    sides = [side_of(m, "0" * 64) for m in (old, new)]
    return difference(old, new, *sides)


def test_a_difference_names_each_item_in_plain_words():
    runtime, moved = listed("runtime/linux-x86_64/tool", "c"), listed("licenses/a.txt", "e", 7)
    old = manifest(
        1, (model(),), (listed("models/chat/chat-Q4_K_M.gguf", "a", 100), runtime, moved),
        ({"name": "llama", "version": "1"},),
    )  # fmt: skip
    again = model(
        quant="Q5_K_M", file="models/chat/chat-Q5_K_M.gguf", context_tokens=8192,
        origin=origin("b" * 40),
    )  # fmt: skip
    new = manifest(
        2, (again,),
        (listed("models/chat/chat-Q5_K_M.gguf", "b", 120),
         listed("runtime/linux-x86_64/tool", "d", 30), listed("licenses/b.txt", "e", 7)),
        ({"name": "llama", "version": "2"},),
    )  # fmt: skip
    found = said_of(old, new)
    text = "\n".join(difference_lines(found))
    for words in (
        "~ model chat: changed", "quantized as Q5_K_M instead of Q4_K_M",
        "context 4096 tokens → 8192 tokens", "revision aaaaaaaaaaaa → bbbbbbbbbbbb",
        "~ runtime linux-x86_64: changed", "llama 1 → 2", "1 file changed",
    ):  # fmt: skip
        assert words in text
    assert (found.new_bytes, found.moved_bytes, found.kept_bytes) == (150, 7, 0)
    assert found.size_bytes == 157


def test_equal_versions_differ_in_nothing():
    one = manifest(1, (model(),), (listed("models/chat/chat-Q4_K_M.gguf", "a", 100),))
    found = said_of(one, one)
    assert {item.state for item in found.items} == {"same"}
    assert found.new_bytes == 0


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "bundler", *map(str, words)], capture_output=True, text=True,
        check=False, env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )  # fmt: skip


def test_the_commands_make_and_apply_a_signed_update(case, tmp_path):
    said = run("diff", case.first / "manifest.json", case.second)
    assert said.returncode == 0
    assert "clinic 1" in said.stdout
    whole = json.loads(run("diff", case.first, case.second, "--json").stdout)
    assert whole["moved_bytes"] == 5 * SEGMENT_BYTES
    made = run(
        "update", "make", case.first, case.second, "-o", tmp_path / "delta", "--keys", case.keys,
        "--json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["signed"] is True
    assert {"update.sh", "README.txt"} <= {path.name for path in (tmp_path / "delta").iterdir()}
    stick = copied(case.first, tmp_path / "stick")
    new_key(tmp_path / "strangers", "", "somebody else")
    words = ("update", "apply", tmp_path / "delta", stick, "--keys")
    refused = run(*words, tmp_path / "strangers")
    assert refused.returncode == 7
    assert "--same-maker" in refused.stderr
    shutil.copytree(case.keys, tmp_path / "keys")
    looked = run(*words, tmp_path / "keys", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert tree(stick) == tree(case.first)
    done = run(*words, tmp_path / "keys")
    assert done.returncode == 0, done.stderr
    assert "updated from clinic 1" in done.stderr + done.stdout
    assert tree(stick) == tree(case.second)
    assert read_ring(tmp_path / "keys").seen
    assert run("verify", stick, "--keys", tmp_path / "keys").returncode == 0


def test_a_half_built_update_is_said_to_be_one(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    (stick / STAGING_NAME).mkdir()
    (stick / STAGING_NAME / "begun.part").write_bytes(b"x")
    assert [(f.path, f.kind) for f in verify_bundle(stick).findings] == [(STAGING_NAME, "extra")]
    assert "same update again" in run("verify", stick, "--unsigned").stderr
    (stick / SWITCH_NAME).write_text("f" * 64)
    for words in (("verify", stick, "--unsigned"), ("repair", stick)):
        done = run(*words)
        assert done.returncode == 6
        assert "between two versions" in done.stderr


# -- at the far end ------------------------------------------------------------------------------------


def test_what_applies_updates_needs_little_that_a_bundle_does_not_carry():
    code = (
        "import sys; before = set(sys.modules); import bundler.update.far_end; "
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}"
        " - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", path_first() + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = {name for name in done.stdout.split() if not name.startswith("_")}
    assert found <= {
        "bundler", "pydantic", "pydantic_core", "annotated_types", "typing_extensions",
        "typing_inspection", "zstandard", "minisign", "cryptography", "cffi",
    }  # fmt: skip


def path_first():
    return f"import sys; sys.path[:0] = {sys.path!r}; "


def far_bundle(case, folder):
    """Return a copy of the first version that has programs of its own: this Python, this bundler."""
    files = first_files()
    second = second_files()
    platform = f"linux-{os.uname().machine}"
    launcher = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'.encode()
    carried = {f"app/{path}": data for path, data in carried_files()}
    carried |= {f"runtime/{platform}/python/bin/python3": launcher}
    sites = {
        f"runtime/{platform}/site/sitecustomize.pth": b"",
        "app/bundler/marks.txt": b"one",
    }
    first = version(folder, files | carried | sites, 1, keys=case.keys, percent=0)
    sites["app/bundler/marks.txt"] = b"two"
    carried["app/bundler/update/staging.py"] += b"# another version of what is running\n"
    return first, version(folder, second | carried | sites, 2, keys=case.keys, percent=0)


@pytest.mark.skipif(sys.platform != "linux", reason="the script finds this machine's platform")
def test_the_door_applies_an_update_with_the_bundles_own_programs(case, tmp_path):
    first, second = far_bundle(case, tmp_path)
    from bundler.update.doors import doors

    made = make_delta(
        first, second, tmp_path / "delta", sign=case.sign, makers=case.made.delta.makers, doors=doors()
    )  # fmt: skip
    stick = copied(first, tmp_path / "stick with a space")
    next(stick.glob("runtime/*/python/bin/python3")).chmod(0o644)  # as a stick with no modes

    def door(*words):
        return subprocess.run(
            ["sh", made.root / "update.sh", *words], capture_output=True, text=True, check=False,
            env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"),
                 "BUNDLER_KEYS": ""},
        )  # fmt: skip

    assert door().returncode == 2
    assert "not a folder" in door(tmp_path / "nowhere").stderr
    assert door(case.first).returncode == 4  # it has no programs for this machine
    unknown = door(stick)
    assert unknown.returncode == 7, unknown.stderr
    assert "--same-maker" in unknown.stderr
    assert "--trust <key>" in unknown.stderr
    assert "bundler " not in unknown.stderr.replace(str(tmp_path), "")
    looked = door(stick, "--same-maker", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert "of room are needed" in looked.stdout
    done = door(stick, "--trust", case.made.delta.makers[0])
    assert done.returncode == 0, done.stderr
    assert "updated from clinic 1" in done.stdout
    assert tree(stick) == tree(second)
    assert read_ring(tmp_path / "config/bundler").seen
    assert "is clinic 2 (manifest" in door(stick).stdout


# -- any two versions ----------------------------------------------------------------------------------

CHUNKS = st.sampled_from([b"", b"a", b"abc" * 400, noise("x", 5000), noise("y", 9000), bytes(6000)])
CONTENT = st.lists(CHUNKS, max_size=6).map(b"".join)
NAMES = st.sampled_from(["a", "b", "c/d", "c/e/f", "start", "g.bin", "models/chat/chat.gguf"])
TREES = st.dictionaries(NAMES, CONTENT, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(one=TREES, two=TREES, with_directory=st.booleans())
def test_any_version_becomes_any_other(tmp_path_factory, one, two, with_directory):
    folder = tmp_path_factory.mktemp("any")
    first = version(folder, one, 1, percent=0, segment_bytes=4096)
    second = version(folder, two, 2, percent=0, segment_bytes=4096)
    old = first if with_directory else first / "manifest.json"
    made = make_delta(old, second, folder / "delta")
    stick = copied(first, folder / "stick")
    apply_delta(made.root, stick, UNSIGNED)
    assert tree(stick) == tree(second)
    shutil.rmtree(folder)


# -- whom to believe -----------------------------------------------------------------------------------


def refused(case, tmp_path, kind, *words, delta=None, trust=None, stick=None):
    """Apply; it must be refused in these words, and nothing may have been touched."""
    stick = stick or copied(case.first, tmp_path / f"stick-{len(list(tmp_path.iterdir()))}")
    before = tree(stick)
    with pytest.raises(kind) as caught:
        apply_delta(delta or case.made.root, stick, trust or Trust(case.ring))
    for word in words:
        assert word in str([(str(p), p.hint) for p in caught.value.problems])
    assert tree(stick) == before
    return caught.value


@pytest.mark.fault("F2")
def test_an_unsigned_update_is_refused(case, tmp_path):
    delta = case.delta_copy("unsigned")
    (delta / "delta.json.minisig").unlink()
    error = refused(case, tmp_path, TrustError, "not signed", delta=delta)
    assert error.exit_code == 7


@pytest.mark.fault("F2")
def test_an_update_by_an_unknown_key_is_refused_with_both_ways_forward(case, tmp_path):
    refused(
        case, tmp_path, TrustError, "not known here", "bundler key trust", "--same-maker",
        trust=Trust(),
    )  # fmt: skip


def test_an_update_by_the_maker_of_the_bundle_there_is_believed_when_asked(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    done = apply_delta(case.made.root, stick, Trust(same_maker=True))
    assert tree(stick) == tree(case.second)
    assert done.ring == Keyring()  # for this once: nothing is remembered


def test_another_maker_is_not_the_same_maker(case, tmp_path):
    new_key(tmp_path / "others", "", "others")
    first = version(tmp_path, first_files(), 1, keys=tmp_path / "others")
    second = version(tmp_path, second_files(), 2, keys=tmp_path / "others")
    ours = version(tmp_path / "ours", first_files(), 1, keys=case.keys)
    made = make_delta(first, second, tmp_path / "delta", sign=case.sign)
    stick = copied(ours, tmp_path / "stick")
    assert (first / "manifest.json").read_bytes() == (ours / "manifest.json").read_bytes()
    refused(case, tmp_path, TrustError, delta=made.root, stick=stick, trust=Trust(same_maker=True))


@pytest.mark.fault("F6")
def test_an_update_by_a_revoked_key_is_refused(case, tmp_path):
    shutil.copytree(case.keys, tmp_path / "keys")
    key_id = next(iter(case.ring.keys))
    revoke_key(tmp_path / "keys", key_id, "laptop stolen", lambda: "")
    ring = read_ring(tmp_path / "keys")
    for trust in (Trust(ring), Trust(ring, same_maker=True)):
        refused(case, tmp_path, TrustError, "revoked", "laptop stolen", trust=trust)


def test_what_a_refused_update_says_of_keys_is_learned(case, tmp_path):
    """A revocation counts also when what brings it cannot be used."""
    shutil.copytree(case.keys, tmp_path / "keys")
    old_id = next(iter(case.ring.keys))
    rotate_key(tmp_path / "keys", lambda: "", lambda: "")
    revoke_key(tmp_path / "keys", old_id, "laptop stolen", lambda: "")
    second = version(tmp_path, second_files(), 2, keys=tmp_path / "keys")
    made = make_delta(case.first, second, tmp_path / "delta")
    learned = []
    trust = Trust(case.ring, learned=learned.append)
    refused(case, tmp_path, TrustError, delta=made.root, trust=trust)
    assert [ring.keys[old_id].status for ring in learned] == ["revoked"]


@pytest.mark.fault("F6")
def test_the_key_that_follows_is_believed(case, tmp_path):
    shutil.copytree(case.keys, tmp_path / "keys")
    rotate_key(tmp_path / "keys", lambda: "", lambda: "")
    second = version(tmp_path, second_files(), 2, keys=tmp_path / "keys")
    from bundler.media.keys import open_secret_key

    key = open_secret_key(tmp_path / "keys", lambda: "")
    made = make_delta(
        case.first, second, tmp_path / "delta", makers=case.made.delta.makers,
        sign=lambda data, comment: bytes(key.sign(data, trusted_comment=comment)) + b"\n",
    )  # fmt: skip
    for number, trust in enumerate((Trust(case.ring), Trust(same_maker=True))):
        stick = copied(case.first, tmp_path / f"stick{number}")
        apply_delta(made.root, stick, trust)
        assert tree(stick) == tree(second)


@pytest.mark.fault("F1")
def test_a_changed_list_is_refused(case, tmp_path):
    delta = case.delta_copy("changed-list")
    text = (delta / DELTA_NAME).read_text()
    (delta / DELTA_NAME).write_text(text.replace('"builder": "bundler', '"builder": "bundlar'))
    refused(case, tmp_path, TrustError, "does not belong to these bytes", delta=delta)


@pytest.mark.fault("F3")
def test_the_signature_of_another_update_is_refused(case, tmp_path):
    other = case.folder / "other-delta"
    third = version(case.folder, second_files() | {"more": b"more"}, 3, keys=case.keys)
    made = make_delta(case.first, third, other, sign=case.sign)
    delta = case.delta_copy("mixed")
    shutil.copy(made.root / "delta.json.minisig", delta)
    refused(case, tmp_path, TrustError, delta=delta)
    shutil.copytree(case.made.root, tmp_path / "half")
    shutil.copytree(made.root / "new", tmp_path / "half" / "new", dirs_exist_ok=True)
    refused(case, tmp_path, DamagedError, delta=tmp_path / "half")


@pytest.mark.fault("F3")
def test_a_signature_over_the_list_for_other_versions_is_refused(case, tmp_path):
    delta = case.delta_copy("other-comment")
    data = (delta / DELTA_NAME).read_bytes()
    signed = case.sign(data, f"bundler-delta clinic from:0 to:2 sha256:{sha256(data).hexdigest()}")
    (delta / "delta.json.minisig").write_bytes(signed)
    refused(case, tmp_path, TrustError, "for another update", delta=delta)


@pytest.mark.fault("F4")
def test_an_update_back_to_an_older_version_is_refused_unless_asked_for(case, tmp_path):
    back = case.delta("back", old=case.second, new=case.first)
    stick = copied(case.second, tmp_path / "stick")
    refused(case, tmp_path, TrustError, "older", "--allow-older", delta=back.root, stick=stick)
    refused(
        case, tmp_path, TrustError, "older", delta=back.root, stick=stick, trust=UNSIGNED
    )  # fmt: skip
    apply_delta(back.root, stick, Trust(case.ring, allow_older=True))
    assert tree(stick) == tree(case.first)


def test_of_two_versions_from_one_lock_the_one_signed_later_is_later(case, tmp_path):
    """Where the clocks of the locks are the same, the order of signing tells."""
    earlier = version(tmp_path / "a", first_files(), 5, keys=case.keys)
    later = version(tmp_path / "b", second_files(), 5, keys=case.keys)
    back = make_delta(later, earlier, tmp_path / "back", sign=case.sign)
    stick = copied(later, tmp_path / "stick")
    refused(case, tmp_path, TrustError, "older", delta=back.root, stick=stick)
    onward = make_delta(earlier, later, tmp_path / "onward", sign=case.sign)
    stick = copied(earlier, tmp_path / "other")
    applied(case, stick, onward.root)
    assert tree(stick) == tree(later)


@pytest.mark.fault("F4")
def test_an_update_to_a_version_older_than_one_seen_here_is_refused(case, tmp_path):
    third = version(tmp_path, second_files() | {"more": b"more"}, 3, keys=case.keys)
    later = make_delta(case.second, third, tmp_path / "later", sign=case.sign)
    stick = copied(case.second, tmp_path / "seen")
    ring = apply_delta(later.root, stick, Trust(case.ring)).ring
    refused(case, tmp_path, TrustError, "older than 3", trust=Trust(ring))


# -- what it refuses ----------------------------------------------------------------------------------


def test_an_update_for_another_version_says_which_one_is_needed(case, tmp_path):
    third = version(tmp_path, first_files() | {"more": b"more"}, 3, keys=case.keys)
    stick = copied(third, tmp_path / "stick")
    error = refused(case, tmp_path, RecipeError, "clinic 1", "clinic 3", "from 3 to 2", stick=stick)
    assert error.exit_code == 2


def test_what_is_no_update_or_no_bundle_is_said_to_be_none(case, tmp_path):
    refused(case, tmp_path, DamagedError, "is not an update", delta=tmp_path)
    with pytest.raises(BundlerError, match=r"not a bundle|no bundle"):
        apply_delta(case.made.root, tmp_path / "nothing", UNSIGNED)


@pytest.mark.fault("C6")
def test_every_flipped_bit_of_an_update_is_found_before_anything_is_touched(case, tmp_path):
    files = [p for p in sorted(case.made.root.rglob("*")) if p.is_file() and p.stat().st_size]
    for number, path in enumerate(files):
        for share in (0.0, 0.5, 1.0):
            delta = tmp_path / f"delta{number}-{share}"
            shutil.copytree(case.made.root, delta)
            spoiled = delta / path.relative_to(case.made.root)
            flip(spoiled, int(share * (path.stat().st_size - 1)))
            if path.name == "delta.json.minisig" and share == 0.0:
                continue  # the first line of a signature is a remark that nobody signs
            error = refused(case, tmp_path, BundlerError, delta=delta)
            assert error.exit_code in (6, 7, 8), path
            shutil.rmtree(delta)


def test_a_cut_off_or_lost_pack_is_named(case, tmp_path):
    delta = case.delta_copy("cut")
    with (delta / pack_name(0)).open("r+b") as stream:
        stream.truncate(5000)
    error = refused(case, tmp_path, DamagedError, "5000 bytes instead of", delta=delta)
    assert error.exit_code == 6
    (delta / pack_name(0)).unlink()
    refused(case, tmp_path, DamagedError, "cannot be read", delta=delta)


def test_too_little_room_is_said_before_the_first_byte_with_figures(case, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    error = refused(case, tmp_path, DoesNotFit, "needs", "1000 B are free")
    assert error.exit_code == 4


def test_a_damaged_old_version_is_named_and_stays_as_it_is(case, tmp_path):
    for path, why in (
        ("models/chat/chat.gguf", "does not come out"), ("app/same.html", "is damaged in the bundle"),
        ("corpora/health.zim", "is damaged in the bundle"),
    ):  # fmt: skip
        stick = copied(case.first, tmp_path / path.replace("/", "-"))
        flip(stick / path, 3)
        with pytest.raises(DamagedError, match=why) as caught:
            applied(case, stick)
        assert "bundler repair" in caught.value.problems[0].hint
        flip(stick / path, 3)
        left = {p for p in tree(stick) if not p.startswith(STAGING_NAME)}
        assert left == set(tree(case.first))
        applied(case, stick)
        assert tree(stick) == tree(case.second)


@pytest.mark.fault("C12")
def test_links_and_strangers_in_the_way_are_refused(case, tmp_path):
    stick = copied(case.first, tmp_path / "linked")
    (tmp_path / "outside").mkdir()
    shutil.move(stick / "models", tmp_path / "outside")
    (stick / "models").symlink_to(tmp_path / "outside/models")
    error = refused(case, tmp_path, UnsafeInput, "a link, not a regular file", stick=stick)
    assert error.exit_code == 8
    stick = copied(case.first, tmp_path / "strangers")
    (stick / "second-empty").write_text("mine")
    refused(case, tmp_path, UnsafeInput, "second-empty", "move it elsewhere", stick=stick)
    stick = copied(case.first, tmp_path / "staging")
    (tmp_path / "elsewhere").mkdir()
    (stick / STAGING_NAME).symlink_to(tmp_path / "elsewhere")
    refused(case, tmp_path, UnsafeInput, stick=stick)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_at_once_are_refused(case, tmp_path):
    import fcntl

    stick = copied(case.first, tmp_path / "stick")
    descriptor = os.open(stick, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert refused(case, tmp_path, BusyError, stick=stick).exit_code == 10
    os.close(descriptor)


def test_an_output_that_is_there_and_two_equal_versions_are_refused(case, tmp_path):
    with pytest.raises(UnsafeInput, match="is there already"):
        make_delta(case.first, case.second, case.made.root)
    with pytest.raises(RecipeError, match="nothing is to be updated"):
        make_delta(case.first, case.first, tmp_path / "delta")
    other = version(tmp_path, first_files(), 2, name="school")
    with pytest.raises(RecipeError, match="two bundles"):
        make_delta(case.first, other, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_a_damaged_version_makes_no_update(case, tmp_path):
    for number, (spoiled, old) in enumerate((("first", True), ("second", False))):
        broken = copied(getattr(case, spoiled), tmp_path / spoiled)
        flip(broken / "models/chat/chat.gguf", 500_000)
        pair = (broken, case.second) if old else (case.first, broken)
        with pytest.raises(DamagedError, match=r"chat\.gguf"):
            make_delta(*pair, tmp_path / f"delta{number}")
        assert not list(tmp_path.glob("*delta*"))


# -- hostile updates -----------------------------------------------------------------------------------


def hostile(case, tmp_path, change):
    """Return an update whose list was changed by somebody who has the right key."""
    delta = tmp_path / f"hostile-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(case.made.root, delta)
    said = json.loads((delta / DELTA_NAME).read_bytes())
    change(said, delta)
    data = json.dumps(said).encode()
    (delta / DELTA_NAME).write_bytes(data)
    try:
        from bundler.update.vouching import delta_comment

        comment = delta_comment(Delta.model_validate(said), data)
    except ValueError:
        comment = "bundler-delta"
    (delta / "delta.json.minisig").write_bytes(case.sign(data, comment))
    return delta


def first_new(said):
    return next(s for one in said["rebuilt"] for s in one["spans"] if s["kind"] == "new")


def first_old(said):
    return next(s for one in said["rebuilt"] for s in one["spans"] if s["kind"] == "old")


def as_cluster(said, *, plain_near):
    """Turn the first new span into a cluster made from old bytes that are no cluster."""
    near = {"path": "models/chat/chat.gguf", "offset": 5, "size_bytes": 5000}
    span = first_new(said)
    plain = dict(span, packed=True, **({"near": near} if plain_near else {}))
    span.clear()
    span.update(kind="repacked", size_bytes=plain["size_bytes"], plain=plain, near=[near])


HOSTILE = {
    "a file outside": lambda said, _: said["rebuilt"][0].update(path="../outside"),
    "an absolute path": lambda said, _: said["rebuilt"][0].update(path="/etc/passwd"),
    "an old file outside": lambda said, _: first_old(said).update(path="../../etc/passwd"),
    "an old file that is none": lambda said, _: first_old(said).update(path="notes/of/nobody"),
    "a range behind the end": lambda said, _: first_old(said).update(offset=1 << 40),
    "a negative offset": lambda said, _: first_old(said).update(offset=-1),
    "an endless span": lambda said, _: first_new(said).update(size_bytes=1 << 50),
    "a piece that is not there": lambda said, _: first_new(said).update(piece=10_000),
    "a pack that is not there": lambda said, _: first_new(said).update(pack=10_000),
    "a huge piece": lambda said, _: said["packs"][0]["pieces"][0].update(size_bytes=1 << 40),
    "a file that is not wanted": lambda said, _: said["rebuilt"].append(
        {"path": "evil.sh", "spans": []}
    ),
    "a file of bundler's own": lambda said, _: said["rebuilt"].append(
        {"path": "manifest.json", "spans": []}
    ),
    "a file twice": lambda said, _: said["rebuilt"].append(said["rebuilt"][0]),
    "a file forgotten": lambda said, _: said["rebuilt"].pop(),
    "a kept file moved away": lambda said, _: said["moved"][0].update(source="start"),
    "one file moved twice": lambda said, _: said["moved"].append(said["moved"][0]),
    "a carried file outside": lambda said, _: said["files"][0].update(path="../../x"),
    "a cluster with two kinds of old bytes": lambda said, _: as_cluster(said, plain_near=True),
    "a cluster from bytes that are none": lambda said, _: as_cluster(said, plain_near=False),
    "an unknown key": lambda said, _: said.update(run="rm -rf /"),
    "another schema": lambda said, _: said.update(schema_version=2),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.fault("C12")
def test_a_hostile_list_is_refused_even_when_it_is_signed(case, tmp_path, name):
    delta = hostile(case, tmp_path, HOSTILE[name])
    stick = copied(case.first, tmp_path / "stick")
    with pytest.raises((UnsafeInput, DamagedError)) as caught:
        applied(case, stick, delta)
    assert caught.value.exit_code in (6, 8)
    left = {path: what for path, what in tree(stick).items() if not path.startswith(STAGING_NAME)}
    assert left == tree(case.first)
    assert {path.name for path in tmp_path.iterdir()} <= {"stick", delta.name}


def with_piece(stored, size_bytes):
    """Return a change that puts other bytes behind the first packed span of the list."""

    def change(said, delta):
        span = next(
            s for one in said["rebuilt"] for s in one["spans"] if s["kind"] == "new"
            if one["path"] == "app/page.html"
        )  # fmt: skip
        with (delta / pack_name(len(said["packs"]))).open("wb") as stream:
            stream.write(stored)
        piece = {"size_bytes": len(stored), "sha256": sha256(stored).hexdigest()}
        said["packs"].append({"pieces": [piece]})
        span.update(pack=len(said["packs"]) - 1, piece=0, packed=True)
        span.pop("near", None)

    return change


@pytest.mark.parametrize(
    ("why", "stored"),
    [
        ("a bomb", zstandard.ZstdCompressor().compress(bytes(1 << 28))),
        ("a bomb without its size", zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(write_content_size=0)
        ).compress(bytes(1 << 28))),
        ("a window of 2 GiB", bytes.fromhex("28b52ffd") + bytes([0b00000000, 0xA8]) + b"\x01\x00\x00"),
        ("not zstd", b"not zstd at all"),
        ("two frames", 2 * zstandard.ZstdCompressor().compress(b"<p>" * 400)),
        ("deflate", zlib.compress(b"x" * 100)),
    ],
)  # fmt: skip
@pytest.mark.fault("C12")
def test_a_piece_that_unpacks_to_more_than_was_said_is_refused(case, tmp_path, why, stored):
    delta = hostile(case, tmp_path, with_piece(stored, 0))
    stick = copied(case.first, tmp_path / "stick")
    with pytest.raises(UnsafeInput) as caught:
        applied(case, stick, delta)
    assert caught.value.exit_code == 8
    left = {p: v for p, v in tree(stick).items() if not p.startswith(STAGING_NAME)}
    assert left == tree(case.first)


def test_a_span_can_never_ask_for_more_memory_than_is_said():
    with pytest.raises(ValueError):
        New(pack=0, piece=0, size_bytes=SPAN_BYTES + 1)
    assert SPAN_BYTES + NEAR_BYTES <= 32 << 20


NONSENSE = {
    "deep": b"[" * 1_000_000,
    "many values": b"[" + b"0," * 5_000_000 + b"0]",
    "many unknown keys": b"{" + b",".join(b'"%d": null' % n for n in range(300_000)) + b"}",
    "many spans of nothing": b'{"rebuilt": ['
    + b",".join([b'{"path": ""       }'] * 300_000)
    + b"]}",
    "one key many times": b"{" + b",".join([b'"path":     null'] * 300_000) + b"}",
    "no JSON": bytes(range(256)) * 4000,
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.fault("C12")
def test_a_list_of_nonsense_is_refused_in_bounded_memory(case, tmp_path, name):
    delta = case.delta_copy(f"nonsense-{name}")
    (delta / DELTA_NAME).write_bytes(NONSENSE[name])
    refused(case, tmp_path, UnsafeInput, "not one", delta=delta)
    code = (
        "import resource, sys; from pathlib import Path; from bundler.errors import UnsafeInput\n"
        "from bundler.update.reading import read_delta\n"
        "used = lambda: int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "before = used()\n"
        "try: read_delta(Path(sys.argv[1]))\n"
        "except UnsafeInput: pass\n"
        "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
        "print(int(peak) * 1024 - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, delta], capture_output=True, text=True)
    assert int(done.stdout) < 200 << 20, done.stderr


# -- cut off ---------------------------------------------------------------------------------------------


def crashes(case, tmp_path, *words):
    """Kill an update at these of its steps; return what the sweep says."""
    (tmp_path / "ring").mkdir()
    write_ring(tmp_path / "ring", case.ring)
    done = subprocess.run(
        [sys.executable, "-m", "tests.update_crashes", str(case.first), str(case.second),
         str(case.made.root), str(tmp_path / "ring"), str(tmp_path / "work"), *map(str, words)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.fault("C1")
def test_an_update_that_is_killed_at_any_step_is_finished_by_the_next_run(
    case, tmp_path, cases_tried
):
    found = crashes(case, tmp_path, "--every", 5)
    cases_tried(found["tried"])
    assert found["steps"] > 60
    assert found["tried"] >= found["steps"] // 5
    assert found["held"] == found["tried"]


@pytest.mark.slow_sweep
@pytest.mark.fault("C1")
def test_every_single_step_can_be_the_last(case, tmp_path, cases_tried):
    found = crashes(case, tmp_path, "--every", 1, "--twice")
    cases_tried(found["tried"])
    assert found["held"] == found["tried"] > found["steps"]


def test_a_run_that_was_cut_off_goes_on_behind_the_last_right_segment(case, tmp_path, monkeypatch):
    stick = copied(case.first, tmp_path / "stick")
    fsync, count = os.fsync, 0

    def failing(descriptor):
        nonlocal count
        size = os.fstat(descriptor).st_size
        if size > 4 * SEGMENT_BYTES and not count:
            count += 1
            os.ftruncate(descriptor, 9 * SEGMENT_BYTES + 100)
            raise OSError(5, "gone")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="gone"):
        applied(case, stick)
    (part,) = (stick / STAGING_NAME).glob("*.part")
    assert part.stat().st_size == 9 * SEGMENT_BYTES + 100
    written = 0
    write = os.write

    def counting(descriptor, data):
        nonlocal written
        written += len(data)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counting)
    applied(case, stick)
    assert tree(stick) == tree(case.second)
    chat = (case.second / "models/chat/chat.gguf").stat().st_size
    others = sum(
        f.size_bytes for f in verify_bundle(case.second).manifest.files
        if f.path in {one.path for one in case.made.delta.rebuilt} and "chat" not in f.path
    )  # fmt: skip
    assert written <= chat - 9 * SEGMENT_BYTES + others


def test_what_lies_in_the_staging_folder_is_never_believed(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    (stick / STAGING_NAME).mkdir()
    chat = verify_bundle(case.second).manifest.files
    file = next(f for f in chat if f.path.endswith(".gguf"))
    evil = stick / STAGING_NAME / f"{file.sha256}-0"
    evil.write_bytes(b"e" * file.size_bytes)
    (stick / STAGING_NAME / "left-by-another-update").write_bytes(b"x")
    with pytest.raises(DamagedError, match="not read back"):
        applied(case, stick)
    applied(case, stick)
    assert tree(stick) == tree(case.second)


def test_another_update_does_not_go_on_with_a_switch_that_is_not_its_own(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    (stick / STAGING_NAME).mkdir()
    (stick / STAGING_NAME / "switch").write_text("f" * 64)
    refused(case, tmp_path, RecipeError, "another update", "f" * 64, stick=stick)


@pytest.mark.parametrize("version", ["first", "second"])
def test_a_link_in_the_place_of_the_staging_folder_empties_no_folder(case, tmp_path, version):
    """An update that is already there closes the folder that an earlier one may have left."""
    stick = copied(getattr(case, version), tmp_path / "stick")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/letter.txt").write_text("dear")
    (stick / STAGING_NAME).symlink_to(tmp_path / "documents")
    with pytest.raises(UnsafeInput, match="link"):
        applied(case, stick)
    assert (tmp_path / "documents/letter.txt").read_text() == "dear"


def half_switched(case, stick):
    """Pretend that the update was cut off when everything old was cleared away."""
    staging = stick / STAGING_NAME
    staging.mkdir(exist_ok=True)
    mark = sha256((case.made.root / "delta.json").read_bytes()).hexdigest()
    for name in ("switch", "cleared"):
        (staging / name).write_text(mark)
    return staging


def test_lists_in_a_switch_that_somebody_forged_are_not_believed(case, tmp_path):
    """Nothing is called updated that is not what was signed, whatever lies in the staging folder."""
    stick = copied(case.first, tmp_path / "stick")
    staging = half_switched(case, stick)
    for number in range(8):
        (staging / f"beside-{number}").write_bytes(b"{}")
    with pytest.raises((DamagedError, UnsafeInput)):
        applied(case, stick)
    assert (stick / "manifest.json").read_bytes() != b"{}"


def test_what_the_staging_folder_lost_after_the_switch_began_is_told_and_repaired(
    case, tmp_path, monkeypatch
):
    """The update is finished all the same: only then is there parity to repair it with."""
    stick = copied(case.first, tmp_path / "stick")

    class Pulled(Exception):
        pass

    def pulled(*_):
        raise Pulled

    with monkeypatch.context() as patched:
        patched.setattr(switching, "_place_all", pulled)
        with pytest.raises(Pulled):
            applied(case, stick)
    pieces = [path for path in (stick / STAGING_NAME).iterdir() if len(path.name) > 64]
    small = min(pieces, key=lambda path: path.stat().st_size or 1 << 40)
    small.unlink()
    with pytest.raises(DamagedError, match="lost in the staging folder"):
        applied(case, stick)
    assert verify_bundle(stick).findings
    repair_bundle(stick)
    assert tree(stick) == tree(case.second)


def test_a_switch_that_was_forged_follows_no_links(case, tmp_path):
    stick = copied(case.first, tmp_path / "stick")
    half_switched(case, stick)
    (stick / STAGING_NAME / "cleared").unlink()
    shutil.move(stick / "app", tmp_path / "outside")
    (stick / "app").symlink_to(tmp_path / "outside")
    before = tree(tmp_path / "outside")
    with pytest.raises(UnsafeInput, match="link"):
        applied(case, stick)
    assert tree(tmp_path / "outside") == before


# -- on sticks -----------------------------------------------------------------------------------------


def put(bundle, target):
    """Copy a bundle to where no modes can be set."""
    for path in sorted(bundle.rglob("*")):
        place = target / path.relative_to(bundle)
        if path.is_dir():
            place.mkdir(parents=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return target


def contents(root):
    return {path: what if what == "folder" else what[0] for path, what in tree(root).items()}


@pytest.mark.mounts
@pytest.mark.parametrize("kind", ["ext4", "exfat", "fat"])
def test_a_stick_of_any_kind_is_updated(case, tmp_path, kind):
    with sticks.stick(tmp_path, kind) as point:
        stick = put(case.first, point / "clinic")
        applied(case, stick)
        assert contents(stick) == contents(case.second)
        assert [f for f in verify_bundle(stick).findings if f.kind != "mode"] == []


@pytest.mark.mounts
@pytest.mark.fault("C2")
def test_a_full_stick_keeps_the_old_version_and_goes_on_when_there_is_room(case, tmp_path):
    whole = sum(path.stat().st_size for path in case.first.rglob("*") if path.is_file())
    with sticks.memory(tmp_path / "stick", f"{whole + (6 << 20)}") as point:
        stick = copied(case.first, point / "clinic")
        filler = point / "filler"
        filler.write_bytes(bytes(5 << 20))
        with pytest.raises(DoesNotFit, match="are free"):
            applied(case, stick)
        assert tree(stick) == tree(case.first)
        filler.unlink()
        before = shutil.disk_usage

        def roomy(path):
            return before(path)._replace(free=1 << 40)

        filler.write_bytes(bytes(shutil.disk_usage(point).free - (600 << 10)))
        shutil.disk_usage = roomy  # as when somebody else fills the stick in the meantime
        try:
            with pytest.raises(DoesNotFit, match="the disk is full") as caught:
                applied(case, stick)
        finally:
            shutil.disk_usage = before
        assert caught.value.exit_code == 4
        assert [f.path for f in verify_bundle(stick).findings] == [STAGING_NAME]
        filler.unlink()
        applied(case, stick)
        assert tree(stick) == tree(case.second)


@pytest.mark.mounts
@pytest.mark.fault("C1")
def test_when_the_power_goes_at_a_step_the_next_run_finishes(case, tmp_path):
    """What had reached the device at a step is what there is afterwards; the rest is lost."""
    steps = crashes(case, tmp_path, "--every", 1000)["steps"]
    switch = range(steps - 40, steps, 9)
    plain = sticks.image(tmp_path / "image", "ext4", 48)
    with sticks.mounted(plain, "ext4", tmp_path / "point") as point:
        copied(case.first, point / "clinic")
        os.sync()
    for step in sorted({*range(4, steps, steps // 3), *switch}):
        image, cut = tmp_path / "now", tmp_path / "cut"
        subprocess.run(["cp", "--sparse=always", plain, image], check=True)
        with sticks.mounted(image, "ext4", tmp_path / "point", must=True) as point:
            words = ["-c", STOPPED, case.made.root, point / "clinic", tmp_path / "ring", step]
            with subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT) as process:
                _, status = os.waitpid(process.pid, os.WUNTRACED)
                assert os.WIFSTOPPED(status)
                subprocess.run(["cp", "--sparse=always", image, cut], check=True)
                process.kill()
        with sticks.mounted(cut, "ext4", tmp_path / "after", must=True) as point:
            stick = point / "clinic"
            if not (stick / SWITCH_NAME).exists():
                version_there = (stick / "manifest.json").read_bytes()
                assert {f.path for f in verify_bundle(stick).findings} <= {STAGING_NAME}
                wanted = (case.first, case.second)
                assert version_there in [(b / "manifest.json").read_bytes() for b in wanted]
            applied(case, stick)
            assert tree(stick) == tree(case.second)


STOPPED = """
import os, signal, sys
from pathlib import Path
from bundler.media.keys import read_ring
from bundler.update.applying import Trust, apply_delta
from tests.update_crashes import watched
steps = watched(int(sys.argv[4]), signal.SIGSTOP)
apply_delta(Path(sys.argv[1]), Path(sys.argv[2]), Trust(read_ring(Path(sys.argv[3]))))
"""
