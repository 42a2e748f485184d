"""Superposed drafts: exact, the beam of their definition, and one pass for all of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import DraftRequest
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.draft_model import make
from plait.decoders.speculative.draft_model.protocol import DraftCache
from plait.decoders.speculative.draft_model.superposition import N_GRAM_WEIGHTS, UNSEEN_PENALTY
from plait.decoders.speculative.drafters.superposed_tree import (
    SuperposedTreeDrafter,
    SuperposedTreeOptions,
)
from plait.decoders.speculative.stores.suffixes import SuffixIndex
from plait.kernels.dispatch import cpu_backend
from plait.server.engine.draft_model.cached import CachedDraftModel
from plait.server.models.catalog import resolve
from plait.server.models.load import load_model
from plait.server.wire.messages import CompiledConstraint, Failed
from tests.fixtures.draft_models import (
    BUSY,
    counters_where_nothing_changes,
    model_logits,
    table_draft_model,
)
from tests.fixtures.drafting import drafted_by, speculating
from tests.fixtures.engines import request, run
from tests.fixtures.table_model import TableModel, text_logits
from tests.fixtures.tiny_models import write_tiny_model
from tests.fixtures.word_constraint import WordConstraint

VOCAB = 40
ALWAYS = {"name": "superposed-tree", "always": True}
CHOICES: dict[str, Any] = {
    "alone": ALWAYS,
    "as it pays": "superposed-tree",
    "many": {**ALWAYS, "preset": "p15-d10", "max_draft": 64},
    "stacked": ["n-gram", {**ALWAYS, "drafts": 2, "length": 3}, "jacobi"],
}
Mixed = tuple[float, tuple[int, ...]]  # score and tokens of a draft


@pytest.mark.parametrize("busy", BUSY)
@pytest.mark.parametrize("choice", CHOICES)
def test_drafts_change_no_text_and_leave_no_blocks(choice: str, busy: str) -> None:
    counters = counters_where_nothing_changes(CHOICES[choice], busy, VOCAB)
    assert choice == "as it pays" or counters.speculation.draft_tokens["superposed-tree"] > 0


def drafter(options: dict[str, Any], shop: DrafterContext) -> SuperposedTreeDrafter:
    return make.superposed_tree(SuperposedTreeOptions.model_validate(options), context=shop)


def ask(
    made: SuperposedTreeDrafter, text: Sequence[int], max_tokens: int = 64, **fields: Any
) -> DraftRequest[Any]:
    constraint = fields.pop("constraint", None)
    stops = frozenset(fields.pop("stops", ()))
    request = DecodeRequest(Text(text), SamplingParams(), 99, stops, constraint, None, "tenant")
    return DraftRequest(made.start(request), text, (), max_tokens, constraint)


def paths(draft: Any) -> set[tuple[int, ...]]:
    """Return the tokens from the text to each leaf."""
    parents = draft.parents
    if parents is None:
        parents = range(-1, len(draft.token_ids) - 1)
    found: list[tuple[int, ...]] = []
    for token, parent in zip(draft.token_ids, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found) - {path[:-1] for path in found}


def test_one_draft_without_n_grams_is_what_the_draft_model_writes_greedily() -> None:
    shop = DrafterContext(VOCAB, draft_model=table_draft_model(TableModel(VOCAB)))
    made = drafter({"drafts": 1, "alpha": 0.0, "length": 9}, shop)
    requests = [ask(made, [3, i, 7]) for i in range(5)]
    for each, draft in zip(requests, made.propose(requests), strict=True):
        text = list(each.text)
        for _ in range(9):
            text.append(int(text_logits(text, VOCAB).argmax()))
        assert list(draft.token_ids) == text[3:]


def naive_grams(texts: Sequence[Sequence[int]], run: Sequence[int], token: int) -> float | None:
    places = followed = 0
    for text in texts:
        for i in range(len(text) - len(run) + 1):
            if list(text[i : i + len(run)]) == list(run):
                places += 1
                followed += list(text[i + len(run) : i + len(run) + 1]) == [token]
    return followed / places if places else None


def naive_gains(
    known: Sequence[Sequence[int]], context: Sequence[int], best: dict[int, float], alpha: float
) -> dict[int, float]:
    """The words of the module for one draft: what each of the best tokens adds to its score."""
    grams = dict.fromkeys(best, 0.0)
    for length, weight in enumerate(N_GRAM_WEIGHTS, 1):
        for token in best if length <= len(context) else ():
            grams[token] += weight * (naive_grams(known, context[-length:], token) or 0.0)
    if not any(grams.values()):
        return {token: (1 - alpha) * math.log(p) - UNSEEN_PENALTY for token, p in best.items()}
    return {
        token: (1 - alpha) * math.log(p) + alpha * math.log(grams[token])
        for token, p in best.items()
        if grams[token] > 0
    }


def naive_drafts(
    known: Sequence[Sequence[int]],
    text: Sequence[int],
    stops: set[int],
    made: SuperposedTreeOptions,
) -> list[tuple[int, ...]]:
    """The beam, with the heaviest draft's token as the input, as the table model takes it."""
    alive: list[Mixed] = [(0.0, ())]
    ended: list[Mixed] = []
    heard = list(text)
    for _ in range(made.length):
        law = torch.softmax(text_logits(heard, VOCAB).double() / made.temperature, 0)
        order = sorted(range(VOCAB), key=lambda token: (-float(law[token]), token))[: made.top]
        mass = sum(float(law[token]) for token in order)
        best = {token: float(law[token]) / mass for token in order}
        offered = []
        for score, path in alive:
            gains = naive_gains(known, [*text, *path], best, made.alpha)
            offered += [(score + gain, (*path, token)) for token, gain in gains.items()]
        offered = sorted(offered, key=lambda each: -each[0])[: 2 * made.drafts]
        ended += [each for each in offered if each[1][-1] in stops]
        ended = sorted(ended, key=lambda each: -each[0])[: made.drafts]
        alive = [each for each in offered if each[1][-1] not in stops][: made.drafts]
        if not alive:
            break
        heard.append(alive[0][1][-1])
    return [path for _, path in [*alive, *ended]]


@pytest.mark.parametrize("alpha", [0.3, 0.54, 0.9])
@pytest.mark.parametrize("drafts", [1, 3, 10])
def test_drafts_are_the_beam_of_the_definition(drafts: int, alpha: float) -> None:
    rng = random.Random(drafts)
    options = {"drafts": drafts, "alpha": alpha, "length": 5, "temperature": 2.0, "max_draft": 64}
    settings = SuperposedTreeOptions.model_validate(options)
    for _ in range(8):
        shop = DrafterContext(VOCAB, draft_model=table_draft_model(TableModel(VOCAB)))
        known = [[rng.randrange(VOCAB) for _ in range(120)] for _ in range(4)]
        for text in known:
            shop.stores.add("tenant", text)
        made = drafter(options, shop)
        prompt, stops = known[1][20 : 20 + rng.randint(1, 9)], {rng.randrange(VOCAB)}
        (draft,) = made.propose([ask(made, prompt, stops=stops)])
        want = naive_drafts(known, prompt, stops, settings)
        leaves = {path for path in want if not any(p[: len(path)] == path != p for p in want)}
        assert paths(draft) == leaves


@given(
    known=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=30), min_size=1, max_size=4),
    run=st.lists(st.integers(0, 2), min_size=1, max_size=5),
)
def test_shares_are_counted_as_by_reading(known: list[list[int]], run: list[int]) -> None:
    grams = SuffixIndex(8, 10_000)
    for text in known:
        grams.read(text, is_imported=False)
    want = [naive_grams(known, run, token) for token in range(3)]
    have = grams.next_token_shares(run, range(3))
    assert have == (None if want[0] is None else want)


def test_a_constraint_cuts_every_branch() -> None:
    rng, end = random.Random(4), 30
    words = [[rng.randrange(30) for _ in range(6)] for _ in range(200)]
    constraint = WordConstraint(words, end)
    shop = DrafterContext(31, draft_model=table_draft_model(TableModel(31)))
    made = drafter({"drafts": 8, "top": 30, "alpha": 0.0, "temperature": 2.0}, shop)
    drafted = 0
    for i in range(20):
        (draft,) = made.propose([ask(made, [3, i], constraint=constraint)])
        for path in paths(draft):
            assert all(constraint.accept_token(token) for token in path)
            constraint.rollback(len(path))
            drafted += 1
    assert drafted > 20


def test_an_input_is_the_weighted_sum_of_embeddings(tmp_path: Path) -> None:
    """As the model takes an input of its own, Model.extend; a token alone is itself, to the bit."""
    files = resolve(str(write_tiny_model(tmp_path / "tiny")))
    model = load_model(files, weights="fp32", device="cpu", threads=1)
    tokens, weights, text = [7, 40, 3], [0.5, 0.3, 0.2], [5, 17, 200]
    mixed = torch.tensor(weights) @ model.embedding[torch.tensor(tokens)].float()
    model.extend(mixed[None])
    want = model_logits(model, [*text, model.vocab_size])
    assert torch.allclose(_after(model, text, tokens, weights), want, atol=1e-5)
    alone = _after(model, text, [9, 7], [1.0, 0.0])
    assert torch.equal(alone, model_logits(model, [*text, 9]))


def _after(model: Any, text: list[int], tokens: list[int], weights: list[float]) -> torch.Tensor:
    drafts = CachedDraftModel(
        model,
        model.new_kv_cache(4),
        vocab_size=model.vocab_size,
        max_positions=model.max_positions,
        backend=cpu_backend(),
    )
    cache = DraftCache()
    assert drafts.reserve(cache, len(text) + 1)
    drafts.extend([(cache, text)])
    return drafts.superpose([(cache, tokens, weights)])[0]


LOSSY = {"name": "superposed", "length": 5, "alpha": 0.0, "temperature": 2.0}


@pytest.mark.parametrize("read_rows", [16, 256])
def test_the_completions_of_a_request_are_its_drafts(read_rows: int) -> None:
    """The i-th best draft is the i-th text, with the target's logprobs; written once for all."""
    prompt, model = [*range(40)], TableModel(VOCAB)
    settings = SuperposedTreeOptions.model_validate({"length": 5, "alpha": 0.0, "temperature": 2.0})
    want = naive_drafts([], prompt, set(), settings)
    engine = speculating(DrafterContext(VOCAB, draft_model=table_draft_model(model)))
    hot = SamplingParams(temperature=2.0, seed=1, logprobs=0)
    asked = request("r", prompt, 9, sampling=hot, n=4)
    have = run(engine, drafted_by([asked], {**LOSSY, "read_rows": read_rows}))
    assert [tuple(have["r", i].tokens[:5]) for i in range(3)] == want
    assert model.num_forwards == -(-len(prompt) // read_rows) + settings.length - 1
    for i in range(4):
        answer = have["r", i]
        assert len(answer.tokens) == 9
        assert (answer.deltas[-1].trace or {})["lossy"] == "superposed"
        told = [entry.logprob for delta in answer.deltas for entry in delta.logprobs or ()]
        for at, (token, logprob) in enumerate(zip(answer.tokens, told, strict=True)):
            law = text_logits([*prompt, *answer.tokens[:at]], VOCAB).log_softmax(0)
            assert logprob == pytest.approx(float(law[token]), abs=1e-5)


def test_completions_keep_to_their_constraint_and_greedy_ones_are_refused() -> None:
    rng, end = random.Random(4), 30
    words = [tuple(rng.randrange(30) for _ in range(6)) for _ in range(200)]
    engine = speculating(
        DrafterContext(31, draft_model=table_draft_model(TableModel(31))),
        load_constraint=lambda compiled: WordConstraint(words, end),
    )
    fields = {"constraint": CompiledConstraint("words", b"", 0), "stop_token_ids": [end]}
    hot = SamplingParams(temperature=2.0, seed=1)
    have = run(engine, drafted_by([request("r", [3], 9, sampling=hot, n=3, **fields)], LOSSY))
    assert all(tuple(answer.tokens) in words for answer in have.values())
    cold = request("r", [3], 9, sampling=SamplingParams(temperature=0.0), n=3)
    (drafted,) = drafted_by([cold], LOSSY)
    engine.add(drafted)
    (failed,) = engine.step()
    assert isinstance(failed, Failed)
    assert (failed.error, failed.param) == ("BadRequest", "temperature")
