"""Diffusion models in plain torch, float64, read from their files: one text, any attention.

Written from the families' descriptions, without plait's loaders: tensors are asked for by the names
that the files have, sizes by the keys that the configs have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

_QWEN_NAMES = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "layer": "model.layers.{}.",
    "first_norm": "input_layernorm",
    "second_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_LLADA_NAMES = {
    "embedding": "model.transformer.wte",
    "final_norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
    "layer": "model.transformer.blocks.{}.",
    "first_norm": "attn_norm",
    "second_norm": "ff_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
_LLADA2_NAMES = _QWEN_NAMES | {
    "embedding": "model.word_embeddings",
    "qkv": "attention.query_key_value",
    "o": "attention.dense",
    "q_norm": "attention.query_layernorm",
    "k_norm": "attention.key_layernorm",
}


class PlainModel:
    """The forward pass of a folder's model."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.family = config["model_type"]
        self.config = _with_usual_names(config) if self.family == "llada" else config
        names = {"llada": _LLADA_NAMES, "llada2_moe": _LLADA2_NAMES}
        self.names: Mapping[str, str] = names.get(self.family, _QWEN_NAMES)
        stored = load_file(folder / "model.safetensors")
        self.tensors = {name: tensor.double() for name, tensor in stored.items()}

    def logits(self, token_ids: Sequence[int], sees: Tensor) -> Tensor:
        """Return [tokens, vocab]; sees [tokens, tokens] tells which tokens a row looks at."""
        embedding = self.tensors[self.names["embedding"] + ".weight"]
        x = embedding[torch.tensor(token_ids)]
        for layer in range(self.config["num_hidden_layers"]):
            x = self._layer(x, layer, sees)
        x = self._norm(x, self.names["final_norm"])
        tied = self.config["tie_word_embeddings"]
        return x @ (embedding if tied else self.tensors[self.names["head"] + ".weight"]).T

    def _layer(self, x: Tensor, layer: int, sees: Tensor) -> Tensor:
        prefix = self.names["layer"].format(layer)
        h = self._norm(x, prefix + self.names["first_norm"])
        x = x + self._linear(prefix + self.names["o"], self._attention(h, prefix, sees))
        h = self._norm(x, prefix + self.names["second_norm"])
        if layer < self.config.get("first_k_dense_replace", 99):
            parts = [prefix + self.names[part] for part in ("gate", "up", "down")]
            return x + self._gated(h, parts)
        return x + self._experts(h, prefix + "mlp.")

    def _attention(self, h: Tensor, prefix: str, sees: Tensor) -> Tensor:
        q, k, v = self._queries_keys_values(h, prefix)
        if prefix + self.names.get("q_norm", "none") + ".weight" in self.tensors:
            q = self._norm(q, prefix + self.names["q_norm"])
            k = self._norm(k, prefix + self.names["k_norm"])
        q, k = self._rotated(q), self._rotated(k)
        answers = []
        for head in range(q.shape[1]):
            shared = head * k.shape[1] // q.shape[1]
            scores = q[:, head] @ k[:, shared].T / q.shape[2] ** 0.5
            answers.append(scores.masked_fill(~sees, -torch.inf).softmax(1) @ v[:, shared])
        return torch.cat(answers, 1)

    def _queries_keys_values(self, h: Tensor, prefix: str) -> list[Tensor]:
        config = self.config
        heads = [config["num_attention_heads"], *[config["num_key_value_heads"]] * 2]
        dim = config.get("head_dim") or config["hidden_size"] // heads[0]
        if "qkv" in self.names:
            rows = self._linear(prefix + self.names["qkv"], h)
            parts = list(torch.split(rows, [count * dim for count in heads], dim=1))
        else:
            parts = [self._linear(prefix + self.names[part], h) for part in ("q", "k", "v")]
        return [part.view(len(h), n, dim) for part, n in zip(parts, heads, strict=True)]

    def _rotated(self, x: Tensor) -> Tensor:
        """Turn dimension i and i + half of the rotary ones as a complex number."""
        dim = int(x.shape[2] * self.config.get("partial_rotary_factor", 1))
        frequencies = self.config["rope_theta"] ** (-torch.arange(0, dim, 2).double() / dim)
        angles = torch.outer(torch.arange(len(x)).double(), frequencies)[:, None]
        turned = torch.complex(x[..., : dim // 2], x[..., dim // 2 : dim]) * torch.exp(1j * angles)
        return torch.cat([turned.real, turned.imag, x[..., dim:]], -1)

    def _gated(self, h: Tensor, names: Sequence[str]) -> Tensor:
        gate, up = self._linear(names[0], h), self._linear(names[1], h)
        return self._linear(names[2], gate / (1 + (-gate).exp()) * up)

    def _experts(self, h: Tensor, prefix: str) -> Tensor:
        parts = ("gate_proj", "up_proj", "down_proj")
        answer = self._gated(h, [f"{prefix}shared_experts.{part}" for part in parts])
        scores = 1 / (1 + (-self._linear(prefix + "gate", h)).exp())
        bias = self.tensors[prefix + "gate.expert_bias"]
        for row in range(len(h)):
            chosen = self._chosen((scores[row] + bias).tolist())
            total = sum(float(scores[row, index]) for index in chosen)
            for index in chosen:
                names = [f"{prefix}experts.{index}.{part}" for part in parts]
                share = float(scores[row, index]) / total * self.config["routed_scaling_factor"]
                answer[row] += share * self._gated(h[row : row + 1], names)[0]
        return answer

    def _chosen(self, wanted: Sequence[float]) -> list[int]:
        """Return the best experts of the best groups; a group counts with its two best."""
        size = len(wanted) // self.config["n_group"]
        groups = [range(start, start + size) for start in range(0, len(wanted), size)]
        groups.sort(key=lambda group: -sum(sorted(wanted[i] for i in group)[-2:]))
        allowed = [index for group in groups[: self.config["topk_group"]] for index in group]
        return sorted(allowed, key=lambda i: -wanted[i])[: self.config["num_experts_per_tok"]]

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self.tensors[name + ".weight"].T
        return y + self.tensors[name + ".bias"] if name + ".bias" in self.tensors else y

    def _norm(self, x: Tensor, name: str) -> Tensor:
        eps = float(self.config["rms_norm_eps"])
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * self.tensors[name + ".weight"]


def _with_usual_names(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_kv_heads"],
        "hidden_size": config["d_model"],
        "tie_word_embeddings": config["weight_tying"],
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_theta": config["rope_theta"],
    }


def all_see_all(length: int) -> Tensor:
    """Return the mask of full attention."""
    return torch.ones(length, length, dtype=torch.bool)


def blocks_see_back(length: int, size: int) -> Tensor:
    """Return the mask of blocks that see themselves whole, and all blocks before."""
    block = torch.arange(length) // size
    return block[:, None] >= block[None, :]
