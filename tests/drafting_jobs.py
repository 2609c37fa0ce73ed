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
