"""Jobs for a child process: what llama.cpp itself says of a model with its draft."""

from __future__ import annotations

from typing import Any

from bundler.builtin.llamacpp import native
from tests import sizing_jobs


def pair_breakdown(arguments: dict[str, Any], report: Any) -> list[dict[str, list[int]]]:
    """Return the memory of a model and of its draft, open in one process as a server has them.

    Rows of results as in `server_output_limits` and `common_base_params_to_speculative`.
    """
    llama, answers, opened = native.llama(), [], []
    for path, rows, kv_cache in arguments["models"]:
        model = sizing_jobs._open({**arguments, "path": path})
        cell = {**arguments["cell"], "kv_cache": kv_cache, "output_rows": rows}
        context = sizing_jobs._context(model, cell)
        opened.append((model, context))
        arguments = {**arguments, "devices": 0}  # they are registered once in a process
    for _, context in opened:
        answers.append(sizing_jobs._breakdown(context))
    for model, context in opened:
        llama.llama_free(context)
        llama.llama_model_free(model)
    return answers


def answers(arguments: dict[str, Any], report: Any) -> list[dict[str, Any]]:
    """Return for each text what a model says alone and with its draft, and what became of guesses."""
    from pathlib import Path

    from bundler.builtin.llamacpp.drafting.guessing import (
        Reader,
        alone,
        guess,
        parted,
        together,
    )
    from bundler.builtin.llamacpp.session import open_context, open_model

    found = []
    with (
        open_model(Path(arguments["model"]), gpu=False) as model,
        open_model(Path(arguments["draft"]), gpu=False) as draft,
        open_context(model, context_tokens=512) as main_context,
        open_context(draft, context_tokens=512) as draft_context,
    ):
        main, small = Reader(model, main_context), Reader(draft, draft_context)
        for text in arguments["texts"]:
            prompt = model.tokens(text, start=True)
            own = alone(main, prompt, arguments["tokens"])
            pair = together(main, small, prompt, arguments["tokens"])
            found.append(
                {
                    "own": own.tokens, "pair": pair.tokens, "drafted": pair.drafted,
                    "accepted": pair.accepted, "passes": pair.passes, "parted": parted(own, pair),
                    "guesses": guess(small, prompt, 3), "text": model.text(pair.tokens),
                }
            )  # fmt: skip
    return found
