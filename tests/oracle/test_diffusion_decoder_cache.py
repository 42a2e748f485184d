"""Finished blocks are cached exactly: logits and steps are those of a full recompute."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from plait.decoders.contract.decoder import AttentionMode, Forward, Outcome
from plait.decoders.diffusion.canvas import Canvas
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.propose import EMPTY
from plait.decoders.diffusion.state import DiffusionState
from plait.decoders.diffusion.step_input import PRECEDING_ROW
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.models.transformer import Transformer
from plait.server.wire.messages import GenerateRequest
from tests.fixtures.engines import model_engine, run, tiny
from tests.fixtures.hash_model import UNSEEN, HashLaw, Ints, Rules, naive_path

END = 2


@dataclass(frozen=True)
class Recomputed(HashLaw):
    """A transformer's law of whatever is visible, from nothing, in one forward pass."""

    model: Transformer | None = None
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
        metadata = blocks_of(len(text), size, num_pages)
        hidden = self.model.forward(
            torch.from_numpy(text), metadata, self.model.new_kv_cache(num_pages)
        )
        rows = torch.from_numpy(centers - self.rules.shift)
        return self.model.logits(hidden[rows]).numpy()


def blocks_of(length: int, size: int, num_pages: int) -> AttentionMetadata:
    """Return segments of `size` rows that see each other and all before them."""
    starts = list(range(0, length, size))
    ints = torch.int32
    return AttentionMetadata(
        cu_seqlens_q=torch.tensor([*starts, length], dtype=ints),
        context_lens=torch.tensor(starts, dtype=ints),
        block_tables=torch.arange(num_pages, dtype=ints).expand(len(starts), -1).contiguous(),
        attention_modes=torch.full((len(starts),), int(AttentionMode.FULL), dtype=ints),
        parents=torch.full((length,), -1, dtype=ints),
        positions=torch.arange(length, dtype=ints),
        slot_mapping=torch.arange(length),
    )


class Watched(DiffusionDecoder):
    """The host that serves; what it reads of every canvas is compared with a full recompute."""

    def __init__(self, model: Transformer, law: Recomputed) -> None:
        assert model.diffusion is not None
        super().__init__(model.diffusion, model.vocab_size)
        self.law = law
        self.num_compared = 0
        self.orders: dict[int, list[int]] = {}  # seed -> the step of each token

    def accept(self, states: Sequence[DiffusionState], forward: Forward) -> Sequence[Outcome]:
        for state, offset in zip(states, forward.offsets[:-1], strict=True):
            plan = state.step_input or EMPTY
            for canvas, reading in zip(plan.canvases, plan.logits, strict=True):
                kept = reading.rows == PRECEDING_ROW
                have = torch.empty(len(kept), self.law.vocab)
                have[~kept] = forward.logits[reading.rows[~kept] + offset]
                if kept.any():
                    assert state.preceding_logits is not None
                    have[kept] = state.preceding_logits
                want = self.recomputed(state, canvas, reading.positions)
                torch.testing.assert_close(have, want, atol=1e-5, rtol=0)
                self.num_compared += len(have)
        outcomes = super().accept(states, forward)
        self.orders |= {state.settings.params.seed or 0: state.emitted_steps for state in states}
        return outcomes

    def recomputed(self, state: DiffusionState, canvas: Canvas, positions: Ints) -> Tensor:
        """Return the laws at some positions from nothing but the text as the canvas shows it."""
        shown = np.array(
            [*state.text[: canvas.start], *canvas.input_ids(self.spec.mask_id).tolist()]
        )
        laws = self.law.logits(positions, shown)
        if self.spec.shift and not self.law.rules.full and positions[0] == canvas.start:
            before = shown[: canvas.start]  # the row before the block can't look into it
            laws[0] = self.law.logits(positions[:1], before)[0]
        return torch.from_numpy(laws)


@pytest.fixture(scope="module", params=["random", "random, shifted", "tiny-diffusion"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Transformer:
    """Models of SDAR's layout with random weights, and the trained one that is built in."""
    if request.param == "tiny-diffusion":
        return load_model(resolve(request.param), weights="fp32")
    shift = "shifted" in request.param
    folder = tmp_path_factory.mktemp("model")
    return tiny(folder, "fp32", model_type="sdar", right_shift_logits=shift)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("block", [1, 4, 8, 16, 32])
def test_cached_is_recomputed(model: Transformer, full: bool, block: int) -> None:
    """Every row that is read, within 1e-5; every token, and the step that settles it, equal.

    In fp32, side by side, with drafts; prompts end inside a block, where it has an inside.
    """
    assert model.diffusion is not None
    rules = Rules(block, full, model.diffusion.shift, 0.3, frozenset({END}), model.diffusion.canvas)
    law = Recomputed(vocab=model.vocab_size, model=model, rules=rules)
    rng = random.Random(block)
    named = {
        "unmasker": [{"name": "threshold", "threshold": 0.3}, "free-dave"],
        "canvas": {"attention": "full" if full else "block", "block_size": block},
    }
    requests = [
        GenerateRequest(
            f"r{i}",
            [rng.randrange(3, 200) for _ in range(32 * (i // 2) + 1 + 2 * (i % 2))],
            SamplingParams(temperature=float(i % 2), seed=i),
            rng.randint(9, 24),
            stop_token_ids=[END],
            decoding=resolve_decoding(named, model.diffusion),
        )
        for i in range(4)
    ]
    host = Watched(model, law)
    answers = run(model_engine(model, host, max_num_seqs=4), requests)
    for i, each in enumerate(requests):
        text, order, _ = naive_path(
            law, rules, each.prompt_token_ids, each.sampling, each.max_tokens
        )
        assert answers[f"r{i}", 0].tokens == text
        assert host.orders[i] == order
    assert host.num_compared > 20
