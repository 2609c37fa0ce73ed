"""Machines that share a stick: something good that fits, and how much better another could be. Pure.

A choice is made better one machine at a time: each takes what is best beside the files of all others.
How good a choice can be at all is known from prices: each machine pays for every file a share of
what the file is worth to all, so each can decide alone (Lagrangian relaxation of "a machine takes no
file that is not on the stick"; the prices follow M. Held, P. Wolfe and H. P. Crowder, "Validation of
subgradient optimization", 1974), and what the machines take at those prices is a good start, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from math import floor

from bundler.solver.alone import Allowance, Answer, File, Machine, OutOfTries, shared_kinds
from bundler.solver.decision import Decision, Option, Solution

MOST_CANDIDATES_LOOKED_AT = 40_000
"""By all machines together before the best so far is taken: some five seconds."""
_ROUNDS = 200
_ORDERS = 6
_PATIENCE = 8
"""Rounds without a better bound before the steps become smaller."""
_SMALLEST_STEP = 0.02


def share(decision: Decision, lowest: int) -> tuple[Solution | None, int]:
    """Return a good choice, None when none was found, and damage that none goes below.

    Args:
        decision: what is to be decided; each model has at least one option.
        lowest: damage that is known not to be undercut.
    """
    sharing = _Sharing(decision, lowest)
    try:
        sharing.begin()
        sharing.price()
    except OutOfTries:
        pass  # bounded work: what was found until here is the answer, with its gap
    return sharing.solution(), sharing.lowest


class _Sharing:
    """One decision, being made. Holds the best so far and what is known not to be undercut."""

    def __init__(self, decision: Decision, lowest: int) -> None:
        self._decision = decision
        self._allowance = Allowance(MOST_CANDIDATES_LOOKED_AT)
        self._machines = [Machine(decision, tier, self._allowance) for tier in decision.tiers]
        self._room = [int(decision.limits[k].capacity_bytes or 0) for k in shared_kinds(decision)]
        self._sizes: dict[File, tuple[int, ...]] = {}
        for machine in self._machines:
            for file, size in machine.files.items():
                self._sizes[file] = tuple(map(min, self._sizes.get(file, size), size))
        self._best: dict[tuple[str, str], Option] | None = None
        self._damage = 1 << 62
        self.lowest = lowest

    def solution(self) -> Solution | None:
        """Return the best choice so far."""
        if self._best is None:
            return None
        chosen = {want.key: self._best[want.key] for want in self._decision.wanted}
        return Solution(chosen, self._damage, max(0, self._damage - self.lowest))

    # -- something that fits ---------------------------------------------------------------------

    def begin(self) -> None:
        """Find something that fits: the least files first, each machine beside those before it."""
        answers = self._smallest()
        for answer in answers:
            self._improve(answer)

    def _smallest(self) -> list[list[Answer]]:
        """Return what takes little of the stick, as found in several orders of machines."""
        found = []
        unit = [max(1, size // 1_000_000) for size in self._room]
        costs = {
            file: sum(size // each for size, each in zip(sizes, unit, strict=True)) * 1_000
            for file, sizes in self._sizes.items()
        }
        numbers = range(len(self._machines))
        for turn, start in enumerate(permutations(numbers)):
            if turn == _ORDERS:
                break
            answers: dict[int, Answer] = {}
            for number in start:
                there = _files(answers.values())
                paid = {file: 0 if file in there else cost for file, cost in costs.items()}
                answer = self._machines[number].priced(paid)
                if answer is None:
                    return []
                answers[number] = answer
            found.append([answers[number] for number in numbers])
        return found

    def _improve(self, answers: Sequence[Answer]) -> None:
        """Let machines, one after the other, take the best beside the files of the others."""
        current = list(answers)
        if not self._take(current):
            return
        unchanged = 0
        number = len(current) - 1
        while unchanged < len(current):
            number = (number + 1) % len(current)
            there = frozenset(_files(a for n, a in enumerate(current) if n != number))
            answer = self._machines[number].within(self._left(there), there)
            if answer is not None and _damage(answer) < _damage(current[number]):
                current[number] = answer
                unchanged = 0
            unchanged += 1
            self._take(current)

    def _left(self, there: frozenset[File]) -> list[int]:
        return [room - sum(self._sizes[f][n] for f in there) for n, room in enumerate(self._room)]

    def _take(self, answers: Sequence[Answer]) -> bool:
        """Keep a choice that fits and is better; tell whether it fits."""
        chosen = {
            key: option
            for machine, answer in zip(self._machines, answers, strict=True)
            for key, option in zip(machine.keys, answer.picks, strict=True)
        }
        if self._decision.broken(self._decision.used(chosen)):
            return False
        damage = sum(option.damage for option in chosen.values())
        if damage < self._damage:
            self._best, self._damage = chosen, damage
        return True

    # -- what cannot be undercut -----------------------------------------------------------------

    def price(self) -> None:
        """Raise what is known not to be undercut; what is taken at each price may be made to fit."""
        prices: list[dict[File, float]] = [dict.fromkeys(m.files, 0.0) for m in self._machines]
        scale, waited = 1.0, 0
        for _ in range(_ROUNDS):
            whole = [{f: floor(p) for f, p in paid.items()} for paid in prices]
            answers = [m.priced(p) for m, p in zip(self._machines, whole, strict=True)]
            taken = [answer for answer in answers if answer is not None]
            if len(taken) < len(answers):
                return
            bought, worth = self._bought(whole)
            bound = sum(answer.lowest for answer in taken) - worth
            waited += 1
            if bound > self.lowest:
                self.lowest, waited = int(-(-bound // 1)), 0
            self._made_to_fit(taken)
            if self.lowest >= self._damage or scale < _SMALLEST_STEP:
                return
            if waited >= _PATIENCE:
                scale, waited = scale / 2, 0
            self._reprice(prices, taken, bought, scale * self._wanting(bound))

    def _wanting(self, bound: float) -> float:
        """Return how far the bound could be from the best."""
        target = self._damage if self._best is not None else self.lowest * 1.2 + 100
        return max(1.0, target - bound)

    def _reprice(
        self,
        prices: Sequence[dict[File, float]],
        answers: Sequence[Answer],
        bought: Mapping[File, float],
        wanting: float,
    ) -> None:
        """Raise the price of what is taken and not bought, and lower that of the opposite."""
        off = []
        for paid, answer in zip(prices, answers, strict=True):
            files = set(answer.files)
            off.append({file: (file in files) - bought.get(file, 0.0) for file in paid})
        norm = sum(value * value for each in off for value in each.values())
        if not norm:
            return
        step = wanting / norm
        for paid, each in zip(prices, off, strict=True):
            for file, value in each.items():
                paid[file] = max(0.0, paid[file] + step * value)

    def _bought(self, prices: Sequence[Mapping[File, int]]) -> tuple[dict[File, float], float]:
        """Return which files are worth most within what all share, and that worth, at least.

        Of several shared limits the one that allows least says it; the last file may be bought in part.
        """
        value: dict[File, int] = {}
        for paid in prices:
            for file, price in paid.items():
                if price:
                    value[file] = value.get(file, 0) + price
        found = [self._filled(value, kind) for kind in range(len(self._room))]
        return min(found, key=lambda pair: pair[1])

    def _filled(self, value: Mapping[File, int], kind: int) -> tuple[dict[File, float], float]:
        room, worth = self._room[kind], 0.0
        bought: dict[File, float] = {}
        dear = sorted(value, key=lambda f: (-value[f] / max(1, self._sizes[f][kind]), f))
        for file in dear:
            size = self._sizes[file][kind]
            part = 1.0 if size <= room else room / size
            bought[file] = part
            worth += part * value[file]
            room -= min(size, room)
            if not room and part < 1:
                break
        return bought, worth

    def _made_to_fit(self, answers: Sequence[Answer]) -> None:
        """Let what is taken be a start, with one machine after the other taking less."""
        if self._take(answers):
            self._improve(answers)
            return
        for number in range(len(answers)):
            there = frozenset(_files(a for n, a in enumerate(answers) if n != number))
            left = self._left(there)
            if min(left) < 0:
                continue
            answer = self._machines[number].within(left, there)
            if answer is not None:
                self._improve([answer if n == number else a for n, a in enumerate(answers)])


def _files(answers: Iterable[Answer]) -> set[File]:
    return {file for answer in answers for file in answer.files}


def _damage(answer: Answer) -> int:
    return sum(option.damage for option in answer.picks)
