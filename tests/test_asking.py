"""A proof that is cut off has lost the question that was being answered, and no other."""

import json
import os

import pytest

from bundler.builtin.llamacpp.asking import answered_once
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.builtin.llamacpp.prove import FINGERPRINT_NAME
from bundler.hookspecs import Task
from bundler.store import Store
from bundler.unfinished import MOST_UNFINISHED, kept_of_step
from bundler.world import World
from tests.models import quantized, text_file, tiny_gguf
from tests.test_evaluate import TALKER


def task_in(folder, inputs=None, progress=lambda *_: None, **parameters):
    output = folder / "output"
    output.mkdir(parents=True)
    kept = folder.parent / "kept"
    kept.mkdir(exist_ok=True)
    world = World(store=Store(folder.parent / "store"), environment=os.environ)
    return Task("prove", inputs or {}, parameters, output, progress, world, kept)


class CutOff(KeyboardInterrupt):
    """Somebody pressed Ctrl-C."""


def test_an_interrupted_proof_goes_on_with_the_question_it_was_at(tmp_path):
    inputs = {
        "model.gguf": quantized(tiny_gguf(TALKER), "Q4_K_M"),
        "reference.gguf": tiny_gguf(TALKER),
        "heldout.txt": text_file(),
    }
    asked = {"context_tokens": 512, "tokens": 1024, "gpu_layers": 0, "long_tokens": 64}

    def interrupt(done, total, unit):
        raise CutOff

    with pytest.raises(CutOff):  # while it compares: the model was run and measured
        LlamaCppEngine().run(task_in(tmp_path / "first", inputs, interrupt, **asked))
    (measured,) = (tmp_path / "kept").glob("*.json")
    answer = measured.read_bytes()
    speed = json.loads(answer)["answer"]["speed"]
    again = task_in(tmp_path / "again", inputs, **asked)
    proof = LlamaCppEngine().run(again)
    # A speed measured twice is never the same to the last bit.
    assert proof["speed"]["generation_tokens_per_second"] == speed["generation_tokens_per_second"]
    assert measured.read_bytes() == answer
    assert proof["quality"]["kld_mean"] > 0
    assert proof["long_answers"] is not None
    assert (again.output / FINGERPRINT_NAME).stat().st_size > 1000
    # All is answered: once more takes no child, and says the same to the last bit.
    third = task_in(tmp_path / "third", inputs, interrupt, **asked)
    assert LlamaCppEngine().run(third) == proof
    for name in ("proof.json", FINGERPRINT_NAME):
        assert (third.output / name).read_bytes() == (again.output / name).read_bytes()


def test_a_question_is_the_same_wherever_the_files_lie_and_another_for_other_files(tmp_path):
    times = []

    def ask(folder, question, inputs):
        task = task_in(tmp_path / folder, inputs)
        return answered_once(task, question, lambda: times.append(folder) or len(times))

    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    assert ask("a", {"model": str(one), "scales": [[str(one), 1.0]]}, {"model.gguf": one}) == 1
    assert ask("b", {"model": str(two), "scales": [[str(two), 1.0]]}, {"model.gguf": two}) == 1
    assert ask("c", {"model": str(two), "scales": []}, {"model.gguf": two}) == 2
    assert ask("d", {"model": str(two), "scales": []}, {"reference.gguf": two}) == 3


@pytest.mark.parametrize("torn", [b"", b"{", b"[]", b'{"other": 1}', b"\xff"])
def test_an_answer_that_is_not_whole_is_asked_for_again(tmp_path, torn):
    task = task_in(tmp_path / "a")
    assert answered_once(task, {"q": 1}, lambda: 1) == 1
    (path,) = task.kept.iterdir()
    path.write_bytes(torn)
    assert answered_once(task, {"q": 1}, lambda: 2) == 2
    assert answered_once(task, {"q": 1}, lambda: 3) == 2


def test_an_answer_whose_file_is_gone_is_asked_for_again(tmp_path):
    task = task_in(tmp_path / "a")
    leaf = task.kept / "leaf"

    def ask():
        leaf.write_bytes(b"x")
        return 1

    assert answered_once(task, {"q": 1}, ask, leaves=[leaf]) == 1
    leaf.unlink()
    assert answered_once(task, {"q": 1}, ask, leaves=[leaf]) == 1
    assert leaf.exists()


def cut_off(store, key, work):
    def step():
        with kept_of_step(store, key) as kept:
            work(kept)
            raise CutOff

    with pytest.raises(CutOff):
        step()


def test_what_is_kept_of_a_step_stays_when_it_is_cut_off_and_goes_when_it_is_done(tmp_path):
    store = Store(tmp_path)
    cut_off(store, "a" * 64, lambda kept: (kept / "x").write_text("half"))
    with kept_of_step(store, "a" * 64) as again:
        assert (again / "x").read_text() == "half"
    assert not again.exists()


def test_only_the_newest_unfinished_steps_are_kept(tmp_path):
    store = Store(tmp_path)
    for number in range(MOST_UNFINISHED + 3):
        cut_off(
            store, f"{number:02}" + "0" * 62, lambda kept, at=number: os.utime(kept, ns=(at, at))
        )
    assert len(list((tmp_path / "work").glob("step-*"))) == MOST_UNFINISHED
