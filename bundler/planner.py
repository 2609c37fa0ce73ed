"""Chooses among offers and orders the work. Reads nothing, writes nothing.

The choice is exact: of all combinations of offers (one for each model) whose memory, RAM and disk
fit the target, the one with the least predicted damage is taken (see `choosing`), so the order in
which plugins answer cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from bundler.choosing import Limits, Load, Wanted, choose, rank
from bundler.errors import DoesNotFit, Problem, RecipeError
from bundler.hardware import Target
from bundler.lock import Lock, LockedFile, Resolution
from bundler.plan import Budget, Choice, FileInput, Offer, Plan, Step, StepInput
from bundler.recipe import Recipe, TargetRequest, VerifyOptions
from bundler.value import format_bytes

# FAT32 cannot hold a file of 4 GiB (Microsoft FAT32 File System Specification: 32-bit sizes).
FAT32_MAX_FILE_BYTES = 2**32 - 1


def choose_target(request: TargetRequest, catalogue: Mapping[str, Target]) -> Target:
    """Return the machine a recipe means: one of the catalogue, with the recipe's own figures."""
    own = {
        "usable_vram_bytes": request.usable_vram,
        "ram_bytes": request.ram,
        "accelerator": request.accelerator,
        "memory_bandwidth_bytes_per_second": request.memory_bandwidth,
        "unified_memory": request.unified_memory,
    }
    given = {key: value for key, value in own.items() if value is not None}
    if request.use is None:
        return Target(name="custom", title="as the recipe says", source="the recipe", **given)
    if request.use not in catalogue:
        raise RecipeError(
            f"target.use: there is no target called {request.use!r}",
            hint=f"the catalogue has: {', '.join(sorted(catalogue))}",
        )
    return catalogue[request.use].model_copy(update=given)


def make_plan(
    recipe: Recipe, lock: Lock, target: Target, offers: Mapping[str, Sequence[Offer]],
    *, runtime_formats: frozenset[str], fixed_bytes: int = 0,
) -> Plan:  # fmt: skip
    """Return the plan: one offer for each model, every step in order, the budgets held.

    Args:
        recipe: what is wanted.
        lock: what it will be made from.
        target: the machine it is for.
        offers: for each model of the recipe, all offers of its engine.
        runtime_formats: formats that the recipe's runtimes can load.
        fixed_bytes: size of runtimes and other parts of the bundle that are known beforehand.

    Raises:
        DoesNotFit: no combination fits; says which limit, by how much, and what would help.
    """
    wanted = [
        Wanted(name, recipe.models[name], _usable(name, given, runtime_formats))
        for name, given in sorted(offers.items())
    ]
    corpora_bytes = sum(resolution.size_bytes for resolution in lock.corpora.values())
    limits = Limits(
        vram_bytes=_accelerator_bytes(target),
        ram_bytes=target.ram_bytes,
        disk_bytes=_left(recipe.bundle.max_size, corpora_bytes + fixed_bytes),
    )
    chosen, notes = _choose_or_explain(wanted, limits, target)
    taken = [want for want in wanted if want.name in chosen]
    choices = tuple(_explain(want, taken, chosen, limits) for want in taken)
    steps = (
        *_model_steps(choices, recipe.verify),
        *_corpus_steps(recipe, lock),
        *_runtime_steps(recipe, lock),
    )
    plan = Plan(
        bundle=recipe.bundle.name,
        target=target,
        choices=choices,
        steps=steps,
        budgets=_budgets(recipe, lock, choices, limits, steps, corpora_bytes + fixed_bytes),
        notes=(*notes, *_speed_notes(choices, target)),
    )
    _check_filesystem(recipe, lock, choices)
    _check_budgets(plan)
    return plan


def _usable(name: str, offers: Iterable[Offer], formats: frozenset[str]) -> tuple[Offer, ...]:
    found = tuple(sorted((o for o in offers if o.format in formats), key=rank))
    if not found:
        raise DoesNotFit(
            f"models.{name}: none of the recipe's runtimes can load what its engine makes",
            hint="add a runtime for the format: see `bundler plugins`",
        )
    return found


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


def _accelerator_bytes(target: Target) -> int | None:
    return target.usable_vram_bytes if target.accelerator != "none" else None


# -- choosing ----------------------------------------------------------------------------------------


def _choose_or_explain(
    wanted: list[Wanted], limits: Limits, target: Target
) -> tuple[dict[str, Offer], list[str]]:
    """Return a choice; leaves out optional models, last ones first, before it gives up."""
    left_out: list[str] = []
    trying = list(wanted)
    while True:
        chosen = choose(trying, limits)
        if chosen is not None:
            notes = [f"left out, since it does not fit: models.{name}" for name in left_out]
            return chosen, notes
        optional = [want for want in trying if want.request.optional]
        if not optional:
            raise DoesNotFit(_shortfall(trying, limits, target))
        left_out.append(optional[-1].name)
        trying.remove(optional[-1])


def _shortfall(wanted: Sequence[Wanted], limits: Limits, target: Target) -> list[Problem]:
    """Return why nothing fits, with the figures of the smallest offers, and what would help."""
    smallest = {
        want.name: min(want.offers, key=lambda offer: (offer.memory.total_bytes, offer.quant))
        for want in wanted
    }
    load = Load()
    for want in wanted:
        load = load.plus(want.request, smallest[want.name], limits)
    problems = []
    parts = ", ".join(
        f"{name} {format_bytes(o.memory.total_bytes)} ({o.quant}: weights "
        f"{format_bytes(o.memory.weights_bytes)}, KV cache {format_bytes(o.memory.kv_cache_bytes)} "
        f"for {o.context_tokens * o.parallel} tokens)"
        for name, o in smallest.items()
    )
    for word, need, have in load.against(limits):
        if have is not None and need > have:
            problems.append(
                Problem(
                    f"does not fit: even the smallest choices need {format_bytes(need)} of {word}, "
                    f"{target.title or target.name} has {format_bytes(have)}; "
                    f"{format_bytes(need - have)} too much. {parts}",
                    hint=_suggestion(wanted, smallest, need - have, word),
                )
            )
    if not problems:
        problems.append(Problem("does not fit: no combination meets all limits at once"))
    return problems


def _suggestion(
    wanted: Sequence[Wanted], smallest: Mapping[str, Offer], excess: int, word: str
) -> str:
    """Return the smallest change that would help, computed from the figures."""
    ideas = []
    for want in wanted:
        offer = smallest[want.name]
        cells = offer.context_tokens * offer.parallel
        per_cell = offer.memory.kv_cache_bytes / cells if cells else 0
        if word != "disk" and per_cell and offer.memory.kv_cache_bytes > excess:
            tokens = int((offer.memory.kv_cache_bytes - excess) / per_cell / offer.parallel)
            if tokens >= 1024:
                ideas.append(f"models.{want.name}: context_tokens = {tokens // 256 * 256}")
    residents = [want.name for want in wanted if want.request.residency == "resident"]
    if word != "disk" and len(residents) > 1:
        ideas.append('let models take turns: residency = "on-demand"')
    ideas.append("a smaller model, or fewer of them" if word != "disk" else "a larger stick")
    return "; or ".join(ideas)


def _explain(
    want: Wanted, wanted: Sequence[Wanted], chosen: Mapping[str, Offer], limits: Limits
) -> Choice:
    """Return the choice for one model with its runner-up and the reason."""
    offer = chosen[want.name]
    better = [o for o in sorted(want.offers, key=rank) if o.quality < offer.quality]
    worse = [o for o in sorted(want.offers, key=rank) if rank(o) > rank(offer)]
    runner_up = better[-1] if better else worse[0] if worse else None
    if better:
        short = offer_shortage(wanted, {**chosen, want.name: better[-1]}, limits)
        reason = f"the best that fits; {better[-1].quant} with {better[-1].kv_cache} KV {short}"
    else:
        reason = "the best that is offered" if runner_up else "the only one that is offered"
    return Choice(
        model=want.name, role=want.request.role, offer=offer, runner_up=runner_up, reason=reason
    )


def offer_shortage(wanted: Sequence[Wanted], chosen: Mapping[str, Offer], limits: Limits) -> str:
    """Say why a combination was not taken: which limit it breaks, and by how much."""
    load = Load()
    for want in wanted:
        load = load.plus(want.request, chosen[want.name], limits)
    for word, need, have in load.against(limits):
        if have is not None and need > have:
            return f"would need {format_bytes(need - have)} more {word}"
    return "costs another model more than it gains"


# -- ordering ----------------------------------------------------------------------------------------


def _model_steps(choices: Iterable[Choice], verify: VerifyOptions) -> list[Step]:
    """Return the steps of all models with full names; proofs get what `[verify]` says of them."""
    asked = {"require": verify.require, "tokens": verify.tokens}
    steps: list[Step] = []
    for choice in choices:
        prefix = f"models/{choice.model}/"
        for step in choice.offer.steps:
            inputs = {
                name: StepInput(step=prefix + given.step, file=given.file)
                if isinstance(given, StepInput)
                else given
                for name, given in step.inputs.items()
            }
            parameters = {**step.parameters, **(asked if step.action == "prove" else {})}
            update = {"name": prefix + step.name, "inputs": inputs, "parameters": parameters}
            steps.append(step.model_copy(update=update))
    return steps


def file_inputs(files: Iterable[LockedFile]) -> dict[str, FileInput]:
    """Return locked files as inputs of a step, under their own paths."""
    return {f.path: FileInput(sha256=f.sha256, size_bytes=f.size_bytes) for f in files}


def _corpus_steps(recipe: Recipe, lock: Lock) -> list[Step]:
    return [
        Step(
            name=f"corpora/{name}",
            plugin=f"corpus:{corpus.kind}",
            action="build",
            inputs=file_inputs(lock.corpora[name].files),
            parameters={
                "name": name,
                "title": corpus.title or name,
                "language": corpus.language,
                "creator": corpus.creator,
                "description": corpus.description,
                "licence": corpus.licence or lock.corpora[name].licence,
                "date": datetime.fromtimestamp(lock.created, UTC).date().isoformat(),
            },
        )
        for name, corpus in sorted(recipe.corpora.items())
    ]


def _runtime_steps(recipe: Recipe, lock: Lock) -> list[Step]:
    def step(label: str, resolution: Resolution) -> Step:
        name, _, platform = label.rpartition("/")
        return Step(
            name=f"runtimes/{label}",
            plugin=f"runtime:{name}",
            action="stage",
            inputs=file_inputs(resolution.files),
            parameters={"platform": platform, "revision": resolution.revision},
        )

    return [step(label, resolution) for label, resolution in sorted(lock.runtimes.items())]


# -- budgets -----------------------------------------------------------------------------------------


def _budgets(
    recipe: Recipe, lock: Lock, choices: Sequence[Choice], limits: Limits,
    steps: Sequence[Step], other_bytes: int,
) -> tuple[Budget, ...]:  # fmt: skip
    load = Load()
    for choice in choices:
        load = load.plus(recipe.models[choice.model], choice.offer, limits)
    downloads = {
        given.sha256: given.size_bytes
        for step in steps
        for given in step.inputs.values()
        if isinstance(given, FileInput)
    }
    bundle = sum(choice.offer.disk_bytes for choice in choices) + other_bytes
    # What is neither a locked file nor a model is made too: unpacked runtimes, ZIMs of documents.
    ready = {resolution.files[0].sha256 for resolution in _ready_corpora(recipe, lock)}
    unmade = sum(size for sha256, size in downloads.items() if sha256 in ready)
    scratch = max((choice.offer.scratch_bytes for choice in choices), default=0)
    made = sum(choice.offer.disk_bytes for choice in choices if choice.offer.steps)
    found = [Budget(name="RAM", used_bytes=load.ram + load.ram_turn, limit_bytes=limits.ram_bytes)]
    if limits.vram_bytes is not None:
        found.insert(
            0,
            Budget(
                name="VRAM", used_bytes=load.vram + load.vram_turn, limit_bytes=limits.vram_bytes
            ),
        )
    return (
        *found,
        Budget(name="bundle on disk", used_bytes=bundle, limit_bytes=recipe.bundle.max_size),
        Budget(name="inputs", used_bytes=sum(downloads.values()), limit_bytes=None),
        Budget(
            name="peak build disk",
            used_bytes=sum(downloads.values()) + made + scratch + other_bytes - unmade,
            limit_bytes=None,
        ),
    )


def _ready_corpora(recipe: Recipe, lock: Lock) -> list[Resolution]:
    """Return the corpora that go into the bundle as they are fetched: the store holds them once."""
    return [lock.corpora[name] for name, corpus in recipe.corpora.items() if corpus.kind == "zim"]


def _speed_notes(choices: Sequence[Choice], target: Target) -> list[str]:
    """Return an upper bound of each model's speed: each token reads all weights once."""
    bandwidth = target.memory_bandwidth_bytes_per_second
    if not bandwidth:
        return []
    return [
        f"models.{choice.model}: at most {bandwidth / choice.offer.memory.weights_bytes:.0f} "
        f"tokens/s on {target.title or target.name} (memory bandwidth, not measured)"
        for choice in choices
        if choice.role in ("chat", "code") and choice.offer.memory.weights_bytes
    ]


def _check_budgets(plan: Plan) -> None:
    """Refuse a plan whose corpora alone are too large: there was nothing to choose about them."""
    problems = [
        Problem(
            f"does not fit: {budget.name} needs {format_bytes(budget.used_bytes)}, "
            f"the limit is {format_bytes(budget.limit_bytes or 0)}",
            hint="leave out a corpus, take a smaller edition of it, or a larger stick",
        )
        for budget in plan.budgets
        if not budget.fits
    ]
    if problems:
        raise DoesNotFit(problems)


def _check_filesystem(recipe: Recipe, lock: Lock, choices: Sequence[Choice]) -> None:
    if recipe.bundle.filesystem != "fat32":
        return
    large = [
        (f"models.{c.model} ({c.offer.quant})", c.offer.disk_bytes)
        for c in choices
        if c.offer.disk_bytes > FAT32_MAX_FILE_BYTES
    ] + [
        (f"corpora.{name} ({file.path})", file.size_bytes)
        for name, resolution in lock.corpora.items()
        for file in resolution.files
        if file.size_bytes > FAT32_MAX_FILE_BYTES
    ]
    if large:
        raise DoesNotFit(
            [
                Problem(
                    f"{what} has {format_bytes(size)}; FAT32 holds no file of 4 GiB or more",
                    hint='use a stick with exFAT: bundle.filesystem = "exfat"',
                )
                for what, size in large
            ]
        )
