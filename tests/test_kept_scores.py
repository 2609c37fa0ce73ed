"""A reference's scores on disk: close enough to the whole logits, small in memory, never half."""

import tracemalloc

import numpy as np
import pytest

from bundler.builtin.llamacpp.divergence import Scores
from bundler.builtin.llamacpp.kept_scores import keep, open_kept, write_kept

WINDOWS = [list(range(40)), list(range(40, 80))]
ROWS = 19


def logits(rows, vocabulary, seed):
    return np.random.default_rng(seed).normal(0, 3, (rows, vocabulary)).astype(np.float32)


def written(path):
    parts = [(logits(ROWS, 300, n), np.arange(ROWS)) for n in range(2)]
    return write_kept(path, WINDOWS, 300, (keep(*part) for part in parts)), parts


def test_kept_scores_give_the_figures_of_whole_logits():
    base, other = logits(64, 4000, 1), logits(64, 4000, 1) + 0.1 * logits(64, 4000, 2)
    following = np.arange(64)
    whole, kept = Scores(), Scores()
    whole.add(base, other, following)
    kept.add_kept(keep(base, following), other, following)
    one, two = whole.summary(), kept.summary()
    assert two["kld_mean"] == pytest.approx(one["kld_mean"], abs=1e-6)
    assert two["kld_max"] == pytest.approx(one["kld_max"], abs=2e-5)
    for exact in ("perplexity", "reference_perplexity", "top1_agreement"):
        assert two[exact] == one[exact]


def test_a_model_against_itself_diverges_by_rounding_only():
    base, scores = logits(64, 4000, 1), Scores()
    scores.add_kept(keep(base, np.arange(64)), base, np.arange(64))
    assert scores.summary()["kld_mean"] < 1e-7
    assert scores.further()["top5_agreement"] == 1


def test_a_vocabulary_of_152k_takes_less_than_a_gigabyte():
    base = logits(64, 151_936, 1)
    tracemalloc.start()
    scores = Scores()
    scores.add_kept(keep(base, np.arange(64)), base, np.arange(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 600 << 20


def test_what_was_written_is_read(tmp_path):
    found, parts = written(tmp_path / "reference-a.scores")
    again = open_kept(found.path)
    assert again == found
    for number, part in enumerate(parts):
        one, two = keep(*part), again.read(number)
        assert (one.losses == two.losses).all()
        assert (one.top == two.top).all()
        assert (one.below == two.below).all()


@pytest.mark.parametrize("place", [0, 60, 4000, -1])
def test_one_changed_byte_and_they_are_made_anew(tmp_path, place):
    path = written(tmp_path / "reference-a.scores")[0].path
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert open_kept(path) is None
    path.write_bytes(data[:-10])
    assert open_kept(path) is None


def test_only_the_newest_two_stay(tmp_path):
    for name in "abc":
        written(tmp_path / f"reference-{name}.scores")
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "reference-c.scores").exists()
