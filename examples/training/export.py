"""Write a checkpoint of train.py as a Hugging Face folder: safetensors in bfloat16.

python export.py CHECKPOINT TOKENIZER_MODEL OUTPUT_FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from model import Config
from safetensors.torch import save_file
from tokenizer import BEGIN, CONTROL_SYMBOLS, END_OF_TEXT, END_OF_TURN
from torch import Tensor

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def model_config(config: Config) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": ["Qwen2ForCausalLM" if config.is_qwen2 else "LlamaForCausalLM"],
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.feed_forward_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.context_tokens,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_base,
        "hidden_act": "silu",
        "tie_word_embeddings": not config.is_qwen2,
        "bos_token_id": BEGIN,
        "eos_token_id": END_OF_TURN,
        "torch_dtype": "bfloat16",
    }


def tokenizer_config(config: Config) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template."""
    special = ("<unk>", "<s>", "</s>", *CONTROL_SYMBOLS)
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "bos_token": "<s>",
        "eos_token": "<|end|>",
        "unk_token": "<unk>",
        "added_tokens_decoder": {
            str(number): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for number, content in enumerate(special)
        },
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": config.context_tokens,
        "clean_up_tokenization_spaces": False,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_folder(weights_by_name: dict[str, Tensor], config: Config, folder: Path) -> None:
    """Write all but the tokenizer; a Llama's output matrix is its embedding, not repeated."""
    tensors = {
        (name if name.startswith("lm_head") else f"model.{name}"): tensor.detach()
        .to(torch.bfloat16)
        .contiguous()
        for name, tensor in weights_by_name.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    # safetensors writes for the owner alone.
    weights.chmod(0o644)
    write_json(folder / "config.json", model_config(config))
    write_json(
        folder / "generation_config.json",
        {"bos_token_id": BEGIN, "eos_token_id": [END_OF_TEXT, END_OF_TURN]},
    )
    write_json(folder / "tokenizer_config.json", tokenizer_config(config))


def export(checkpoint: Path, tokenizer: Path, folder: Path) -> None:
    """Write the folder's five files."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    write_folder(state["model"], Config(**state["config"]), folder)
    shutil.copyfile(tokenizer, folder / "tokenizer.model")


def main() -> None:
    """Export, and say how far the run was."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    export(options.checkpoint, options.tokenizer, options.folder)
    state = torch.load(options.checkpoint, map_location="cpu", weights_only=True)
    print(f"exported to {options.folder}: {state['progress']}")


if __name__ == "__main__":
    main()
