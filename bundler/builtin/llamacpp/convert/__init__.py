"""safetensors → GGUF without torch: streaming, deterministic, equal to the official converter.

`convert` reads a published model (config, tokenizer, safetensors) and writes one GGUF file whose
fields, tensors and bytes are those of `convert_hf_to_gguf.py` in the llama.cpp source (a test
runs both). It holds some pieces of 1 MiB of a tensor at a time, never a whole model.

To add a family:

1. Write a small module with a `Family` (see `llama`, the fullest one, and `qwen`): the classes
   that `architectures` in config.json names, llama.cpp's name of the architecture, the map of
   tensor names, the kind of tokenizer; and, where it has them, hyper-parameters of its own, rows
   to be reordered, tensors to be computed.
2. Put what its config class fills in by default into `config.DEFAULTS`.
3. List it in `families.FAMILIES`.
4. Add a case to `tests/test_convert.py`: a small random model of it is converted by both.

A tokenizer whose fingerprint is unknown needs a line in `pre_tokenizers` (and a llama.cpp that
has rules for it).
"""

from bundler.builtin.llamacpp.convert.conversion import convert
from bundler.builtin.llamacpp.convert.families import FAMILIES

__all__ = ["FAMILIES", "convert"]
