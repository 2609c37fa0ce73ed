"""From a question to the words worth searching, and from words to comparable stems.

The full-text index wants every word of a query in one article, so "How do I boil water?" must
become "boil water". Stemming here only compares a passage with a question; the index has its own.
"""

from __future__ import annotations

import re
import unicodedata

MOST_KEYWORDS = 10
_WORD = re.compile(r"\w+(?:['’]\w+)?", re.UNICODE)

# Words that ask rather than tell. English first, then the commonest of German, French and Spanish:
# a question in these languages meets corpora in these languages.
_STOP_WORDS = frozenset({
    "a", "aber", "about", "after", "again", "al", "all", "als", "also", "am", "an", "and",
    "answer", "any", "anyone", "anything", "are", "as", "at", "au", "auch", "auf", "aus", "aux",
    "avec", "be", "because", "been", "before", "bei", "being", "best", "between", "bin", "bis",
    "both", "but", "by", "can", "cannot", "ce", "ces", "cet", "cette", "comment", "como", "con",
    "could", "cual", "cuando", "cuál", "cuándo", "cómo", "da", "dans", "das", "de", "define",
    "definition", "del", "dem", "den", "der", "des", "describe", "did", "die", "dies",
    "difference", "do", "doch", "does", "doing", "don't", "donde", "done", "down", "du",
    "during", "dónde", "each", "ein", "eine", "einem", "einen", "einer", "eines", "either",
    "el", "ella", "elle", "else", "en", "er", "es", "est", "esta", "este", "et", "ever",
    "every", "explain", "faire", "faut", "find", "first", "for", "from", "für", "get", "give",
    "go", "good", "hacer", "had", "happen", "happens", "has", "hat", "have", "having", "hay",
    "he", "help", "her", "here", "hers", "him", "his", "how", "i", "i'm", "ich", "if", "ihr",
    "il", "ils", "im", "in", "into", "is", "isn't", "ist", "it", "it's", "its", "ja", "je",
    "just", "kann", "kein", "know", "la", "las", "le", "les", "let", "leur", "like", "lo",
    "los", "ma", "made", "mais", "make", "man", "many", "may", "me", "mean", "means", "mein",
    "mes", "mi", "might", "mit", "mon", "more", "most", "much", "muss", "must", "muy", "my",
    "nach", "ne", "need", "needed", "nicht", "no", "noch", "nos", "not", "nous", "nur", "o",
    "ob", "oder", "of", "off", "on", "once", "one", "only", "or", "other", "ou", "our", "out",
    "over", "own", "où", "par", "para", "pas", "pero", "peut", "please", "por", "porque",
    "pour", "pourquoi", "puede", "qu", "quand", "que", "quel", "quelle", "question", "quickly",
    "quoi", "qué", "sa", "same", "say", "se", "ses", "shall", "she", "should", "show", "si",
    "sich", "sie", "sin", "sind", "so", "soll", "some", "someone", "something", "son", "sont",
    "still", "su", "such", "sur", "sus", "ta", "te", "tell", "than", "thank", "thanks", "that",
    "the", "their", "them", "then", "there", "these", "they", "thing", "things", "this",
    "those", "through", "to", "too", "tu", "um", "un", "una", "und", "under", "une", "unos",
    "uns", "until", "up", "us", "use", "used", "using", "very", "vom", "von", "vor", "vous",
    "wann", "want", "warum", "was", "way", "we", "well", "wenn", "wer", "werden", "were",
    "what", "what's", "when", "where", "which", "while", "who", "whom", "whose", "why", "wie",
    "will", "wir", "wird", "with", "without", "wo", "would", "y", "ya", "yo", "you", "your",
    "zu", "zum", "zur", "über",
})  # fmt: skip


def words_of(text: str) -> list[str]:
    """Return the words of `text` in lower case, in order; accents are kept."""
    return [word.replace("’", "'") for word in _WORD.findall(text.casefold())]


def keywords(question: str) -> tuple[str, ...]:
    """Return the words of a question worth searching, in order, each once.

    A question of nothing but common words keeps them all, rather than asking for nothing.

    >>> keywords("How do I boil water to make it safe?")
    ('boil', 'water', 'safe')
    """
    words = [word.removesuffix("'s") for word in words_of(question)]
    telling = [word for word in words if word not in _STOP_WORDS and len(word) > 1]
    return tuple(dict.fromkeys(telling or words))[:MOST_KEYWORDS]


_SUFFIXES = ("ations", "ation", "ingly", "edly", "ings", "ness", "ing", "ies", "ied", "est",
             "ed", "es", "ly", "er", "s", "e", "y")  # fmt: skip


def stem(word: str) -> str:
    """Return a rough stem that puts `boil`, `boils`, `boiled` and `boiling` together.

    Never shortens below three letters; accents are dropped.
    """
    if not word.isascii():
        word = "".join(
            c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c)
        )
    word = word.removesuffix("'s").replace("'", "")
    for suffix in _SUFFIXES:
        if suffix == "ed" and word.endswith("eed"):
            break
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            word = word[: -len(suffix)]
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word


def stems_of(text: str) -> list[str]:
    """Return the stems of all words of `text`, in order."""
    return [stem(word) for word in words_of(text)]
