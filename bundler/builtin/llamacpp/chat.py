"""A model's own chat template, applied: it is a stranger's program, so it runs in a sandbox."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

_TEMPLATE_BYTES = 1 << 18
_RENDERED_CHARACTERS = 1 << 16
_SECONDS = 5


class TemplateUnusable(Exception):
    """The template is not one, is too large, takes too long or refuses the conversation."""


def render(template: str, prompt: str, *, bos: str, eos: str) -> str:
    """Return the text a model expects for one user message, ready for its answer.

    Raises:
        TemplateUnusable: with the reason.
    """
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    if len(template) > _TEMPLATE_BYTES:
        raise TemplateUnusable(f"the template is larger than {_TEMPLATE_BYTES} bytes")
    environment = _environment()
    conversation = [{"role": "user", "content": prompt}]
    try:
        with limited_seconds(_SECONDS):
            rendered: str = environment.from_string(template).render(
                messages=conversation, add_generation_prompt=True, bos_token=bos, eos_token=eos,
                tools=None,
            )  # fmt: skip
    except (TemplateError, SecurityError, ArithmeticError, LookupError, TypeError, ValueError,
            AttributeError, RecursionError, MemoryError, TimeoutError) as error:  # fmt: skip
        raise TemplateUnusable(f"{type(error).__name__}: {error}") from error
    if not rendered or len(rendered) > _RENDERED_CHARACTERS:
        raise TemplateUnusable(f"it gave {len(rendered)} characters")
    return rendered


def _environment() -> Any:
    """Return a sandbox as chat templates expect it, without the operators that make giants.

    A power or a repetition of millions is one step in C, which no alarm can interrupt.
    """
    from jinja2.exceptions import SecurityError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["**", "*", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = isinstance(left, int | float) and isinstance(right, int | float)
            if operator == "**" or not numbers:
                raise SecurityError(f"the operator {operator} is not for templates")
            return super().call_binop(context, operator, left, right)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], autoescape=False
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda _format: "2026-01-01"  # same text every day
    return environment


def _refuse(message: Any = "") -> NoReturn:
    raise TemplateUnusable(f"it refuses the conversation: {message}")


@contextlib.contextmanager
def limited_seconds(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds` (POSIX, main thread; no limit elsewhere).

    Where there is no limit of ours, the child's own timeout ends an endless template.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_signal: int, _frame: Any) -> NoReturn:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
