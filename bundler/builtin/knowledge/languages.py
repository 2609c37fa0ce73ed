"""Codes of languages: a recipe and a ZIM speak ISO 639-3, HTML wants two letters if there are two."""

from __future__ import annotations

_PAIRS = """
    afr af ara ar ben bn bul bg cat ca ces cs cmn zh cym cy dan da deu de ell el eng en est
    et eus eu fas fa fin fi fra fr gle ga glg gl guj gu hau ha heb he hin hi hrv hr hun hu
    hye hy ind id isl is ita it jpn ja kan kn kat ka kaz kk khm km kor ko lao lo lat la lav
    lv lit lt mal ml mar mr mkd mk mon mn msa ms mya my nep ne nld nl nor no nob nb pan pa
    pol pl por pt pus ps ron ro rus ru slk sk slv sl som so spa es sqi sq srp sr swa sw swe
    sv tam ta tel te tgl tl tha th tur tr ukr uk urd ur uzb uz vie vi xho xh yor yo zho zh
    zul zu
"""
_CODES = _PAIRS.split()
_SHORT = dict(zip(_CODES[::2], _CODES[1::2], strict=True))


def html_language(code: str) -> str:
    """Return the code that HTML's `lang` wants (RFC 5646) for an ISO 639-3 code.

    >>> html_language("eng"), html_language("haw")
    ('en', 'haw')
    """
    return _SHORT.get(code, code)
