"""A published tokenizer (`tokenizer.json`) as its own library would set it up.

The official converter asks transformers for the tokenizer, whose classes adjust what is in
`tokenizer.json`: special tokens are added, a post-processor or normalizer is replaced. Some of
that decides the pre-tokenizer's fingerprint, so it is done here too, for the classes the
supported families use. Source: transformers 4.57.6, `tokenization_utils_fast.py` and
`models/{llama,code_llama,qwen2,gpt2,bert}/tokenization_*_fast.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.errors import UnsafeInput

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"

_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_LLAMA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
_BY_CLASS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "Qwen2Tokenizer": dict.fromkeys(("eos", "unk", "pad"), "<|endoftext|>"),
    "GPT2Tokenizer": dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>"),
    "BertTokenizer": {
        "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]",
    },
    "PreTrainedTokenizer": {},
}  # fmt: skip
"""Special tokens a class has unless tokenizer_config.json says otherwise."""

_BY_MODEL = {
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "bert": "BertTokenizer",
    "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
}  # fmt: skip
"""Class of a model whose tokenizer_config.json names none."""

_CODE_LLAMA_EXTRA = ("▁<PRE>", "▁<MID>", "▁<SUF>", "▁<EOT>")


class HubTokenizer:
    """The tokenizer with what its class adds, and what the converter asks of it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._config = checkpoint.optional_json(CONFIG)
        self._class = _class_name(self._config, checkpoint)
        self._tokenizer = _load(checkpoint)
        self.specials = _specials(self._config, self._class)
        self._add_tokens()
        _ADJUST.get(self._class, _adjust_prefix_space)(self)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer itself."""
        return self._tokenizer

    @property
    def config(self) -> Mapping[str, Any]:
        """What tokenizer_config.json says."""
        return self._config

    def vocabulary(self) -> dict[int, str]:
        """Token id → token, added ones too."""
        return {number: text for text, number in self._tokenizer.get_vocab().items()}

    def base_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        return self._tokenizer.get_vocab_size(with_added_tokens=False)

    @cached_property
    def added(self) -> dict[int, AddedToken]:
        """Added tokens by id."""
        return self._tokenizer.get_added_tokens_decoder()

    def encode(self, text: str, *, with_specials: bool) -> list[int]:
        """Return the ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=with_specials).ids)

    def normalized(self, text: str) -> str:
        """Encode and decode a token's text: what its normalizer makes of it."""
        ids = self.encode(text, with_specials=False)
        decoded = self._tokenizer.decode(ids, skip_special_tokens=False)
        return _clean(decoded) if self._config.get("clean_up_tokenization_spaces") else decoded

    def _add_tokens(self) -> None:
        from tokenizers import AddedToken

        decoder = self._config.get("added_tokens_decoder") or {}
        listed = [entry for _, entry in sorted(decoder.items(), key=lambda item: int(item[0]))]
        names = [entry["content"] for entry in listed]
        before = self._tokenizer.get_added_tokens_decoder().values()
        known = {token.content for token in before} | set(names)
        tokens = [
            _added_token(entry, special=entry["content"] in self.specials) for entry in listed
        ]
        tokens += [AddedToken(s, special=True) for s in self.specials if s not in known]
        if tokens:
            self._tokenizer.add_tokens(tokens)


def _added_token(entry: Mapping[str, Any], *, special: bool) -> AddedToken:
    from tokenizers import AddedToken

    flags = {key: bool(entry.get(key)) for key in ("single_word", "lstrip", "rstrip")}
    special = special or bool(entry.get("special"))
    normalized = bool(entry.get("normalized", not special))
    return AddedToken(entry["content"], normalized=normalized, special=special, **flags)


def _class_name(config: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    name = config.get("tokenizer_class")
    if not isinstance(name, str):
        model_type = checkpoint.json("config.json").get("model_type")
        name = _BY_MODEL.get(str(model_type), "PreTrainedTokenizer")
    name = name.removesuffix("Fast")
    # Classes that are not known set up nothing of their own.
    return name if name in _BY_CLASS else "PreTrainedTokenizer"


def _load(checkpoint: Checkpoint) -> Tokenizer:
    from tokenizers import Tokenizer

    raw = checkpoint.content(FILE)
    try:
        tokenizer: Tokenizer = Tokenizer.from_buffer(raw)
    # The library raises bare Exception for whatever it cannot read.
    except Exception as error:  # noqa: BLE001 - see above; nothing narrower is raised
        raise UnsafeInput(f"not a tokenizer: {error}", where=FILE) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _content(entry: Any) -> str | None:
    value = entry.get("content") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else None


def _specials(config: Mapping[str, Any], class_name: str) -> tuple[str, ...]:
    """Return the special tokens, each once, in the order in which they would be added."""
    defaults = _BY_CLASS[class_name]
    found = [_content(config.get(f"{kind}_token", defaults.get(kind))) for kind in _KINDS]
    found += [_content(entry) for entry in config.get("additional_special_tokens") or []]
    if class_name == "CodeLlamaTokenizer":
        found += _CODE_LLAMA_EXTRA
    return tuple(dict.fromkeys(text for text in found if text))


def _clean(text: str) -> str:
    for before in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(before, before[1:])
    return text.replace(" ' ", "'")


def _adjust_prefix_space(hub: HubTokenizer) -> None:
    """`PreTrainedTokenizerFast`: the config's word on a leading space wins."""
    from tokenizers import pre_tokenizers

    wanted = bool(hub.config.get("add_prefix_space", False))
    current = hub.tokenizer.pre_tokenizer
    if isinstance(current, pre_tokenizers.ByteLevel) and current.add_prefix_space != wanted:
        state = json.loads(current.__getstate__())
        hub.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=wanted, use_regex=state["use_regex"]
        )


def _adjust_llama(hub: HubTokenizer) -> None:
    """`LlamaTokenizerFast.update_post_processor`: beginning and end as the config has them."""
    from tokenizers import processors

    def token(kind: str, default: bool) -> list[str]:
        if not hub.config.get(f"add_{kind}_token", default):
            return []
        text = _content(hub.config.get(f"{kind}_token", _LLAMA[kind]))
        if text is None:
            raise UnsafeInput(f"add_{kind}_token is set but there is no {kind}_token", where=CONFIG)
        return [text]

    begin, end = token("bos", True), token("eos", False)
    hub.tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*(f"{t}:0" for t in begin), "$A:0", *(f"{t}:0" for t in end)]),
        pair="$A:0 $B:1",
        special_tokens=[(text, hub.tokenizer.token_to_id(text)) for text in begin + end],
    )


def _adjust_bert(hub: HubTokenizer) -> None:
    """`BertTokenizerFast`: the config's word on case, accents and Chinese wins."""
    from tokenizers import normalizers

    current = hub.tokenizer.normalizer
    if isinstance(current, normalizers.BertNormalizer):
        hub.tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=current.clean_text,
            lowercase=hub.config.get("do_lower_case", True),
            strip_accents=hub.config.get("strip_accents"),
            handle_chinese_chars=hub.config.get("tokenize_chinese_chars", True),
        )


_ADJUST = {
    "LlamaTokenizer": _adjust_llama,
    "CodeLlamaTokenizer": _adjust_llama,
    "BertTokenizer": _adjust_bert,
}
