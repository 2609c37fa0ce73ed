"""What licences say on passing on, held to their words; unknown is never a yes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.licenses import canonicalize_license_expression

from bundler.attest.terms import TABLE, canonical, terms_of
from bundler.errors import RecipeError
from tests.fake_build import RECIPE, run

OWN_WORDS = RECIPE.replace('memory:weights"', "memory:weights\"\nlicence = 'my own words'")


@pytest.mark.parametrize(("word", "answer"), [
    ("CC0-1.0", "yes"), ("mit", "conditions"), ("Apache-2.0", "conditions"),
    ("llama3.1", "conditions"), ("gemma", "conditions"), ("qwen", "conditions"),
    ("cc-by-sa-4.0", "conditions"), ("cc-by-nc-4.0", "conditions"), ("GPL-2.0+", "conditions"),
    ("GPL-3.0", "conditions"), ("GPL-3.0-or-later WITH GCC-exception-3.1", "conditions"),
    ("", "unknown"), ("unknown", "unknown"), ("other", "unknown"), ("my own", "unknown"),
    ("all rights reserved", "no"), ("MIT OR LicenseRef-secret", "conditions"),
    ("MIT AND LicenseRef-secret", "unknown"), ("(MIT OR CC0-1.0) AND ISC", "conditions"),
    ("CC0-1.0 AND (LicenseRef-a AND LicenseRef-b OR Unlicense)", "yes"),
])  # fmt: skip
def test_what_a_licence_answers(word, answer):
    assert terms_of(word).answer == answer


@pytest.mark.parametrize(("word", "condition"), [
    ("llama3.3", "Built with Llama"), ("CC-BY-NC-SA-4.0", "non-commercial"),
    ("CC-BY-SA-4.0", "same licence"), ("GPL-3.0-or-later", "source code"),
    ("gemma", "use policy"), ("MIT", "licence text"), ("MPL-2.0", "source code"),
    ("qwen-research", "non-commercial"),
])  # fmt: skip
def test_its_conditions_are_named(word, condition):
    assert any(condition in one for one in terms_of(word).conditions)


def test_every_row_is_an_spdx_identifier_and_says_where_it_is_written():
    for name, terms in TABLE.items():
        assert canonicalize_license_expression(name) == name
        assert terms.reason
        assert (terms.answer == "conditions") == bool(terms.conditions)


@given(st.text(max_size=60))
def test_any_word_has_an_answer_and_never_a_yes_by_accident(word):
    terms = terms_of(word)
    assert terms.answer == "unknown" or canonical(word) or terms.conditions or terms.reason


@given(
    st.recursive(
        st.sampled_from(sorted(TABLE)),
        lambda inner: st.tuples(inner, st.sampled_from(("AND", "OR")), inner).map(
            lambda p: f"({p[0]} {p[1]} {p[2]})"
        ),
    )
)
def test_expressions_of_known_licences_are_known(expression):
    assert terms_of(expression).answer in ("yes", "conditions")


def test_sharing_what_is_not_known_is_refused_before_the_work_and_all_at_once(tmp_path):
    recipe = OWN_WORDS.replace('licence = "CC0-1.0"', 'licence = "all rights reserved"')
    with pytest.raises(RecipeError) as caught:
        run(tmp_path, recipe=recipe, share=True)
    assert [problem.where for problem in caught.value.problems] == ["models.chat", "corpora.book"]
    assert "licence = " in caught.value.problems[0].hint
    assert "may not be passed on" in caught.value.problems[1].message
    assert not (tmp_path / "dist").exists()


def test_what_may_be_passed_on_is_built_and_its_terms_are_in_the_bundle(tmp_path):
    recipe = RECIPE.replace(
        'source = "memory:weights"', 'source = "memory:weights"\nlicence = "MIT"'
    )
    output = run(tmp_path, recipe=recipe, share=True).output
    page = (output / "licenses/INDEX.txt").read_text()
    assert "models.chat: MIT\n  may be passed on: yes, with conditions" in page
    assert "models.chat: MIT" in page
    assert "text: none came with it" in page
    assert "corpora.book: CC0-1.0\n  may be passed on: yes" in page
    assert "text: licenses/corpora-book/LICENSE" in page
    assert "bundler: GPL-3.0-or-later" in page
    assert "May this be passed on?" in (output / "report.html").read_text()


def test_without_share_what_is_not_known_is_built_and_said(tmp_path):
    page = (run(tmp_path, recipe=OWN_WORDS).output / "licenses/INDEX.txt").read_text()
    assert "models.chat: my own words\n  may be passed on: not known" in page


def test_a_model_that_may_be_passed_on_unchanged_only_is_in_doubt_once_it_is_quantized(tmp_path):
    recipe = RECIPE.replace('engine = "fake"', 'engine = "fake"\nlicence = "CC-BY-ND-4.0"', 1)
    with pytest.raises(RecipeError, match="quantizing a model may be a change"):
        run(tmp_path, recipe=recipe, share=True)
