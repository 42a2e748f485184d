"""Write a model folder in SDAR's layout, which the server loads like any other.

python -m benchmarks.tiny_diffusion.export CHECKPOINT FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.tiny_diffusion import tokenizer as tiny_tokenizer
from benchmarks.tiny_diffusion.network import Network, tiny_spec
from benchmarks.tiny_diffusion.tokenizer import END, MASK, write_json
from benchmarks.tiny_diffusion.train import averaged
from plait.server.models.spec import ModelSpec

BLOCK_SIZE = 32
BLOCK_SIZES = (1, 4, 8, 16, 32)  # that it was trained with, beside full attention


def config(spec: ModelSpec) -> dict[str, Any]:
    """Return config.json."""
    return {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "also_full": True,
        "attention_bias": False,
        "block_size": BLOCK_SIZE,
        "block_sizes": list(BLOCK_SIZES),
        "eos_token_id": END,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "mask_token_id": MASK,
        "max_position_embeddings": spec.max_positions,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "pad_token_id": END,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": spec.tied_embeddings,
        "torch_dtype": "bfloat16",
        "vocab_size": spec.vocab,
    }


def export(network: Network, folder: Path) -> None:
    """Write config, tokenizer and weights in bf16, which every mode of the server reads."""
    tiny_tokenizer.write(folder)
    write_json(folder / "config.json", config(network.spec))
    weights = {n: t.to(torch.bfloat16).contiguous() for n, t in network.tensors().items()}
    save_file(weights, folder / "model.safetensors")


def main() -> None:
    """Read the command line and export a checkpoint; without one, random weights."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, help="'random' for an untrained model")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if str(args.checkpoint) == "random":
        torch.manual_seed(0)
        network = Network(tiny_spec(tiny_tokenizer.build().get_vocab_size()))
    else:
        network, _ = averaged(args.checkpoint)
    export(network, args.folder)


if __name__ == "__main__":
    main()
