"""From a Hugging Face config.json to a ModelSpec. No torch, no code from the model's folder.

A key that is neither understood nor known to be harmless is refused by name unless it is off (null,
false, zero or empty): it may change what the model computes. families.py has the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.models.catalog import OTHERS, BadModel, naming
from plait.server.models.hf.diffusion import read_diffusion
from plait.server.models.hf.families import FAMILIES, REQUIRED, is_understood
from plait.server.models.hf.json_files import read_json
from plait.server.models.spec import (
    MAX_LAYERS,
    ModelSpec,
    MoeSpec,
    RopeSpec,
    yarn_attention_factor,
)

Config = Mapping[str, Any]

_QUANTISED = ("quantization_config", "compression_config")
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
    config = read_json(path)
    with naming(path):
        spec = spec_from_config(config)
        return spec, read_diffusion(folder, {**config, "vocab_size": spec.vocab})


def spec_from_config(config: Config) -> ModelSpec:
    """Return the description that a parsed config.json stands for; see read_config."""
    name = _family(config)
    _refuse_quantised(config)
    family = FAMILIES[name]
    _refuse_unknown(config, name)
    config = usual_keys(config)
    _check_required(config)
    full = {**family.keys, **config}
    heads = full["num_attention_heads"]
    layers = full["num_hidden_layers"]
    head_dim = full["head_dim"] or full["hidden_size"] // heads
    rope = _rope(full, int(head_dim * full.get("partial_rotary_factor", 1)))
    attention_bias = bool(full.get("attention_bias", False))
    return ModelSpec(
        family=name,
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
        windows=_windows(full, name),
        rotary=_rotary(full, layers),
        qk_norm=family.qk_norm,
        qkv_bias=attention_bias or family.qkv_bias or _own_qkv_bias(full),
        o_bias=attention_bias,
        mlp_bias=bool(full.get("mlp_bias", False)),
        tied_embeddings=bool(full["tie_word_embeddings"]),
        experts=_experts(full) if "num_experts" in family.keys else None,
    )


def usual_keys(config: Config) -> Config:
    """Return the config with the usual names of the keys that its family calls otherwise."""
    aliases = FAMILIES[config["model_type"]].aliases
    named = {usual: config[own] for own, usual in aliases.items() if config.get(own) is not None}
    return {**{key: value for key, value in config.items() if key not in aliases}, **named}


def _family(config: Config) -> str:
    family = config.get("model_type")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise BadModel(
            f"model_type {family!r} is not supported; supported are {known}. {OTHERS['hf']}"
        )
    return str(family)


def _refuse_quantised(config: Config) -> None:
    """Refuse a checkpoint whose weights are no plain numbers."""
    for key in _QUANTISED:
        if stated := config.get(key):
            method = stated.get("quant_method", "") if isinstance(stated, Mapping) else ""
            raise BadModel(
                f"{key}: the weights are quantised{f' ({method})' if method else ''}, which plait "
                "does not read; serve the model's unquantised folder (--weights int8 or int4 "
                f"quantises it here) or a GGUF file of it. {OTHERS['hf']}"
            )


def _check_required(config: Config) -> None:
    own = {usual: name for name, usual in FAMILIES[config["model_type"]].aliases.items()}
    for key in REQUIRED:
        if not isinstance(config.get(key), int) or config[key] < 1:
            name = own.get(key, key)
            raise BadModel(f"{name} must be a whole number above 0, not {config.get(key)!r}")
    if config["num_hidden_layers"] > MAX_LAYERS:
        raise BadModel(f"more than {MAX_LAYERS} layers are not supported")
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        name = own.get("hidden_act", "hidden_act")
        raise BadModel(f"{name} {activation!r} is not supported; only silu is")


def _refuse_unknown(config: Config, name: str) -> None:
    family = FAMILIES[name]
    for key, value in config.items():
        if key in family.fixed and value != family.fixed[key]:
            raise BadModel(f"{key} {value!r} is not supported; only {family.fixed[key]!r} is")
        if value and key not in family.aliases and not is_understood(key, family):
            raise BadModel(
                f"{key} = {value!r} is not understood for {name} and may change what the model "
                f"computes; remove the key if you know that it does not. {OTHERS['hf']}"
            )


def _own_qkv_bias(config: Config) -> bool:
    return bool(config.get("include_qkv_bias") or config.get("use_qkv_bias"))


def _experts(config: Config) -> MoeSpec:
    return MoeSpec(
        count=config["num_experts"] or 0,
        chosen=config["num_experts_per_tok"],
        ffn=config["moe_intermediate_size"] or 0,
        shared_ffn=(config["moe_intermediate_size"] or 0) * (config["num_shared_experts"] or 0),
        first_layer=config["first_k_dense_replace"],
        groups=config["n_group"],
        kept_groups=config["topk_group"],
        scale=float(config["routed_scaling_factor"]),
        normalised=bool(config["norm_topk_prob"]),
        bias=bool(config["moe_router_enable_expert_bias"]),
    )


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


def _rope(config: Config, head_dim: int) -> RopeSpec:
    given = config["rope_parameters"] or config["rope_scaling"] or {}
    theta = float(given.get("rope_theta") or config["rope_theta"] or 1e4)
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise BadModel(
            f"rope type {kind!r} is not supported; supported are {', '.join(_ROPE_KEYS)}"
        )
    _refuse_unknown_rope(given, kind)
    if kind == "default":
        return RopeSpec(theta, head_dim)
    original = given.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = given.get("factor") or config["max_position_embeddings"] / original
    if kind == "linear":
        return RopeSpec(theta, head_dim, "linear", factor=factor)
    if kind == "llama3":
        return RopeSpec(
            theta,
            head_dim,
            "llama3",
            factor=factor,
            original_positions=original,
            low_freq_factor=given.get("low_freq_factor", 1.0),
            high_freq_factor=given.get("high_freq_factor", 4.0),
        )
    return RopeSpec(
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
