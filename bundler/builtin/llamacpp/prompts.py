"""One question to a model, as tokens: through its own chat template where it has a usable one."""

from __future__ import annotations

import hashlib

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.chat import TemplateUnusable, render
from bundler.builtin.llamacpp.session import Model

NO_TEMPLATE = "it has no chat template"
_MENDED = (b"<|channel|>", b"[TOOL_CALLS]")


def question_tokens(model: Model, question: str) -> tuple[list[int], str]:
    """Return the tokens, and why the question stands there plain ("" when a template was used)."""
    library = native.llama()
    raw = library.llama_model_chat_template(model.pointer, None)
    if not raw:
        return model.tokens(question, special=False, start=True), NO_TEMPLATE
    bos = _control_text(model, library.llama_vocab_bos(model.vocab_pointer))
    eos = _control_text(model, library.llama_vocab_eos(model.vocab_pointer))
    try:
        text = render(raw.decode("utf-8", "replace"), question, bos=bos, eos=eos)
    except TemplateUnusable as error:
        why = f"the model's chat template could not be used: {error}"
        return model.tokens(question, special=False, start=True), why
    # A template that writes BOS itself must not get a second one.
    return model.tokens(text, special=True, start=not (bos and text.startswith(bos))), ""


def _control_text(model: Model, token: int) -> str:
    raw = native.llama().llama_vocab_get_text(model.vocab_pointer, token) if token >= 0 else b""
    return str((raw or b"").decode("utf-8", "replace"))


def template_sha256(model: Model) -> str:
    """Return the digest of the chat template in a model's file, "" where there is none.

    And where servers mend the template when they load it (llama.cpp's `common/chat.cpp`): what they
    say of it then is not what is in the file.
    """
    raw = native.llama().llama_model_chat_template(model.pointer, None)
    if not raw or any(mark in raw for mark in _MENDED):
        return ""
    return hashlib.sha256(raw).hexdigest()
