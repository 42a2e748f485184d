"""Finished blocks are cached exactly: the engine's text is that of a full recompute each step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plait.decoders.protocol import Attend
from plait.decoders.sampling.params import SamplingParams
from plait.kernels.paged_attention import Segments
from plait.server.models.transformer import Model
from plait.server.pool.messages import GenerateRequest
from tests.fixtures.engines import model_engine, run, tiny
from tests.fixtures.hash_model import UNSEEN, HashLaw, Ints, Rules, naive_text

END = 2


@dataclass(frozen=True)
class Recomputed(HashLaw):
    """A transformer's law of whatever is visible, from nothing, in one forward pass."""

    model: Model | None = None
    rules: Rules = field(default_factory=lambda: Rules(4))

    @property
    def mask_id(self) -> int:
        assert self.model is not None
        assert self.model.diffusion is not None
        return self.model.diffusion.mask_id

    def logits(self, centers: Ints, seen: Ints) -> NDArray[np.float32]:
        assert self.model is not None
        text = seen[seen != UNSEEN]
        size = len(text) if self.rules.full else self.rules.block
        num_pages = -(-len(text) // 16)
        segments = blocks_of(len(text), size, num_pages)
        hidden = self.model.forward(
            torch.from_numpy(text), segments, self.model.new_kv_cache(num_pages)
        )
        rows = torch.from_numpy(centers - self.rules.shift)
        return self.model.logits(hidden[rows]).numpy()


def blocks_of(length: int, size: int, num_pages: int) -> Segments:
    """Return segments of `size` rows that see each other and all before them."""
    starts = list(range(0, length, size))
    ints = torch.int32
    return Segments(
        row_start=torch.tensor([*starts, length], dtype=ints),
        context_len=torch.tensor(starts, dtype=ints),
        block_tables=torch.arange(num_pages, dtype=ints).expand(len(starts), -1).contiguous(),
        attend=torch.full((len(starts),), int(Attend.BLOCK), dtype=ints),
        parents=torch.full((length,), -1, dtype=ints),
        positions=torch.arange(length, dtype=ints),
        slots=torch.arange(length),
    )


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_cached_is_recomputed(tmp_path: Path, full: bool, shift: bool, block: int) -> None:
    model = tiny(tmp_path, "fp32", model_type="sdar", right_shift_logits=shift)
    rules = Rules(block, full, shift, 0.3, frozenset({END}))
    law = Recomputed(vocab=model.vocab_size, model=model, rules=rules)
    rng = random.Random(block)
    requests = [
        GenerateRequest(
            f"r{i}",
            [rng.randrange(3, 200) for _ in range(rng.randint(1, 40))],
            SamplingParams(temperature=rng.choice((0.0, 1.0)), seed=i),
            rng.randint(1, 24),
            stop_token_ids=[END],
            decoding={
                "unmasker": [{"name": "threshold", "threshold": 0.3}, "free-dave"],
                "canvas": {"attention": "full" if full else "block", "block_size": block},
            },
        )
        for i in range(3)
    ]
    answers = run(model_engine(model, max_num_seqs=4), requests)
    for i, each in enumerate(requests):
        want, _ = naive_text(law, rules, each.prompt_token_ids, each.sampling, each.max_tokens)
        assert answers[f"r{i}", 0].tokens == want
