"""What makes a command start quickly: only what it needs is built."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import typer
from typer.main import get_command_name


def asked_for(app: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """Return `app` with the one command that the first of `words` names, or whole.

    typer looks at every parameter of every command before it reads the command line; help for the
    program and mistyped names need all of them, one command does not.
    """
    name = words[0] if words else ""
    commands = [c for c in app.registered_commands if name == (c.name or _named(c.callback))]
    groups = [group for group in app.registered_groups if name == group.name]
    if not commands and not groups:
        return app
    only = copy.copy(app)
    only.registered_commands, only.registered_groups = commands, groups
    return only


def _named(function: object) -> str:
    return get_command_name(getattr(function, "__name__", ""))
