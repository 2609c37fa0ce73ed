"""Special tokens, chat template and merges, as `gguf.SpecialVocab` finds them.

Source: `gguf-py/gguf/vocab.py` of the llama.cpp source (MIT) inside the llama-cpp-python 0.3.36
sdist. Its reading of post-processors is crude but it is the one that shipped models were made
with, so it is kept, odd cases included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as datafield
from string import ascii_letters, digits
from typing import Any

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.fields import Fields
from bundler.errors import UnsafeInput
from bundler.weights import field

_SPACE = chr(ord(" ") + 256)

KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

_ID_KEYS = {
    "bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom",
    "unk": "unknown", "sep": "seperator", "pad": "padding", "mask": "mask",
}  # fmt: skip
"""Kind → its word in `tokenizer.ggml.<word>_token_id` (the misspelling is the format's)."""


@dataclass
class _Found:
    """What has been found so far, while one tokenizer is read."""

    kinds: tuple[str, ...]
    vocabulary: int | None
    ids: dict[str, int] = datafield(default_factory=dict)
    add: dict[str, bool] = datafield(default_factory=dict)
    lowercase: bool | None = None
    strip_accents: bool | None = None

    def set_id(self, kind: str, token_id: Any) -> None:
        """Take a token id unless that kind has one, or it is outside the vocabulary."""
        if type(token_id) is not int:
            return
        if token_id < 0:
            raise UnsafeInput(f"the {kind} token has the id {token_id}", where="config.json")
        if self.vocabulary is None or token_id < self.vocabulary:
            self.ids.setdefault(kind, token_id)


def special_fields(
    checkpoint: Checkpoint,
    *,
    with_merges: bool = False,
    vocabulary: int | None = None,
    kinds: tuple[str, ...] = KINDS,
    forced: Mapping[str, int] | None = None,
) -> Fields:
    """Return the fields for merges, special tokens, chat template and normalizer.

    `vocabulary` drops ids beyond it; `forced` gives ids for kinds that the files do not name.
    """
    tokenizer = checkpoint.optional_json("tokenizer.json")
    config = checkpoint.optional_json("tokenizer_config.json")
    found = _Found(kinds, vocabulary)
    _read_normalizer(found, tokenizer.get("normalizer"))
    if tokenizer:
        _read_post_processor(found, tokenizer, config)
    if config:
        _read_tokenizer_config(found, tokenizer, config)
    model_config = checkpoint.json("config.json")
    for kind in found.kinds:
        found.set_id(kind, model_config.get(f"{kind}_token_id"))
    for kind, token_id in (forced or {}).items():
        found.set_id(kind, token_id)
    fields = _merge_fields(checkpoint, tokenizer) if with_merges else {}
    return (
        fields | _found_fields(found) | _template_fields(checkpoint, config) | _normal_fields(found)
    )


def _found_fields(found: _Found) -> Fields:
    fields: Fields = {}
    for kind, token_id in found.ids.items():
        if kind in _ID_KEYS:
            fields[f"tokenizer.ggml.{_ID_KEYS[kind]}_token_id"] = field("UINT32", token_id)
    for kind, add in found.add.items():
        if kind in ("bos", "eos", "sep"):
            fields[f"tokenizer.ggml.add_{kind}_token"] = field("BOOL", add)
    return fields


def _normal_fields(found: _Found) -> Fields:
    fields: Fields = {}
    if found.lowercase is not None:
        fields["tokenizer.ggml.normalizer.lowercase"] = field("BOOL", found.lowercase)
    if found.strip_accents is not None:
        fields["tokenizer.ggml.normalizer.strip_accents"] = field("BOOL", found.strip_accents)
    return fields


def _read_normalizer(found: _Found, normalizer: Any) -> None:
    if not isinstance(normalizer, dict):
        return
    kind = normalizer.get("type")
    if kind == "Lowercase":
        found.lowercase = True
    elif kind == "StripAccents":
        found.strip_accents = True
    elif kind == "BertNormalizer":
        found.lowercase = normalizer.get("lowercase", found.lowercase)
        found.strip_accents = normalizer.get("strip_accents", found.strip_accents)
    elif kind == "Sequence":
        for step in normalizer.get("normalizers") or []:
            _read_normalizer(found, step)


def _special_id(entry: Any) -> Any:
    """Return the special token that an entry of a template puts there, if it is one."""
    return entry.get("SpecialToken", {}).get("id") if isinstance(entry, dict) else None


def _read_post_processor(
    found: _Found, tokenizer: Mapping[str, Any], config: dict[str, Any]
) -> None:
    """Learn which special tokens are added around a text; may complete `config`."""
    if config and not config.get("bos_token") and config.get("cls_token"):
        config["bos_token"] = config["cls_token"]
    if config and not config.get("eos_token") and config.get("sep_token"):
        config["eos_token"] = config["sep_token"]
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return
    # What the template may name, and the config be missing: kept over all processors.
    known = {kind: config.get(f"{kind}_token") for kind in ("bos", "cls", "eos", "sep")}
    for step in processor.get("processors", [processor]):
        kind = step.get("type")
        if kind == "ByteLevel":
            found.add.setdefault("bos", False)
            found.add.setdefault("eos", False)
        elif kind == "RobertaProcessing":
            _read_roberta(found, step, config, known)
        elif kind == "TemplateProcessing":
            _read_template(found, step, config, known)


def _read_roberta(
    found: _Found, step: Mapping[str, Any], config: dict[str, Any], known: dict[str, Any]
) -> None:
    found.add |= {"bos": True, "eos": True, "sep": True}
    for kind, stand_in in (("cls", "bos"), ("sep", "eos")):
        if config and not known[kind]:
            known[kind] = step.get(kind, [known[stand_in]])[0]
            config[f"{kind}_token"] = known[kind]


def _read_template(
    found: _Found, step: Mapping[str, Any], config: dict[str, Any], known: dict[str, Any]
) -> None:
    single = step.get("single") or []
    first = last = None
    if len(single) > 1:
        if first := _special_id(single[0]):
            _read_first(found, first, config, known)
        if last := _special_id(single[-1]):
            _read_last(found, last, config, known)
    _read_pair(found, step.get("pair") or [], first, last, config, known)


def _read_first(found: _Found, first: Any, config: dict[str, Any], known: dict[str, Any]) -> None:
    if not config:
        known["bos"] = first
    elif first not in (known["bos"], known["cls"]):
        for kind in ("bos", "cls"):
            if not known[kind]:
                config[f"{kind}_token"] = known[kind] = first
    found.add["bos"] = first in (known["bos"], known["cls"])


def _read_last(found: _Found, last: Any, config: dict[str, Any], known: dict[str, Any]) -> None:
    if not config:
        known["eos"] = last
    elif last != known["eos"]:
        for kind in ("eot", "eom"):
            if kind not in found.kinds:
                found.kinds = (*found.kinds, kind)
                config[f"{kind}_token"] = known["eos"]
                break
        config["eos_token"] = known["eos"] = last
    found.add["eos"] = last == known["eos"]


def _read_pair(
    found: _Found, pair: Sequence[Any], first: Any, last: Any,
    config: dict[str, Any], known: dict[str, Any],
) -> None:  # fmt: skip
    """Learn from a pair's template (A, separators, B) whether a separator is added."""
    if not pair:
        return
    start = 1 if first and _special_id(pair[0]) == first else 0
    stop = -1 if last and _special_id(pair[-1]) == last else None
    inner = pair[slice(start, stop)]
    ends = [entry.get("Sequence", {}).get("id") for entry in (inner[0], inner[-1])] if inner else []
    between = inner[1:-1]
    if ends != ["A", "B"] or not between:
        return
    ending = (known["sep"], known["eos"])
    entry = _special_id(between[0])
    add = bool(entry) and entry in ending and not last
    if len(between) == 2 and (second := _special_id(between[1])):
        add = add or second in ending
    found.add["sep"] = add
    if add and not known["sep"] and config:
        config["sep_token"] = known["eos"]


def _read_tokenizer_config(
    found: _Found, tokenizer: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    added: dict[Any, Any] = {}
    for token in tokenizer.get("added_tokens") or []:
        added.setdefault(token.get("content"), token.get("id"))
    for kind in found.kinds:
        add = config.get(f"add_{kind}_token")
        if isinstance(add, bool):
            found.add.setdefault(kind, add)
        entry = config.get(f"{kind}_token")
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            found.set_id(kind, added.get(content))


def _merge_fields(checkpoint: Checkpoint, tokenizer: Mapping[str, Any]) -> Fields:
    merges = tokenizer.get("model", {}).get("merges")
    if merges:
        lines = [_merge_line(merge) for merge in merges]
    elif "merges.txt" in checkpoint:
        first, *rest = checkpoint.text("merges.txt").split("\n")
        rows = [line.split() for line in (rest if first.startswith("#") else [first, *rest])]
        lines = [" ".join(row) for row in rows if len(row) == 2]
    else:
        raise UnsafeInput("there are no merges", where="tokenizer.json")
    return {"tokenizer.ggml.merges": field("STRING", lines)}


def _merge_line(merge: Any) -> str:
    if isinstance(merge, str):
        return merge
    match merge:
        case [str(left), str(right)]:
            # A space stands between the two: spaces inside are spelt as GPT-2 does.
            return f"{left.replace(' ', _SPACE)} {right.replace(' ', _SPACE)}"
    raise UnsafeInput(f"{merge!r} is not a merge of two tokens", where="tokenizer.json")


def _template_fields(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Fields:
    """Return the chat template(s), from tokenizer_config.json or the files beside it."""
    if not config:
        return {}
    template = config.get("chat_template", _template_beside(checkpoint))
    if isinstance(template, str):
        return {"tokenizer.chat_template": field("STRING", template)}
    if not isinstance(template, list):
        return {}
    named: dict[str, str] = {}
    for choice in template:
        name = "".join(c if c in ascii_letters + digits else "_" for c in choice.get("name", ""))
        if name and isinstance(choice.get("template"), str):
            named[name] = choice["template"]
    default = named.pop("default", None)
    fields = {f"tokenizer.chat_template.{name}": field("STRING", t) for name, t in named.items()}
    if named:
        fields["tokenizer.chat_templates"] = field("STRING", sorted(named))
    if default is not None:
        fields["tokenizer.chat_template"] = field("STRING", default)
    return fields


def _template_beside(checkpoint: Checkpoint) -> Any:
    if "chat_template.jinja" in checkpoint:
        template = checkpoint.text("chat_template.jinja")
        folder = "additional_chat_templates/"
        more = [n for n in checkpoint.names() if n.startswith(folder) and n.endswith(".jinja")]
        if not more:
            return template
        return [{"name": "default", "template": template}] + [
            {"name": n.removeprefix(folder).removesuffix(".jinja"), "template": checkpoint.text(n)}
            for n in more
        ]
    return checkpoint.optional_json("chat_template.json").get("chat_template")
