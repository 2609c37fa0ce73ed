"""Answers that have to have a form: JSON, JSON that follows a schema, a language."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import RecipeError
from bundler.recipe_tasks import TaskRequest
from bundler.tasks.asked import how_asked
from bundler.tasks.items import Asked, FormItem
from bundler.tasks.judging import is_right
from bundler.tasks.languages import _LABELS_OF, KNOWN_LANGUAGES, is_in
from bundler.tasks.reading import read_questions
from bundler.tasks.schemas import follows, schema_problem
from tests.models import job, quantized, text_file, tiny_gguf
from tests.test_tasks import CALM, proved

PERSON = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}}
IN_JSON = Asked("written", "json", schema=json.dumps(PERSON))
TEXTS = {
    "deu": "Der Patient soll die Tabletten morgens und abends nach dem Essen nehmen.",
    "eng": "The patient should take the tablets in the morning and in the evening.",
    "fra": "Le patient doit prendre les comprimés le matin et le soir après le repas.",
    "spa": "El paciente debe tomar las pastillas por la mañana y por la noche.",
    "rus": "Пациент должен принимать таблетки утром и вечером после еды.",
    "ara": "يجب على المريض تناول الأقراص في الصباح والمساء بعد الأكل",
    "zho": "病人应该在早上和晚上饭后服用药片。",
    "jpn": "患者は朝と夕方の食後に錠剤を服用してください。",
    "swa": "Mgonjwa anapaswa kumeza vidonge asubuhi na jioni baada ya kula.",
    "hin": "रोगी को सुबह और शाम खाने के बाद गोलियाँ लेनी चाहिए।",
}


def read(asked, *rows):
    data = "".join(json.dumps({"question": "?"} | row) + "\n" for row in rows)
    return read_questions(data.encode(), "x.jsonl", asked)


# -- JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "schema", "right"),
    [
        ('{"a": [1, 2.5, null]}', "", True),
        ('\n```json\n{"a": 1}\n```\n', "", True),
        ("```\n[]\n```", "", True),
        ('Here: {"a": 1}', "", False),
        ('{"a": 1} {"b": 2}', "", False),
        ("{'a': 1}", "", False),
        ('{"a": NaN}', "", False),
        ("[" * 100_000, "", False),
        ("", "", False),
        ('{"name": "Ada", "age": 36}', PERSON, True),
        ('{"name": "Ada", "age": "36"}', PERSON, False),
        ('{"age": 36}', PERSON, False),
        ("{}", {"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, False),
        ('{"name": "Ada"}', {"$ref": "#/$defs/p", "$defs": {"p": PERSON}}, True),
    ],
)
def test_json_is_known(written, schema, right):
    item = FormItem(1, "?", json.dumps(schema) if schema else "", "")
    assert is_right(written, item, scoring="json", extract="") is right


def test_what_extract_finds_is_judged():
    item = FormItem(1, "?", "", "")
    assert is_right('So: <{"a": 1}>', item, scoring="json", extract="<(.*)>")


def test_a_row_has_its_own_schema_or_the_recipes():
    first, second, third = read(IN_JSON, {}, {"schema": {"type": "array"}}, {"schema": '{"a": 1}'})
    assert json.loads(first.schema) == PERSON
    assert json.loads(second.schema) == {"type": "array"}
    assert third.schema == '{"a": 1}'


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "txt"}, "'txt' is not valid"),
        ([1], "it is no JSON object"),
        ("{", "it is no JSON"),
        ({"$ref": "http://127.0.0.1:1/x.json"}, "points elsewhere, and nothing is fetched"),
        ({"allOf": [{"$ref": "file:///etc/passwd"}]}, "points elsewhere"),
        ({"$dynamicRef": "other.json"}, "points elsewhere"),
        ({"$schema": "http://127.0.0.1:1/draft"}, "is no known draft"),
        ({"pattern": "(a"}, "is no regular expression"),
        ({"patternProperties": {"a" * 1001: {}}}, "more than 1,000 characters"),
        ({"minLength": -1}, "-1 is less than the minimum"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named_with_its_row(schema, said):
    with pytest.raises(RecipeError) as caught:
        read(IN_JSON, {}, {"schema": schema})
    assert "x.jsonl:2: its schema cannot be used" in str(caught.value)
    assert said in str(caught.value)


def test_a_schema_too_deep_is_refused():
    deep = "[" * 30_000 + "]" * 30_000
    assert "no JSON" in schema_problem(deep) or "deep" in schema_problem(deep)


def test_a_schema_without_end_or_aim_is_an_error_and_no_judgement():
    with pytest.raises(ValueError, match="into itself without end"):
        follows({}, '{"$ref": "#"}')
    with pytest.raises(ValueError, match="points to what it does not have"):
        follows({}, '{"$ref": "#/$defs/none"}')


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(
                        st.sampled_from(["type", "$ref", "pattern", "properties", "items", "x"]), inner)))  # fmt: skip
def test_any_json_is_a_schema_or_has_a_problem(value):
    assert isinstance(schema_problem(json.dumps(value)), str)


# -- languages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", TEXTS)
def test_languages_are_told_apart(language):
    assert is_in(TEXTS[language], language)
    assert not any(is_in(TEXTS[language], other) for other in TEXTS if other != language)


@pytest.mark.parametrize("text", ["", "Ja.", "42 = 42", "好", "\ud800" * 40])
def test_what_is_too_short_is_in_no_language(text):
    assert not any(is_in(text, language) for language in ("deu", "nld", "zho", "eng"))


def test_every_label_is_one_that_the_library_has():
    from bundler.tasks.languages import _identifier

    labels = set(_identifier().labels)
    assert all(known <= labels for known in _LABELS_OF.values())


@given(st.text(max_size=200))
def test_any_text_is_judged(text):
    assert is_in(text, "eng") in (True, False)


def test_a_row_has_its_own_language_or_the_recipes():
    asked = Asked("written", "language", language="deu")
    assert [item.language for item in read(asked, {}, {"language": "swa"})] == ["deu", "swa"]


@pytest.mark.parametrize(
    ("asked", "row", "said"),
    [
        (Asked("written", "language"), {}, "says no language, and neither does the recipe"),
        (Asked("written", "language"), {"language": "de"}, "its language 'de' is none that is told"),
        (Asked("written", "language"), {"question": " "}, "has no question"),
        (Asked("written", "json"), {"question": 3}, "has no question"),
    ],
)  # fmt: skip
def test_each_fault_of_a_row_has_its_own_words(asked, row, said):
    with pytest.raises(RecipeError) as caught:
        read(asked, row)
    assert said in str(caught.value)


def test_a_table_of_a_recipe_is_the_same_schema_as_its_text():
    given = {"kind": "written", "source": "path:x", "match": "json"}
    as_table = TaskRequest.model_validate({**given, "schema": PERSON})
    as_text = TaskRequest.model_validate({**given, "schema": json.dumps(PERSON, sort_keys=True)})
    assert how_asked(as_table) == how_asked(as_text)
    assert len(KNOWN_LANGUAGES) > 100


# -- a model that answers --------------------------------------------------------------------------------


def write(folder, rows, **more):
    path = folder / "f.jsonl"
    path.write_text("".join(json.dumps({"question": "ask"} | row) + "\n" for row in rows))
    given = {
        "model": str(tiny_gguf(CALM)), "title": "model.gguf", "file": str(path), "path": "f.jsonl",
        "kind": "written", "items": 100, "seed": 1, "scoring": "json", "prompt": "", "extract": "",
        "tokens": 12, "context_tokens": 256, "parallel": 1, "kv_cache": "f16", "gpu": False,
        "gpu_layers": 0, "adapters": [], "seconds": 900,
    }  # fmt: skip
    return job("tasks.writing:write_job", given | more)["right"]


def test_what_a_model_of_noise_writes_has_no_form(tmp_path):
    assert write(tmp_path, [{}, {"schema": PERSON}]) == [False, False]
    assert write(tmp_path, [{}], scoring="language", language="deu") == [False]


def test_an_expression_of_a_schema_that_never_ends_is_stopped():
    """Over an answer it may take for ever; the child's alarm ends it (limited_seconds)."""
    from bundler.builtin.llamacpp.tasks.writing import _judged

    item = FormItem(7, "?", json.dumps({"pattern": "^(a+)+$"}), "")
    began = time.monotonic()
    with pytest.raises(RecipeError, match=r"f.jsonl:7: its schema.* took more than 5 s"):
        _judged(json.dumps("a" * 40 + "b"), item, "f.jsonl", {"scoring": "json", "extract": ""})
    assert time.monotonic() - began < 60


def test_a_proof_compares_the_forms_of_both(tmp_path):
    reference = tiny_gguf(CALM)
    file = tmp_path / "f.jsonl"
    file.write_text('{"question": "ask"}\n' * 3)
    inputs = {"model.gguf": quantized(reference, "Q8_0"), "reference.gguf": reference,
              "heldout.txt": text_file(), "tasks/f": file}  # fmt: skip
    told = {"name": "f", "kind": "written", "file": "f.jsonl", "scoring": "json", "prompt": "",
            "items": 9, "seed": 1, "extract": "", "tokens": 8, "minutes": 30,
            "schema": json.dumps(PERSON)}  # fmt: skip
    (task,) = proved(tmp_path / "one", inputs, [told]).tasks
    assert (task.scoring, task.items, task.model_right, task.lost) == ("json", 3, 0, 0)
