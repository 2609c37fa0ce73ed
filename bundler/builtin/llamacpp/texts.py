"""Text for calibration and scoring, cut into windows of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bundler.builtin.llamacpp.session import Model
from bundler.errors import RecipeError, UnsafeInput

_BYTES_PER_TOKEN = 6
"""English has four to five; a text with fewer tokens per byte is read again, twice as far."""
_BYTES_AT_LEAST = 4096

Texts = Mapping[str, Path]
"""Name (as a person knows it) → file."""


def read_text(texts: Texts, *, most_bytes: int) -> tuple[str, bool]:
    """Return the files in the order of their names, `most_bytes` of them, and whether that is all.

    The cut never goes through a character.

    Raises:
        UnsafeInput: a file is not UTF-8.
    """
    left = most_bytes
    parts: list[str] = []
    for name in sorted(texts):
        if left <= 0:
            return "\n\n".join(parts), False
        with texts[name].open("rb") as stream:
            raw = stream.read(left)
            whole = not stream.read(1)
        left -= len(raw)
        parts.append(_decode(raw, name, whole=whole))
        if not whole:
            return "\n\n".join(parts), False
    return "\n\n".join(parts), True


def _decode(raw: bytes, name: str, *, whole: bool) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A character of up to four bytes that our cut went through is no fault of the file.
        if not whole and error.start >= len(raw) - 3:
            return raw[: error.start].decode("utf-8-sig")
        raise UnsafeInput(
            f"is not UTF-8 text (byte {error.start})", where=name, hint="convert it to UTF-8"
        ) from error


def windows(model: Model, texts: Texts, *, window_tokens: int, most: int) -> list[list[int]]:
    """Cut text into at most `most` windows; each begins with BOS where the model wants it.

    BOS takes the place of the window's first token, as in llama-perplexity and llama-imatrix.

    Raises:
        RecipeError: the text is shorter than one window.
    """
    tokens = _tokens(model, texts, window_tokens * most)
    count = min(most, len(tokens) // window_tokens)
    if count == 0:
        raise RecipeError(
            f"the text has {len(tokens)} tokens, less than one window of {window_tokens}",
            where=", ".join(sorted(texts)),
            hint="use a longer text",
        )
    cut = [tokens[n * window_tokens : (n + 1) * window_tokens] for n in range(count)]
    if model.starts_with_bos():
        cut = [[model.bos(), *window[1:]] for window in cut]
    return cut


def stretch(model: Model, texts: Texts, *, most: int) -> list[int]:
    """Return the first `most` tokens of a text, or all that it has, begun as a window is."""
    tokens = _tokens(model, texts, most)[:most]
    return [model.bos(), *tokens[1:]] if model.starts_with_bos() else tokens


def _tokens(model: Model, texts: Texts, wanted: int) -> list[int]:
    """Read as much text as `wanted` tokens take, and no more than twice that."""
    most_bytes = max(_BYTES_AT_LEAST, wanted * _BYTES_PER_TOKEN)
    while True:
        text, everything = read_text(texts, most_bytes=most_bytes)
        tokens = model.tokens(text, start=True)
        if everything or len(tokens) > wanted:
            return tokens
        most_bytes *= 2
