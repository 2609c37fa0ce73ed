"""How a plan looks on the screen: calm by default, with its reasons when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bundler.advice.advised import NothingFits
from bundler.console import Screen
from bundler.drawing.figures import damage_in_words, speed_in_words
from bundler.drawing.memory_bars import memory_bars
from bundler.drawing.picture import NARROWEST, Pieces, draw_memory
from bundler.errors import RecipeError
from bundler.plan import Budget, Choice, Offer, Plan, TierPlan
from bundler.store import write_durably
from bundler.value import format_bytes, format_size

if TYPE_CHECKING:
    from bundler.advice.explanation import Explanation
    from bundler.advice.frontier import Frontier

GENERATING = ("chat", "code")
# Background by model, in turn; small letters (KV cache) are drawn dim, so that both stay readable.
_GROUNDS = ("green", "blue", "magenta", "cyan", "yellow", "red")
_LINE_STYLES = {"title": "bold", "name": "bold cyan", "text": ""}


def show_plan(
    screen: Screen, plan: Plan, cached_bytes: int, download_bytes: int, *,
    explanation: Explanation | None = None, recipe: str = "RECIPE",
) -> None:  # fmt: skip
    """Show what was chosen and why, and what it costs, for a person.

    Args:
        screen: where to.
        plan: what was chosen.
        cached_bytes: inputs that are in the store already.
        download_bytes: inputs that are not.
        explanation: what is shown in addition; without it one line says how to get it.
        recipe: the recipe as it was named on the command line.
    """
    for tier in plan.tiers:
        _show_tier(screen, plan, tier)
    _show_budgets(screen, plan, download_bytes)
    if cached_bytes:
        screen.say(f"[dim]{format_size(cached_bytes)} of the inputs are in the store already[/]")
    for note in (*plan.notes, *(note for tier in plan.tiers for note in tier.notes)):
        screen.say(f"[yellow]note:[/] {escape(note)}")
    if explanation is not None:
        from bundler.drawing.explain_text import in_lines

        screen.say()
        for style, text in in_lines(explanation, _columns(screen)):
            screen.show(Text(text, style=_LINE_STYLES[style]))
    else:
        screen.say(
            f"[dim]why, and what would change it: bundler plan {escape(recipe)} --explain[/]"
        )


def _columns(screen: Screen) -> int:
    return max(NARROWEST, screen.out.width)


def _show_tier(screen: Screen, plan: Plan, tier: TierPlan) -> None:
    where = escape(tier.target.title or tier.target.name)
    name = f" [dim](tiers.{escape(tier.name)})[/]" if tier.name else ""
    screen.say(f"[bold]{escape(plan.bundle)}[/] for {where}{name}")
    for choice in tier.choices:
        _show_choice(screen, choice)
    for line in draw_memory(memory_bars(tier), _columns(screen)):
        screen.show(_coloured(line))
    screen.say()


def _show_choice(screen: Screen, choice: Choice) -> None:
    """Show one model: what it is, then why it was taken."""
    offer = choice.offer
    users = f"{offer.parallel} user" + ("" if offer.parallel == 1 else "s")
    screen.say(
        f"[bold]{escape(choice.model)}[/]  [bold cyan]{escape(offer.quant)}[/]  "
        f"{offer.bits_per_weight:.2f} bits/weight, {offer.context_tokens:,} tokens for {users}, "
        f"{escape(offer.kv_cache)} KV cache"
    )
    turns = () if choice.residency == "resident" else ("takes turns",)
    _say_wrapped(screen, ", ".join((*_sizes(offer), *_speed(choice), *_damage(offer), *turns)), "")
    _say_wrapped(screen, choice.reason, "dim")


def _say_wrapped(screen: Screen, text: str, style: str) -> None:
    for line in wrap(text, _columns(screen) - 2, break_on_hyphens=False):
        screen.show(Text(f"  {line}", style=style))


def _sizes(offer: Offer) -> Iterable[str]:
    """Say what it takes, and beside a measured figure the predicted one."""
    memory = format_bytes(offer.memory.total_bytes)
    if offer.predicted_memory is not None:
        memory += f" measured ({format_bytes(offer.predicted_memory.total_bytes)} predicted)"
    return (f"{memory} of memory", f"{format_size(offer.disk_bytes)} on disk")


def _speed(choice: Choice) -> Iterable[str]:
    offer = choice.offer
    if not offer.tokens_per_second or choice.role not in GENERATING:
        return ()
    if offer.predicted_tokens_per_second is not None:
        return (
            f"{speed_in_words(offer.tokens_per_second)} measured "
            f"({speed_in_words(offer.predicted_tokens_per_second)} predicted)",
        )
    return (f"at most {speed_in_words(offer.tokens_per_second)}",)


def _damage(offer: Offer) -> Iterable[str]:
    """Say the damage only where it was measured: a prediction is for `--explain`."""
    if offer.predicted_quality is None:
        return ()
    return (
        f"damage {damage_in_words(offer.quality)} by measurement "
        f"({damage_in_words(offer.predicted_quality)} predicted)",
    )


def _coloured(pieces: Pieces) -> Text:
    """Return a line of the picture with colours; without them the letters say the same."""
    line = Text()
    for text, what in pieces:
        line.append(text, style=_style(what))
    return line


def _style(what: str) -> str:
    number, _, kind = what.partition(" ")
    if not number.isdigit():
        return {"name": "bold", "frame": "dim", "free": "dim", "key": "dim"}.get(what, "")
    colour = _GROUNDS[int(number) % len(_GROUNDS)]
    return f"bold {colour}" if kind in ("weights", "host") else colour


def _show_budgets(screen: Screen, plan: Plan, download_bytes: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("limit")
    table.add_column("needed", justify="right")
    table.add_column("there is", justify="right")
    for budget in plan.budgets:  # the memories stand in the picture
        table.add_row(*_budget(budget))
    table.add_row("to fetch now", format_size(download_bytes), "")
    screen.show(table)


def _budget(budget: Budget) -> tuple[str, str, str]:
    there = "no limit" if budget.limit_bytes is None else format_size(budget.limit_bytes)
    return budget.name, format_size(budget.used_bytes), there


def shortfall_json(error: NothingFits) -> dict[str, Any]:
    """Return what a program is told of a recipe that does not fit."""
    return {
        "fits": False,
        "problems": [asdict(problem) for problem in error.problems],
        "remedies": [
            {"tier": tier, **remedy.model_dump(mode="json")}
            for tier, remedies in error.remedies.items()
            for remedy in remedies
        ],
    }


def check_drawing(path: Path) -> None:
    """Refuse a place where no SVG can be written, before anything is planned.

    Raises:
        RecipeError: it has another ending, or its folder is not there.
    """
    if path.suffix.lower() != ".svg":
        raise RecipeError(
            "the frontier is drawn as SVG", where=str(path), hint=f"--frontier {path.stem}.svg"
        )
    if not path.parent.is_dir():
        raise RecipeError(
            f"there is no folder {path.parent}", where=str(path), hint="make it, or give another"
        )


def write_frontier(path: Path, frontiers: Sequence[Frontier], plan: Plan) -> None:
    """Write the drawing; an older one is replaced once the new one is whole."""
    from bundler.drawing.frontier_svg import frontier_svg

    machine = " and ".join(tier.target.title or tier.target.name for tier in plan.tiers)
    drawing = frontier_svg(frontiers, title=plan.bundle, machine=machine)
    write_durably(path, drawing.encode())
