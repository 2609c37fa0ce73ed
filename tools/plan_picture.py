"""Draws what `bundler plan` shows of a recipe as the README's first picture: docs/plan.svg.

    python tools/plan_picture.py [--check]

The recipe is `recipes/cpu-only-16gb-ram.toml`, locked from repositories of the true shapes and sizes
(`tests/real_shapes.py`), so no network is needed. With `--check` nothing is written: the exit code
says whether the picture is what the planner says today.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
PICTURE = ROOT / "docs" / "plan.svg"
RECIPE = ROOT / "recipes" / "cpu-only-16gb-ram.toml"
COLUMNS = 96
# Paper and ink of the station's page at night.
_THEME = TerminalTheme(
    (28, 28, 24), (236, 233, 222),
    [(58, 58, 52), (200, 85, 66), (92, 168, 140), (209, 154, 60),
     (98, 150, 196), (170, 120, 176), (90, 176, 176), (216, 212, 200)],
    [(120, 118, 108), (225, 110, 90), (122, 200, 170), (230, 180, 90),
     (130, 180, 225), (200, 150, 205), (125, 205, 205), (250, 248, 240)],
)  # fmt: skip


def drawn() -> str:
    """Return the picture as the planner makes it now."""
    from bundler.drawing.plan_view import show_plan
    from bundler.locking import make_lock, to_fetch
    from bundler.offering import make_the_plan
    from bundler.plugins import load_plugins
    from bundler.recipe_file import read_recipe
    from bundler.testing.hub import TestHub
    from tests.real_shapes import put_up
    from tests.test_real_recipes import put_up_python, world_at

    plugins, recipe = load_plugins(installed=False), read_recipe(RECIPE)
    with tempfile.TemporaryDirectory() as folder, TestHub() as hub:
        put_up(hub)
        put_up_python(hub)
        path = Path(folder) / RECIPE.name
        shutil.copy(RECIPE, path)
        world = world_at(hub, Path(folder))
        lock = make_lock(path, recipe, plugins, world)
        plan = make_the_plan(recipe, lock, plugins)
        cached, download = to_fetch(plan, lock, plugins, world)
    screen = _Recorder()
    screen.out.print("[bold green]$[/] bundler plan recipes/cpu-only-16gb-ram.toml")
    show_plan(screen, plan, 0, cached + download, recipe="recipes/cpu-only-16gb-ram.toml")
    return svg_of(screen.out)


class _Recorder:
    """Stands for the screen: keeps what is shown, with its colours."""

    mode = "plain"

    def __init__(self) -> None:
        self.out = Console(
            record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False,
            color_system="standard", emoji=False, legacy_windows=False,
        )  # fmt: skip

    def say(self, markup: str = "") -> None:
        self.out.print(markup)

    def show(self, what: object) -> None:
        self.out.print(what)


def svg_of(console: Console) -> str:
    """Return a recording as SVG that asks nobody for a font."""
    text = console.export_svg(title="bundler plan", theme=_THEME, unique_id="plan")
    text = re.sub(r"@font-face \{.*?\}\s*", "", text, flags=re.DOTALL)
    text = text.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas")
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def main() -> int:
    """Write the picture, or say whether it is up to date."""
    now = drawn()
    if "--check" in sys.argv[1:]:
        return 0 if PICTURE.read_text(encoding="utf-8") == now else 1
    PICTURE.write_text(now, encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
