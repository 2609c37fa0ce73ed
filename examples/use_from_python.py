"""Use bundler from Python: lock and plan a recipe, and print what was chosen and why.

    python examples/use_from_python.py recipes/quickstart.toml

The stages are plain functions from value to value (see `bundler/pipeline.py`): what a program
does with them is its own. Nothing is built here.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bundler.errors import BundlerError
from bundler.offering import make_the_plan
from bundler.plan import Plan
from bundler.plugins import load_plugins
from bundler.recipe_file import read_recipe
from bundler.resolve import resolve
from bundler.store import Store
from bundler.value import format_bytes
from bundler.world import World


def plan_of(recipe_path: Path, store: Store) -> Plan:
    """Return the plan for a recipe; reads headers, fetches no weights, needs no GPU."""
    recipe = read_recipe(recipe_path)
    plugins = load_plugins()
    # `environment` is where a token or a mirror of the Hub would be given.
    world = World(store=store, environment={}, folder=recipe_path.resolve().parent)
    lock = resolve(recipe, plugins, world, created=0)
    return make_the_plan(recipe, lock, plugins)


def describe(plan: Plan) -> str:
    """Return what was chosen, as text."""
    lines = [f"{plan.bundle} for {plan.target.title or plan.target.name}"]
    for choice in plan.choices:
        offer = choice.offer
        size, memory = format_bytes(offer.disk_bytes), format_bytes(offer.memory.total_bytes)
        lines.append(f"  {choice.model}: {offer.quant}, {size} on disk, {memory} in memory")
        lines.append(f"    because {choice.reason}")
    for budget in plan.budgets:
        limit = f" of {format_bytes(budget.limit_bytes)}" if budget.limit_bytes else ""
        lines.append(f"  {budget.name}: {format_bytes(budget.used_bytes)}{limit}")
    lines.append(f"  {len(plan.steps)} steps: {', '.join(step.name for step in plan.steps)}")
    return "\n".join(lines)


def main() -> int:
    """Plan the recipe named on the command line."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            print(describe(plan_of(Path(sys.argv[1]), Store(Path(folder) / "store"))))
        except BundlerError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
