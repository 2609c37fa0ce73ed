"""Models in several files: how offers say so, and how a file that is too large is cut, and where it lies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bundler.builtin.llamacpp.offer_steps import PLUGIN
from bundler.builtin.llamacpp.types import stored_bytes
from bundler.errors import PluginError, UnsafeInput
from bundler.hookspecs import Task
from bundler.lock import ModelFacts
from bundler.plan import Cut, FileInput, Offer, Step, StepInput
from bundler.weights.shard_names import in_order, read_shard_name, shard_name

SHARD_ACTION = "shard"
STEM = "model"
WHOLE = f"{STEM}.gguf"
"""What steps call a model that is in one file."""
_SHARD_HEADER_BYTES = 256
"""Header of a shard with one tensor whose name is as long as ggml allows: 225, padded."""
_SHARD_COST_BYTES = 4096
"""What each further file adds to a model, at most: a header, without the entries it takes over."""


def model_names(names: Iterable[str]) -> list[str]:
    """Return the files of a GGUF model in order. Projectors (`mmproj`) beside it are not part of it.

    Raises:
        UnsafeInput: there is none, there are several models, or some of its shards are missing.
    """
    found = [
        name for name in names
        if name.lower().endswith(".gguf") and "mmproj" not in name.rsplit("/", 1)[-1].lower()
    ]  # fmt: skip
    if not found:
        raise UnsafeInput("there is a projector but no model", hint="name the model's own file")
    return in_order(found)


def largest_tensor_bytes(facts: ModelFacts, types: Mapping[str, str]) -> int:
    """Return the size of the largest tensor: no file of the model can be smaller."""
    return max((stored_bytes(types[t.name], t.shape) for t in facts.tensors), default=0)


def is_model(name: str, stem: str = STEM) -> bool:
    """Tell whether an input of a step is the model, or one of its shards."""
    said = read_shard_name(name)
    return name == f"{stem}.gguf" or (said is not None and said.stem == stem)


def model_inputs(task: Task, stem: str = STEM) -> list[Path]:
    """Return the files of a model that a step was given: one, or its shards in order."""
    names = [name for name in task.inputs if is_model(name, stem)]
    if not names:
        raise PluginError(f"{task.action} needs an input called '{stem}.gguf'")
    return [task.inputs[name] for name in in_order(names)]


@contextmanager
def loadable(task: Task, stem: str = STEM) -> Iterator[Path]:
    """Give the path by which llama.cpp opens a step's model: its file, or its first shard.

    The store calls files by their digests; the shards get their names in a folder of links.
    """
    files = model_inputs(task, stem)
    if len(files) == 1:
        yield files[0]
        return
    with task.world.store.scratch() as folder:
        links = [folder / shard_name(stem, n, len(files)) for n in range(1, len(files) + 1)]
        for link, file in zip(links, files, strict=True):
            link.symlink_to(file.absolute())
        yield links[0]


def size_on_disk(model: Path) -> int:
    """Return the size of a model by its file, or by the first of its shards."""
    said = read_shard_name(model.name)
    if said is None:
        return model.stat().st_size
    names = [shard_name(said.stem, n, said.total) for n in range(1, said.total + 1)]
    return sum(model.with_name(name).stat().st_size for name in names)


def shard_inputs(shards: Sequence[FileInput]) -> dict[str, FileInput]:
    """Return a locked model's files as inputs of a step, under names that llama.cpp understands."""
    if len(shards) == 1:
        return {WHOLE: shards[0]}
    return {shard_name(STEM, n, len(shards)): one for n, one in enumerate(shards, start=1)}


def in_shards(offer: Offer, shards: Sequence[FileInput]) -> Offer:
    """Return an offer of a ready file as one of the several files in which the model comes."""
    update = {
        "disk_bytes": sum(one.size_bytes for one in shards),
        "output": shards[0],
        "other_shards": tuple(shards[1:]),
        "steps": (*offer.steps[:-1], _proving(offer.steps[-1], shard_inputs(shards))),
    }
    return offer.model_copy(update=update)


def cut_offer(offer: Offer, most_bytes: int) -> Offer | None:
    """Return the same model as shards of at most `most_bytes`; None where one tensor is larger.

    What it is cut from stays on the disk of the build, beside the shards.
    """
    if offer.indivisible_bytes + _SHARD_HEADER_BYTES > most_bytes:
        return None
    *making, prove = offer.steps
    made = isinstance(offer.output, StepInput)
    whole: Mapping[str, StepInput | FileInput] = (
        {WHOLE: offer.output}
        if isinstance(offer.output, StepInput)
        else shard_inputs((offer.output, *offer.other_shards))
    )
    step = Step(
        name=SHARD_ACTION, plugin=PLUGIN, action=SHARD_ACTION, inputs=whole,
        parameters={"most_bytes": most_bytes},
    )  # fmt: skip
    shards = StepInput(step=SHARD_ACTION, file=WHOLE, shards=True)
    count = -(-offer.disk_bytes // most_bytes) + 1
    update = {
        "steps": (*making, step, _proving(prove, {WHOLE: shards})),
        "output": shards,
        "cut": Cut(most_bytes=most_bytes, whole=offer.output),
        "disk_bytes": offer.disk_bytes + count * _SHARD_COST_BYTES,
        "scratch_bytes": offer.scratch_bytes + (offer.disk_bytes if made else 0),
    }
    return offer.model_copy(update=update)


def _proving(prove: Step, files: Mapping[str, StepInput | FileInput]) -> Step:
    """Return the proof of these files."""
    others = {name: given for name, given in prove.inputs.items() if not is_model(name)}
    return prove.model_copy(update={"inputs": {**files, **others}})
