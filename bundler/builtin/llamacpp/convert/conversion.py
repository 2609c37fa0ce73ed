"""The conversion from beginning to end: plan, header, data, rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from bundler.builtin.llamacpp.convert import config as configs
from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint, open_checkpoint
from bundler.builtin.llamacpp.convert.families import family_of
from bundler.builtin.llamacpp.convert.family import Family, plan_tensors
from bundler.builtin.llamacpp.convert.fields import Fields, model_fields
from bundler.builtin.llamacpp.convert.metadata import general_fields
from bundler.builtin.llamacpp.convert.tensors import OutputTensor, count_values, main_type
from bundler.errors import DoesNotFit, UnsafeInput
from bundler.value import format_size
from bundler.weights import encode_header, field

Progress = Callable[[int, int, str], None]
OutputType = Literal["auto", "bf16", "f16", "f32"]

ALIGNMENT = 32
QUANTIZATION_VERSION = 2
"""`GGML_QUANT_VERSION`: the revision of the block formats."""


def convert(
    files: Mapping[str, Path],
    output: Path,
    *,
    output_type: OutputType,
    name: str,
    progress: Progress,
) -> dict[str, Any]:
    """Convert a published model to one GGUF file at `output`; return facts about it.

    `files` maps names inside the repository to readable files. `auto` keeps the half-precision
    type that the weights have (F16 for those in single precision). The file gets its name when it
    is whole and on the disk. `progress(done, total, "bytes")` is called as bytes are written.

    Raises:
        UnsafeInput: malformed, of an unsafe format, or of a family that is not known.
        StepFailed: values too large for `f16`.
        DoesNotFit: no room for the output.
    """
    with open_checkpoint(files) as checkpoint:
        config = configs.complete(checkpoint.json(configs.FILE))
        family = family_of(config)
        tensors = plan_tensors(family, config, checkpoint.tensors(), output_type)
        type_ = main_type(tensors, output_type)
        fields = _fields(checkpoint, family, config, name, type_, count_values(tensors))
        header = encode_header(fields, [t.plan for t in tensors], alignment=ALIGNMENT)
        _write(output, header, checkpoint, tensors, progress)
    return {
        "architecture": family.architecture,
        "type": type_,
        "tensors": len(tensors),
        "parameters": count_values(tensors),
        "tokenizer": fields["tokenizer.ggml.model"].value,
        "pre_tokenizer": fields["tokenizer.ggml.pre"].value,
        "vocabulary": len(fields["tokenizer.ggml.tokens"].value),  # type: ignore[arg-type]
        "size_bytes": output.stat().st_size,
    }


def _fields(
    checkpoint: Checkpoint,
    family: Family,
    config: Mapping[str, Any],
    name: str,
    type_: str,
    parameters: int,
) -> Fields:
    architecture = family.architecture
    return {
        **general_fields(checkpoint, architecture, name, parameters),
        **model_fields(architecture, config, type_),
        **family.fields(checkpoint, config),
        "general.quantization_version": field("UINT32", QUANTIZATION_VERSION),
        **_tokenizer(checkpoint, family, config),
    }


def tokenizer_fields(checkpoint: Checkpoint) -> Fields:
    """Return the fields that a model's tokenizer will have as GGUF. Raises UnsafeInput."""
    config = configs.complete(checkpoint.json(configs.FILE))
    return _tokenizer(checkpoint, family_of(config), config)


def _tokenizer(checkpoint: Checkpoint, family: Family, config: Mapping[str, Any]) -> Fields:
    """Make the tokenizer's fields. Its files are deep JSON of strangers: whatever is not where it
    should be in them is their fault.
    """
    try:
        return family.tokenizer(checkpoint, config)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UnsafeInput(
            f"the tokenizer's files are not as they should be: {type(error).__name__}: {error}",
            where="tokenizer", hint="fetch the model again, or choose another copy of it",
        ) from error  # fmt: skip


def _write(
    output: Path,
    header: bytes,
    checkpoint: Checkpoint,
    tensors: Sequence[OutputTensor],
    progress: Progress,
) -> None:
    total = len(header) + sum(_padded(tensor.plan.size_bytes) for tensor in tensors)
    free = shutil.disk_usage(output.parent).free
    if free < total:
        raise DoesNotFit(
            f"the converted model needs {format_size(total)}, the disk has {format_size(free)}",
            where=str(output.parent), hint="free some space, or put the store on another disk",
        )  # fmt: skip
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("wb") as file:
            _write_all(
                file, header, checkpoint, tensors, lambda done: progress(done, total, "bytes")
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _write_all(
    file: BinaryIO,
    header: bytes,
    checkpoint: Checkpoint,
    tensors: Sequence[OutputTensor],
    report: Callable[[int], None],
) -> None:
    # numpy is slow to import, and whoever only reads facts imports this package too.
    from bundler.builtin.llamacpp.convert.data import pieces

    done = file.write(header)
    report(done)
    for tensor in tensors:
        for piece in pieces(checkpoint, tensor):
            done += file.write(piece.data)
            report(done)
        done += file.write(bytes(_padded(tensor.plan.size_bytes) - tensor.plan.size_bytes))
    report(done)
