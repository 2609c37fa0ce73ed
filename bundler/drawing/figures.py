"""Figures in words, as many digits as they are worth. Pure."""

from __future__ import annotations


def damage_in_words(damage: float) -> str:
    """Return a damage for people: two figures are more than a prediction is worth.

    >>> damage_in_words(0.0), damage_in_words(0.01134)
    ('none', '0.011')
    """
    return "none" if damage == 0 else f"{damage:.2g}"


def speed_in_words(tokens_per_second: float) -> str:
    """Return a speed for people.

    >>> speed_in_words(42.36), speed_in_words(3871.2)
    ('42.4 tokens/s', '3,871 tokens/s')
    """
    digits = f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:.3g}"
    return f"{digits} tokens/s"
