"""EAGLE's and Chimera's heads: what drafts is what was trained, and no text changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.drafter_heads.head import Head
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import DraftRequest, VerificationResult
from plait.decoders.contract.registry import Choice, choose
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.heads.drafter import HeadDrafter, HeadState
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import run
from tests.fixtures.random_requests import random_requests
from tests.fixtures.table_model import TableModel
from tests.fixtures.tiny_heads import HIDDEN, tiny_head, write_head

VOCAB = 40
WINDOW = 4
NAMES = ("eagle", "chimera")
SPLIT = 2**20  # a name has 40 bits, and a float32 holds 24
CHAIN = {"depth": 4, "width": 1, "confidence": 0.0, "weights": "fp32", "always": True}
BEAM = {"depth": 3, "width": 3, "beam": 2, "confidence": 0.0, "max_draft": 12, "always": True}


class Wide(TableModel):
    """Hands over hidden states as wide as a head's, the first two columns the name of a row."""

    def forward(
        self,
        token_ids: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        names = super().forward(token_ids, metadata, kv, read)
        waves = torch.sin(names % 1000 * torch.arange(2, HIDDEN, dtype=torch.float64))
        return torch.cat([names // SPLIT, names % SPLIT, waves], dim=1).float()

    def logits(self, hidden: Tensor) -> Tensor:
        high, low = hidden[:, :2].double().unbind(1)
        return super().logits((high * SPLIT + low)[:, None])


@pytest.fixture(scope="module", params=NAMES)
def head(request: pytest.FixtureRequest) -> Head:
    return tiny_head(request.param, VOCAB, window=WINDOW)


@pytest.fixture(scope="module")
def context(head: Head, tmp_path_factory: pytest.TempPathFactory) -> DrafterContext:
    path: Path = write_head(head, tmp_path_factory.mktemp("heads"))
    return DrafterContext(VOCAB, embedding=head.embedding, heads={head.name: path})


def drafter_of(context: DrafterContext, options: dict[str, Any]) -> HeadDrafter:
    (name,) = context.heads
    choice = choose({"drafter": {"name": name, **options}}, "drafter")
    assert isinstance(choice, Choice)
    made: HeadDrafter = choice.method.make(choice.options, context=context)
    return made


def read(drafter: HeadDrafter, prompt: list[int], tokens: list[int], hidden: Tensor) -> HeadState:
    """Let a drafter see a text token after token."""
    sampling = SamplingParams(temperature=0.0)
    state = drafter.start(
        DecodeRequest(Text(prompt, NoiseKey(sampling.seed)), sampling, 99, frozenset(), None)
    )
    text = list(prompt)
    for token, row in zip(tokens, hidden, strict=True):
        text.append(token)
        result = VerificationResult([], [], [0], [token], [token], torch.zeros(1, VOCAB), row[None])
        drafter.observe(state, text, result)
    return state


def draft(drafter: HeadDrafter, state: HeadState, text: list[int], max_tokens: int) -> Any:
    return drafter.propose([DraftRequest(state, text, [], max_tokens, None)])[0]


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_drafting_computes_what_was_trained(head: Head, context: DrafterContext, rows: int) -> None:
    """The probabilities of a chain are those of the trainer's rounds along it, window included."""
    drafter = drafter_of(context, CHAIN)
    hidden = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows))
    prompt, tokens = [7, 3, 9, 1], [(5 * i + 2) % VOCAB for i in range(rows)]
    made = draft(drafter, read(drafter, prompt, tokens, hidden), prompt + tokens, 4)
    steps = len(made.token_ids)
    seen = [*prompt[-2:], *tokens, *made.token_ids[:-1]]
    padded = torch.cat([hidden, torch.zeros(steps - 1, HIDDEN)])
    with torch.no_grad():
        trigrams = torch.tensor([[0, *seen]])  # row i of the rounds has seen i + 3 tokens
        found = head.rounds(trigrams, padded[None], torch.tensor([len(prompt) - 1]), steps)
    for step, states in enumerate(found):
        law = head.logits(states[0, rows - 1 + step]).softmax(-1)
        assert made.acceptance_probs[step] == pytest.approx(float(law.max()), abs=1e-5)
        assert made.token_ids[step] == int(head.draft_ids[law.argmax()])


def test_rounded_heads_draft_alike(head: Head, context: DrafterContext, tmp_path: Path) -> None:
    """A file in int8 is served as one in fp32 is when its matrices are rounded at start."""
    rounded = write_head(head, tmp_path, rounded=True)
    drafters = (
        drafter_of(each, BEAM | {"weights": "int8"})
        for each in (context, replace(context, heads={head.name: rounded}))
    )
    hidden = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(2))
    text = [1, 2, 3, 4, 5, 6, 7, 8]
    want, have = (
        draft(each, read(each, text[:3], text[3:], hidden), text, 12) for each in drafters
    )
    assert have == want


# Attention sums in another order beside other sequences. Where weights are int8, inputs are rounded
# to whole numbers of 16 bits, and a last bit may take one to the next.
@pytest.mark.parametrize(("weights", "tolerance"), [("fp32", 2e-6), ("int8", 2e-5)])
def test_sequences_draft_alike_alone_and_together(
    context: DrafterContext, weights: str, tolerance: float
) -> None:
    drafter = drafter_of(context, BEAM | {"weights": weights})
    noise = torch.Generator().manual_seed(11)
    states = [
        read(
            drafter,
            [1, 2, 3],
            [(3 * i + n) % VOCAB for i in range(n)],
            torch.randn(n, HIDDEN, generator=noise),
        )
        for n in (2, 7, 4)
    ]
    together = drafter.propose([DraftRequest(state, [], [], 12, None) for state in states])
    for state, have in zip(states, together, strict=True):
        alone = draft(drafter, state, [], 12)
        assert have.token_ids == alone.token_ids
        assert have.acceptance_probs == pytest.approx(alone.acceptance_probs, abs=tolerance)


def test_a_tree_is_cut_from_its_least_likely_end(context: DrafterContext) -> None:
    drafter = drafter_of(context, BEAM)
    state = read(drafter, [1, 2, 3], [4, 5, 6], torch.randn(3, HIDDEN))
    whole, cut = draft(drafter, state, [], 99), draft(drafter, state, [], 5)
    assert len(whole.token_ids) == 3 + 2 * 2 * 3
    assert whole.token_ids[:5] == cut.token_ids
    paths: list[float] = []
    for parent, acceptance_prob in zip(whole.parents, whole.acceptance_probs, strict=True):
        assert parent < len(paths)
        paths.append(acceptance_prob * (paths[parent] if parent >= 0 else 1.0))
    assert paths == sorted(paths, reverse=True)


def test_memory_is_bounded_and_freed(context: DrafterContext) -> None:
    drafter = drafter_of(context, CHAIN)
    state = read(drafter, [1, 2, 3], list(range(30)), torch.randn(30, HIDDEN))
    assert len(state.new) == WINDOW
    draft(drafter, state, [], 4)
    assert state.verified is not None
    assert len(state.verified.keys) == WINDOW
    drafter.finish(state, [])
    assert state.verified is None


@pytest.mark.parametrize("settings", [{}, {"num_blocks": 12}], ids=str)
@pytest.mark.parametrize("options", [CHAIN, BEAM, {}], ids=["chain", "beam", "as it pays"])
def test_drafts_change_no_text(
    context: DrafterContext, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    requests = random_requests(12, VOCAB, seed=3)
    (name,) = context.heads
    want = texts(speculating(context, model=Wide(VOCAB)), drafted_by(requests, "off"))
    engine = speculating(context, model=Wide(VOCAB), **settings)
    assert texts(engine, drafted_by(requests, {"name": name, **options})) == want


def test_finished_sequences_hold_nothing(context: DrafterContext) -> None:
    """Nor does one that is still running when its first token has ended it."""
    (name,) = context.heads
    engine = speculating(context, model=Wide(VOCAB))
    run(engine, drafted_by(random_requests(4, VOCAB, seed=9), {"name": name, **CHAIN}))
    engine.check_integrity()
