"""The smallest changes with which a recipe that does not fit does; each is solved, none guessed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, islice

from bundler.advice.case import Case, fits
from bundler.advice.explanation import Remedy, RemedyKind
from bundler.advice.raising import all_limits, larger_stick, more_memory
from bundler.planning.options import TAKES_TURNS
from bundler.recipe import ModelRequest
from bundler.solver.choosing import solve

CONTEXT_STEP_TOKENS = 256
"""llama.cpp rounds contexts up to it, so finer steps change nothing."""
SHORTEST_CONTEXT_TOKENS = 512
"""Below it a model that answers people is of no use."""
SHOWN = 4

# How much it asks of a person to accept a change, from nothing (0) to a whole model (1): our
# judgement, used for nothing but the order in which remedies are named.
_TAKE_TURNS, _PLACEMENT, _QUANT, _SLOWER = 0.25, 0.3, 0.35, 0.5
_KV_CACHE = {"q8_0": 0.1, "q4_0": 0.4}
_LEAVE_OUT, _LEAVE_OUT_CORPUS = 1.0, 0.9
_MOST_SETS = 400
"""Sets of models to leave out that are tried before giving up."""
_COARSER = {"f16": ("q8_0", "q4_0"), "auto": ("q4_0",), "q8_0": ("q4_0",)}


def remedies_by_machine(case: Case) -> dict[str, tuple[Remedy, ...]]:
    """Return the remedies for each machine that is too small for its own models.

    Where each machine alone is large enough, they are for what all share, under an empty name.
    """
    tiers = case.decision.tiers
    small = [tier for tier in tiers if not fits(case.decision.of_tier(tier))]
    if len(tiers) < 2 or not small:
        return {"": find_remedies(case)}
    return {tier: find_remedies(case.of_tier(tier)) for tier in small}


def find_remedies(case: Case) -> tuple[Remedy, ...]:
    """Return changes that make the recipe fit, the smallest first; each one is enough alone.

    Where no single change is, the last resort is what the limits would have to be together.
    """
    if fits(case.decision):
        return ()
    wanted = dict.fromkeys(w.name for w in case.decision.wanted if not w.optional)
    found = [
        *more_memory(case),
        *of_the_stick(case),
        *(remedy for model in wanted for remedy in _of_model(case, model)),
        *_all_take_turns(case),
    ]
    if not any(remedy.kind != "more-memory" for remedy in found):
        found += _without_several(case)
    if not found:
        found = list(all_limits(case))
    return tuple(sorted(found, key=lambda remedy: (remedy.size, remedy.edits)))


def of_the_stick(case: Case) -> tuple[Remedy, ...]:
    """Return what helps where stick or download are too small, the smallest change first."""
    found = [*larger_stick(case), *_without_a_corpus(case)]
    return tuple(sorted(found, key=lambda remedy: (remedy.size, remedy.edits)))


def suggestion(remedies: tuple[Remedy, ...]) -> str:
    """Return the smallest remedies as one line of advice."""
    return "; or ".join(" and ".join(remedy.edits) for remedy in remedies[:SHOWN])


# -- models ----------------------------------------------------------------------------------------


def _of_model(case: Case, model: str) -> Iterator[Remedy]:
    request = case.recipe.models[model]
    yield from _shorter_context(case, model, request)
    yield from _fewer_users(case, model, request)
    for kv_cache in _COARSER.get(request.kv_cache, ()):
        yield from _try(case, model, "kv-cache", _KV_CACHE[kv_cache], kv_cache=kv_cache)
    if request.residency == "resident" and request.role in TAKES_TURNS:
        yield from _try(case, model, "take-turns", _TAKE_TURNS, residency="on-demand")
    yield from _other_quant(case, model, request)
    if request.placement != "auto":
        yield from _try(case, model, "placement", _PLACEMENT, placement="auto")
    if request.min_tokens_per_second is not None:
        yield from _try(case, model, "slower", _SLOWER, min_tokens_per_second=None)
    if len(case.decision.wanted) > 1 and fits(case.decision.without(model)):
        edit = f"models.{model}.optional = true (it is then left out)"
        yield Remedy(kind="leave-out", edits=(edit,), size=_LEAVE_OUT)


def _try(
    case: Case, model: str, kind: RemedyKind, size: float, **update: object
) -> Iterator[Remedy]:
    """Give a remedy if an edit of one model is enough."""
    if fits(case.edited(model, **update)):
        edits = tuple(f"models.{model}.{key} = {_written(value)}" for key, value in update.items())
        if None in update.values():
            edits = tuple(f"without models.{model}.{key}" for key in update)
        yield Remedy(kind=kind, edits=edits, size=size)


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return (
            f"[{', '.join(_written(one) for one in value)}]"
            if len(value) > 1
            else _written(value[0])
        )
    return f'"{value}"' if isinstance(value, str) else str(value)


def _shorter_context(case: Case, model: str, request: ModelRequest) -> Iterator[Remedy]:
    """Give the longest context that fits, in whole steps."""
    if request.role not in ("chat", "code"):
        return
    least, most = (
        SHORTEST_CONTEXT_TOKENS // CONTEXT_STEP_TOKENS,
        ((request.context_tokens - 1) // CONTEXT_STEP_TOKENS),
    )
    steps = _most(
        least, most, lambda n: fits(case.edited(model, context_tokens=n * CONTEXT_STEP_TOKENS))
    )
    if steps is not None:
        tokens = steps * CONTEXT_STEP_TOKENS
        yield Remedy(
            kind="shorter-context", edits=(f"models.{model}.context_tokens = {tokens}",),
            size=1 - tokens / request.context_tokens,
        )  # fmt: skip


def _fewer_users(case: Case, model: str, request: ModelRequest) -> Iterator[Remedy]:
    """Give the most users that fit."""
    users = _most(1, request.parallel - 1, lambda n: fits(case.edited(model, parallel=n)))
    if users is not None:
        yield Remedy(
            kind="fewer-users", edits=(f"models.{model}.parallel = {users}",),
            size=1 - users / request.parallel,
        )  # fmt: skip


def _most(low: int, high: int, enough: Callable[[int], bool]) -> int | None:
    """Return the largest number from `low` to `high` that is small enough; None if none is."""
    if low > high or not enough(low):
        return None
    if enough(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            low = middle
        else:
            high = middle
    return low


def _other_quant(case: Case, model: str, request: ModelRequest) -> Iterator[Remedy]:
    """Give the best quant outside the recipe's list with which everything fits."""
    if request.quant == ("auto",):
        return
    decision = case.edited(model, quant=("auto",))
    solution = None if decision is None else solve(decision)
    if solution is None:
        return
    named = {option.offer.quant for (name, _), option in solution.chosen.items() if name == model}
    yield from _try(case, model, "smaller-quant", _QUANT, quant=(*request.quant, *sorted(named)))


def _all_take_turns(case: Case) -> Iterator[Remedy]:
    """Give it where one alone is not enough, but all residents taking turns are."""
    models = case.recipe.models
    here = {want.name for want in case.decision.wanted}
    residents = [
        name
        for name, request in models.items()
        if name in here and request.residency == "resident" and request.role in TAKES_TURNS
    ]
    if len(residents) < 2 or any(
        fits(case.edited(name, residency="on-demand")) for name in residents
    ):
        return
    changed = {name: models[name].model_copy(update={"residency": "on-demand"})
               for name in residents}  # fmt: skip
    recipe = case.recipe.model_copy(update={"models": {**models, **changed}})
    if fits(case.decide_again(recipe)):
        edits = tuple(f'models.{name}.residency = "on-demand"' for name in residents)
        yield Remedy(kind="take-turns", edits=edits, size=_TAKE_TURNS * len(edits))


def _without_several(case: Case) -> Iterator[Remedy]:
    """Give the fewest models without which the others fit, where leaving out one is not enough."""
    names = list(dict.fromkeys(want.name for want in case.decision.wanted if not want.optional))
    sets = (chosen for count in range(2, len(names)) for chosen in combinations(names, count))
    for chosen in islice(sets, _MOST_SETS):
        decision = case.decision
        for name in chosen:
            decision = decision.without(name)
        if fits(decision):
            edits = tuple(f"models.{name}.optional = true" for name in chosen)
            yield Remedy(kind="leave-out", edits=edits, size=_LEAVE_OUT * len(chosen))
            return


def _without_a_corpus(case: Case) -> Iterator[Remedy]:
    """Give each corpus without which the bundle fits its stick."""
    for name in case.recipe.corpora:
        corpora = {other: c for other, c in case.recipe.corpora.items() if other != name}
        if corpora or case.recipe.models:
            recipe = case.recipe.model_copy(update={"corpora": corpora})
            if fits(case.decide_again(recipe)):
                yield Remedy(kind="leave-out-corpus", edits=(f"without corpora.{name}",),
                             size=_LEAVE_OUT_CORPUS)  # fmt: skip
