"""Writes a GGUF model as a Hugging Face folder in bf16, for peers that read nothing else.

python -m benchmarks.export_hf MODEL FOLDER
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from plait.server.models.catalog import BadModel, ModelFiles, resolve
from plait.server.models.checkpoint import QuantizedTensor
from plait.server.models.gguf import GgufCheckpoint
from plait.server.models.spec import ModelSpec
from plait.server.prompt.gguf_tokenizer import read_gguf_tokenizer


def export(files: ModelFiles, folder: Path) -> None:
    """Write config, weights and tokenizer of a Llama model from a GGUF file.

    Raises:
        BadModel: the file is not GGUF, or the model is not a plain Llama.
    """
    if files.kind != "gguf":
        raise BadModel(f"{files.path} is not a GGUF file")
    checkpoint = GgufCheckpoint(files.path)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _config(checkpoint.spec))
    tensors = {name: _dense(checkpoint, name) for name in checkpoint.names()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_tokenizer(files, folder)


def _dense(checkpoint: GgufCheckpoint, name: str) -> Tensor:
    stored = checkpoint.read(name)
    values = stored.dense() if isinstance(stored, QuantizedTensor) else stored.values
    return values.to(torch.bfloat16).contiguous()


def _config(spec: ModelSpec) -> dict[str, Any]:
    if spec.family != "llama" or spec.rope.kind != "default":
        raise BadModel(f"only plain Llama models are exported, not {spec.family}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "max_position_embeddings": spec.max_positions,
        "vocab_size": spec.vocab,
        "tie_word_embeddings": spec.tied_embeddings,
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(files: ModelFiles, folder: Path) -> None:
    vocabulary = read_gguf_tokenizer(files)
    vocabulary.backend.save(str(folder / "tokenizer.json"))
    ends = sorted(vocabulary.eos_token_ids)
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": vocabulary.chat_template,
            "clean_up_tokenization_spaces": False,
            **vocabulary.named_tokens,
        },
    )
    _write(folder / "generation_config.json", {"eos_token_id": ends})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("model", help="a built-in name or a GGUF file")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    export(resolve(args.model), args.folder)


if __name__ == "__main__":
    main()
