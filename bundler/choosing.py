"""Chooses one offer for each model, exactly, under limits that all models share. Pure.

The combination of least weighted damage among all that fit. Branch and bound: a Lagrangian bound
(every limit priced, so that each model can be judged alone) cuts branches that cannot win, the
least that the remaining models need cuts those that cannot fit, and of two branches over the same
models the one that takes no less and harms no less ends. Models and offers are sorted first, so
the order in which plugins answer cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bundler.plan import Offer
from bundler.recipe import ModelRequest

# What quality is worth by role: a chat model's damage weighs more than an embedder's.
ROLE_WEIGHT = {"chat": 1.0, "code": 1.0, "draft": 0.1, "embed": 0.5, "rerank": 0.5}
_PRICE_ROUNDS = 3
_PRICE_STEPS = 30
_DIVE_STEPS = 2000
_COMPARED = 64
_NOTHING_BETTER = 1e-12


@dataclass(frozen=True)
class Wanted:
    """One model of the recipe with everything that was offered for it."""

    name: str
    request: ModelRequest
    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class Limits:
    """What all models together may take. None is no limit of that kind."""

    vram_bytes: int | None
    """None when the target has no accelerator: everything then lies in RAM."""
    ram_bytes: int
    disk_bytes: int | None


def rank(offer: Offer) -> tuple[float, int, str, str]:
    """Return the key that sorts offers for one model, best first."""
    return (offer.quality, offer.memory.total_bytes, offer.quant, offer.kv_cache)


def memory_needs(offer: Offer, limits: Limits) -> tuple[int, int]:
    """Return what an offer takes of VRAM and of RAM."""
    total = offer.memory.total_bytes
    if limits.vram_bytes is not None and offer.gpu_layers != 0:
        return total, offer.memory.host_bytes
    return 0, total


@dataclass(frozen=True)
class Load:
    """What some models take together: residents add up, the largest on-demand one takes turns."""

    vram: int = 0
    vram_turn: int = 0
    ram: int = 0
    ram_turn: int = 0
    disk: int = 0

    def plus(self, request: ModelRequest, offer: Offer, limits: Limits) -> Load:
        """Return the load with one more model."""
        vram, ram = memory_needs(offer, limits)
        resident = request.residency == "resident"
        return Load(
            self.vram + (vram if resident else 0),
            max(self.vram_turn, 0 if resident else vram),
            self.ram + (ram if resident else 0),
            max(self.ram_turn, 0 if resident else ram),
            self.disk + offer.disk_bytes,
        )

    def against(self, limits: Limits) -> tuple[tuple[str, int, int | None], ...]:
        """Return what is limited, with what is needed of it and what there is."""
        return (
            ("VRAM", self.vram + self.vram_turn, limits.vram_bytes),
            ("RAM", self.ram + self.ram_turn, limits.ram_bytes),
            ("disk", self.disk, limits.disk_bytes),
        )


# -- the search ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Option:
    """An offer as the search sees it."""

    offer: Offer
    damage: float
    needs: tuple[int, int, int]
    """Of VRAM, RAM and disk."""


@dataclass(frozen=True, slots=True)
class _Model:
    name: str
    resident: bool
    options: tuple[_Option, ...]


_Prices = tuple[float, float, float]
_Sums = tuple[int, int, int]


@dataclass
class _Best:
    """The best combination found so far."""

    damage: float = float("inf")
    options: tuple[_Option, ...] | None = None


def choose(wanted: Sequence[Wanted], limits: Limits) -> dict[str, Offer] | None:
    """Return the combination of least weighted damage that fits, None when there is none."""
    models = sorted((_model(want, limits) for want in wanted), key=lambda model: model.name)
    best = _Best()
    searches = _searches(models, limits)
    for bound, _, search in sorted(searches, key=lambda found: found[:2]):
        if bound < best.damage - _NOTHING_BETTER:
            search.improve(best)
    if best.options is None:
        return None
    chosen = {model.name: option.offer for model, option in zip(models, best.options, strict=True)}
    return {want.name: chosen[want.name] for want in wanted}


def _model(want: Wanted, limits: Limits) -> _Model:
    """Return a model with the offers that no other beats in every need and in damage."""
    weight = ROLE_WEIGHT[want.request.role]
    options = [
        _Option(offer, weight * offer.quality, (*memory_needs(offer, limits), offer.disk_bytes))
        for offer in sorted(want.offers, key=rank)
    ]
    return _Model(want.name, want.request.residency == "resident", _front(options))


def _front(options: Sequence[_Option]) -> tuple[_Option, ...]:
    """Return the options that no earlier (and so better) one undercuts in every need."""
    kept: list[_Option] = []
    for option in options:
        v, r, d = option.needs
        if not any(k.needs[0] <= v and k.needs[1] <= r and k.needs[2] <= d for k in kept):
            kept.append(option)
    return tuple(kept)


def _searches(models: Sequence[_Model], limits: Limits) -> list[tuple[float, int, _Search]]:
    """Split by how much memory the models that take turns may have, each with a first bound.

    With that memory set aside, models that take turns no longer compete for it.
    """
    bounds = (limits.vram_bytes, limits.ram_bytes, limits.disk_bytes)
    # Without a limit nothing is ever too much: a limit that all offers together stay under.
    most = [sum(max(o.needs[kind] for o in m.options) for m in models) for kind in range(3)]
    room = [total if bound is None else bound for total, bound in zip(most, bounds, strict=True)]
    memory = 1 if limits.vram_bytes is None else 0
    turns = [model for model in models if not model.resident]
    caps = sorted({option.needs[memory] for model in turns for option in model.options} or {0})
    found: list[tuple[float, int, _Search]] = []
    prices: _Prices | None = None
    for cap in caps:
        capped = [model if model.resident else _capped(model, memory, cap) for model in models]
        if cap > room[memory] or not all(model.options for model in capped):
            continue
        left: _Sums = tuple(r - cap if k == memory else r for k, r in enumerate(room))  # type: ignore[assignment]
        search = _Search(capped, left)
        prices = search.use(prices) if prices else search.find_prices()
        found.append((search.bound, cap, search))
    return found


def _capped(model: _Model, memory: int, cap: int) -> _Model:
    """Return a model that takes turns with the options under `cap`, which is set aside for it."""
    inside = [
        _Option(
            o.offer, o.damage, (0, *o.needs[1:]) if memory == 0 else (o.needs[0], 0, o.needs[2])
        )
        for o in model.options
        if o.needs[memory] <= cap
    ]
    return _Model(model.name, resident=False, options=_front(inside))


@dataclass(frozen=True, slots=True)
class _State:
    """Options picked for the first few models, with what they take together."""

    sums: _Sums = (0, 0, 0)
    turns: _Sums = (0, 0, 0)
    damage: float = 0.0
    price: float = 0.0
    picked: _Picked | None = None

    def with_option(self, option: _Option, price: float, *, resident: bool) -> _State:
        """Return the state with one more model's option."""
        v, r, d = option.needs
        sums, turns = self.sums, self.turns
        if resident:
            sums = (sums[0] + v, sums[1] + r, sums[2] + d)
        else:
            sums = (sums[0], sums[1], sums[2] + d)
            turns = (max(turns[0], v), max(turns[1], r), 0)
        picked = _Picked(option, self.picked)
        return _State(sums, turns, self.damage + option.damage, self.price + price, picked)

    def options(self) -> tuple[_Option, ...]:
        """Return the options picked, in the order of their models."""
        found, link = [], self.picked
        while link is not None:
            found.append(link.option)
            link = link.before
        return tuple(reversed(found))


class _Picked(NamedTuple):
    """One option and those picked before it."""

    option: _Option
    before: _Picked | None


class _Search:
    """The search under fixed limits. Holds what does not change during it."""

    def __init__(self, models: Sequence[_Model], limits: _Sums) -> None:
        self._models = models
        self._limits = limits
        self._shares = _turn_shares(models)
        most = [sum(max(o.needs[kind] for o in m.options) for m in models) for kind in range(3)]
        self._tight = [kind for kind in range(3) if most[kind] > limits[kind]]
        self._has_turns = any(
            not model.resident and (option.needs[0] or option.needs[1])
            for model in models
            for option in model.options
        )
        self._prices: _Prices = (0.0, 0.0, 0.0)
        self.bound = float("-inf")
        """No combination has less damage than this."""

    def find_prices(self) -> _Prices:
        """Price each limit in turn so that the cheapest options just keep it; return the prices."""
        for _ in range(_PRICE_ROUNDS):
            before = self._prices
            for kind in range(3):
                self._price_one(kind)
            if self._prices == before:
                break
        return self.use(self._prices)

    def use(self, prices: _Prices) -> _Prices:
        """Take these prices and compute the bound that they give."""
        self._prices = prices
        priced = [min(self._priced(model, share)) for model, share in self._pairs()]
        self._allowance = sum(p * room for p, room in zip(prices, self._limits, strict=True))
        self.bound = sum(price for price, _ in priced) - self._allowance
        return prices

    def improve(self, best: _Best) -> None:
        """Put a better combination into `best` if there is one."""
        self.find_prices()
        if self.bound >= best.damage - _NOTHING_BETTER:
            return
        self._options = [sorted(self._priced(model, share)) for model, share in self._pairs()]
        self._rest = [0.0]
        for options in reversed(self._options):
            self._rest.append(self._rest[-1] + options[0][0])
        self._rest.reverse()
        self._prepare_least_needs()
        states = [_State()]
        self._dive(states[0], 0, best, [_DIVE_STEPS])
        for index in range(len(self._models)):
            states = self._not_dominated(self._expand(states, index, best))
        if states:
            least = min(states, key=lambda state: state.damage)
            if least.damage < best.damage - _NOTHING_BETTER:
                best.damage, best.options = least.damage, least.options()

    def _pairs(self) -> Iterator[tuple[_Model, float]]:
        return zip(self._models, self._shares, strict=True)

    def _priced(self, model: _Model, share: float) -> list[tuple[float, int]]:
        """Return each option's damage with the price of what it takes, and its number."""
        vram, ram, disk = self._prices
        vram, ram = vram * share, ram * share
        return [
            (o.damage + vram * o.needs[0] + ram * o.needs[1] + disk * o.needs[2], number)
            for number, o in enumerate(model.options)
        ]

    def _price_one(self, kind: int) -> None:
        """Find the price of one limit at which the cheapest options cross it, the others fixed."""
        low, high = 0.0, 0.0
        self._set(kind, 0.0)
        if self._excess(kind) <= 0:
            return
        high = 1e-15
        while self._excess_at(kind, high) > 0 and high < 1e6:
            low, high = high, high * 16
        for _ in range(_PRICE_STEPS):
            middle = (low + high) / 2
            if self._excess_at(kind, middle) > 0:
                low = middle
            else:
                high = middle
        self._set(kind, high)

    def _set(self, kind: int, price: float) -> None:
        vram, ram, disk = self._prices
        self._prices = ((price, ram, disk), (vram, price, disk), (vram, ram, price))[kind]

    def _excess_at(self, kind: int, price: float) -> float:
        self._set(kind, price)
        return self._excess(kind)

    def _excess(self, kind: int) -> float:
        """Return by how much the cheapest options at the present prices exceed a limit."""
        taken = 0.0
        for model, share in self._pairs():
            number = min(self._priced(model, share))[1]
            taken += model.options[number].needs[kind] * (1.0 if kind == 2 else share)
        return taken - self._limits[kind]

    def _prepare_least_needs(self) -> None:
        """Compute the least that the models from each index on will take, turns apart."""
        sums: list[_Sums] = [(0, 0, 0)]
        turns: list[_Sums] = [(0, 0, 0)]
        for model in reversed(self._models):
            v, r, d = (min(option.needs[kind] for option in model.options) for kind in range(3))
            sv, sr, sd = sums[-1]
            tv, tr, _ = turns[-1]
            sums.append((sv + v, sr + r, sd + d) if model.resident else (sv, sr, sd + d))
            turns.append((tv, tr, 0) if model.resident else (max(tv, v), max(tr, r), 0))
        self._least_sums, self._least_turns = sums[::-1], turns[::-1]

    def _expand(self, states: Sequence[_State], index: int, best: _Best) -> Iterator[_State]:
        """Give what each state can become with one more model, less what cannot win or fit."""
        model, rest = self._models[index], self._rest[index + 1]
        for state in states:
            for own, number in self._options[index]:
                if state.price + own + rest - self._allowance >= best.damage - _NOTHING_BETTER:
                    break  # the others cost more still
                after = state.with_option(model.options[number], own, resident=model.resident)
                if self._may_fit(index + 1, after.sums, after.turns):
                    yield after

    def _dive(self, state: _State, index: int, best: _Best, steps: list[int]) -> None:
        """Find a good combination quickly: depth first, the cheapest options first."""
        if index == len(self._models):
            if state.damage < best.damage - _NOTHING_BETTER:
                best.damage, best.options = state.damage, state.options()
            return
        for after in self._expand([state], index, best):
            if steps[0] <= 0:
                return
            steps[0] -= 1
            self._dive(after, index + 1, best, steps)

    def _not_dominated(self, states: Iterator[_State]) -> list[_State]:
        """Return the states that no other beats in damage and in every need that can matter."""
        if len(self._tight) == 1 and not self._has_turns:
            return _falling(states, self._tight[0])
        kept: list[tuple[tuple[int, ...], _State]] = []
        for state in sorted(states, key=lambda s: (s.damage, s.sums)):
            own = self._tight_needs(state)
            # Against the latest only: any dominated state that stays costs time, not exactness.
            if not any(
                all(a <= b for a, b in zip(needs, own, strict=True))
                for needs, _ in kept[-_COMPARED:]
            ):
                kept.append((own, state))
        return [state for _, state in kept]

    def _tight_needs(self, state: _State) -> tuple[int, ...]:
        """Return a state's needs of those limits that could be exceeded at all."""
        return tuple(
            need
            for kind in self._tight
            for need in (state.sums[kind], state.turns[kind])[: 1 + self._has_turns]
        ) or (0,)

    def _may_fit(self, index: int, sums: _Sums, turns: _Sums) -> bool:
        """Tell whether the rest can still fit beside what is taken."""
        least, turn, limits = self._least_sums[index], self._least_turns[index], self._limits
        return (
            sums[0] + least[0] + max(turns[0], turn[0]) <= limits[0]
            and sums[1] + least[1] + max(turns[1], turn[1]) <= limits[1]
            and sums[2] + least[2] <= limits[2]
        )


def _falling(states: Iterator[_State], kind: int) -> list[_State]:
    """Return the states that take less of one limit than all with less damage."""
    kept: list[_State] = []
    least = float("inf")
    for state in sorted(states, key=lambda s: (s.damage, s.sums[kind])):
        if state.sums[kind] < least:
            least = state.sums[kind]
            kept.append(state)
    return kept


def _turn_shares(models: Sequence[_Model]) -> list[float]:
    """Return how much of each model's memory counts in the bound.

    Of models that take turns only the largest counts, and the largest is at least their average.
    """
    turns = sum(not model.resident for model in models)
    return [1.0 if model.resident else 1.0 / turns for model in models]
