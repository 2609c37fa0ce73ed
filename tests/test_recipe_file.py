import json
import time
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from bundler.errors import RecipeError
from bundler.recipe_file import find_places, parse_recipe, starter_recipe
from bundler.recipe_schema import recipe_schema

BAD = Path(__file__).parent / "recipes"
GOOD = b"""schema = 1
[bundle]
name = "clinic"
[target]
ram = "16 GB"
[models.chat]
source = "hf:owner/name@main"
quant = ["Q4_K_M", "Q5_K_M"]
"""


def said(data: bytes) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, "r.toml")
    return [f"{p}" + (f" | {p.hint}" if p.hint else "") for p in caught.value.problems]


def test_a_good_recipe_becomes_a_frozen_value():
    recipe = parse_recipe(GOOD)
    assert recipe.models["chat"].source.revision == "main"
    assert recipe.target.ram == 16 * 10**9
    with pytest.raises(ValueError, match="frozen"):
        recipe.bundle = None


@pytest.mark.parametrize("path", sorted(BAD.glob("*.toml")), ids=lambda p: p.stem)
def test_every_problem_of_a_bad_recipe_is_said_at_once(path):
    """Each file of tests/recipes has beside it what must be said, word for word."""
    started = time.monotonic()
    lines = said(path.read_bytes())
    assert time.monotonic() - started < 1
    expected = path.with_suffix(".expected")
    text = "\n".join(lines) + "\n"
    if not expected.exists():
        path.with_suffix(".actual").write_text(text)
    assert text == expected.read_text()


def test_at_least_thirty_kinds_of_problems_are_held_by_golden_files():
    lines = [line for p in BAD.glob("*.expected") for line in p.read_text().splitlines()]
    assert len(lines) >= 30


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"a = " + b"[" * 10_000, "nested too deeply"),
        (b"x" * (1 << 21), "larger than"),
        (b'[bundle]\nname = "a\n', "TOML syntax"),
        (b"a = 1\na = 2\n", "stands twice"),
    ],
)
def test_what_is_no_toml_is_refused_quickly(data, word):
    started = time.monotonic()
    assert any(word in line for line in said(data))
    assert time.monotonic() - started < 1


def test_places_are_counted_in_letters_not_bytes():
    places = find_places('a = { "ä" = 1, b = 2 }\n'.encode())
    assert places["a", "b"] == (1, 16)


def test_places_are_found_in_arrays_of_tables_and_dotted_keys():
    places = find_places(b"[[t]]\nx = 1\n[[t]]\nx.y = [1,\n  2]\n")
    assert places["t", 0, "x"] == (2, 1)
    assert places["t", 1, "x", "y"] == (4, 1)
    assert places["t", 1, "x", "y", 1] == (5, 3)


def test_the_schema_is_valid_and_takes_what_the_parser_takes():
    import tomllib

    schema = recipe_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(tomllib.loads(GOOD.decode()))
    assert not validator.is_valid(tomllib.loads(GOOD.decode().replace("quant", "quants")))
    json.dumps(schema)


def test_the_starter_recipe_is_a_good_recipe():
    recipe = parse_recipe(starter_recipe("My Clinic!", "cpu-16gb").encode())
    assert recipe.bundle.name == "my-clinic"
