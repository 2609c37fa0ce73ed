"""In which order the help names the commands: the way from a recipe to a stick and after."""

from __future__ import annotations

from typing import Any

import typer

PANELS = {
    "From a recipe to a bundle": ("init", "lock", "plan", "build"),
    "Is it whole, and whose is it": ("verify", "repair", "key"),
    "What is inside a model": ("inspect",),
    "To others, and newer versions": ("deploy", "pack", "unpack", "diff", "update", "apply"),
    "At the far end": ("serve",),
    "Machines and plugins": ("targets", "doctor", "plugins", "schema"),
}
"""Title → commands. One that is not named here stands at the end of the help, under no title."""
_PLACES = {
    name: (number, panel)
    for number, (panel, name) in enumerate(
        (panel, name) for panel, names in PANELS.items() for name in names
    )
}


def in_order(app: typer.Typer) -> None:
    """Sort what was added to `app`, each command under its title."""
    infos: list[Any] = [*app.registered_commands, *app.registered_groups]
    for info in infos:
        if _name(info) in _PLACES:
            info.rich_help_panel = _PLACES[_name(info)][1]
    app.registered_commands.sort(key=lambda info: _PLACES.get(_name(info), (len(_PLACES), ""))[0])


def _name(info: object) -> str:
    callback = getattr(info, "callback", None)
    given = getattr(info, "name", None)
    return str(given or getattr(callback, "__name__", "")).replace("_", "-")
