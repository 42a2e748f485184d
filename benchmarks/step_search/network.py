"""The two networks: the layers of the tiny diffusion model with a causal mask, in Qwen3's layout.

Both read the same tokens and tell of the next one: the generator draws from that, and the verifier
judges by it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.step_search import task
from benchmarks.tiny_diffusion.network import Inputs, Network, tiny_spec

VOCAB = 1 + len(task.CHARACTERS)
VERIFIER = "verifier.safetensors"


def new_network() -> Network:
    """Return a network of 0.16 million parameters, untrained."""
    return Network(tiny_spec(VOCAB, hidden=64, layers=3, ffn=192))


def packed(rows: Sequence[Sequence[int]]) -> Inputs:
    """Return texts as a batch in which each position sees its own text up to itself."""
    longest = max(map(len, rows))
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    places = [i * longest + at for i, row in enumerate(rows) for at in range(len(row))]
    return Inputs(
        torch.tensor([token for row in rows for token in row]),
        torch.tensor([at for row in rows for at in range(len(row))]),
        torch.tensor(places),
        causal.expand(len(rows), 1, longest, longest),
    )


def token_logprobs(network: Network, rows: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probability of each token of some texts but the first, given those before."""
    inputs = packed(rows)
    logits = network(inputs, torch.arange(len(inputs.tokens)))
    behind = logits[:-1].log_softmax(dim=1)
    found = behind.gather(1, inputs.tokens[1:, None])[:, 0].tolist()
    starts = accumulate(map(len, rows), initial=0)
    return [found[start : start + len(row) - 1] for start, row in zip(starts, rows, strict=False)]


def export(network: Network, folder: Path) -> None:
    """Write the generator as a Hugging Face folder, which the server loads."""
    spec = network.spec
    folder.mkdir(parents=True, exist_ok=True)
    task.write_tokenizer(folder)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "eos_token_id": task.END,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "max_position_embeddings": spec.max_positions,
        "num_attention_heads": spec.heads,
        "num_hidden_layers": spec.layers,
        "num_key_value_heads": spec.kv_heads,
        "rms_norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: t.contiguous() for name, t in network.tensors().items()},
        folder / "model.safetensors",
    )


def save_verifier(network: Network, folder: Path) -> None:
    """Write the verifier's weights."""
    save_file(dict(network.state_dict()), folder / VERIFIER)


def load_verifier(folder: Path) -> Network:
    """Return the verifier of a folder."""
    network = new_network()
    network.load_state_dict(load_file(folder / VERIFIER))
    return network.eval()
