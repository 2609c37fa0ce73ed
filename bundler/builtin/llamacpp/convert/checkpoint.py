"""A published model as files: its JSON, its texts, and where each stored tensor lies.

The same value serves a conversion (local files) and reading facts (ranged requests): it only
needs the files' sizes and `read(name, start, length)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bundler.errors import Problem, UnsafeInput
from bundler.value import format_bytes
from bundler.weights import Read, file_reader, read_safetensors_header, read_shard_index
from bundler.weights.safetensors import parse_json, parse_object

MAX_TEXT_BYTES = 128 << 20
"""The largest tokenizer.json in use (262,144 tokens) has 33 MB."""

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class StoredTensor(NamedTuple):
    """One tensor of the checkpoint and where its bytes are."""

    name: str
    type: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size_bytes: int


class Checkpoint:
    """The files of one model."""

    def __init__(self, sizes: Mapping[str, int], read: Callable[[str, int, int], bytes]) -> None:
        self._sizes = dict(sizes)
        self._read = read

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def names(self) -> tuple[str, ...]:
        """All file names, sorted."""
        return tuple(sorted(self._sizes))

    def content(self, name: str) -> bytes:
        """Read a small file whole. Raises UnsafeInput when it is not there or not small."""
        if name not in self._sizes:
            raise UnsafeInput("the file is missing", where=name, hint="fetch the whole repository")
        size = self._sizes[name]
        if size > MAX_TEXT_BYTES:
            raise UnsafeInput(f"{format_bytes(size)} is too much for a text file", where=name)
        return self._read(name, 0, size)

    def text(self, name: str) -> str:
        """Read a UTF-8 text file."""
        try:
            return self.content(name).decode()
        except UnicodeDecodeError as error:
            raise UnsafeInput(f"not UTF-8 (at byte {error.start})", where=name) from None

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object."""
        return parse_object(self.content(name), where=name)

    def array(self, name: str) -> list[Any]:
        """Read a JSON array."""
        value = parse_json(self.content(name), where=name)
        if not isinstance(value, list):
            raise UnsafeInput("not a JSON array", where=name)
        return value

    def optional_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object; an empty one when there is no such file."""
        return self.json(name) if name in self else {}

    def read_data(self, tensor: StoredTensor, start: int, length: int) -> bytes:
        """Read bytes of a tensor's data, counted from its first byte."""
        raw = self._read(tensor.file, tensor.offset + start, length)
        if len(raw) != length:
            raise UnsafeInput(f"ends within tensor {tensor.name!r}", where=tensor.file)
        return raw

    def tensors(self) -> tuple[StoredTensor, ...]:
        """List all stored tensors, part by part and by name within a part.

        Raises UnsafeInput when there are only pickles, when a part is missing, or when the index
        and the parts disagree.
        """
        index = read_shard_index(self.content(INDEX), where=INDEX) if INDEX in self else {}
        parts = sorted(set(index.values())) or [
            name for name in self.names() if name.startswith("model") and _is_part(name)
        ]
        self._check_parts(parts)
        listed = [tensor for part in parts for tensor in self._part(part)]
        found = {tensor.name: tensor for tensor in listed}
        _check_index(index, found, len(listed))
        return tuple(listed)

    def _check_parts(self, parts: list[str]) -> None:
        missing = [Problem("the weights file is missing", p) for p in parts if p not in self]
        if missing:
            raise UnsafeInput(missing)
        if not parts:
            pickles = [name for name in self.names() if name.endswith(PICKLES)]
            raise UnsafeInput(
                "there are no safetensors weights"
                + (f", only files that can run code: {', '.join(pickles[:5])}" if pickles else ""),
                hint="choose a revision or a copy of the model that has model.safetensors",
            )

    def _part(self, part: str) -> Iterator[StoredTensor]:
        def read(start: int, length: int) -> bytes:
            return self._read(part, start, length)

        header = read_safetensors_header(read, self._sizes[part], where=part)
        for tensor in header.tensors:
            yield StoredTensor(
                tensor.name, tensor.type, tensor.shape, part, tensor.offset, tensor.size_bytes
            )


def _is_part(name: str) -> bool:
    return name.endswith(".safetensors") and "/" not in name


def _check_index(index: Mapping[str, str], found: Mapping[str, StoredTensor], count: int) -> None:
    problems = [
        Problem(f"tensor {name!r} is not in {part!r} where the index has it", INDEX)
        for name, part in sorted(index.items())
        if name not in found or found[name].file != part
    ]
    if index:
        problems += [
            Problem(f"tensor {name!r} is not in the index", found[name].file)
            for name in sorted(found.keys() - index.keys())
        ]
    if count != len(found):
        problems.append(Problem(f"{count - len(found)} tensors are in more than one file"))
    if problems:
        raise UnsafeInput(problems[:20])


@contextmanager
def open_checkpoint(files: Mapping[str, Path]) -> Iterator[Checkpoint]:
    """Open local files (name inside the repository → path) as a checkpoint."""
    with ExitStack() as stack:
        readers: dict[str, tuple[Read, int]] = {
            name: stack.enter_context(file_reader(path)) for name, path in files.items()
        }

        def read(name: str, start: int, length: int) -> bytes:
            return readers[name][0](start, length)

        yield Checkpoint({name: size for name, (_, size) in readers.items()}, read)
