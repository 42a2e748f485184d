"""Every family, on tiny random configurations, against transformers in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from plait.kernels.paged_attention import BLOCK_SIZE
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from tests.parity.feeding import Piece, feed, logits_of
from tests.parity.peers import save_random_peer

pytestmark = pytest.mark.parity

SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
# A ramp that begins and ends between dimensions.
MSCALE = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
    "beta_fast": 8.0,
    "truncate": False,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-multi-head": ("llama", {"num_key_value_heads": 6}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-yarn-mscale": ("llama", {"rope_parameters": MSCALE, "head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": 20}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-sliding": ("qwen2", SLIDING),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-sliding": ("qwen3", SLIDING),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2}),
    "smollm3-sliding": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 20, "no_rope_layers": [1, 0, 1]},
    ),
}


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Transformer, Any]:
    """The same random weights in plait and in transformers."""
    family, overrides = CASES[request.param]
    config = transformers.AutoConfig.for_model(family, **{**SHAPE, **overrides})
    peer = save_random_peer(config, tmp_path)
    return load_model(resolve(str(tmp_path)), weights="fp32"), peer


def test_logits_equal_transformers(pair: tuple[Transformer, Any]) -> None:
    model, peer = pair
    token_ids = [(7 * i * i + 3) % 260 for i in range(70)]
    want = peer(torch.tensor([token_ids])).logits[0]
    assert want.std() > 0.1
    for chunk in (0, 9):
        have = logits_of(model, token_ids, chunk=chunk)
        torch.testing.assert_close(have, want, atol=2e-4, rtol=1e-3)


def test_two_texts_in_one_batch(pair: tuple[Transformer, Any]) -> None:
    model, peer = pair
    texts = [[(5 * i + 11) % 260 for i in range(33)], [(i * i + 2) % 260 for i in range(50)]]
    blocks = [range(3), range(3, 7)]
    assert all(len(b) * BLOCK_SIZE >= len(t) for t, b in zip(texts, blocks, strict=True))
    pieces = [Piece(text, table) for text, table in zip(texts, blocks, strict=True)]
    have = feed(model, model.new_kv_cache(7), *pieces)
    want = torch.cat([peer(torch.tensor([text])).logits[0] for text in texts])
    torch.testing.assert_close(have, want, atol=2e-4, rtol=1e-3)
