"""Writes the example's task: which of four glosses explains a word, for `recipes/quickstart.toml`.

Words and glosses are WordNet's, of synsets which the training never showed: they are read from
`bundler/texts/heldout.txt`. So nothing was learned by heart; what helps is to know what words and
names look like. Run it with `python examples/training/questions.py`: it always writes the same.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = ROOT / "bundler/texts/heldout.txt"
OUTPUT = ROOT / "examples/questions/glosses.jsonl"
SEED = 22
_CHOICES = 4
_ENTRY = re.compile(
    r"(?!Question:)([A-Z][\w' -]{2,40}(?: \((?:adjective|adverb)\))?): ([a-z(][^.\"]{15,140})\."
)


def entries(text: str) -> dict[str, str]:
    """Return word → gloss of every dictionary entry, in the text's order."""
    found = (_ENTRY.match(part) for part in text.split("\n\n"))
    return {match[1]: match[2] for match in found if match}


def kind_of(word: str) -> str:
    """Return what a word is; only glosses of the same kind stand beside each other."""
    if word.startswith("To "):
        return "verb"
    return word.rpartition(" (")[2] if word.endswith(")") else "noun"


def questions(known: dict[str, str]) -> list[dict[str, object]]:
    """Return one question for each word that has enough others of its kind."""
    rng = random.Random(SEED)
    made = []
    for word, gloss in known.items():
        others = [g for w, g in known.items() if w != word and kind_of(w) == kind_of(word)]
        if len(others) < _CHOICES - 1:
            continue
        choices = [gloss, *rng.sample(others, _CHOICES - 1)]
        rng.shuffle(choices)
        made.append({"question": word, "choices": choices, "answer": choices.index(gloss)})
    return made


def text() -> str:
    """Return the whole file."""
    made = questions(entries(HELD_OUT.read_text(encoding="utf-8")))
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in made)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text(), encoding="utf-8")
