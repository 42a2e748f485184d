"""Drafts of a draft model: exact, all accepted when it is the target, its cache in order."""

from __future__ import annotations

import random
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import DraftRequest
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_model.runner import DraftModelRunner
from plait.decoders.speculative.drafters.draft_model import DraftModelDrafter, DraftModelOptions
from plait.server.engine.draft_model.cached import CachedDraftModel
from plait.server.engine.engine import Engine
from plait.server.wire.messages import CompiledConstraint
from tests.fixtures.backends import COMPILED
from tests.fixtures.draft_models import (
    BUSY,
    Blurred,
    Checking,
    assert_empty,
    counters_where_nothing_changes,
    table_draft_model,
)
from tests.fixtures.drafting import accepted, drafted_by, speculating, texts
from tests.fixtures.engines import drain, request, run
from tests.fixtures.random_requests import random_requests
from tests.fixtures.table_model import TableModel, fingerprint, text_logits
from tests.fixtures.word_constraint import WordConstraint

VOCAB = 40
ALWAYS = {"name": "draft-model", "always": True, "min_survival": 0.0}
CHOICES: dict[str, Any] = {
    "draft-model": ALWAYS,
    "as it pays": "draft-model",
    "stacked": ["n-gram", {"name": "draft-model", "max_draft": 8}, "jacobi"],
    "pearl": {"name": "pearl", "always": True},
    "pearl, overlapped": {"name": "pearl", "overlap": True, "always": True},
    "pearl behind n-gram": ["n-gram", {"name": "pearl", "overlap": True}],
}


def context(model: CachedDraftModel) -> DrafterContext:
    return DrafterContext(VOCAB, draft_model=model)


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.parametrize("choice", CHOICES)
def test_drafts_change_no_text_and_leave_no_blocks(choice: str, busy: str) -> None:
    counters_where_nothing_changes(CHOICES[choice], busy, VOCAB)


def test_a_draft_model_that_is_the_target_is_always_right() -> None:
    """At any temperature, with penalties, bans and truncation: q == p under the same noise."""
    requests = random_requests(40, VOCAB, seed=5)
    engine = speculating(context(table_draft_model(TableModel(VOCAB))))
    run(engine, drafted_by(requests, {**ALWAYS, "max_draft": 4}))
    assert engine.stats().counters.speculation.draft_tokens["draft-model"] > 100
    assert accepted(engine, "draft-model") == 1.0


def test_acceptance_under_shared_noise_is_the_closed_form() -> None:
    """Of laws p and q: sum over i of 1 / sum over j of max(p_j / p_i, q_j / q_i)."""
    draws, prompt = 600, [1, 2, 3]
    requests = [request(f"r{i}", prompt, 2, sampling=SamplingParams(seed=i)) for i in range(draws)]
    model = Blurred(VOCAB)
    engine = speculating(context(table_draft_model(model)))
    run(engine, drafted_by(requests, {**ALWAYS, "max_draft": 1}))
    p = torch.softmax(text_logits(prompt, VOCAB).double(), 0)
    q = torch.softmax(model.logits(_hidden(prompt))[0].double(), 0)
    want = (1 / torch.maximum(p / p[:, None], q / q[:, None]).sum(1)).sum().item()
    assert 0.2 < want < 0.9
    assert abs(accepted(engine, "draft-model") - want) <= 4 * sqrt(want * (1 - want) / draws)


def _hidden(text: list[int]) -> Tensor:
    return torch.tensor([[fingerprint(enumerate(text), len(text) - 1)]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["draft-model", "pearl"])
def test_constrained_texts_are_drafted_under_their_constraint(name: str) -> None:
    """The target's own law under the same grammar: whatever is fed comes true."""
    rng = random.Random(2)
    end = 30  # the last bit but one of the bitmask's one word
    words = [[rng.randrange(30) for _ in range(rng.randint(3, 8))] for _ in range(60)]
    fields = {"constraint": CompiledConstraint("words", b"", 0), "stop_token_ids": [end]}
    requests = [
        request(f"r{i}", [3, i], 12, sampling=SamplingParams(seed=i), **fields) for i in range(12)
    ]

    def engine(model: CachedDraftModel) -> Engine:
        shop = DrafterContext(31, draft_model=model)
        return speculating(shop, load_constraint=lambda compiled: WordConstraint(words, end))

    want = texts(engine(table_draft_model(TableModel(31))), drafted_by(requests, "off"))
    drafter = {**ALWAYS, "name": name}
    have = engine(table_draft_model(TableModel(31)))
    assert texts(have, drafted_by(requests, drafter)) == want
    assert accepted(have, name) == 1.0
    assert texts(engine(table_draft_model(Blurred(31))), drafted_by(requests, drafter)) == want


@pytest.mark.parametrize("num_blocks", [6, 64])
def test_drafts_are_what_sampling_from_the_draft_model_gives(num_blocks: int) -> None:
    """Texts grow by tokens that nobody drafted; whatever the cache held, drafts are the oracle's.

    With few blocks a sequence may get no draft, and drafts again when there are blocks again.
    """
    rng = random.Random(1)
    model = Checking(VOCAB, num_blocks)
    options = DraftModelOptions(max_draft=6, always=True, min_survival=0, read_rows=16)
    drafter = DraftModelDrafter(
        options,
        DraftModelRunner(model, read_rows=options.read_rows, min_path_prob=0, backend=COMPILED),
    )
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))] for _ in range(4)]
    states = [drafter.start(_decode_request(prompt, i)) for i, prompt in enumerate(prompts)]
    texts_so_far = [state.sampling.text for state in states]
    drafted = 0
    for _ in range(40):
        members = sorted(rng.sample(range(4), rng.randint(1, 4)))
        requests = []
        for i in members:
            draft_prefix = [rng.randrange(VOCAB) for _ in range(rng.choice((0, 0, 2)))]
            requests.append(
                DraftRequest(states[i], texts_so_far[i], draft_prefix, rng.randint(1, 6), None)
            )
        for i, ask, draft in zip(members, requests, drafter.propose(requests), strict=True):
            want = _oracle(prompts[i], i, [*ask.text, *ask.draft_prefix], len(draft.token_ids))
            assert list(draft.token_ids) == want
            drafted += len(want)
            new = [*want[: rng.randint(0, len(want))], rng.randrange(VOCAB)]
            texts_so_far[i].extend(new)
            drafter._runner.observe(states[i], new)
        model.blocks.check_integrity()
    assert drafted > 20
    for state, text in zip(states, texts_so_far, strict=True):
        drafter.finish(state, text)
    assert_empty(model)


def _decode_request(prompt: list[int], index: int) -> DecodeRequest:
    sampling = SamplingParams(temperature=0.8, seed=9, frequency_penalty=0.3)
    text = Text(prompt, NoiseKey(sampling.seed, index))
    return DecodeRequest(text, sampling, 99, frozenset(), None)


def _oracle(prompt: list[int], index: int, context: list[int], count: int) -> list[int]:
    """Draw tokens one after the other from the table law."""
    request = _decode_request(prompt, index)
    text = Text(prompt, request.text.noise, context[len(prompt) :])
    state = SamplingState(request.sampling, text)
    for _ in range(count):
        logits = text_logits(text, VOCAB)[None]
        text.extend(OrdinarySampler().sample(logits, [state]).token_ids)
        state.observe(text[-1])
    return text[len(context) :]


def test_a_long_prompt_is_read_in_chunks() -> None:
    table = TableModel(VOCAB)
    prompt = [i % VOCAB for i in range(100)]
    engine = speculating(context(table_draft_model(table)))
    drafter = {**ALWAYS, "read_rows": 16, "max_draft": 4}
    answer = run(engine, drafted_by([request("r", prompt, 30)], drafter))["r", 0]
    assert table.max_rows == 16
    trace = answer.deltas[-1].trace
    assert trace is not None
    # six steps read 96 tokens of the prompt, whose text grows by a token each; the seventh drafts
    assert trace["steps"][:12] == [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 8]


@pytest.mark.parametrize("salt", ["", "another"])
def test_the_next_turn_begins_where_the_last_one_ended(salt: str) -> None:
    """Only what is new is read, in whole blocks, by whoever may know the text."""
    table = TableModel(VOCAB)
    model = table_draft_model(table)
    engine = speculating(context(model))
    first = request("a", [i % VOCAB for i in range(50)], 20)
    answer = texts(engine, drafted_by([first], ALWAYS))["a", 0]
    table.max_rows = 0
    turn = [*first.prompt_token_ids, *answer, 7, 8, 9]
    second = drafted_by([request("b", turn, 20, cache_salt=salt)], ALWAYS)
    have = texts(engine, second)
    assert have == texts(speculating(DrafterContext(VOCAB)), drafted_by(second, "off"))
    assert accepted(engine, "draft-model") == 1.0
    # of 70 known tokens the last is fed again, and 64 make whole blocks
    assert table.max_rows == (len(turn) if salt else len(turn) - 64)
    assert_empty(model)


def test_an_aborted_request_gives_its_blocks_back() -> None:
    model = table_draft_model(TableModel(VOCAB))
    engine = speculating(context(model))
    for drafter in (ALWAYS, {"name": "pearl", "overlap": True, "always": True}):
        for each in drafted_by([request("a", [1, 2], 40), request("b", [3], 40)], drafter):
            engine.add(each)
        for _ in range(3):
            engine.step()
        assert model.blocks.num_used > 0
        engine.abort("a")
        drain(engine)
        assert_empty(model)


def test_a_sequence_without_room_goes_on_without_drafts() -> None:
    model = table_draft_model(TableModel(VOCAB), num_blocks=3)
    engine = speculating(context(model))
    requests = drafted_by([request("r", [1] * 60, 10)], ALWAYS)
    assert texts(engine, requests) == texts(
        speculating(DrafterContext(VOCAB)), drafted_by(requests, "off")
    )
    assert "draft-model" not in engine.stats().counters.speculation.draft_tokens
    assert_empty(model)


def test_probabilities_tell_how_surely_a_token_leads() -> None:
    """Greedy: its probability; else its share once the noise is added, so above 1 / vocab."""
    runner = DraftModelRunner(
        table_draft_model(TableModel(VOCAB)), read_rows=64, min_path_prob=0, backend=COMPILED
    )
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(temperature=temperature, seed=4)
        sequence = runner.start(
            DecodeRequest(Text([1, 2], NoiseKey(4)), sampling, 9, frozenset(), None)
        )
        asked = DraftRequest(sequence, [1, 2], [], 3, None)
        (draft,) = runner.draft([runner.new_job(sequence, asked, 3)])
        assert all(1 / VOCAB < acceptance_prob <= 1 for acceptance_prob in draft.acceptance_probs)
        if temperature == 0:
            want = torch.softmax(text_logits([1, 2], VOCAB), 0).max().item()
            assert draft.acceptance_probs[0] == pytest.approx(want, rel=1e-5)
        runner.release(sequence)
