"""What models are asked to write at length; each can be answered for as long as one likes."""

from __future__ import annotations

QUESTIONS = {
    "chat": (
        "Write a long, detailed handbook for a family that has to live without electricity for a "
        "month. Go through water, food, heat, light, health and safety, one chapter after the other.",
        "Tell a long story of several chapters about a village that is cut off by a flood.",
        "Explain at length how a radio works, from the electron to the loudspeaker.",
        "List one hundred different things that should be in a first-aid station, each with what it "
        "is for.",
    ),
    "code": (
        "Write a complete, well documented Python program that manages the stores of a clinic.",
        "Write a long tutorial on sorting algorithms with code for each of them.",
        "Write a parser for arithmetic expressions in C, with tests, and explain each function.",
        "List fifty common mistakes in shell scripts, each with an example and its correction.",
    ),
}
"""By role; every other role gets those of `chat`."""
LEAST_ROUNDS, MOST_ROUNDS = 2, 8
"""All questions are asked once a round, each time with other random numbers, until there are tokens
enough: models that end their answers early are asked more often."""


def questions_for(role: str) -> tuple[str, ...]:
    """Return the questions for a role."""
    return QUESTIONS.get(role, QUESTIONS["chat"])
