"""Questions with known answers: their files, what is asked, what the answers show, the gate."""

import json
import math
import os
import random
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.builtin.llamacpp.leaks import with_known_runs
from bundler.builtin.llamacpp.tasks.comparing import drawn_anew
from bundler.builtin.llamacpp.tasks.likelihoods import _batches, _Cell
from bundler.errors import ProofFailed, RecipeError, StepFailed, UnsafeInput
from bundler.execute import _progress
from bundler.feedback.measurements import Known
from bundler.gates import check_gates, gate_problems
from bundler.hookspecs import Task
from bundler.lock import Measurement, TaskLoss
from bundler.plan import Step
from bundler.proof import Proof, TaskResult
from bundler.recipe import Gates
from bundler.recipe_file import parse_recipe, read_recipe
from bundler.resolve import lock_path, read_lock
from bundler.store import Store
from bundler.tasks.asked import asked_digest, asked_tasks, digests_of_step, with_tasks
from bundler.tasks.evidence import (
    detail_of,
    items_needed,
    least_items,
    loss_at_most,
    mcnemar_p,
)
from bundler.tasks.items import ChoiceItem, WrittenItem, asked_letters, asked_texts, drawn
from bundler.tasks.judging import is_right
from bundler.tasks.reading import read_choices, read_written
from bundler.tasks.rows import MOST_FILE_BYTES, MOST_LINE_BYTES
from bundler.world import World
from tests.demo import bundler, quickstart
from tests.fake_build import RECIPE as FAKE_RECIPE
from tests.fake_build import fakes, run
from tests.models import (
    Shape,
    job,
    llama_fields,
    llama_weights,
    quantized,
    text_file,
    tiny_gguf,
    write_gguf,
)

ROOT = Path(__file__).parents[1]
HEADER = "question,A,B,C,D,answer\n"
ROW = '"Two, and two?",3,4,5,6,B\n'
ITEM = ChoiceItem(1, "Two, and two?", ("3", "4", "5", "6"), 1)
CALM = Shape(hidden=64, feed_forward=96, vocabulary=320, heads=4, kv_heads=2, layers=2)


def line(**changes):
    return json.dumps({"question": "What?", "choices": ["a thing", "no"], "answer": 0} | changes)


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [ROW, HEADER + ROW, "\ufeff" + HEADER + ROW, "\n" + ROW + "\n"])
def test_csv_is_read_with_a_header_and_without_one(text):
    (item,) = read_choices(text.encode(), "x.csv")
    assert (item.question, item.choices, item.answer) == (ITEM.question, ITEM.choices, 1)


def test_columns_go_by_their_names_and_further_ones_are_passed_over():
    text = "subject,answer,D,C,B,A,Question\nsums,A,6,5,4,3,How many?\n"
    (item,) = read_choices(text.encode(), "x.csv")
    assert (item.question, item.choices, item.answer) == ("How many?", ("3", "4", "5", "6"), 0)


@pytest.mark.parametrize(
    ("answer", "meant"), [(1, 1), ("B", 1), ("b", 1), ("no", 1), (0, 0), (" a thing ", 0)]
)
def test_an_answer_is_a_number_a_letter_or_the_text_of_a_choice(answer, meant):
    (item,) = read_choices(line(answer=answer).encode(), "x.jsonl")
    assert item.answer == meant


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("x.csv", "", "x.csv: holds no questions"),
        ("x.csv", HEADER, "x.csv: holds no questions"),
        ("x.jsonl", "\n\n", "x.jsonl: holds no questions"),
        ("x.csv", "prompt,reply\na,b\n", "missing: question, A, B, C, D, answer"),
        ("x.csv", "question,A,B,C,answer\nq,1,2,3,A\n", "missing: D"),
        ("x.csv", HEADER + ROW + "q,1,2,3,4,E\n", "x.csv:3: its answer 'E' is outside the choices"),
        ("x.csv", HEADER + "q,1,2,3,A\n", "x.csv:2: has 5 columns, the first row has 6"),
        ("x.csv", HEADER + '"q,1,2,3,4,A\n', "x.csv:2: is no CSV"),
        ("x.jsonl", "{", "x.jsonl:1: is no JSON"),
        ("x.jsonl", "[" * 60_000, "x.jsonl:1: is no JSON"),
        ("x.jsonl", "[1]", "x.jsonl:1: is no JSON object"),
        ("x.jsonl", '{"prompt": "x"}', "lacks question, choices, answer; it has: prompt"),
        ("x.jsonl", line(answer=2), "its answer 2 is outside the choices: 0 to 1"),
        ("x.jsonl", line(answer=True), "its answer True is neither a number"),
        ("x.jsonl", line(answer=None), "its answer None is neither a number"),
        ("x.jsonl", line(choices=["B", "A"], answer="A"), "means more than one choice"),
        ("x.jsonl", line(choices=["x", "x"], answer="x"), "means more than one choice"),
        ("x.jsonl", line(choices=["x"]), "has 1 choices; 2 to 26 can be asked"),
        ("x.jsonl", line(choices=["x", " "]), "has an empty choice"),
        ("x.jsonl", line(choices="ab"), "no list of texts"),
        ("x.jsonl", line(question=" "), "has no question"),
        ("x.txt", ROW, "is no file of such questions: CSV (.csv), JSON lines (.jsonl) or Parquet"),
    ],
)
def test_each_fault_of_a_file_has_its_own_words_and_its_row(path, text, said):
    with pytest.raises(RecipeError) as caught:
        read_choices(text.encode(), path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (HEADER.encode() + b"x" * (MOST_LINE_BYTES + 1), "x.csv:2: has a line of more than"),
        (b"\n" * (MOST_FILE_BYTES + 1), "is larger than 64 MiB"),
    ],
    ids=["bytes", "line", "file"],
)
def test_what_could_do_harm_is_not_read(data, said):
    with pytest.raises(UnsafeInput, match=said):
        read_choices(data, "x.csv")


def test_all_bad_rows_are_said_at_once_up_to_twenty():
    with pytest.raises(RecipeError) as caught:
        read_choices("\n".join(["{}"] * 100).encode(), "x.jsonl")
    assert len(caught.value.problems) == 21


@given(st.binary(max_size=300), st.sampled_from(["x.csv", "x.jsonl"]))
def test_any_bytes_are_read_or_refused(data, path):
    try:
        assert all(item.answers for item in read_written(data, path, patterns=True))
        items = read_choices(data, path)
    except (RecipeError, UnsafeInput):
        return
    assert all(0 <= item.answer < len(item.choices) for item in items)


@pytest.mark.parametrize(
    ("name", "text", "answers"),
    [
        ("x.csv", "question,answer\nq,42\n", ("42",)),
        ("x.csv", 'q,"a, b"\n', ("a, b",)),
        ("x.jsonl", '{"question": "q", "answer": 4}', ("4",)),
        ("x.jsonl", '{"question": "q", "answer": ["four", 4]}', ("four", "4")),
    ],
)
def test_answers_that_are_written_are_read(name, text, answers):
    assert read_written(text.encode(), name) == (WrittenItem(1 + ("n,a" in text), "q", answers),)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "x.csv",
            "a,b,c\n1,2,3\n",
            "x.csv:1: has wrong columns: a, b, c; missing: question, answer",
        ),
        ("x.jsonl", '{"question": "q"}', "x.jsonl:1: lacks answer"),
        ("x.jsonl", '{"question": "q", "answer": []}', "neither a text, a number nor a list"),
        ("x.jsonl", '{"question": "q", "answer": [" "]}', "neither a text, a number nor a list"),
        ("x.jsonl", '{"question": "q", "answer": "(a"}', "is no regular expression"),
        ("x.jsonl", json.dumps({"question": "q", "answer": "a" * 1001}), "more than 1,000 char"),
    ],
)
def test_each_fault_of_a_written_answer_has_its_own_words(name, text, said):
    with pytest.raises(RecipeError) as caught:
        read_written(text.encode(), name, patterns=True)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("written", "right", "extract", "scoring"),
    [
        ("Paris", ("paris",), "", "exact"),
        ("  Ko\u0308ln.\n", ("K\u00f6ln",), "", "exact"),
        ("It is 3, no: 42", ("42", "forty-two"), r"\d+", "exact"),
        ("So #### 42", ("42",), r"#### (\S+)", "exact"),
        ("In Paris, I think", (r"\bParis\b",), "", "regex"),
    ],
)
def test_right_answers_are_known(written, right, extract, scoring):
    item = WrittenItem(1, "?", right)
    assert is_right(written, item, scoring=scoring, extract=extract)
    assert not is_right("no", item, scoring=scoring, extract=extract)


# -- what is asked ---------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 60), st.integers(0, 1000))
def test_a_seed_draws_the_same_questions_in_the_files_order(count, most, seed):
    items = [ChoiceItem(n, "?", ("a", "b"), 0) for n in range(count)]
    some = drawn(items, most, seed)
    assert some == drawn(items, most, seed)
    assert len(some) == min(count, most)
    assert list(some) == sorted(set(some), key=lambda item: item.row)


def test_questions_are_asked_in_the_harness_words():
    assert asked_letters(ITEM) == (
        "Two, and two?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", (" A", " B", " C", " D"),
    )  # fmt: skip
    assert asked_texts(ITEM, "")[0] == "Question: Two, and two?\nAnswer:"
    assert asked_texts(ITEM, "{question}\n\n") == ("Two, and two?\n\n", ("3", "4", "5", "6"))


# -- what answers show -------------------------------------------------------------------------------


def tango_by_search(lost, gained, items, difference):
    """The score statistic with its nuisance parameter found by search, not by formula."""

    def likelihood(gain):
        loss, same = gain + difference, 1 - 2 * gain - difference
        terms = ((lost, loss), (gained, gain), (items - lost - gained, same))
        return sum(n * math.log(p) if n else 0.0 for n, p in terms)

    low, high = max(0.0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (a, high) if likelihood(a) < likelihood(b) else (low, b)
    variance = items * (2 * low + difference * (1 - difference))
    return (lost - gained - items * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("lost", "gained", "items"), [(4, 2, 100), (12, 1, 50), (0, 7, 60), (9, 0, 20)]
)
def test_at_the_bound_the_constrained_score_is_that_of_95_percent(lost, gained, items):
    bound = loss_at_most(lost, gained, items)
    assert tango_by_search(lost, gained, items, bound) == pytest.approx(-1.6448536, abs=1e-3)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 500))
def test_the_bound_is_above_the_share_that_was_seen_and_grows_with_what_is_lost(lost, gained, same):
    items = lost + gained + same  # of which one more may be lost
    bound = loss_at_most(lost, gained, items)
    assert (lost - gained) / items < bound <= 1
    assert bound <= loss_at_most(lost + 1, gained, items)


def test_the_bound_holds_in_95_of_100_cases():
    chance = random.Random(5)
    true, missed, runs = 0.04, 0, 2000
    for _ in range(runs):
        drawn_ = [chance.random() for _ in range(200)]
        lost, gained = sum(x < 0.07 for x in drawn_), sum(0.07 <= x < 0.10 for x in drawn_)
        missed += loss_at_most(lost, gained, 200) < true
    assert 0.035 < missed / runs < 0.065  # three standard errors


def test_mcnemars_p_value_is_that_of_a_fair_coin():
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0
    assert mcnemar_p(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar_p(1, 8) == mcnemar_p(8, 1)


def test_a_bootstrap_over_questions_has_the_same_interval():
    lost, gained, items = 12, 4, 100
    table = np.array([1] * lost + [-1] * gained + [0] * (items - lost - gained))
    draws = np.random.default_rng(1).choice(table, (10_000, items)).mean(axis=1)
    assert drawn_anew(lost, gained, items) == pytest.approx(
        np.percentile(draws, (2.5, 97.5)), abs=0.011
    )
    assert drawn_anew(lost, gained, items) == drawn_anew(lost, gained, items)


def test_the_least_number_of_questions_is_where_equal_answers_just_pass():
    for limit in (0.01, 0.02, 0.05, 0.3):
        least = least_items(limit)
        assert loss_at_most(0, 0, least) <= limit < loss_at_most(0, 0, least - 1)


# -- the gate ----------------------------------------------------------------------------------------


def result(lost=0, gained=0, items=400, name="mmlu", **more):
    given = {
        "name": name, "kind": "choice", "scoring": "letters", "file_sha256": "0" * 64,
        "items": items, "seed": 1, "chance": 0.25, "model_right": items // 2 - lost + gained,
        "control_right": items // 2, "lost": lost, "gained": gained, "p_value": mcnemar_p(lost, gained),
        "loss_low": 0.0, "loss_high": 0.0, "loss_at_most": loss_at_most(lost, gained, items),
    }  # fmt: skip
    return TaskResult(**given | more)


def proof(*tasks):
    return Proof.model_validate({
        "model_sha256": "0" * 64, "device": {"kind": "cpu", "name": "x"}, "sample_prompt": "",
        "predicted_memory_bytes": 1, "sample_text": "", "tasks": tasks,
        "speed": {"prompt_tokens_per_second": 1, "generation_tokens_per_second": 1,
                  "prompt_tokens": 1, "generated_tokens": 1, "repeats": 1, "load_seconds": 1},
    })  # fmt: skip


@pytest.mark.parametrize(
    ("lost", "gained", "passed"), [(0, 0, True), (10, 9, True), (20, 0, False)]
)
def test_a_loss_passes_when_it_is_shown_to_be_small(lost, gained, passed):
    (gate,) = check_gates(proof(result(lost, gained)), Gates(max_loss={"mmlu": 0.03}), "chat")
    assert (gate.gate, gate.passed) == ("max_loss.mmlu", passed)


def test_few_questions_show_nothing_and_fail_and_how_many_it_takes_is_said():
    found = proof(result(2, 2, items=100))
    gates = check_gates(found, Gates(max_loss={"mmlu": 0.02}), "chat")
    (problem,) = gate_problems(gates, "chat")
    assert "max_loss.mmlu: measured" in problem.message
    assert "the recipe's limit is 0.02" in problem.message
    assert "50 of 100 right, the unquantized model 50" in problem.message
    assert f"takes about {items_needed(found.tasks[0], 0.02):,} questions" in problem.message
    assert "ask more questions" in problem.hint


def test_a_gate_on_a_task_that_was_not_asked_cannot_be_passed():
    with pytest.raises(ProofFailed, match=r"max_loss\.mmlu was not measured"):
        check_gates(proof(), Gates(max_loss={"mmlu": 0.02}), "chat")


def test_proofs_and_gates_without_tasks_are_written_as_they_always_were():
    assert "tasks" not in proof().model_dump(mode="json")
    (gate,) = check_gates(proof(), Gates(min_tokens_per_second=1), "chat")
    assert "detail" not in gate.model_dump(mode="json")


def test_enough_questions_need_no_further_words():
    assert "reliably" not in detail_of(result(items=400), 0.02)


def measurement(asked, at_most):
    lock_fields = {
        "model": "0" * 64, "reference": "x", "made_by": "0" * 64, "role": "chat", "engine": "x",
        "tool": "", "quant": "Q4_K_M", "kv_cache": "f16", "context_tokens": 1, "parallel": 1,
        "gpu_layers": 0, "predicted_memory_bytes": 1, "model_sha256": "0" * 64,
        "device": {"kind": "cpu", "name": "x"}, "speed": proof().speed,
    }  # fmt: skip
    return Measurement(**lock_fields, tasks={"mmlu": TaskLoss(asked=asked, at_most=at_most)})


def test_a_measured_loss_counts_only_while_the_same_is_asked():
    one = measurement("a" * 64, 0.5)
    assert Known((one,), tasks={"mmlu": "a" * 64}).tells_task(one, "mmlu")
    assert not Known((one,), tasks={"mmlu": "b" * 64}).tells_task(one, "mmlu")
    assert not Known((one,)).tells_task(one, "mmlu")


def test_measurements_without_tasks_are_written_as_they_always_were():
    one = measurement("a" * 64, 0.5)
    assert Measurement.model_validate_json(one.model_dump_json()) == one
    assert "tasks" not in one.model_copy(update={"tasks": {}}).model_dump(mode="json")


# -- the recipe and the lock ---------------------------------------------------------------------------

RECIPE = """\
schema = 1
[bundle]
name = "x"
[target]
use = "cpu-8gb"
[models.chat]
source = "path:model"
[models.search]
role = "embed"
source = "path:model"
"""
TASK = '[verify.tasks.mmlu]\nkind = "choice"\nsource = "path:mmlu.csv"\n'


def problems_of(more):
    with pytest.raises(RecipeError) as caught:
        parse_recipe((RECIPE + more).encode())
    return [str(problem) for problem in caught.value.problems]


def test_what_does_not_fit_together_is_said_at_once_with_its_place():
    said = problems_of(
        "gates = { max_loss = { mmlu = 0.02 } }\n"
        "[models.chat.gates]\nmax_loss = { mlu = 0.02, mmlu = 0.001 }\n"
        + TASK + 'models = ["chta", "search"]\n'
    )  # fmt: skip
    assert said == [
        "recipe.toml:11:24: models.search.gates.max_loss.mmlu: the task 'mmlu' is not asked of this "
        "model",
        "recipe.toml:13:14: models.chat.gates.max_loss.mlu: there is no task called 'mlu'",
        "recipe.toml:13:26: models.chat.gates.max_loss.mmlu: the task 'mmlu' is not asked of this "
        "model",
        "recipe.toml:17:1: verify.tasks.mmlu.models: there is no model called 'chta'",
        "recipe.toml:17:1: verify.tasks.mmlu.models: 'search' answers nobody: its role is 'embed'",
    ]


def test_too_few_questions_for_a_limit_are_said_before_anything_is_done():
    (said,) = problems_of(
        "[models.chat.gates]\nmax_loss = { mmlu = 0.02 }\n" + TASK + "items = 99\n"
    )
    assert said.startswith(
        "recipe.toml:12:14: models.chat.gates.max_loss.mmlu: 99 questions cannot"
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('prompt = "x"\n', "is for scoring = 'texts'"),
        ('scoring = "texts"\nprompt = "x"\n', "must have {question} in it, once"),
        ('kind = "essay"\n', "kind"),
        ('kind = "code"\nmatch = "regex"\n', "is for kind = 'written'"),
        ('kind = "written"\nseconds = 3\n', "is for kind = 'code'"),
        ("tokens = 3\n", "is for kind = 'written' or 'code'"),
        ('kind = "written"\nschema = "{}"\n', "is for match = 'json'"),
        ('kind = "written"\nmatch = "json"\nlanguage = "deu"\n', "is for match = 'language'"),
        ('kind = "written"\nmatch = "json"\nschema = "{"\n', "it is no JSON"),
        ('kind = "written"\nmatch = "json"\nschema = { type = "txt" }\n', "no schema to be used"),
        ('kind = "written"\nmatch = "language"\nlanguage = "dee"\n', "no language that is told"),
        ('match = "regex"\n', "is for kind = 'written'"),
        ('kind = "written"\nscoring = "texts"\n', "is for kind = 'choice'"),
        ('kind = "written"\nextract = "("\n', "is no regular expression"),
        ('kind = "written"\nextract = "(a)(b)"\n', "has several groups"),
        ("items = 0\n", "items"),
    ],
)
def test_settings_that_mean_nothing_are_refused(more, said):
    task = TASK.replace('kind = "choice"\n', "") if "kind" in more else TASK
    assert any(said in one for one in problems_of(task + more))


@pytest.fixture(scope="module")
def example():
    path = quickstart()
    return read_recipe(path), read_lock(lock_path(path))


def test_a_recipe_without_tasks_has_the_proof_it_always_had(example):
    recipe, lock = example
    verify = recipe.verify.model_copy(update={"tasks": {}})
    plain = recipe.model_copy(update={"verify": verify})
    assert asked_tasks(plain, lock, "chat") == {}
    step = Step(name="prove", plugin="x", action="prove")
    assert with_tasks(step, {}) is step


def test_a_proof_is_told_its_tasks_and_gets_their_files(example):
    recipe, lock = example
    tasks = asked_tasks(recipe, lock, "chat")
    step = with_tasks(Step(name="prove", plugin="x", action="prove"), tasks)
    told, file = tasks["glosses"]
    assert step.inputs["tasks/glosses"] == file
    assert step.parameters["tasks"] == [told]
    assert told["scoring"] == "texts"
    assert digests_of_step(step) == {"glosses": asked_digest(told, file.sha256)}
    # What it is called changes nothing of what is measured.
    assert asked_digest({**told, "name": "other"}, file.sha256) == asked_digest(told, file.sha256)
    assert asked_digest({**told, "seed": 2}, file.sha256) != asked_digest(told, file.sha256)


@pytest.mark.parametrize(
    ("name", "data", "code", "said"),
    [
        ("x.csv", "a,b\n", 2, "x.csv:1: verify.tasks.glosses.source: has wrong columns"),
        ("x.jsonl", line(answer=7), 2, "its answer 7 is outside the choices"),
        ("x.csv", "é".encode("latin-1"), 8, "is not UTF-8"),
        ("x.jsonl", line() + "\n", 2, "has 1 questions, which cannot show so small a loss"),
    ],
)
def test_a_file_that_is_none_is_said_when_the_lock_is_made(tmp_path, name, data, code, said):
    source = quickstart().parents[1]
    for folder in ("recipes", "examples"):
        shutil.copytree(source / folder, tmp_path / folder)
    recipe = tmp_path / "recipes/quickstart.toml"
    recipe.write_text(recipe.read_text().replace("glosses.jsonl", name))
    (tmp_path / "examples/questions" / name).write_bytes(
        data if isinstance(data, bytes) else data.encode()
    )
    done = bundler("lock", recipe, "--store", source / "store")
    assert done.returncode == code
    assert said in " ".join((done.stdout + done.stderr).split())


def fakes_with_questions(lost):
    found = fakes()
    found.source.files["questions"] = {"q.jsonl": (line() + "\n").encode() * 400}
    found.engine.lost_by_quant = lost
    return found


ASKING = FAKE_RECIPE.replace("max_kld_mean = 0.5", "max_loss = { facts = 0.05 }") + (
    '[verify.tasks.facts]\nkind = "choice"\nsource = "memory:questions"\n'
)


def test_a_model_that_loses_too_much_is_not_built_and_not_proved_twice(tmp_path):
    plugin = fakes_with_questions({"half": 30, "tenth": 60})
    with pytest.raises(ProofFailed, match=r"max_loss\.facts: measured 0\.099") as caught:
        run(tmp_path, plugin, ASKING)
    assert caught.value.exit_code == 9
    assert "370 of 400 right, the unquantized model 400" in str(caught.value)
    assert not (tmp_path / "dist/fake").exists()
    plugin.engine.runs.clear()
    with pytest.raises(ProofFailed, match=r"max_loss\.facts"):
        run(tmp_path, plugin, ASKING)
    assert plugin.engine.runs == []
    # Other questions may go better: they are asked.
    plugin.engine.lost_by_quant = {}
    run(tmp_path, plugin, ASKING + "seed = 2\n")
    assert plugin.engine.runs == ["prove"]


def test_the_report_says_what_was_asked_and_what_it_shows(tmp_path):
    run(tmp_path, fakes_with_questions({"half": 4}), ASKING)
    report = (tmp_path / "dist/fake/report.html").read_text(encoding="utf-8")
    said = " ".join(re.sub("<[^>]+>", " ", report).split())
    assert "facts 400 99.0 % 100.0 % +1.0 %" in said
    assert "4 answers were lost and 0 gained" in said
    assert "max_loss.facts" in said
    assert "396 of 400 right, the unquantized model 400" in said


def test_a_step_counts_anew_where_another_part_of_it_begins(tmp_path):
    told = []
    count = _progress("prove", World(store=Store(tmp_path), report=told.append))
    for done, total, unit in (
        (4096, 4096, "tokens"), (8, 16, "questions"), (4, 16, "questions"), (16, 16, "questions"),
    ):  # fmt: skip
        count(done, total, unit)
    assert [one.done for one in told] == [4096, 8, 8, 16]


def test_the_examples_questions_are_what_their_script_writes():
    script = ROOT / "examples/training/questions.py"
    module = runpy.run_path(str(script))
    assert module["text"]() == module["OUTPUT"].read_text(encoding="utf-8")


def test_no_question_of_the_example_was_calibrated_on():
    items = read_choices((ROOT / "examples/questions/glosses.jsonl").read_bytes(), "x.jsonl")
    texts = [" ".join((item.question, item.choices[item.answer])) for item in items]
    assert not any(with_known_runs(ROOT / "bundler/texts/calibration.txt", texts))


def test_a_question_of_the_calibration_text_is_found(tmp_path):
    words = [f"word{n}" for n in range(30)]
    (tmp_path / "c.txt").write_text(" ".join(words))
    asked = [" ".join(words[3:16]).upper(), " ".join(words[3:15]), "x " * 20]
    assert with_known_runs(tmp_path / "c.txt", asked) == [True, False, False]


# -- a model that answers ------------------------------------------------------------------------------


def file_of(folder, items):
    path = folder / "q.jsonl"
    path.write_text(
        "".join(line(question=i.question, choices=i.choices, answer=i.answer) + "\n" for i in items)
    )
    return path


def some_items(count, seed=3):
    chance = random.Random(seed)

    def words(least, most):
        letters = "abcdefgh "
        return (
            "x" + "".join(chance.choice(letters) for _ in range(chance.randint(least, most))) + "y"
        )

    return [
        ChoiceItem(n, words(5, 40), tuple(words(1, 12) for _ in range(chance.randint(2, 5))), 0)
        for n in range(1, count + 1)
    ]


def asked_of(model, file, scoring="texts", **more):
    given = {
        "model": str(model), "title": "model.gguf", "file": str(file), "path": "q.jsonl",
        "items": 1000, "seed": 1, "scoring": scoring, "prompt": "", "context_tokens": 512,
        "kv_cache": "f16", "gpu": False, "gpu_layers": 0, "adapters": [], "seconds": 900,
    }  # fmt: skip
    return job("tasks.asking:choose_job", given | more)


@pytest.mark.parametrize("scoring", ["letters", "texts"])
def test_answers_are_those_of_one_answer_at_a_time(tmp_path, scoring):
    """Held against the simplest way there is: each answer whole, alone, summed by hand."""
    items = some_items(40)
    found = asked_of(tiny_gguf(CALM), file_of(tmp_path, items), scoring)
    expected = run_child(
        "tests.task_jobs:one_by_one",
        {"model": str(tiny_gguf(CALM)), "file": str(tmp_path / "q.jsonl"), "scoring": scoring},
        environment={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    differ = [
        abs(scores[a] - scores[b])
        for a, b, scores in zip(found["picks"], expected["picks"], expected["scores"], strict=True)
        if a != b
    ]
    # Where two answers are as good as equally likely, sums in another order may turn them round.
    assert all(distance < 0.02 for distance in differ)
    assert len(differ) <= 2
    assert found["answers"] == [0] * 40


def test_a_question_with_more_answers_than_the_cache_holds_is_scored_all_the_same(tmp_path):
    """26 answers of a hundred tokens: the memory for it does not grow with what a file asks."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    long = ChoiceItem(1, "ask", tuple(f"{one} {letters * 4}" for one in letters), 0)
    file = file_of(tmp_path, [long, *some_items(3)])
    expected = run_child(
        "tests.task_jobs:one_by_one",
        {"model": str(tiny_gguf(CALM)), "file": str(file), "scoring": "texts"},
        environment={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert asked_of(tiny_gguf(CALM), file)["picks"] == expected["picks"]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9), st.integers(1, 5))
def test_no_batch_keeps_more_logits_than_there_is_memory_for(wanted, most_cells, most_rows):
    cells = [_Cell(0, n, 0, ((0, 0),) if one else ()) for n, one in enumerate(wanted)]
    batches = list(_batches(cells, most_cells, most_rows))
    assert [cell for batch in batches for cell in batch] == cells
    for batch in batches:
        assert len(batch) <= most_cells
        assert sum(bool(cell.wanted) for cell in batch) <= most_rows


def test_a_question_that_does_not_fit_the_context_is_named(tmp_path):
    items = [*some_items(3), *(ChoiceItem(n, "x " * 600, ("a", "b"), 0) for n in range(4, 30))]
    with pytest.raises(RecipeError) as caught:
        asked_of(tiny_gguf(CALM), file_of(tmp_path, items))
    first, *_, last = caught.value.problems
    assert first.where == "q.jsonl:4"
    assert re.match(
        r"a question has 2,\d+ tokens with its longest answer; .* holds 512", first.message
    )
    assert last.message == "6 more do not fit it either"


def test_a_model_that_gives_no_numbers_is_said_to_be_broken(tmp_path):
    weights = llama_weights(CALM)
    weights["output_norm.weight"] = np.full_like(weights["output_norm.weight"], np.nan)
    broken = tmp_path / "nan.gguf"
    write_gguf(broken, llama_fields(CALM), weights, "F32")
    with pytest.raises(StepFailed, match="not finite while it answers questions"):
        asked_of(broken, file_of(tmp_path, some_items(3)))


def proved(folder, inputs, told, seen=None, **parameters):
    output, kept = folder / "output", folder / "kept"
    output.mkdir(parents=True, exist_ok=True)
    kept.mkdir(exist_ok=True)
    world = World(store=Store(folder / "store"), environment=os.environ)
    given = {"context_tokens": 512, "tokens": 512, "gpu_layers": 0, "tasks": told} | parameters
    said = [] if seen is None else seen
    task = Task("prove", inputs, given, output, lambda *one: said.append(one), world, kept)
    return Proof.model_validate(LlamaCppEngine().run(task))


def told_of(**more):
    return [{
        "name": "letters", "kind": "choice", "file": "q.jsonl", "scoring": "texts", "prompt": "",
        "items": 30, "seed": 1, "minutes": 30,
    } | more]  # fmt: skip


def test_a_proof_has_both_models_answers_to_the_same_questions(tmp_path):
    reference = tiny_gguf(CALM)
    calibration = tmp_path / "calibration.txt"
    words = " ".join(f"word{n}" for n in range(20))
    calibration.write_text(words)
    items = [*some_items(39), ChoiceItem(40, words, ("a", "b"), 1)]
    inputs = {
        "model.gguf": reference, "reference.gguf": reference, "heldout.txt": text_file(),
        "calibration.txt": calibration, "tasks/letters": file_of(tmp_path, items),
    }  # fmt: skip
    found = proved(tmp_path / "same", inputs, told_of(items=40))
    (task,) = found.tasks
    assert (task.lost, task.gained, task.items, task.p_value) == (0, 0, 40, 1.0)
    assert task.model_right == task.control_right
    assert task.loss_at_most == loss_at_most(0, 0, 40)
    assert task.leaked == 1
    assert any("1 of the 40 questions of letters have a run of 13 words" in n for n in found.notes)
    # A model of random numbers guesses, and that is said.
    assert any("this task cannot show what it loses" in note for note in found.notes)
    other = proved(
        tmp_path / "other", {**inputs, "model.gguf": quantized(reference, "Q8_0")}, told_of()
    )
    (task,) = other.tasks
    assert task.items == 30
    assert task.model_right - task.control_right == task.gained - task.lost


def test_a_proof_that_is_cut_off_asks_only_what_was_not_answered(tmp_path):
    reference = tiny_gguf(CALM)
    inputs = {"model.gguf": quantized(reference, "Q8_0"), "reference.gguf": reference,
              "heldout.txt": text_file(), "tasks/letters": file_of(tmp_path, some_items(40))}  # fmt: skip
    first, again = [], []
    whole = proved(tmp_path / "one", inputs, told_of(), first)
    counted = [done for done, _, unit in first if unit == "questions"]
    assert counted == [16, 30, 46, 60]  # of both models, one after the other
    kept = tmp_path / "one/kept"
    (of_control,) = (
        path for path in kept.iterdir()
        if path.suffix == ".json" and path.stat().st_mtime_ns
        == max(p.stat().st_mtime_ns for p in kept.glob("*.json"))
    )  # fmt: skip
    of_control.unlink()
    after = proved(tmp_path / "one", inputs, told_of(), again)
    assert [done for done, _, unit in again if unit == "questions"] == [46, 60]
    assert after.tasks == whole.tasks


def written_file(folder, answers):
    path = folder / "w.jsonl"
    lines = ({"question": f"ask {n}", "answer": one} for n, one in enumerate(answers))
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def write(file, model=None, **more):
    given = {
        "model": str(model or tiny_gguf(CALM)), "title": "model.gguf", "file": str(file),
        "path": "w.jsonl", "kind": "written", "items": 100, "seed": 1, "scoring": "exact", "prompt": "", "extract": "",
        "tokens": 12, "context_tokens": 256, "parallel": 1, "kv_cache": "f16", "gpu": False,
        "gpu_layers": 0, "adapters": [], "seconds": 900,
    }  # fmt: skip
    return job("tasks.writing:write_job", given | more)["right"]


def test_what_a_model_writes_is_held_against_the_files_answers(tmp_path):
    every = write(written_file(tmp_path, [r"(?s).*"] * 6), scoring="regex")
    assert every == [True] * 6
    nothing = write(written_file(tmp_path, [r"(?s)a\bb"] * 6), scoring="regex")
    assert nothing == [False] * 6
    some = written_file(tmp_path, [r"(?s)^.{3}", r"(?s)^.{500}"] * 3)
    assert write(some, scoring="regex") == write(some, scoring="regex") == [True, False] * 3
    assert write(some, scoring="regex", context_tokens=40) == [True, False] * 3  # one at a time


def test_an_expression_that_never_ends_is_stopped_and_its_row_named(tmp_path):
    endless = written_file(tmp_path, [r"(?s)^(?:(?:.+)+)+\Z(?<!.)"])
    with pytest.raises(
        RecipeError, match=r"w.jsonl:1: its regular expression.* took more than 5 s"
    ):
        write(endless, scoring="regex", tokens=64)


def test_an_answer_that_may_not_fit_the_context_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match=r"w.jsonl:1: a question has \d+ tokens with its longest"):
        write(written_file(tmp_path, ["x"]), tokens=256)


def test_a_proof_compares_what_both_write(tmp_path):
    reference = tiny_gguf(CALM)
    inputs = {"model.gguf": quantized(reference, "Q8_0"), "reference.gguf": reference,
              "heldout.txt": text_file(), "tasks/w": written_file(tmp_path, [r"(?s).*"] * 5)}  # fmt: skip
    told = {"name": "w", "kind": "written", "file": "w.jsonl", "scoring": "regex", "prompt": "",
            "items": 4, "seed": 1, "extract": "", "tokens": 8, "minutes": 30}  # fmt: skip
    (task,) = proved(tmp_path / "one", inputs, [told]).tasks
    assert (task.items, task.model_right, task.control_right, task.chance) == (4, 4, 4, 0)


def test_questions_that_were_not_come_to_are_left_out_and_it_is_said(tmp_path):
    reference = tiny_gguf(CALM)
    inputs = {
        "model.gguf": reference, "reference.gguf": reference, "heldout.txt": text_file(),
        "tasks/letters": file_of(tmp_path, some_items(40)),
        "tasks/w": written_file(tmp_path, ["x"] * 9),
    }  # fmt: skip
    (written,) = told_of(name="w", kind="written", file="w.jsonl", scoring="exact", extract="",
                         tokens=4, minutes=1e-9)  # fmt: skip
    found = proved(tmp_path / "one", inputs, [*told_of(items=40, minutes=1e-9), written])
    assert [task.items for task in found.tasks] == [16, 4]
    assert any("letters: the time was over after 16 of 40 questions" in n for n in found.notes)
    assert any("w: the time was over after 4 of 9 questions" in n for n in found.notes)


def test_without_the_unquantized_model_tasks_are_left_out_and_it_is_said(tmp_path):
    inputs = {"model.gguf": tiny_gguf(CALM), "tasks/letters": file_of(tmp_path, some_items(3))}
    found = proved(tmp_path / "alone", inputs, told_of())
    assert found.tasks == ()
    assert any("tasks were not asked" in note for note in found.notes)
