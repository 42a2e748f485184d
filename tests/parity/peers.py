"""Transformers' models, built from what plait loads or saved for plait to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from torch import Tensor

from plait.server.models.checkpoint import EMBEDDING, LM_HEAD

# GGUF name of each part of a Llama layer; independent of plait's own table.
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def smollm2_peer(path: Path) -> Any:
    """Return transformers' LlamaForCausalLM with the dequantised tensors of a GGUF file, fp32."""
    reader = gguf.GGUFReader(path)

    def number(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    config = transformers.LlamaConfig(
        vocab_size=number("vocab_size"),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    heads = {"attn_q": number("attention.head_count"), "attn_k": number("attention.head_count_kv")}
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _unpermute(values, heads[part])
        state[_hf_name(tensor.name)] = values
    state[LM_HEAD] = state[EMBEDDING]
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.tie_weights()
    return model.eval()


def _hf_name(name: str) -> str:
    *layer, part, suffix = name.split(".")
    if not layer:
        return f"{_OUTER[part]}.{suffix}"
    return f"model.layers.{layer[1]}.{_PARTS[part]}.{suffix}"


def _unpermute(stored: Tensor, heads: int) -> Tensor:
    """Undo the row order of llama.cpp's converter, [heads, pair, half] -> [heads, half, pair]."""
    pairs = stored.view(heads, -1, 2, stored.shape[1])
    return pairs.transpose(1, 2).reshape(stored.shape)


def save_random_peer(config: Any, folder: Path) -> Any:
    """Save a random model of transformers into `folder` and return it.

    Gains and biases are drawn too: transformers starts them at ones and zeros, which would hide
    that they are left out.
    """
    torch.manual_seed(0)
    families: Any = transformers.AutoModelForCausalLM
    model = families.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model.eval()
