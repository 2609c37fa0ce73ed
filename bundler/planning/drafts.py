"""The steps that prove models together with their drafts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bundler.feedback.measurements import PROOF_ACTION
from bundler.plan import Choice, FileInput, Step, StepInput
from bundler.recipe import Recipe
from bundler.recipe_drafts import pairs
from bundler.weights.shard_names import shard_name

DRAFT_ACTION = "draft"
_ADAPTERS, _TEXT = "adapters/", "heldout.txt"
_KEPT = ("role", "context_tokens", "kv_cache", "gpu_layers", "scales")
"""What such a proof has from the proof of the model alone."""


def draft_steps(recipe: Recipe, choices: Sequence[Choice]) -> Iterator[Step]:
    """Yield a step for each proved model whose draft was chosen for the same machine."""
    named = pairs(recipe)
    there = {(choice.model, choice.tier): choice for choice in choices}
    for choice in choices:
        draft = there.get((named.get(choice.model, ""), choice.tier))
        proofs = [step for step in choice.offer.steps if step.action == PROOF_ACTION]
        if draft is not None and proofs:
            yield _draft_step(choice, proofs[-1], draft, recipe.verify.require)


def _draft_step(choice: Choice, proof: Step, draft: Choice, require: str) -> Step:
    offer = choice.offer
    inputs = {**_files(choice, "model"), **_files(draft, "draft")}
    beside = (_ADAPTERS, _TEXT)
    inputs |= {name: file for name, file in proof.inputs.items() if name.startswith(beside)}
    kept = {name: proof.parameters[name] for name in _KEPT if name in proof.parameters}
    proved = (step for step in draft.offer.steps if step.action == PROOF_ACTION)
    own = next((step.parameters for step in proved), {})
    return Step(
        name=choice.step_prefix + DRAFT_ACTION,
        plugin=f"engine:{offer.engine}",
        action=DRAFT_ACTION,
        inputs=inputs,
        parameters={
            **kept,
            "draft_kv_cache": draft.offer.kv_cache,
            "draft_gpu_layers": own.get("gpu_layers", draft.offer.gpu_layers),
            "require": require,
        },
    )


def _files(choice: Choice, stem: str) -> dict[str, StepInput | FileInput]:
    """Return a model's file as inputs of a step, as it is before it is cut for a stick."""
    offer = choice.offer
    output = offer.cut.whole if offer.cut is not None else offer.output
    whole = f"{stem}.{offer.format}"
    if isinstance(output, StepInput):
        return {whole: output.model_copy(update={"step": choice.step_prefix + output.step})}
    files = (output, *offer.other_shards)
    if len(files) == 1:
        return {whole: output}
    return {shard_name(stem, n, len(files)): one for n, one in enumerate(files, start=1)}
