"""Carries out a plan, learns from its proofs, and plans again until both agree.

A build is finished when the plan that follows from all that was measured is the plan that was
carried out. So a second build of the same recipe and lock chooses the same, and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import ValidationError

from bundler.errors import DoesNotFit, NothingLeft, PluginError, Problem, ProofFailed
from bundler.events import Note
from bundler.execute import Results, execute
from bundler.feedback.measurements import PROOF_ACTION, learned, measurement_of
from bundler.feedback.ruling import described
from bundler.gates import check_gates, gate_problems
from bundler.lock import Lock, Measurement
from bundler.plan import Choice, OfferKey, Plan, Step, place_of
from bundler.planning.drafts import DRAFT_ACTION
from bundler.plugins import Plugins
from bundler.proof import Drafting, Proof
from bundler.recipe import Recipe
from bundler.store import StoredResult
from bundler.world import World

Planner = Callable[[Lock, Callable[[OfferKey], bool]], Plan]
"""From what is known, and which offers may be taken, to a plan; raises DoesNotFit, NothingLeft."""
Keep = Callable[[Sequence[Measurement]], None]
"""Puts measurements where later builds find them."""
_Facts = TypeVar("_Facts", Proof, Drafting)
Proofs = dict[tuple[str, str], Proof]
"""(model, tier) → its proof."""


@dataclass
class _Learner:
    """Takes in each proof as soon as it is finished, so that a build cut short has learned too."""

    recipe: Recipe
    plugins: Plugins
    keep: Keep
    lock: Lock
    """With all that was learned so far."""

    def follow(self, plan: Plan) -> Callable[[Step, StoredResult], None]:
        """Return what `execute` is to call with each result of a plan."""
        proved = {choice.step_prefix + PROOF_ACTION: choice for choice in plan.choices}

        def take(step: Step, result: StoredResult) -> None:
            choice = proved.get(step.name)
            if choice is not None:
                self._take(choice, step, proof_in(result, step))

        return take

    def _take(self, choice: Choice, step: Step, proof: Proof) -> None:
        tool = self.plugins.maker(step.plugin).tool()
        found = measurement_of(
            choice.offer, step, proof, tool, self.lock, choice.model, choice.role
        )
        known = learned(self.lock, [found])
        if known is not self.lock:
            self.lock = known
            self.keep([found])


@dataclass
class _Tries:
    """What was tried in one build, and what became of it."""

    problems: list[Problem] = field(default_factory=list)
    refused: set[OfferKey] = field(default_factory=set)
    count: int = 0

    def allows(self, key: OfferKey) -> bool:
        """Tell whether an offer was not refused yet."""
        return key not in self.refused

    def note(self, failed: Mapping[tuple[str, str], Sequence[Problem]], plan: Plan) -> None:
        """Take down one try with what spoke against it."""
        self.count += 1
        for choice in plan.choices:
            found = failed.get((choice.model, choice.tier), ())
            if found:
                self.refused.add(OfferKey.of(choice.offer, choice.model, choice.tier))
            for problem in found:
                said = f"try {self.count}: {described(choice.offer)}: {problem.message}"
                where = place_of(choice.model, choice.tier)
                hint = problem.hint or "loosen the gate, or allow more bits in `quant`"
                self.problems.append(Problem(said, where, hint))

    def ended(self, why: str, hint: str = "") -> ProofFailed:
        """Return the error that ends the build: every try with its figures, and why no other."""
        return ProofFailed([*self.problems, Problem(why, hint=hint)])


def prove_or_replan(
    recipe: Recipe, lock: Lock, plugins: Plugins, world: World, planner: Planner, keep: Keep
) -> tuple[Plan, Results, Proofs]:
    """Plan, execute and plan again from what was measured, at most as often as the recipe says.

    Finished work is found by its key, so another try does only what is new in it.

    Args:
        recipe: what is wanted; `verify.replans` bounds the tries.
        lock: what it is made from, with what earlier proofs measured.
        plugins: who does the steps, and who may object to a proof.
        world: store, network, screen.
        planner: makes a plan from what is known.
        keep: is given each new measurement at once, whatever becomes of the build.

    Raises:
        ProofFailed: no offer is left, or no try; names every try with its figures and limits.
    """
    tries = _Tries()
    learner = _Learner(recipe, plugins, keep, lock)
    plan = planner(lock, tries.allows)
    left, done = recipe.verify.replans, set[str]()
    while True:
        results = execute(plan, lock, plugins, world, learner.follow(plan))
        done |= _steps_of(plan)
        proofs = read_proofs(recipe, plan, results)
        failed = failed_proofs(proofs, plugins)
        tries.note(failed, plan)
        if failed:
            following = _next_try(planner, learner.lock, tries, left)
        else:
            following = _settled(planner, learner.lock, tries, plan, left, done, world)
            if _steps_of(following) <= _steps_of(plan):
                kept = {(choice.model, choice.tier) for choice in following.choices}
                return following, results, {key: p for key, p in proofs.items() if key in kept}
        _say_what_changes(plan, following, failed, world)
        # What an earlier try did already is no new try: it is found finished.
        left -= not _steps_of(following) <= done
        plan = following


def _steps_of(plan: Plan) -> set[str]:
    """Return all that a plan asks for, to be compared; what names it is the work itself."""
    return {step.model_dump_json() for step in plan.steps}


def _next_try(planner: Planner, known: Lock, tries: _Tries, left: int) -> Plan:
    """Return the plan to try after a failure."""
    if not left:
        count = f"{tries.count} {'tries were' if tries.count > 1 else 'try was'}"
        raise tries.ended(
            f"{count} made, and no more is allowed: verify.replans = {tries.count - 1}",
            hint="loosen the gate, allow more bits in `quant`, or raise verify.replans",
        )
    try:
        return planner(known, tries.allows)
    except (DoesNotFit, NothingLeft) as error:
        raise tries.ended(
            "no other offer fits that is expected to do better",
            hint="loosen the gate, give the model more memory, or take another model",
        ) from error


def _settled(
    planner: Planner, known: Lock, tries: _Tries, plan: Plan, left: int, done: set[str],
    world: World,
) -> Plan:  # fmt: skip
    """Return the plan that follows from a try that passed: the same one, when all is as foreseen.

    Raises:
        ProofFailed: what was measured does not fit the target, and nothing else does, or no try
            is left.
    """
    mine = {OfferKey.of(c.offer, c.model, c.tier) for c in plan.choices}
    try:
        following = planner(known, tries.allows)
        if _steps_of(following) <= _steps_of(plan):
            _say_what_is_dropped(plan, following, world)
            return following
        if left or _steps_of(following) <= done:
            return following
        same = planner(known, lambda key: key in mine)
    except (DoesNotFit, NothingLeft) as error:
        tries.problems += error.problems
        raise tries.ended(
            "what was measured does not fit the target", hint="give the model more memory"
        ) from error
    if not _steps_of(same) <= _steps_of(plan):
        raise tries.ended(
            "what was measured asks for another plan, and no more tries are allowed",
            hint="run it again: finished work is kept; or raise verify.replans",
        )
    _say_what_is_dropped(plan, same, world)
    changes = "; ".join(_changes(plan, following))
    world.report(
        Note(f"by what was measured the next build will choose otherwise: {changes}", "warning")
    )
    return same


# -- proofs ----------------------------------------------------------------------------------------


def proof_in(result: StoredResult, step: Step) -> Proof:
    """Return the proof that a step left.

    Raises:
        PluginError: its facts are none.
    """
    return facts_in(result, step, Proof, "proof")


def facts_in(result: StoredResult, step: Step, kind: type[_Facts], words: str) -> _Facts:
    """Return the value that a step left as its facts. Raises PluginError when they are none."""
    try:
        return kind.model_validate(result.facts)
    except ValidationError as error:
        raise PluginError(
            f"{step.plugin} left facts that are no {words}: {error.errors()[0]['msg']} "
            f"({'.'.join(map(str, error.errors()[0]['loc']))})",
            where=step.name,
            hint="this is a fault of that plugin, not of the recipe",
        ) from error


def read_proofs(recipe: Recipe, plan: Plan, results: Results) -> Proofs:
    """Return each model's proof, with the recipe's gates held against it."""
    steps = {step.name: step for step in plan.steps}
    proofs = {}
    for choice in plan.choices:
        name = choice.step_prefix + PROOF_ACTION
        if name in steps:
            proof = proof_in(results.by_step[name], steps[name])
            gates = check_gates(proof, recipe.models[choice.model].gates, choice.model)
            update = {"gates": gates, **_with_draft(choice, proof, steps, results)}
            proofs[choice.model, choice.tier] = proof.model_copy(update=update)
    return proofs


def _with_draft(
    choice: Choice, proof: Proof, steps: Mapping[str, Step], results: Results
) -> dict[str, object]:
    """Return what a model's proof gets from that of the model with its draft."""
    step = steps.get(choice.step_prefix + DRAFT_ACTION)
    if step is None:
        return {}
    drafting = facts_in(results.by_step[step.name], step, Drafting, "measurement of a draft")
    return {"drafting": drafting, "notes": (*proof.notes, *drafting.notes)}


def failed_proofs(
    proofs: Mapping[tuple[str, str], Proof], plugins: Plugins
) -> dict[tuple[str, str], list[Problem]]:
    """Return what speaks against each model: failed gates and objections of plugins."""
    failed: dict[tuple[str, str], list[Problem]] = {}
    for (model, tier), proof in proofs.items():
        problems = gate_problems(proof.gates, model) + plugins.review_proof(model, proof)
        if problems:
            failed[model, tier] = problems
    return failed


# -- what is said ----------------------------------------------------------------------------------


def _say_what_changes(
    plan: Plan, following: Plan, failed: Mapping[tuple[str, str], Sequence[Problem]], world: World
) -> None:
    """Say what failed with its figures, and what is tried next."""
    for choice in plan.choices:
        problems = failed.get((choice.model, choice.tier))
        if problems:
            why = "; ".join(problem.message for problem in problems)
            said = f"{described(choice.offer)} did not pass ({why}); it is ruled out"
            world.report(Note(f"{place_of(choice.model, choice.tier)}: {said}", "warning"))
    lead = "next" if failed else "what was measured changes the plan; next"
    world.report(Note(f"{lead}: {'; '.join(_changes(plan, following))}"))


def _say_what_is_dropped(plan: Plan, following: Plan, world: World) -> None:
    if following.steps != plan.steps:
        world.report(
            Note(f"what was measured changes the plan: {'; '.join(_changes(plan, following))}",
                 "warning")
        )  # fmt: skip


def _changes(plan: Plan, following: Plan) -> list[str]:
    """Return in words in which choices two plans differ."""
    before = {place_of(choice.model, choice.tier): choice.offer for choice in plan.choices}
    after = {place_of(choice.model, choice.tier): choice.offer for choice in following.choices}
    found = []
    for label in sorted(before.keys() | after.keys()):
        old, new = before.get(label), after.get(label)
        if old is None or new is None:
            found.append(f"{label} is {'taken in' if new else 'left out'}")
        elif OfferKey.of(old, "", "") != OfferKey.of(new, "", ""):
            found.append(f"{label}: {described(new)} in place of {described(old)}")
    return found or ["the same offers, proved with other settings"]
