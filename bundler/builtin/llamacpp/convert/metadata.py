"""`general.*`: what the model is called, by whom, under which licence, of how many parameters.

The heuristics over the model card are gguf-py's own (`gguf.Metadata`), fed with the files that
were given and nothing else.
"""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.fields import Fields
from bundler.errors import UnsafeInput
from bundler.weights import field

if TYPE_CHECKING:
    import gguf

CARD = "README.md"
READ = (CARD, "config.json", "generation_config.json")
MAX_CARD_BYTES = 4 << 20
_NAME = re.compile(r"[^\x00-\x1f\x7f/\\]{1,200}")


def general_fields(checkpoint: Checkpoint, architecture: str, name: str, parameters: int) -> Fields:
    """Return the `general.*` fields (but file type) and recommended sampling settings.

    `name` is what the model shall be called; parts of it (version, size, fine-tune) are read from
    it as from a repository's name. Raises UnsafeInput for a model card that cannot be read.
    """
    import gguf
    import yaml  # type: ignore[import-untyped]

    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise UnsafeInput(f"{name!r} cannot be the name of a model")
    writer = gguf.GGUFWriter(path=None, arch=architecture)
    try:
        metadata = _load(checkpoint, name, parameters)
        if metadata.size_label is None:
            metadata.size_label = gguf.size_label(parameters, parameters, 0, 0)
        writer.add_type(gguf.GGUFType.MODEL)
        metadata.set_gguf_meta_model(writer)
        # A card may have empty lists, which gguf-py would refuse to write: they say nothing.
        given = {k: v for k, v in writer.kv_data[0].items() if v.value != []}
        return {key: _field(value) for key, value in given.items()}
    except (
        yaml.YAMLError,
        struct.error,
        RecursionError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise UnsafeInput(
            f"the model card or the generation settings cannot be read: {error}",
            where=CARD if CARD in checkpoint else "generation_config.json",
        ) from error


def _load(checkpoint: Checkpoint, name: str, parameters: int) -> gguf.Metadata:
    """Lay the few files out as gguf-py expects them, in a folder of that name, and load them."""
    import gguf

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        folder.mkdir()
        for file in READ:
            if file in checkpoint:
                (folder / file).write_bytes(_bounded(checkpoint, file))
        metadata = gguf.Metadata.load(None, folder, name, parameters)
    if metadata.sampling_penalty_repeat is None:
        # Newer than the released gguf-py 0.19: the settings' own word for it.
        settings = checkpoint.optional_json("generation_config.json")
        metadata.sampling_penalty_repeat = settings.get("repetition_penalty")
    return metadata


def _bounded(checkpoint: Checkpoint, file: str) -> bytes:
    raw = checkpoint.content(file)
    if len(raw) > MAX_CARD_BYTES:
        raise UnsafeInput(f"a text of {len(raw)} bytes", where=file)
    return raw


def _field(value: Any) -> Any:
    given = value.value
    if value.type.name == "ARRAY":
        import gguf

        element = value.sub_type or gguf.GGUFValueType.get_type(given[0])
        return field(element.name, list(given))
    return field(value.type.name, given)
