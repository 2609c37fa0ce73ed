"""The contract for plugins: what keeps it passes, and what is careless is caught and named."""

import importlib.util
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bundler.builtin import knowledge, llamacpp, runtimes, sources, targets
from bundler.builtin.knowledge import FolderCorpus, ZimCorpus
from bundler.builtin.runtimes.xllamacpp import XllamacppRuntime, host_platform
from bundler.builtin.sources import HttpSource, HubSource, PathSource
from bundler.builtin.sources.shipped import ShippedSource
from bundler.errors import StepFailed
from bundler.hardware import Target
from bundler.hookspecs import ByteStream, hookimpl
from bundler.lock import LockedFile, Resolution
from bundler.pacing import Patience
from bundler.recipe import ModelRequest, SourceReference
from bundler.store import Store
from bundler.testing import contract
from bundler.testing.contract import (
    check_corpus_kind,
    check_engine,
    check_needs,
    check_offer,
    check_plugin,
    check_runtime,
    check_source,
    check_target,
)
from bundler.testing.fakes import MAGIC, FakeCorpus, FakeEngine, FakeRuntime, Fakes, MemorySource
from bundler.testing.hub import TestHub
from bundler.testing.station_bundle import make_zim
from bundler.world import World

EXAMPLES = Path(__file__).parents[1] / "examples"
FAST = Patience(attempts=2, first_delay_seconds=0.01, longest_delay_seconds=0.01)


def example():
    spec = importlib.util.spec_from_file_location("one_file", EXAMPLES / "plugin_in_one_file.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(text, **more):
    return SourceReference.model_validate(
        {**SourceReference.model_validate(text).model_dump(), **more}
    )


def weights():
    source = MemorySource()
    source.files = {"weights": {"all.fake": MAGIC + bytes(range(256)) * 400}}
    return source, source.files["weights"]["all.fake"]


def world_at(folder, **environment):
    (folder / "recipe").mkdir()
    return World(Store(folder / "store"), environment, folder=folder / "recipe")


# -- what keeps it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [sources, knowledge, llamacpp, runtimes, targets, None, "fakes"])
def test_the_built_in_plugins_the_fakes_and_the_example_register_well(plugin):
    if plugin in (sources, knowledge, llamacpp, runtimes, targets):
        # They are registered already: look at what they give, under a name of its own.
        for hook in (name for name in dir(plugin) if name.startswith("bundler_")):
            for item in getattr(plugin, hook)():
                contract._check_item(hook, item)
    else:
        check_plugin(Fakes() if plugin else example())


def test_the_fake_source_keeps_it(tmp_path):
    source, _ = weights()
    check_source(source, reference("memory:weights"), world_at(tmp_path))


def test_the_source_path_keeps_it(tmp_path):
    world = world_at(tmp_path)
    (world.folder / "docs").mkdir()
    (world.folder / "docs/a.txt").write_bytes(b"water " * 1000)
    (world.folder / "docs/b.txt").write_bytes(b"")
    resolution = check_source(PathSource(), reference("path:docs"), world)
    assert [file.path for file in resolution.files] == ["a.txt", "b.txt"]


def test_the_source_of_the_shipped_texts_keeps_it(tmp_path):
    check_source(ShippedSource(), reference("shipped:heldout"), world_at(tmp_path))


def test_the_sources_of_the_network_keep_it(tmp_path):
    with TestHub() as hub:
        hub.add_repository(
            "owner/name", {"config.json": b"{}", "model.safetensors": b"weights" * 1000}
        )
        world = world_at(tmp_path, HF_ENDPOINT=hub.url)
        check_source(HubSource(stall_seconds=2, patience=FAST), reference("hf:owner/name"), world)
        url = hub.add_file("notes.txt", b"boil it " * 500, sha256_beside=True)
        check_source(HttpSource(stall_seconds=2, patience=FAST), reference(url), world)


def test_the_fake_engine_keeps_it_and_builds_what_it_offers(tmp_path):
    source, data = weights()
    resolution = source.resolve(reference("memory:weights"), world_at(tmp_path))
    offers = check_engine(FakeEngine(), resolution, lambda _, start, n: data[start : start + n])
    assert {offer.quant for offer in offers} == {"half", "tenth"}
    (file,) = resolution.files
    proof = check_offer(FakeEngine(), offers[0], {file.sha256: data}, tmp_path / "built")
    assert proof.quality.kld_mean == 0.01


def test_the_engine_llama_cpp_keeps_it_for_facts_and_offers(tmp_path):
    world = World(Store(tmp_path / "store"), folder=EXAMPLES)
    resolution = PathSource().resolve(reference("path:model"), world)

    def read(file, start, length):
        return (EXAMPLES / "model" / file.path).read_bytes()[start : start + length]

    texts = {
        name: ShippedSource().resolve(reference(f"shipped:{name}"), world)
        for name in ("calibration", "heldout")
    }
    engine = llamacpp.bundler_engines()[0]
    request = ModelRequest(source=reference("path:model"), context_tokens=512, parallel=2)
    offers = check_engine(engine, resolution, read, request=request, texts=texts)
    assert len(offers) > 10


@pytest.mark.parametrize("kind", [FolderCorpus(), None], ids=["folder", "dictionary"])
def test_corpus_kinds_that_write_a_zim_keep_it(tmp_path, kind):
    files = {"a.md": b"# Water\n\nBoil it for a minute.", "b/c.txt": b"Keep the fire small."}
    words = {"g.tsv": b"tourniquet\ta tight band\n", "j.jsonl": b'{"term":"a","definition":"b"}'}
    coverage = check_corpus_kind(
        kind or example().DictionaryCorpus(), files if kind else words, {}, tmp_path
    )
    assert coverage.articles_indexed == 2


def test_the_corpus_kind_zim_keeps_it(tmp_path):
    made = make_zim(tmp_path / "made.zim")
    coverage = check_corpus_kind(ZimCorpus(), {"made.zim": made}, {}, tmp_path / "run")
    assert coverage.full_text


def test_the_fake_corpus_and_the_fake_runtime_keep_it(tmp_path):
    check_corpus_kind(FakeCorpus(), {"a": b"1", "b": b"2"}, {}, tmp_path / "corpus", zim=False)
    check_runtime(FakeRuntime(), "linux-x86_64", tmp_path / "runtime")


def test_the_runtime_xllamacpp_says_what_it_needs_the_same_every_time(tmp_path):
    world = world_at(tmp_path)
    assert check_needs(XllamacppRuntime(), host_platform(), world).revision


# -- what is careless --------------------------------------------------------------------------------


@dataclass
class Careless:
    """A corpus kind that does one wrong thing."""

    wrong: object
    name: str = "careless"
    version: str = "1"

    def tool(self):
        return self.version

    def run(self, task):
        (task.output / "corpus.zim").write_bytes(b"ZIM?")
        facts = {"title": "t", "language": "eng", "articles_found": 1, "articles_indexed": 1}
        return self.wrong(task, facts) or facts


def unstable_output(task, facts):
    (task.output / "corpus.zim").write_text(str(task.output))


def ordered_by_chance(task, facts):
    (task.output / "corpus.zim").write_text(",".join(task.inputs))


def writes_beside(task, facts):
    (task.output.parent / "beside.txt").write_text("mine")


def writes_to_where_it_stands(task, facts):
    Path("log.txt").write_text("mine")


def forgets_a_temporary_file(task, facts):
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(b"1")


def removes_a_file_of_the_machine(task, facts):
    (task.output.parent.parent / "precious.txt").unlink(missing_ok=True)


def changes_an_input(task, facts):
    path = task.inputs["a"]
    path.chmod(0o644)
    path.write_bytes(b"mine")


def leaves_an_unsafe_name(task, facts):
    (task.output / "con.txt").write_text("1")


def leaves_twins(task, facts):
    (task.output / "A.txt").write_text("1")
    (task.output / "a.txt").write_text("1")


def leaves_a_link(task, facts):
    (task.output / "passwords").symlink_to("/etc/hostname")


def tells_no_json(task, facts):
    return {**facts, "when": {1, 2}}


def tells_nothing(task, facts):
    return ["not", "facts"]


def tells_where_it_was(task, facts):
    return {**facts, "title": str(task.output)}


def raises_what_nobody_expects(task, facts):
    raise KeyError("a")


def goes_too_far(task, facts):
    task.progress(2, 1, "bytes")


def changes_its_parameters(task, facts):
    task.parameters["title"] = "mine"


WRONG = {
    unstable_output: "same bytes twice: corpus.zim",
    ordered_by_chance: "same bytes twice",
    writes_beside: "changes what is not its own: .*beside.txt",
    writes_to_where_it_stands: "log.txt",
    forgets_a_temporary_file: "leaves things lying about: tmp/",
    removes_a_file_of_the_machine: "precious.txt",
    changes_an_input: "changes",
    leaves_an_unsafe_name: "unsafe name",
    leaves_twins: "one file on many filesystems",
    leaves_a_link: "symbolic link: passwords",
    tells_no_json: "no JSON",
    tells_nothing: "gives list",
    tells_where_it_was: "same facts twice",
    raises_what_nobody_expects: "KeyError, which is no BundlerError",
    goes_too_far: "more than there is",
    changes_its_parameters: "changes its parameters",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_careless_step_is_caught(tmp_path, wrong):
    with pytest.raises(AssertionError, match=WRONG[wrong]):
        check_corpus_kind(Careless(wrong), {"a": b"1", "b": b"2"}, {}, tmp_path / "run", zim=False)


def test_a_file_that_only_calls_itself_a_zim_is_caught(tmp_path):
    with pytest.raises(AssertionError, match="no ZIM file"):
        check_corpus_kind(FakeCorpus(), {"a": b"1"}, {}, tmp_path)


def test_a_kind_that_takes_garbage_for_documents_is_caught(tmp_path):
    example_page = tmp_path / "page.md"
    example_page.write_text("# Anything\n\nInstead of what was given.")

    class Credulous(FolderCorpus):
        name = "credulous"

        def run(self, task):
            if any(b"neither" in path.read_bytes() for path in task.inputs.values()):
                files = {"a.md": example_page}
                return knowledge.build_zim(files, task).model_dump(mode="json")
            return super().run(task)

    with pytest.raises(AssertionError, match="garbage"):
        check_corpus_kind(Credulous(), {"a.md": b"# Water\n\nBoil it."}, {}, tmp_path / "run")


@pytest.mark.parametrize("tool", ["", " ", None])
def test_a_fingerprint_that_says_nothing_is_caught(tmp_path, tool):
    with pytest.raises(AssertionError, match="fingerprint"):
        check_corpus_kind(Careless(lambda *_: None, version=tool), {}, {}, tmp_path, zim=False)


def test_a_fingerprint_that_changes_is_caught(tmp_path):
    class Restless(FakeCorpus):
        times = 0

        def tool(self):
            self.times += 1
            return str(self.times)

    with pytest.raises(AssertionError, match="call to call"):
        check_corpus_kind(Restless(), {}, {}, tmp_path, zim=False)


def test_an_error_for_people_goes_through_as_it_is(tmp_path):
    def refuses(task, facts):
        raise StepFailed("the glossary is empty")

    with pytest.raises(StepFailed, match="glossary"):
        check_corpus_kind(Careless(refuses), {}, {}, tmp_path, zim=False)


class WrongSource(MemorySource):
    """The fake source with one thing broken, on 30 bytes."""

    def __init__(self):
        super().__init__()
        self.files = {"x": {"a.txt": bytes(range(30))}}


def source_with(**methods):
    return type("Broken", (WrongSource,), methods)()


@contextmanager
def ignores_the_start(self, address, *, start, end, validator, world) -> Iterator[ByteStream]:
    yield ByteStream(start, 30, None, iter([bytes(range(30))]))


@contextmanager
def ignores_the_end(self, address, *, start, end, validator, world) -> Iterator[ByteStream]:
    yield ByteStream(start, 30, None, iter([bytes(range(start, 30))]))


@contextmanager
def ignores_the_version(self, address, *, start, end, validator, world) -> Iterator[ByteStream]:
    yield ByteStream(start, 30, '"v1"', iter([bytes(range(30))[start:end]]))


@contextmanager
def wrong_bytes(self, address, *, start, end, validator, world) -> Iterator[ByteStream]:
    yield ByteStream(start, 30, None, iter([bytes(30)]))


@contextmanager
def wrong_size(self, address, *, start, end, validator, world) -> Iterator[ByteStream]:
    yield ByteStream(start, 31, None, iter([bytes(range(30))[start:end]]))


def forgets(self, reference, world):
    WrongSource.count = getattr(WrongSource, "count", 0) + 1
    file = LockedFile(path="a", size_bytes=0, sha256="0" * 64, addresses=("x",))
    return Resolution(source="memory", reference="", revision=str(WrongSource.count), files=(file,))


def makes_it_up(self, reference, world):
    known = reference.model_copy(update={"locator": "x"})
    return WrongSource.resolve(self, known, world)


def lets_a_lookup_fail(self, reference, world):
    if reference.locator != "x":
        raise KeyError(reference.locator)
    return WrongSource.resolve(self, reference, world)


def keeps_a_diary(self, reference, world):
    (world.folder / "diary.txt").write_text("asked")
    return WrongSource.resolve(self, reference, world)


def connects_offline(self, reference, world):
    if world.offline:
        with socket.socket() as connection:
            connection.connect_ex(("127.0.0.1", 9))
    return WrongSource.resolve(self, reference, world)


def _label(given):
    """Name a case by the methods it spoils: addresses of functions differ between processes."""
    if isinstance(given, dict):
        return "-".join(getattr(value, "__name__", str(value)) for value in given.values())
    return str(given)


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"open": ignores_the_start}, "other bytes from 10 on"),
        ({"open": ignores_the_end}, "more than was asked for"),
        ({"open": ignores_the_version}, "version has changed"),
        ({"open": wrong_bytes}, "SHA-256"),
        ({"open": wrong_size}, "31 bytes"),
        ({"resolve": forgets}, "differs from call to call"),
        ({"resolve": makes_it_up}, "is not there, but is resolved"),
        ({"resolve": lets_a_lookup_fail}, "KeyError, which is no BundlerError"),
        ({"resolve": keeps_a_diary}, "diary.txt"),
        ({"resolve": connects_offline}, "although offline"),
        ({"name": "not a name"}, "cannot name the source"),
    ],
    ids=_label,
)
def test_a_careless_source_is_caught(tmp_path, methods, words):
    with pytest.raises(AssertionError, match=words):
        check_source(source_with(**methods), reference("memory:x"), world_at(tmp_path))


def changed_offers(**update):
    def offers(self, request, model, target, texts):
        found = FakeEngine.offers(self, request, model, target, texts)
        return [offer.model_copy(update=update) for offer in found]

    return offers


def unasked(self, request, model, target, texts):
    return FakeEngine.offers(
        self, request.model_copy(update={"quant": ("auto",)}), model, target, texts
    )


def restless(self, request, model, target, texts):
    self.times = getattr(self, "times", 0) + 1
    found = FakeEngine.offers(self, request, model, target, texts)
    return [offer.model_copy(update={"quality": float(self.times)}) for offer in found]


def strange_input(self, request, model, target, texts):
    found = FakeEngine.offers(self, request, model, target, texts)
    step = found[0].steps[0]
    stranger = step.inputs["weights"].model_copy(update={"sha256": "f" * 64})
    changed = step.model_copy(update={"inputs": {"weights": stranger}})
    return [offer.model_copy(update={"steps": (changed, offer.steps[1])}) for offer in found]


def backwards(self, request, model, target, texts):
    found = FakeEngine.offers(self, request, model, target, texts)
    return [offer.model_copy(update={"steps": offer.steps[::-1]}) for offer in found]


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"offers": changed_offers(disk_bytes=0)}, "disk_bytes is 0"),
        ({"offers": changed_offers(context_tokens=8)}, "a context of 8"),
        ({"offers": changed_offers(parallel=9)}, "9 users"),
        ({"offers": changed_offers(engine="other")}, "engine 'other'"),
        ({"offers": changed_offers(quality=float("nan"))}, "quality is nan"),
        ({"offers": changed_offers(quant="one")}, "two offers"),
        ({"offers": unasked}, "asked for half alone"),
        ({"offers": restless}, "differ from call to call"),
        ({"offers": strange_input}, "not in the lock"),
        ({"offers": backwards}, "no earlier step"),
        ({"offers": lambda *_: []}, "offers nothing"),
        ({"facts": lambda self, resolution, read: {}}, "no ModelFacts"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_careless_engine_is_caught(tmp_path, methods, words):
    source, data = weights()
    resolution = source.resolve(reference("memory:weights"), world_at(tmp_path))
    engine = type("Broken", (FakeEngine,), methods)()
    with pytest.raises(AssertionError, match=words):
        check_engine(engine, resolution, lambda _, start, n: data[start : start + n])


def test_an_offer_that_promises_another_size_than_it_builds_is_caught(tmp_path):
    source, data = weights()
    resolution = source.resolve(reference("memory:weights"), world_at(tmp_path))
    offers = check_engine(FakeEngine(), resolution, lambda _, start, n: data[start : start + n])
    small = offers[0].model_copy(update={"disk_bytes": 1000})
    files = {file.sha256: data for file in resolution.files}
    with pytest.raises(AssertionError, match="1,000 were offered"):
        check_offer(FakeEngine(), small, files, tmp_path / "built")


def test_a_careless_runtime_is_caught(tmp_path):
    class Anonymous(FakeRuntime):
        def run(self, task):
            return {**super().run(task), "components": [{"name": "x", "version": "1"}]}

    class Absent(FakeRuntime):
        def run(self, task):
            return {**super().run(task), "executables": ["not-there"]}

    class Mute(FakeRuntime):
        def run(self, task):
            facts = super().run(task)
            (task.output / "fake.json").write_text('{"command": ["run.sh", "{model}"]}')
            return facts

    with pytest.raises(AssertionError, match=r"no \{port\}"):
        check_runtime(Mute(), "linux-x86_64", tmp_path / "d")
    with pytest.raises(AssertionError, match="licence"):
        check_runtime(Anonymous(), "linux-x86_64", tmp_path / "a")
    with pytest.raises(AssertionError, match="not-there"):
        check_runtime(Absent(), "linux-x86_64", tmp_path / "b")
    with pytest.raises(AssertionError, match="does not run on macos"):
        check_runtime(FakeRuntime(), "macos-arm64", tmp_path / "c")


def test_a_target_without_a_source_of_its_figures_is_caught():
    with pytest.raises(AssertionError, match="figures come from"):
        check_target(Target(name="box", ram_bytes=1))
    with pytest.raises(AssertionError, match="disagree"):
        check_target(Target(name="box", ram_bytes=1, accelerator="cuda", source="x"))


def test_a_hook_nobody_would_call_is_caught():
    class Unmarked:
        def bundler_corpora(self):
            return []

    class Misspelled:
        @hookimpl
        def bundler_corpus(self):
            return []

    with pytest.raises(AssertionError, match="not marked with @hookimpl"):
        check_plugin(Unmarked())
    with pytest.raises(AssertionError, match="no hook called bundler_corpus"):
        check_plugin(Misspelled())
    with pytest.raises(AssertionError, match="has no function"):
        check_plugin(object())
