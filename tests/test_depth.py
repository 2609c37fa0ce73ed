"""One stretch of text far into the context: a model beside the unquantized one, part by part."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.llamacpp.depth import FIRST_PART_TOKENS, LEAST_TOKENS, compared, edges
from bundler.proof import Depth
from tests.models import Shape, job, quantized, text_file, tiny_gguf

LONG = Shape(context_tokens=4096)
ASKED = {"kv_cache": "f16", "gpu": False, "gpu_layers": -1, "adapters": []}


def deep(model, reference, **more):
    arguments = {
        "model": str(model), "reference": str(reference), "text": str(text_file()),
        "tokens": 2048, **ASKED, **more,
    }  # fmt: skip
    return job("depth:depth_job", arguments)


@given(st.integers(LEAST_TOKENS - 1, 3_000_000))
def test_parts_cover_the_stretch_and_none_is_short(count):
    found = edges(count)
    assert found[0] == 0
    assert found[-1] == count
    sizes = np.diff(found)
    assert sizes.min() >= FIRST_PART_TOKENS
    assert (sizes[1:] >= np.array(found[1:-1]) / 2).all()


def test_a_model_loses_nothing_against_itself():
    found = Depth.model_validate(deep(tiny_gguf(LONG), tiny_gguf(LONG)))
    assert found.tokens == 2048
    assert [part.first for part in found.parts] == [0, 256, 512, 1024]
    assert found.parts[-1].last == 2046
    assert {part.loss for part in found.parts} == {0.0}
    assert found.growth == 0


def test_what_each_token_costs_is_what_windows_say_of_it(tmp_path):
    """The second half of one window, scored by the evaluation, is the last part of the stretch."""
    model, reference = quantized(tiny_gguf(LONG), "Q4_K_M"), tiny_gguf(LONG)
    found = Depth.model_validate(deep(model, reference))
    arguments = {
        "model": str(model), "reference": str(reference), "text": str(text_file()),
        "window_tokens": 2048, "tokens": 2048, "scratch": str(tmp_path), **ASKED,
    }  # fmt: skip
    windows = job("evaluate:evaluate_job", arguments)
    last = found.parts[-1]
    # The evaluation decodes the window in one batch, and sums come in another order.
    assert last.perplexity == pytest.approx(windows["perplexity"], rel=2e-3)
    assert last.reference_perplexity == pytest.approx(windows["reference_perplexity"], rel=2e-3)


def test_a_text_that_is_too_short_has_no_depth(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("A short text. " * 20)
    assert deep(tiny_gguf(LONG), tiny_gguf(LONG), text=str(text)) is None


@given(st.integers(0, 1000))
def test_growth_is_found_where_errors_grow_and_not_where_they_do_not(seed):
    rng = np.random.default_rng(seed)
    base = rng.gamma(2.0, 2.0, 8191)
    noise = rng.normal(0, 0.2, base.size)
    steady = Depth.model_validate(
        {"tokens": 8192, "text_sha256": "0" * 64, **compared(base + noise, base)}
    )
    assert abs(steady.growth) < 5 * steady.growth_standard_error
    slope = np.linspace(0, 0.4, base.size)
    growing = Depth.model_validate(
        {"tokens": 8192, "text_sha256": "0" * 64, **compared(base + noise + slope, base)}
    )
    assert growing.growth > 5 * growing.growth_standard_error
    assert growing.growth == pytest.approx(0.3, abs=0.1)
