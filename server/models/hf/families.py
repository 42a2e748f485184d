"""What each family of Hugging Face models understands, and what tells it from Llama.

Sources: the configuration classes of transformers 5, and for diffusion models the files of the
released weights (September 2026); their defaults stand in for absent keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plait.server.models.hf.diffusion import OWN_KEYS

Config = Mapping[str, Any]

_COMMON = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": None,
}
_BIASES = {"attention_bias": False, "mlp_bias": False}
_WINDOWS = {
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
    "max_position_embeddings": 32768,
}
_LLAMA = {**_COMMON, **_BIASES}
_QWEN2 = {**_COMMON, **_WINDOWS, "num_key_value_heads": 32}
_QWEN3 = {**_QWEN2, "head_dim": 128, "attention_bias": False}


@dataclass(frozen=True, slots=True)
class Family:
    """Keys of config.json that are read, and what follows from the family alone."""

    keys: Config  # with their defaults
    qk_norm: bool = False
    qkv_bias: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)  # its own name of a key: the usual one
    fixed: Config = field(default_factory=dict)  # keys of which only this value is computed
    ignored: frozenset[str] = frozenset()  # harmless in this family


_LLADA_HARMLESS = """
    mlp_ratio alibi_bias_max attention_layer_norm_with_affine rope_full_precision precision
    flash_attention flash_attn_varlen init_device init_fn init_std init_cutoff_factor
    embedding_dropout residual_dropout
"""
_LLADA = Family(
    {
        **_COMMON,
        **OWN_KEYS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "include_qkv_bias": False,
    },
    aliases={
        "d_model": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "mlp_hidden_size": "intermediate_size",
        "max_sequence_length": "max_position_embeddings",
        "activation_type": "hidden_act",
        "weight_tying": "tie_word_embeddings",
        "embedding_size": "vocab_size",  # rows of the embedding; the vocabulary may be smaller
    },
    fixed={
        "block_type": "llama",
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "rope": True,
        "block_group_size": 1,
    },
    ignored=frozenset(_LLADA_HARMLESS.split()),
)

_LLADA2_HARMLESS = """
    router_dtype num_nextn_predict_layers output_router_logits output_dropout embedding_dropout
    use_rmsnorm max_window_layers sliding_window rotary_dim
"""
_LLADA2 = Family(
    {
        **_COMMON,
        **OWN_KEYS,
        "rope_theta": 600000.0,
        "partial_rotary_factor": 0.5,
        "num_experts": None,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": None,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "moe_router_enable_expert_bias": True,
        "use_qkv_bias": False,
    },
    qk_norm=True,
    fixed={"score_function": "sigmoid", "use_qk_norm": True},
    ignored=frozenset(_LLADA2_HARMLESS.split()),
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(_LLAMA),
    "mistral": Family(
        {
            **_COMMON,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
        }
    ),
    "qwen2": Family(_QWEN2, qkv_bias=True),
    "qwen3": Family(_QWEN3, qk_norm=True),
    "smollm3": Family(
        {
            **_COMMON,
            **_BIASES,
            **_WINDOWS,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "sliding_window": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
        }
    ),
    "sdar": Family({**_QWEN3, **OWN_KEYS}, qk_norm=True, ignored=frozenset({"fuse_cross_entropy"})),
    "llada": _LLADA,
    "llada2_moe": _LLADA2,
    "Dream": Family({**_QWEN2, **OWN_KEYS, "rope_theta": 1e6}, qkv_bias=True),
    "Fast_dLLM_Qwen": Family({**_QWEN2, **OWN_KEYS, "bd_size": None}, qkv_bias=True),
    "a2d-llama": Family({**_LLAMA, **OWN_KEYS}),
    "a2d-qwen2": Family({**_QWEN2, **OWN_KEYS}, qkv_bias=True),
    "a2d-qwen3": Family({**_QWEN3, **OWN_KEYS}, qk_norm=True),
}

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
# Training, generation defaults, bookkeeping: nothing of it enters the forward pass.
_HARMLESS_KEYS = """
    model_type architectures auto_map torch_dtype dtype transformers_version use_cache
    initializer_range attention_dropout hidden_dropout resid_pdrop embd_pdrop pretraining_tp
    is_llama_config transformers.js_config tokenizer_class task_specific_params id2label label2id
    problem_type return_dict output_attentions output_hidden_states chunk_size_feed_forward
    temperature top_p top_k typical_p do_sample num_beams num_return_sequences max_length
    min_length max_new_tokens repetition_penalty length_penalty diversity_penalty
    num_beam_groups model_max_length max_sequence_length vocab_file attn_implementation
"""
_HARMLESS = frozenset(_HARMLESS_KEYS.split())
_HARMLESS_AFFIXES = (("_", ""), ("unsloth_", ""), ("", "_token_id"))


def is_understood(key: str, family: Family) -> bool:
    """Tell whether a key of config.json is read, or changes nothing that plait computes."""
    named = _HARMLESS.union(REQUIRED, family.keys, family.fixed, family.ignored)
    affixed = any(key.startswith(start) and key.endswith(end) for start, end in _HARMLESS_AFFIXES)
    return key in named or affixed
