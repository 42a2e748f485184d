"""From a Hugging Face config.json to a ModelSpec. No torch, no code from the model's folder.

A key that is neither understood nor known to be harmless is refused by name unless it is off (null,
false, zero or empty): it may change what the model computes. Source: the configuration classes of
transformers 5, whose defaults stand in for absent keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.models.catalog import BadModel
from plait.server.models.diffusion import OWN_KEYS, read_diffusion
from plait.server.models.spec import ModelSpec, Rope, yarn_attention_factor

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
_QWEN3 = {
    **_COMMON,
    **_WINDOWS,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "attention_bias": False,
}
# What each family understands, with its defaults.
_FAMILIES: Mapping[str, Config] = {
    "llama": {**_COMMON, **_BIASES},
    "mistral": {
        **_COMMON,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "max_position_embeddings": 131072,
    },
    "qwen2": {**_COMMON, **_WINDOWS, "num_key_value_heads": 32},
    "qwen3": _QWEN3,
    "sdar": {**_QWEN3, **OWN_KEYS},
    "smollm3": {
        **_COMMON,
        **_BIASES,
        **_WINDOWS,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
    },
}
_REQUIRED = (
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
    fuse_cross_entropy
"""
_HARMLESS = frozenset(_HARMLESS_KEYS.split())
_HARMLESS_AFFIXES = (("_", ""), ("unsloth_", ""), ("", "_token_id"))

_ROPE_KEYS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
    ),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast"}
        | {"beta_slow", "mscale", "mscale_all_dim", "truncate"}
    ),
}


def read_config(folder: Path) -> tuple[ModelSpec, DiffusionSpec | None]:
    """Return the description of the model in a Hugging Face folder, and how it fills holes.

    Raises:
        BadModel: config.json is malformed, or describes what plait cannot compute; named by key.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadModel(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadModel(f"{path} is not a JSON object")
    try:
        return spec_from_config(config), read_diffusion(folder, config)
    except BadModel as error:
        raise BadModel(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise BadModel(f"{path} holds a value of the wrong type: {error}") from error


def spec_from_config(config: Config) -> ModelSpec:
    """Return the description that a parsed config.json stands for; see read_config."""
    family = _family(config)
    _refuse_unknown(config, family)
    full = {**_FAMILIES[family], **config}
    heads = full["num_attention_heads"]
    layers = full["num_hidden_layers"]
    head_dim = full["head_dim"] or full["hidden_size"] // heads
    rope = _rope(full, head_dim)
    attention_bias = bool(full.get("attention_bias", False))
    return ModelSpec(
        family=family,
        vocab=full["vocab_size"],
        hidden=full["hidden_size"],
        layers=layers,
        heads=heads,
        kv_heads=full["num_key_value_heads"] or heads,
        head_dim=head_dim,
        ffn=full["intermediate_size"],
        norm_eps=float(full["rms_norm_eps"]),
        max_positions=rope.max_positions(full["max_position_embeddings"]),
        rope=rope,
        windows=_windows(full, family),
        rotary=_rotary(full, layers),
        qk_norm=family in ("qwen3", "sdar"),
        qkv_bias=attention_bias or family == "qwen2",
        o_bias=attention_bias,
        mlp_bias=bool(full.get("mlp_bias", False)),
        tied_embeddings=bool(full["tie_word_embeddings"]),
    )


def _family(config: Config) -> str:
    family = config.get("model_type")
    if family not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise BadModel(f"model_type {family!r} is not supported; supported are {known}")
    for key in _REQUIRED:
        if not isinstance(config.get(key), int) or config[key] < 1:
            raise BadModel(f"{key} must be a whole number above 0, not {config.get(key)!r}")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise BadModel(f"hidden_act {activation!r} is not supported; only silu is")
    return str(family)


def _refuse_unknown(config: Config, family: str) -> None:
    known = _HARMLESS.union(_REQUIRED, _FAMILIES[family])
    for key, value in config.items():
        if key in known or not value or _is_bookkeeping(key):
            continue
        raise BadModel(
            f"{key} = {value!r} is not understood for {family} and may change what the model "
            "computes; remove the key if it does not"
        )


def _is_bookkeeping(key: str) -> bool:
    return any(key.startswith(start) and key.endswith(end) for start, end in _HARMLESS_AFFIXES)


def _windows(config: Config, family: str) -> tuple[int, ...]:
    layers: int = config["num_hidden_layers"]
    window = config.get("sliding_window") or 0
    if not config.get("use_sliding_window", family == "mistral"):
        window = 0
    kinds = config.get("layer_types") or _layer_types(config, family)
    unknown = set(kinds) - {"full_attention", "sliding_attention"}
    if unknown:
        raise BadModel(f"layer_types {sorted(unknown)} are not supported")
    if len(kinds) != layers:
        raise BadModel(f"layer_types has {len(kinds)} entries for {layers} layers")
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def _layer_types(config: Config, family: str) -> list[str]:
    """Return which layers slide when the config leaves it to its family."""
    layers = config["num_hidden_layers"]
    if family == "smollm3":
        slides = [not rotary for rotary in _rotary(config, layers)]
    else:
        slides = [i >= config.get("max_window_layers", 0) for i in range(layers)]
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _rotary(config: Config, layers: int) -> tuple[bool, ...]:
    flags = config.get("no_rope_layers")  # 1: the layer does have rotary positions
    if flags:
        return tuple(bool(flag) for flag in flags[:layers])
    interval = config.get("no_rope_layer_interval") or 0
    return tuple(not interval or (i + 1) % interval != 0 for i in range(layers))


def _rope(config: Config, head_dim: int) -> Rope:
    given = config["rope_parameters"] or config["rope_scaling"] or {}
    theta = float(given.get("rope_theta") or config["rope_theta"] or 1e4)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise BadModel(
            f"rope type {kind!r} is not supported; supported are {', '.join(_ROPE_KEYS)}"
        )
    _refuse_unknown_rope(given, kind)
    if kind == "default":
        return Rope(theta, head_dim)
    original = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = given.get("factor") or config["max_position_embeddings"] / original
    if kind == "linear":
        return Rope(theta, head_dim, "linear", factor=factor)
    if kind == "llama3":
        return Rope(
            theta,
            head_dim,
            "llama3",
            factor=factor,
            original_positions=original,
            low_freq_factor=given.get("low_freq_factor", 1.0),
            high_freq_factor=given.get("high_freq_factor", 4.0),
        )
    return Rope(
        theta,
        head_dim,
        "yarn",
        factor=factor,
        original_positions=original,
        beta_fast=given.get("beta_fast") or 32.0,
        beta_slow=given.get("beta_slow") or 1.0,
        truncate=given.get("truncate", True),
        attention_factor=_yarn_attention_factor(given, factor),
    )


def _refuse_unknown_rope(given: Config, kind: str) -> None:
    if given.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise BadModel("partial_rotary_factor below 1 is not used by these families")
    known = _ROPE_KEYS[kind] | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    unknown = [key for key, value in given.items() if value and key not in known]
    if unknown:
        raise BadModel(f"rope scaling {kind!r} does not understand {', '.join(unknown)}")


def _yarn_attention_factor(given: Config, factor: float) -> float:
    """Return what multiplies cosines and sines: stated, a ratio of two scales, or the paper's."""
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    scale, scale_all = given.get("mscale"), given.get("mscale_all_dim")
    if scale and scale_all:
        return yarn_attention_factor(factor, scale) / yarn_attention_factor(factor, scale_all)
    return yarn_attention_factor(factor)
