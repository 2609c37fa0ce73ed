"""The proof of a model with its draft: how many guesses are right, and that no answer changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.drafting.counting import DRAFTED_TOKENS
from bundler.builtin.llamacpp.long_answers.questions import questions_for
from bundler.builtin.llamacpp.prove import SAMPLE_PROMPTS, adapters_in, gpu_is_there
from bundler.builtin.llamacpp.sharding import loadable, model_inputs
from bundler.hookspecs import Task
from bundler.proof import Drafting
from bundler.store import hash_file
from bundler.value import pretty_json

ANSWER_TOKENS = 96
SECONDS = 300.0
"""After this no further question is asked: a large model on a slow processor."""
TIE_LOGITS = 0.1
"""Two words whose logits are nearer than this may change places when several tokens are computed at
once: sums are then made in another order, or by another kernel. Our judgement; words as near as that
are 1.1 times as likely as each other at most."""
_JOB = "bundler.builtin.llamacpp.drafting.guessing:draft_job"


def prove_draft(task: Task) -> dict[str, Any]:
    """Measure `model.gguf` with `draft.gguf`; leaves `drafting.json`.

    Parameters: role, context_tokens, kv_cache, draft_kv_cache, gpu_layers, draft_gpu_layers, require,
    scales (of the model's adapters `adapters/0.gguf`…).

    Raises:
        ProofFailed: `require` is `gpu` and there is none, or not all layers went there.
    """
    with loadable(task) as model, loadable(task, "draft") as draft:
        found = _measured(task, model, draft)
    digests = [hash_file(path) for path in model_inputs(task, "draft")]
    drafting = drafting_of(found, digests[0])
    (task.output / "drafting.json").write_text(pretty_json(drafting), encoding="utf-8")
    return drafting.model_dump(mode="json")


def _measured(task: Task, model: Path, draft: Path) -> Mapping[str, Any]:
    parameters = {"gpu_layers": -1, "draft_gpu_layers": -1, "scales": (), **task.parameters}
    there = gpu_is_there(task, str(parameters.get("require", "any")))
    role = str(parameters["role"])
    return dict(
        run_child(
            _JOB,
            {
                "model": str(model),
                "draft": str(draft),
                "questions": [
                    SAMPLE_PROMPTS.get(role, SAMPLE_PROMPTS["chat"]), *questions_for(role),
                ],
                "text": str(task.inputs["heldout.txt"]) if "heldout.txt" in task.inputs else None,
                "tokens": ANSWER_TOKENS,
                "seconds": SECONDS,
                "context_tokens": int(parameters["context_tokens"]),
                "kv_cache": str(parameters["kv_cache"]),
                "draft_kv_cache": str(parameters["draft_kv_cache"]),
                "gpu": there and int(parameters["gpu_layers"]) != 0,
                "gpu_layers": int(parameters["gpu_layers"]),
                "draft_gpu_layers": int(parameters["draft_gpu_layers"]),
                "adapters": adapters_in(task, parameters),
            },
            environment=task.world.environment,
            progress=task.progress,
        )
    )  # fmt: skip


def drafting_of(found: Mapping[str, Any], draft_sha256: str) -> Drafting:
    """Return the figures of a child as they are kept."""
    gaps = [float("inf") if gap is None else float(gap) for gap in found["gaps"]]
    return Drafting(
        draft_sha256=draft_sha256,
        drafted_at_once=DRAFTED_TOKENS,
        answers=found["answers"],
        looping=found["looping"],
        tokens=found["tokens"],
        drafted=found["drafted"],
        accepted=found["accepted"],
        passes=found["passes"],
        ties=sum(1 for gap in gaps if gap <= TIE_LOGITS),
        different=sum(1 for gap in gaps if gap > TIE_LOGITS),
        notes=tuple(_notes(found, gaps)),
    )


def _notes(found: Mapping[str, Any], gaps: list[float]) -> list[str]:
    """Return what a reader must know to judge the figures by."""
    notes = []
    if found["answers"] < found["asked"]:
        notes.append(
            f"drafting was measured on {found['answers']} of {found['asked']} questions: then "
            f"{SECONDS:.0f} s were over"
        )
    if found["answers"] == found["looping"]:
        notes.append(
            "how many of its draft's guesses are right is not known: every answer ended in a loop, "
            "which any draft guesses"
        )
    if any(gap > TIE_LOGITS for gap in gaps):
        notes.append(
            "with its draft the model gave an answer that is not its own, and not for a tie between "
            "two words: do not trust the pair, and report it"
        )
    return notes
