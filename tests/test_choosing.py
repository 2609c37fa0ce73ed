"""The chooser against brute force: feasible, optimal, whatever the order, and monotone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.errors import DoesNotFit
from bundler.plan import FileInput, Memory, Offer, StepInput
from bundler.solver import candidates, search
from bundler.solver.choosing import (
    DAMAGE_UNITS,
    Decision,
    Limit,
    Option,
    Solution,
    Wanted,
    settle,
    solve,
)

Chosen = Mapping[tuple[str, str], Option]


def offer_of(quant: str, size: int = 0) -> Offer:
    return Offer(
        engine="fake", quant=quant, format="gguf", kv_cache="f16", context_tokens=1, parallel=1,
        memory=Memory(weights_bytes=size, kv_cache_bytes=0, compute_bytes=0), disk_bytes=size,
        scratch_bytes=0, bits_per_weight=4.0, quality=0.0, steps=(),
        output=FileInput(sha256="0" * 64, size_bytes=1),
    )  # fmt: skip


OFFERS = [offer_of(f"q{number}") for number in range(8)]


# -- brute force -----------------------------------------------------------------------------------


def fits(decision: Decision, chosen: Chosen) -> bool:
    """Say again, in other words, what it means to fit: whatever is in memory at one moment does."""
    memory = [index for index, limit in enumerate(decision.limits) if limit.turns]
    shared = [index for index, limit in enumerate(decision.limits) if not limit.turns]
    turns = [key for key, option in chosen.items() if not option.resident]
    for moment in [None, *turns]:
        present = [o for key, o in chosen.items() if o.resident or key == moment]
        for index in memory:
            capacity = decision.limits[index].capacity_bytes
            if capacity is not None and sum(o.needs[index] for o in present) > capacity:
                return False
    files: dict[object, Option] = {}
    for (name, tier), option in chosen.items():
        files.setdefault((name, option.file or ("alone", tier)), option)
    return all(
        (capacity := decision.limits[index].capacity_bytes) is None
        or sum(option.needs[index] for option in files.values()) <= capacity
        for index in shared
    )


def every_choice(decision: Decision) -> Iterator[Chosen]:
    keys = [want.key for want in decision.wanted]
    for options in itertools.product(*(want.options for want in decision.wanted)):
        yield dict(zip(keys, options, strict=True))


def damage(chosen: Chosen) -> int:
    return sum(option.damage for option in chosen.values())


def least_damage(decision: Decision) -> int | None:
    return min((damage(c) for c in every_choice(decision) if fits(decision, c)), default=None)


# -- made up decisions -----------------------------------------------------------------------------


@st.composite
def decisions(draw: st.DrawFn) -> Decision:
    """Several machines, some with several accelerators; models of one kind or left open."""
    tiers = draw(st.sampled_from([("",), ("",), ("a", "b"), ("a", "b", "c")]))
    room = st.integers(0, 30)
    limits = []
    for tier in tiers:
        cards = draw(st.integers(0, 2))
        limits += [Limit(f"VRAM {n}", draw(room), turns=True, tier=tier) for n in range(cards)]
        limits.append(Limit("RAM", draw(room), turns=True, tier=tier))
    limits.append(Limit("disk", draw(st.none() | room), turns=False))
    limits.append(Limit("download", draw(st.none() | room), turns=False))
    names = ["m0", "m1", "m2"][: draw(st.integers(1, 3 if len(tiers) < 3 else 2))]
    most = {1: 5, 2: 3, 3: 3}[len(tiers)]
    wanted = [draw(wanted_of(name, tier, tuple(limits), most)) for tier in tiers for name in names]
    return Decision(tuple(wanted), tuple(limits))


@st.composite
def wanted_of(
    draw: st.DrawFn, name: str, tier: str, limits: tuple[Limit, ...], most: int
) -> Wanted:
    options = []
    several = tier != ""
    for number in range(draw(st.integers(1, most))):
        quant = draw(st.integers(0, 3))
        size = 2 + 3 * quant
        needs = tuple(
            (size if limit.name == "disk" else 4)
            if not limit.turns
            else draw(st.integers(0, 14))
            if limit.tier == tier
            else 0
            for limit in limits
        )
        for resident in draw(st.sampled_from([(True,), (False,), (True, False)])):
            options.append(
                Option(
                    OFFERS[number],
                    draw(st.integers(0, 20)),
                    needs,
                    resident,
                    f"q{quant}" if several else "",
                )
            )
    return Wanted(name, tier, tuple(options), optional=draw(st.booleans()))


@settings(max_examples=600, deadline=None)
@given(decisions())
def test_the_choice_fits_and_no_choice_that_fits_is_better(decision: Decision):
    found = solve(decision)
    best = least_damage(decision)
    if found is None:
        assert best is None
        return
    assert list(found.chosen) == [want.key for want in decision.wanted]
    assert fits(decision, found.chosen)
    assert not decision.broken(decision.used(found.chosen))
    assert (damage(found.chosen), found.gap) == (best, 0)
    assert found.damage == best


@settings(max_examples=300, deadline=None)
@given(decisions())
def test_what_a_choice_takes_breaks_a_limit_exactly_when_it_does_not_fit(decision: Decision):
    for chosen in itertools.islice(every_choice(decision), 50):
        assert fits(decision, chosen) == (not decision.broken(decision.used(chosen)))


@settings(max_examples=200, deadline=None)
@given(decisions(), st.randoms(use_true_random=False))
def test_the_order_of_offers_and_of_models_does_not_matter(
    decision: Decision, chance: random.Random
):
    shuffled = Decision(
        tuple(
            replace(want, options=tuple(chance.sample(want.options, len(want.options))))
            for want in chance.sample(decision.wanted, len(decision.wanted))
        ),
        decision.limits,
    )
    first, second = solve(decision), solve(shuffled)
    assert (first is None) == (second is None)
    if first and second:
        for key, one in first.chosen.items():
            other = second.chosen[key]
            assert (one.damage, one.resident, one.offer.quant, one.file) == (
                other.damage, other.resident, other.offer.quant, other.file,
            )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(decisions(), st.lists(st.integers(0, 10), min_size=12, max_size=12))
def test_more_room_never_makes_it_worse(decision: Decision, more: list[int]):
    wider = decision
    for limit, extra in zip(decision.limits, more, strict=False):
        if limit.capacity_bytes is not None:
            wider = wider.with_capacity(limit.name, limit.tier, limit.capacity_bytes + extra)
    before, after = solve(decision), solve(wider)
    if before is not None:
        assert after is not None
        assert after.damage <= before.damage


@settings(max_examples=200, deadline=None)
@given(decisions())
def test_optional_models_go_only_when_all_do_not_fit_and_needed_ones_never(decision: Decision):
    settled = settle(decision)
    needed = replace(decision, wanted=tuple(w for w in decision.wanted if not w.optional))
    if settled is None:
        assert least_damage(needed) is None
        return
    assert (least_damage(decision) is None) == bool(settled.left_out)
    left = {want.key for want in settled.decision.wanted}
    assert left == {w.key for w in decision.wanted} - set(settled.left_out)
    assert {w.key for w in needed.wanted} <= left
    assert settled.solution.damage == least_damage(settled.decision)


def test_a_limit_that_is_not_there_cannot_be_changed():
    with pytest.raises(KeyError):
        Decision((), (Limit("RAM", 1, turns=True),)).with_capacity("VRAM", "", 2)


# -- turns, machines and files ---------------------------------------------------------------------

RAM = (Limit("RAM", 16, turns=True),)


def one(name: str, *options: tuple[int, int, bool], optional: bool = False) -> Wanted:
    """Return a model with options of (need of RAM, damage, resident)."""
    made = [
        Option(OFFERS[n], harm, (need,), resident)
        for n, (need, harm, resident) in enumerate(options)
    ]
    return Wanted(name, "", tuple(made), optional)


def test_models_stay_in_memory_while_they_fit_and_take_turns_when_they_do_not():
    open_ = [one(name, (9, 0, True), (9, 3, False), (4, 20, True)) for name in "ab"]
    roomy = solve(Decision(tuple(open_), (Limit("RAM", 18, turns=True),)))
    tight = solve(Decision(tuple(open_), (Limit("RAM", 12, turns=True),)))
    assert roomy
    assert tight
    assert [o.resident for o in roomy.chosen.values()] == [True, True]
    assert [o.resident for o in tight.chosen.values()] == [False, False]


def test_waiting_is_not_worth_a_step_of_quality_that_is_smaller():
    small_step = one("a", (9, 0, True), (9, 3, False), (7, 2, True))
    found = solve(Decision((small_step, one("b", (9, 0, True))), RAM))
    assert found
    assert found.chosen["a", ""].needs == (7,)


def shared(name: str, tier: str, index: int, *options: tuple[int, int, int]) -> Wanted:
    """Return a model of one of two machines: options of (memory, disk, damage), file by its size."""
    made = []
    for number, (memory, disk, harm) in enumerate(options):
        needs = [0, 0, disk]
        needs[index] = memory
        made.append(Option(OFFERS[number], harm, tuple(needs), file=f"{disk}"))
    return Wanted(name, tier, tuple(made))


def two_machines(disk: int) -> Solution | None:
    limits = (
        Limit("RAM", 10, turns=True, tier="big"),
        Limit("RAM", 6, turns=True, tier="small"),
        Limit("disk", disk, turns=False),
    )
    options = ((9, 9, 1), (5, 5, 7), (3, 3, 9))
    wanted = (shared("m", "big", 0, *options), shared("m", "small", 1, *options))
    return solve(Decision(wanted, limits))


def test_two_machines_share_a_file_when_the_stick_is_small():
    roomy, tight, tiny = two_machines(14), two_machines(13), two_machines(4)
    assert roomy
    assert tight
    assert tiny
    assert [o.file for o in roomy.chosen.values()] == ["9", "5"]
    assert [o.file for o in tight.chosen.values()] == ["9", "3"]
    assert [o.file for o in tiny.chosen.values()] == ["3", "3"]
    shared_one = two_machines(8)
    assert shared_one
    assert [o.file for o in shared_one.chosen.values()] == ["5", "5"]
    assert two_machines(2) is None


def test_a_machine_gives_up_its_own_optional_models():
    limits = (Limit("RAM", 10, turns=True, tier="big"), Limit("RAM", 6, turns=True, tier="small"))
    wanted = tuple(
        Wanted(
            name, tier, (Option(OFFERS[0], 0, (4, 0) if tier == "big" else (0, 4)),), name != "a"
        )
        for tier in ("big", "small")
        for name in "abc"
    )
    settled = settle(Decision(wanted, limits))
    assert settled
    assert settled.left_out == (("c", "big"), ("c", "small"), ("b", "small"))


# -- speed -----------------------------------------------------------------------------------------

GIB = 1 << 30
KINDS = ("any", "correlated", "equal ratios", "same for all", "open")


def many(kind: str, count: int, of_each: int, seed: int) -> list[Wanted]:
    """Return models whose offers trade memory for quality in ways that are hard to judge."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        size = 4.0 if kind == "same for all" else chance.uniform(0.5, 15)
        residencies = (True, False) if kind == "open" else (chance.choice([True, True, False]),)
        options = []
        for step in range(of_each):
            bits = 2 + 14 * step / of_each
            need = int(size * bits / 16 * GIB)
            need += chance.randrange(GIB // 4) if kind != "same for all" else 0
            harm = {
                "correlated": 5_000 - need * 300 // GIB + chance.randrange(10),
                "equal ratios": 5_000 - need * 300 // GIB,
            }.get(kind, int(2.0 ** (-bits) * DAMAGE_UNITS * chance.uniform(0.5, 2)))
            options += [
                Option(OFFERS[step % 8], harm + (0 if r else 50), (need, int(size * bits)), r)
                for r in residencies
            ]
        found.append(Wanted(f"m{number:02}", "", tuple(options)))
    return found


# Both limits tight at once: all that `make bench-plan` times, and of other chances the kinds as engines
# make them. Of seed 1, one more of the others stops at the bound on work and one takes 5 s.
AS_MADE = ("any", "same for all")
HARD = [
    (kind, share, stick, seed)
    for kind, share, stick, seed in itertools.product(KINDS, (0.2, 0.35, 0.6), (0.7, 1.0), (0, 1))
    if stick == 1.0 or seed == 0 or kind in AS_MADE
]


@pytest.mark.parametrize(("kind", "share", "stick", "seed"), HARD)
def test_hard_choices_among_twenty_models_of_forty_offers_end_soon_and_are_proved(
    kind: str, share: float, stick: float, seed: int
):
    wanted = many(kind, 20, 40, seed)
    largest = sum(max(o.needs[0] for o in w.options) for w in wanted)
    disk = sum(max(o.needs[1] for o in w.options) for w in wanted)
    limits = (
        Limit("VRAM", int(largest * share), turns=True),
        Limit("disk", int(disk * stick), turns=False),
    )
    found = solve(Decision(tuple(wanted), limits))
    # Proved is within the bound on work, and so soon: no clock needs to say it.
    assert found is None or found.gap == 0


def hard() -> Decision:
    wanted = many("correlated", 12, 20, 1)
    largest = sum(max(o.needs[0] for o in w.options) for w in wanted)
    limits = (Limit("VRAM", largest // 3, turns=True), Limit("disk", None, turns=False))
    return Decision(tuple(wanted), limits)


def test_a_search_that_is_cut_short_says_how_much_better_it_could_be(monkeypatch):
    whole = solve(hard())
    monkeypatch.setattr(search, "MOST_WORK", 0)
    cut = solve(hard())
    assert whole
    assert cut
    assert whole.gap == 0
    assert cut.gap > 0
    assert cut.damage - cut.gap <= whole.damage <= cut.damage


def test_a_search_that_is_cut_short_before_anything_fits_does_not_call_it_impossible(monkeypatch):
    monkeypatch.setattr(search, "MOST_WORK", 0)
    monkeypatch.setattr(search, "MOST_WORK_OF_A_LOOK", 0)
    with pytest.raises(DoesNotFit, match="is not known"):
        solve(hard())


def test_more_ways_than_can_be_combined_are_answered_with_the_gap(monkeypatch):
    monkeypatch.setattr(candidates, "MOST_CANDIDATES", 4)
    found = two_machines(13)
    assert found
    assert found.damage - found.gap <= 10 <= found.damage


def test_an_optional_model_that_fits_is_not_left_out_for_one_that_does_not():
    def one(name, sizes, *, optional):
        return Wanted(name, "", tuple(option(size) for size in sizes), optional)

    def option(size):
        memory = Memory(weights_bytes=size, kv_cache_bytes=0, compute_bytes=0)
        offer = Offer(
            engine="e", quant="Q", format="gguf", kv_cache="f16", context_tokens=1, parallel=1,
            memory=memory, disk_bytes=size, scratch_bytes=0, bits_per_weight=4, quality=0,
            steps=(), output=StepInput(step="s", file="Q"),
        )  # fmt: skip
        return Option(offer, 0, (size,))

    limits = (Limit("RAM", 10, turns=True),)
    for first in ([], [50]):
        wanted = (
            one("a", first, optional=True), one("chat", [5], optional=False),
            one("z", [1], optional=True),
        )  # fmt: skip
        settled = settle(Decision(wanted, limits))
        assert settled
        assert settled.left_out == (("a", ""),)


@pytest.mark.parametrize("share", [0.7, 0.85])
def test_three_machines_that_share_a_stick_get_a_plan_with_what_it_may_miss(share: float):
    chance, tiers, limits = random.Random(1), ("a", "b", "c"), [Limit("disk", 0, turns=False)]
    limits += [Limit("RAM", 9000 // (n + 1), turns=True, tier=t) for n, t in enumerate(tiers)]
    smallest = sizes = 0
    wanted = []
    for name in ("m0", "m1", "m2", "m3"):
        whole = chance.randint(1000, 3000)
        smallest, sizes = smallest + whole // 20, sizes + whole
        for tier in tiers:
            options = []
            for step in range(20):
                size = whole * (step + 1) // 20
                needs = tuple(size if k.tier in ("", tier) else 0 for k in limits)
                harm = 20_000 // (step + 1) + chance.randrange(50)
                for resident in (True, False):
                    options.append(
                        Option(
                            OFFERS[step % 8], harm + 9 * (not resident), needs, resident, f"{step}"
                        )
                    )
            wanted.append(Wanted(name, tier, tuple(options)))
    limits[0] = Limit("disk", int(sizes * share), turns=False)
    decision = Decision(tuple(wanted), tuple(limits))
    found = solve(decision)
    assert found
    assert not decision.broken(decision.used(found.chosen))
    assert found.gap <= found.damage
    assert found.damage < sum(max(o.damage for o in want.options) for want in wanted)
