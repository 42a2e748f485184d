"""The default model against transformers, in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plait.kernels import extension
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import FULL, TREE
from plait.server.models.catalog import ModelFiles
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from plait.server.prompt.tokenizer import Tokenizer, load_tokenizer
from tests.parity.feeding import Piece, feed, greedy, logits_of

pytestmark = pytest.mark.parity

TEXT = """<|im_start|>user
Explain how a bicycle stays upright, and give a short Python function that returns the n-th
Fibonacci number. Please mention gyroscopic effects, trail and steering into the fall.<|im_end|>
<|im_start|>assistant
A bicycle stays upright because the rider, and to some degree the geometry of the frame, keep
steering it into the fall: the wheels move back under the centre of mass. Trail helps, since the
ground pushes the front wheel to that side. Gyroscopic effects help a little as well.
```python
def fibonacci(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a
```
1, 1, 2, 3, 5, 8, 13, 21, 34. Naïve recursion is slow; 日本語 and emoji 🚲 take several tokens.
"""
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three prime numbers above 100.",
    "Translate 'good morning' to Spanish.",
    "Why is the sky blue?",
    "Write a Python function that reverses a string.",
    "Who wrote Hamlet?",
    "Summarise the theory of evolution in one sentence.",
    "What is 17 * 23?",
    "Name a fruit that is yellow.",
    "Give me a JSON object with a name and an age.",
    "How do I boil an egg?",
    "What does HTTP stand for?",
    "Tell me a short joke.",
    "What is the largest planet?",
    "Explain recursion to a child.",
    "Write the first sentence of a detective story.",
    "What are the primary colours?",
    "Convert 10 miles to kilometres.",
    "Describe the taste of coffee.",
)


@pytest.fixture(scope="module")
def tokenizer(smollm2_files: ModelFiles) -> Tokenizer:
    return load_tokenizer(smollm2_files)


@pytest.fixture(scope="module")
def token_ids(tokenizer: Tokenizer) -> list[int]:
    ids = tokenizer.encode(TEXT, special=True)[:200]
    assert len(ids) == 200
    return ids


def test_logits_equal_transformers(smollm2: Transformer, peer: Any, token_ids: list[int]) -> None:
    have = logits_of(smollm2, token_ids)
    want = peer(torch.tensor([token_ids])).logits[0]
    assert (have - want).abs().max() < 1e-3


@pytest.mark.slow
def test_greedy_text_equals_transformers(
    smollm2: Transformer, peer: Any, tokenizer: Tokenizer
) -> None:
    prompts = [
        tokenizer.encode(
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", special=True
        )
        for question in QUESTIONS
    ]
    have = greedy(smollm2, prompts, 48)
    width = max(len(prompt) for prompt in prompts)
    padded = torch.tensor([[2] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    want = peer.generate(
        padded,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=48,
        max_new_tokens=48,
        suppress_tokens=None,
        eos_token_id=None,
    )
    assert have == want[:, width:].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 16, 50])
def test_chunked_prefill_equals_whole(
    smollm2: Transformer, token_ids: list[int], chunk: int
) -> None:
    ids = token_ids[:70]
    have, want = logits_of(smollm2, ids, chunk=chunk), logits_of(smollm2, ids)
    if extension.is_available():
        assert torch.equal(have, want)
    else:
        torch.testing.assert_close(have, want, atol=1e-3, rtol=0)


def test_tree_rows_equal_their_paths(smollm2: Transformer, token_ids: list[int]) -> None:
    prompt, rest = token_ids[:37], token_ids[100:108]
    parents = [-1, 0, 0, 1, 1, 2, -1, 6]
    blocks = range(3)
    prefilled = smollm2.new_kv_cache(len(blocks))
    feed(smollm2, prefilled, Piece(prompt, blocks))
    tree = Piece(rest, blocks, context_len=len(prompt), attend=TREE, parents=parents)
    have = feed(smollm2, _copy(prefilled), tree)
    for row in range(len(rest)):
        kv = _copy(prefilled)
        for depth, node in enumerate(_path(row, parents)):
            one = Piece([rest[node]], blocks, context_len=len(prompt) + depth)
            want = feed(smollm2, kv, one)[0]
        torch.testing.assert_close(have[row], want, atol=1e-3, rtol=0)


def _copy(kv: KVCache) -> KVCache:
    return KVCache(kv.k.clone(), kv.v.clone())


def _path(row: int, parents: list[int]) -> list[int]:
    return [] if row < 0 else [*_path(parents[row], parents), row]


def test_block_rows_see_each_other(smollm2: Transformer, peer: Any, token_ids: list[int]) -> None:
    prompt, canvas = token_ids[:21], token_ids[60:73]
    blocks = range(3)
    kv = smollm2.new_kv_cache(len(blocks))
    feed(smollm2, kv, Piece(prompt, blocks))
    have = feed(smollm2, kv, Piece(canvas, blocks, context_len=len(prompt), attend=FULL))
    # The prompt stays causal; the canvas sees everything.
    size = len(prompt) + len(canvas)
    seen = torch.ones(size, size).tril().bool()
    seen[len(prompt) :, len(prompt) :] = True
    mask = torch.zeros(size, size).masked_fill(~seen, torch.finfo(torch.float32).min)
    ids = torch.tensor([[*prompt, *canvas]])
    want = peer(ids, attention_mask=mask[None, None]).logits[0, len(prompt) :]
    torch.testing.assert_close(have, want, atol=1e-3, rtol=0)


def test_kinds_of_segments_share_one_pass(smollm2: Transformer, token_ids: list[int]) -> None:
    """A prompt chunk, a plain row, a tree and a canvas of four sequences, in one forward."""
    prompt = token_ids[:19]
    tables = [range(4 * i, 4 * i + 4) for i in range(4)]
    pieces = [
        Piece(token_ids[20:53], tables[0], context_len=0),
        Piece(token_ids[60:61], tables[1], context_len=19),
        Piece(token_ids[70:73], tables[2], context_len=19, attend=TREE, parents=[-1, 0, -1]),
        Piece(token_ids[80:88], tables[3], context_len=19, attend=FULL),
    ]

    def prepared() -> Any:
        kv = smollm2.new_kv_cache(16)
        feed(smollm2, kv, *[Piece(prompt, table) for table in tables[1:]])
        return kv

    have = feed(smollm2, prepared(), *pieces)
    want = torch.cat([feed(smollm2, prepared(), piece) for piece in pieces])
    if extension.is_available():
        assert torch.equal(have, want)
    else:
        torch.testing.assert_close(have, want, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "int8", "bf16"])
def test_modes_stay_near_fp32(
    smollm2_files: ModelFiles, smollm2: Transformer, token_ids: list[int], mode: Any
) -> None:
    """Rounding may turn near ties only: where the two best tokens are far apart, they agree."""
    want = logits_of(smollm2, token_ids)
    have = logits_of(load_model(smollm2_files, weights=mode), token_ids)
    best = want.topk(2, -1)
    clear = best.values[:, 0] - best.values[:, 1] > 1.0
    assert clear.sum() > 50
    assert torch.equal(have.argmax(-1)[clear], best.indices[clear, 0])
