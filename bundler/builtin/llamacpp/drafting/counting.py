"""What a draft adds to the memory of its model, term by term. Pure.

A draft is a model like others: its weights, its cache and its compute buffers are counted as every
model's (`memory`), with a cache for the whole context of each of its model's users
(`common_speculative_init_result`: `cparams.n_ctx = llama_n_ctx(ctx_tgt)`). Here is what differs.
"""

from __future__ import annotations

from bundler.builtin.llamacpp.graph.shape import hyperparameters
from bundler.builtin.llamacpp.overheads import PROMPT_CACHE_BYTES
from bundler.errors import Problem, RecipeError
from bundler.hardware import Accelerator
from bundler.lock import ModelFacts
from bundler.plan import Memory

DRAFTED_TOKENS = 3
"""How many words are guessed before they are checked: llama.cpp's own default
(`common_params_speculative_draft.n_max`), which the bundle's servers ask for."""
_SHARED_PROCESS_BYTES: dict[Accelerator, int] = {"cuda": 330 << 20, "rocm": 330 << 20}
"""What of `overheads.OVERHEADS` a second model in a process does not take again on each device: the
context and its kernels. Pools and workspaces belong to a context of llama.cpp's, so they count."""
_RECURRENT_FIELDS = ("ssm.", "wkv.", "shortconv.")


def verifying_memory(memory: Memory, facts: ModelFacts, parallel: int, *, on_cpu: bool) -> Memory:
    """Return a model's memory with the rows of results of the words that it checks.

    One more row of logits for each guess of each user, in main memory
    (`common_speculative_get_output_limits`, then `llama_context::output_reserve`). Compute buffers
    are planned for a row of each token of a batch, which is more than any check asks for.
    """
    rows = 4 * facts.vocabulary * parallel * DRAFTED_TOKENS
    key = "compute_bytes" if on_cpu else "host_bytes"
    return memory.model_copy(update={key: getattr(memory, key) + rows})


def beside_its_model(
    memory: Memory, accelerator: Accelerator, devices: int, *, on_cpu: bool
) -> Memory:
    """Return a draft's memory without what its model's server takes anyway.

    That is the device's context, and the store of old prompts: it has one limit for both
    (`server_prompt_cache`).
    """
    if on_cpu:
        return memory.model_copy(
            update={"overhead_bytes": memory.overhead_bytes - PROMPT_CACHE_BYTES}
        )
    shared = _SHARED_PROCESS_BYTES.get(accelerator, 0)
    return memory.model_copy(
        update={
            "overhead_bytes": memory.overhead_bytes - shared * devices,
            "host_bytes": memory.host_bytes - PROMPT_CACHE_BYTES,
            "by_device": tuple(size - shared for size in memory.by_device),
        }
    )


def check_can_go_back(facts: ModelFacts) -> None:
    """Refuse a model that cannot forget single words: rejected guesses are taken back.

    llama.cpp would keep copies of its whole state for that, of which no plan knows
    (`common_context_can_seq_rm`, `COMMON_CONTEXT_SEQ_RM_TYPE_FULL`).

    Raises:
        RecipeError: it has recurrent layers.
    """
    recurrent = any(name.startswith(_RECURRENT_FIELDS) for name in hyperparameters(facts))
    if recurrent or not all(facts.kv_heads):
        raise RecipeError(
            Problem(
                f"a model with recurrent layers ({facts.architecture}) cannot be run with a draft, "
                "nor be one: it cannot forget single words",
                hint="leave `draft` out, or take models with attention only",
            )
        )
