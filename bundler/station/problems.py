"""What the station says when something is wrong: sentences to the person in front of it."""

from __future__ import annotations

from collections.abc import Iterable


class StationError(Exception):
    """The station cannot start or go on; all problems of one kind together, and what to do."""

    def __init__(self, problems: str | Iterable[str], *, hint: str = "") -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        self.hint = hint
        super().__init__("\n".join(self.problems))


class ModelUnavailable(Exception):
    """A model cannot answer now; the text says why in plain words."""


class QuestionTooLong(Exception):
    """A question does not fit the model's context even with no passage beside it."""


class CorpusUnreadable(Exception):
    """A corpus, or one article of it, cannot be read: damaged, or the drive is gone."""
