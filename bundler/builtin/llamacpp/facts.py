"""What can be known of a model from its headers alone: the facts that a plan is made of.

For safetensors the tensors have the names and shapes they will have as GGUF, by the same map that
the conversion uses, and the types they are stored as. For GGUF they are what the header says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bundler.builtin.llamacpp.gguf_facts import gguf_facts
from bundler.builtin.llamacpp.safetensors_facts import safetensors_facts
from bundler.errors import UnsafeInput
from bundler.lock import LockedFile, ModelFacts, Resolution

ReadFile = Callable[[LockedFile, int, int], bytes]
"""`read(file, start, length)` fetches just those bytes of a locked file."""


def model_facts(resolution: Resolution, read: ReadFile) -> ModelFacts:
    """Read a model's headers: GGUF (one file, or all parts of a split one), or safetensors.

    Raises UnsafeInput for anything malformed, of an unsafe format or of an unknown family, and
    when the files are of more than one model.
    """
    files: Mapping[str, LockedFile] = {file.path: file for file in resolution.files}
    if any(path.lower().endswith(".gguf") for path in files):
        return gguf_facts(files, read)
    if "config.json" in files:
        return safetensors_facts(files, read)
    raise UnsafeInput(
        "there is no model in it: neither a GGUF file nor config.json with safetensors weights",
        where=resolution.reference,
        hint="files that can run code when they are loaded (.bin, .pt, .pkl) are never accepted",
    )
