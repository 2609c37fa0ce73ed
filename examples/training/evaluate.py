"""Measure an exported model: perplexity against two baselines, copying, citing and refusing.

Everything is measured on held-out synsets: the training never defined their words, nor showed
their glosses.
Answers are generated greedily from the prompt alone; a citation is right when the answer ends in
the expected number.

    python evaluate.py MODEL_FOLDER EVALUATION_FOLDER TEXTS_FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import REFUSAL
from model import Decoder, LayerCache, load_model
from tokenizer import BEGIN, END_OF_TEXT, END_OF_TURN, Tokenizer
from torch.nn import functional

WINDOW_TOKENS = 512
LONGEST_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Answer:
    """What was expected of the model and what it said."""

    kind: str
    question: str
    expected: str
    cited: int
    said: str

    @property
    def copied(self) -> bool:
        """Whether the words are exactly those of the passage, whatever the citation."""
        return without_citation(self.said) == without_citation(self.expected)

    @property
    def cites_right(self) -> bool:
        """Whether the answer ends in the expected number."""
        return self.cited > 0 and self.said.endswith(f"[{self.cited}]")

    @property
    def refuses(self) -> bool:
        """Whether the model says that the passages do not say."""
        return self.said.startswith(REFUSAL)


def without_citation(text: str) -> str:
    """The text without a final ` [n]`."""
    return re.sub(r" ?\[\d\]$", "", text)


# --- Perplexity -----------------------------------------------------------------------------


def windows(tokens: list[int]) -> Iterator[list[int]]:
    """Pieces of WINDOW_TOKENS - 1 tokens, each behind the beginning token."""
    size = WINDOW_TOKENS - 1
    for start in range(0, len(tokens), size):
        yield [BEGIN, *tokens[start : start + size]]


@torch.no_grad()
def model_nats(model: Decoder, tokens: list[int]) -> float:
    """Mean negative log-likelihood per token, in nats; every token is predicted once."""
    total = 0.0
    for window in windows(tokens):
        numbers = torch.tensor([window])
        hidden, _ = model(numbers[:, :-1])
        logits = model.logits(hidden[0])
        total += float(functional.cross_entropy(logits, numbers[0, 1:], reduction="sum"))
    return total / len(tokens)


def unigram_nats(training: list[int], tokens: list[int], vocabulary_size: int) -> float:
    """The same for token frequencies in a training text, one added to each count."""
    counts = Counter(training)
    total = len(training) + vocabulary_size
    return -sum(math.log((counts[token] + 1) / total) for token in tokens) / len(tokens)


def best_unigram_nats(tokens: list[int]) -> float:
    """The entropy of the text's own token frequencies: no unigram model can do better."""
    counts = Counter(tokens)
    return -sum(n * math.log(n / len(tokens)) for n in counts.values()) / len(tokens)


# --- Answers --------------------------------------------------------------------------------


@torch.no_grad()
def generate(model: Decoder, prompt: list[int]) -> list[int]:
    """The most likely continuation, up to an end token or LONGEST_ANSWER_TOKENS."""
    produced: list[int] = []
    caches: list[LayerCache] | None = None
    feed = prompt
    while len(produced) < LONGEST_ANSWER_TOKENS:
        hidden, caches = model(torch.tensor([feed]), caches)
        token = int(model.logits(hidden[0, -1]).argmax())
        if token in (END_OF_TEXT, END_OF_TURN):
            break
        produced.append(token)
        feed = [token]
    return produced


def answers(model: Decoder, tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> Iterator[Answer]:
    """Ask every question."""
    for row in rows:
        said = tokenizer.decode(generate(model, tokenizer.prompt(row["messages"])))
        question = row["messages"][-1]["content"].rpartition("Question: ")[2]
        yield Answer(row["kind"], question, row["answer"], row["cited"], said)


def share(flags: list[bool]) -> str:
    """`61.5 % (123 of 200)`."""
    return f"{100 * sum(flags) / max(1, len(flags)):.1f} % ({sum(flags)} of {len(flags)})"


def report_questions(found: dict[tuple[str, int], list[Answer]]) -> None:
    """Copying and citing for each kind and number of passages, then refusing over all."""
    for (kind, passages), group in found.items():
        if kind != "unanswerable":
            print(f"{kind} words, passages: {passages}")
            print(f"  sentence copied exactly: {share([item.copied for item in group])}")
            print(f"  citation right:          {share([item.cites_right for item in group])}")
            both = [item.copied and item.cites_right for item in group]
            print(f"  both:                    {share(both)}")
    everything = [item for group in found.values() for item in group]
    silent = [item for item in everything if item.cited == 0]
    refused = [item for item in everything if item.refuses]
    answerable = [item for item in everything if item.cited]
    print(f"refusal recall:    {share([item.refuses for item in silent])}")
    print(f"refusal precision: {share([item.cited == 0 for item in refused])}")
    print(f"false refusals:    {share([item.refuses for item in answerable])}")


def read_rows(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` questions of a file."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [json.loads(line) for line in lines]


def main() -> None:
    """Print all figures, each with the number it was measured on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("evaluation", type=Path, help="folder written by data.py")
    parser.add_argument("texts", type=Path, help="folder with heldout.txt and calibration.txt")
    parser.add_argument("--count", type=int, default=200, help="questions of each kind")
    parser.add_argument("--passages", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print of each kind")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    tokenizer = Tokenizer(options.model / "tokenizer.model")

    held_out = tokenizer.encode_text((options.texts / "heldout.txt").read_text("utf-8"))
    calibration = tokenizer.encode_text((options.texts / "calibration.txt").read_text("utf-8"))
    size = model.config.vocabulary_size
    print(f"perplexity per token on heldout.txt ({len(held_out)} tokens)")
    print(f"  uniform over {size}:         {size}")
    print(
        f"  unigram of calibration.txt: {math.exp(unigram_nats(calibration, held_out, size)):.1f}"
    )
    print(f"  best possible unigram:      {math.exp(best_unigram_nats(held_out)):.1f}")
    print(f"  model:                      {math.exp(model_nats(model, held_out)):.2f}", flush=True)

    found = {}
    for kind in ("real", "invented", "unanswerable"):
        for passages in options.passages:
            rows = read_rows(options.evaluation / f"{kind}_{passages}.jsonl", options.count)
            found[kind, passages] = list(answers(model, tokenizer, rows))
    report_questions(found)
    for group in found.values():
        wrong = [item for item in group if not (item.copied and item.said == item.expected)]
        for item in wrong[: options.show]:
            print(f"{item.kind}: {item.question}\n  {item.expected}\n  {item.said}")


if __name__ == "__main__":
    main()
