"""An explanation in words, as lines for a terminal of any width. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Literal

from bundler.advice.explanation import (
    EVERY_LIMIT,
    Bought,
    Changed,
    Explanation,
    GiveUp,
    LimitUse,
    ModelExplanation,
    More,
    RunnerUp,
    Taken,
)
from bundler.drawing.figures import damage_in_words, speed_in_words
from bundler.planning.limits import amount_of

Line = tuple[Literal["title", "name", "text"], str]
GIB = 1 << 30
MOST_SHOWN = 6
"""Things to give up that are shown; `--json` has all."""


def in_lines(explanation: Explanation, columns: int) -> list[Line]:
    """Return the explanation as lines of at most `columns` cells."""
    lines: list[Line] = []
    for tier in explanation.tiers:
        where = f" on {tier.machine}" if len(explanation.tiers) > 1 else ""
        lines.append(("title", f"Why these{where}"))
        for model in tier.models:
            lines += _wrap(_model(model), columns)
    lines += [("text", ""), *_wrap(_limits(explanation), columns)]
    lines += [("text", ""), *_wrap(_give_up(explanation), columns)]
    if not explanation.proved_best:
        words = "The search stopped early: a choice that is a little better may exist."
        lines += [("text", ""), *_wrap([("text", words)], columns)]
    return lines


def _wrap(lines: Sequence[Line] | Iterator[Line], columns: int) -> Iterator[Line]:
    """Break lines that are too long, what follows a little further in."""
    for kind, text in lines:
        indent = len(text) - len(text.lstrip())
        wrapped = textwrap.wrap(
            text, max(40, columns), subsequent_indent=" " * (indent + 2), break_on_hyphens=False,
            drop_whitespace=True,
        )  # fmt: skip
        yield from ((kind, one) for one in wrapped or [""])


def _place(model: str, tier: str) -> str:
    return f"{model} ({tier})" if tier else model


def _name(taken: Taken, other: Taken | None = None) -> str:
    """Return a way's name; beside another one, only what tells them apart and the quant."""
    words = [taken.quant]
    if other is None or taken.kv_cache != other.kv_cache:
        words.append(f"{taken.kv_cache} KV")
    if taken.gpu_layers >= 0 if other is None else taken.gpu_layers != other.gpu_layers:
        words.append(_layers(taken.gpu_layers))
    if other is not None and taken.residency != other.residency:
        words.append("stays" if taken.residency == "resident" else "takes turns")
    return " · ".join(words)


def _layers(gpu_layers: int) -> str:
    if gpu_layers < 0:
        return "all layers on the accelerator"
    return "on the CPU" if gpu_layers == 0 else f"{gpu_layers} layers on the accelerator"


def _change(change: Changed) -> str:
    place, before, after = _place(change.model, change.tier), change.before, change.after
    if before is None and after is not None:
        return f"{place} comes back as {_name(after)}"
    if before is not None and after is None:
        return f"{place} is left out"
    if before is None or after is None:
        return place
    return f"{place} {_name(before, after)} → {_name(after, before)}"


def _changes(changes: Sequence[Changed]) -> str:
    """Return changes in words, but those that only do what an edit said: fewer tokens or users."""
    words = [_change(change) for change in changes if not _is_the_edit_itself(change)]
    return ", ".join(words)


def _is_the_edit_itself(change: Changed) -> bool:
    before, after = change.before, change.after
    return before is not None and after is not None and _name(before, after) == _name(after, before)


def _less(less_damage: float) -> str:
    """Return what a change is worth, or what it costs."""
    if less_damage == 0:
        return "no damage less"
    return f"{damage_in_words(abs(less_damage))} nats {'less' if less_damage > 0 else 'more'}"


def _worth(changes: Sequence[Changed], less_damage: float) -> str:
    """Say what changes are worth: less damage, or only a better place in memory."""
    pairs = [(c.before, c.after) for c in changes if c.before is not None and c.after is not None]
    if pairs and all(before.damage == after.damage for before, after in pairs):
        return "no less damage, but no waiting or a faster place"
    return _less(less_damage)


# -- one model -------------------------------------------------------------------------------------


def _model(model: ModelExplanation) -> Iterator[Line]:
    taken = model.taken
    words = [_name(taken), f"damage {damage_in_words(taken.damage)}"]
    if taken.damage:
        words[-1] += " nats"
    if taken.tokens_per_second and model.role in ("chat", "code"):
        words.append(f"at most {speed_in_words(taken.tokens_per_second)}")
    yield "name", f"{_place(model.model, model.tier)}  {', '.join(words)}"
    if model.runner_up is None:
        yield "text", "  there is no other offer"
    else:
        yield "text", f"  runner-up {_runner_up(model.runner_up, taken)}"
    if model.last_step is not None:
        yield "text", f"  {_bought(model.last_step, 'worse')}"
    if model.next_step is not None:
        yield "text", f"  {_bought(model.next_step, 'better')}"


def _runner_up(other: RunnerUp, own: Taken) -> str:
    name = f"{_name(other.taken)}:"
    if not other.better:
        return f"{name} nothing that is offered is better; this is the next worse one"
    if not other.missing:
        return f"{name} better in itself, but what waiting or a slower place costs outweighs it"
    missing = " and ".join(
        f"{amount_of(short.limit, short.missing_bytes)} more {short.limit}"
        for short in other.missing
    )
    if other.costs is None:
        return f"{name} would need {missing} than there is, whatever the others give up"
    if other.instead:
        return (
            f"{name} would need {missing}, or {_changes(other.instead)}: "
            f"{damage_in_words(other.costs)} nats worse over all models"
        )
    return f"{name} would need {missing}"


def _bought(step: Bought, other: Literal["worse", "better"]) -> str:
    amount = f"{amount_of(step.limit, step.more_bytes)} of {step.limit}"
    rate = f"{damage_in_words(step.less_damage_per_gib)} for each GiB"
    saved = f"{damage_in_words(step.less_damage)} nats"
    if other == "worse":
        return f"its last {amount}, up from {_name(step.worse, step.better)}, saved {saved}: {rate}"
    return f"{amount} more, for {_name(step.better, step.worse)}, would save {saved}: {rate}"


# -- limits ----------------------------------------------------------------------------------------


def _limit(use: LimitUse | More) -> str:
    return f"{use.limit} of {use.tier}" if use.tier else use.limit


def _limits(explanation: Explanation) -> Iterator[Line]:
    yield "title", "What more would buy"
    tightest = explanation.tightest
    if tightest is None:
        yield "text", "  no limit is set"
        return
    used, there = (
        amount_of(tightest.limit, n) for n in (tightest.used_bytes, tightest.capacity_bytes or 0)
    )
    rest = " that corpora and runtimes leave" if tightest.limit in ("disk", "download") else ""
    taken = f"{used} of the {there}{rest} are taken"
    buying = {_limit(more) for more in explanation.more if more.changes}
    if buying:
        yield "text", f"  the tightest limit is {_limit(tightest)}: {taken}"
    else:
        yield "text", f"  no limit is in the way; the fullest is {_limit(tightest)}: {taken}"
    for more in explanation.more:
        if _limit(more) in buying:
            yield "text", f"  {more.more_bytes // GIB} GiB more {_of(more)}: {_more(more)}"
    idle = list(
        dict.fromkeys(
            _limit(more)
            for more in explanation.more
            if _limit(more) not in buying and more.limit != EVERY_LIMIT
        )
    )
    if idle:
        steps = sorted({more.more_bytes // GIB for more in explanation.more})
        amounts = f"{', '.join(map(str, steps[:-1]))} or {steps[-1]} GiB"
        alone = " alone" if len(idle) > 1 else ""
        yield "text", f"  nothing would come of {amounts} more {' or '.join(idle)}{alone}"


def _of(more: More) -> str:
    return f"of {more.limit}" if more.limit == EVERY_LIMIT else _limit(more)


def _more(more: More) -> str:
    if not more.changes:
        return "nothing"
    return f"{_changes(more.changes)}; {_worth(more.changes, more.less_damage)}"


# -- giving up -------------------------------------------------------------------------------------


def _give_up(explanation: Explanation) -> Iterator[Line]:
    yield "title", "What could be given up"
    for left in explanation.left_out:
        yield "text", f"  {_place(left.model, left.tier)} is left out already: it does not fit"
    for give_up in explanation.give_up[:MOST_SHOWN]:
        yield "text", f"  {give_up.edit}: {_gain(give_up)}"
    more = len(explanation.give_up) - MOST_SHOWN
    if more > 0:
        yield "text", f"  and {more} more with --json"
    if explanation.unasked:
        yield "text", f"  not asked of the smaller models: {', '.join(explanation.unasked)}"
    if not explanation.give_up:
        yield "text", "  nothing that the recipe could do without would help the rest"


def _gain(give_up: GiveUp) -> str:
    words = _changes(give_up.changes)
    worth = _worth(give_up.changes, give_up.less_damage)
    return f"{words}; {worth}" if words else worth
