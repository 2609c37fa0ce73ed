"""The simplest way to score answers, run in a child by test_tasks: one at a time, from the beginning."""

from pathlib import Path

import numpy as np

from bundler.builtin.llamacpp.session import open_context, open_model
from bundler.tasks.items import asked_letters, asked_texts
from bundler.tasks.reading import read_choices


def one_by_one(arguments, report):
    items = read_choices(Path(arguments["file"]).read_bytes(), "q.jsonl")
    letters = arguments["scoring"] == "letters"
    picks, scores = [], []
    with open_model(Path(arguments["model"]), gpu=False) as model:
        for item in items:
            prompt, answers = asked_letters(item) if letters else asked_texts(item, "")
            sums = [_score(model, prompt, one) for one in answers]
            if not letters:
                sums = [s / len(text.strip()) for s, text in zip(sums, item.choices, strict=True)]
            picks.append(int(np.argmax(sums)))
            scores.append(sums)
    return {"picks": picks, "scores": scores}


def _score(model, prompt, answer):
    """Feed token after token, and add up what each was given."""
    tokens = model.tokens(prompt + answer, start=True)
    first = len(model.tokens(prompt, start=True))
    total = 0.0
    with open_context(model, context_tokens=512, batch_tokens=64) as context:
        for position, token in enumerate(tokens[:-1]):
            context.decode([token], start=position)
            if position + 1 >= first:
                logits = context.logits(1)[0].astype(np.float64)
                top = logits.max()
                likely = logits - top - np.log(np.exp(logits - top).sum())
                total += float(likely[tokens[position + 1]])
    return total
