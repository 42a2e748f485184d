"""What methods are shown, and what leaves the host: against laws computed by hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from plait.decoders.contract.decoder import DraftBudget, Forward
from plait.decoders.contract.registry import MethodError
from plait.decoders.contract.text import NoiseKey, Text
from plait.decoders.diffusion.decoder import DiffusionDecoder
from plait.decoders.diffusion.pipeline import UnmaskingPipeline
from plait.decoders.diffusion.protocols import STATISTICS, Floats, Selection, StepView
from plait.decoders.diffusion.spec import Attention, DiffusionSpec
from plait.decoders.sampling.params import SamplingParams
from plait.kernels import noise
from tests.fixtures.backends import REFERENCE
from tests.fixtures.canvas_driver import Run, decode_request, drive, start
from tests.fixtures.hash_model import UNSEEN, HashLaw, Ints

LAW = HashLaw()
BLOCK = 8
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
STOPS = frozenset({7, 8})


@dataclass(frozen=True)
class Recorder:
    """Settles the surest hole, and keeps what it was shown."""

    needs: frozenset[str] = frozenset()
    views: list[StepView] = field(default_factory=list)

    def score(self, view: StepView) -> Floats:
        return view.p

    def select(self, view: StepView, memory: Any) -> Selection:
        self.views.append(view)
        return Selection(np.zeros(len(view.p), np.bool_))


@dataclass(frozen=True)
class Counter(Recorder):
    """Remembers how many steps it has made, and keeps what it remembered before each."""

    counts: list[tuple[int, int]] = field(default_factory=list)

    def select(self, view: StepView, memory: Any) -> Selection:
        self.counts.append((view.step, memory or 0))
        return Selection(np.zeros(len(view.p), np.bool_), (memory or 0) + 1)


class RecordingHost(DiffusionDecoder):
    """A decoder whose pipeline is given."""

    def __init__(
        self, selector: Recorder, *, shift: bool = False, attention: Attention = "block"
    ) -> None:
        super().__init__(DiffusionSpec(LAW.mask_id, (7,), attention, BLOCK, shift=shift), LAW.vocab)
        self.pipeline = UnmaskingPipeline({"selector": "recorder"}, attention, BLOCK, selector)

    def _pipeline(self, request: Any) -> UnmaskingPipeline:
        return self.pipeline


def run_one(
    selector: Recorder, params: SamplingParams, *, shift: bool = False, max_tokens: int = 14
) -> Run:
    request = decode_request(PROMPT, max_tokens, params=params, stops=STOPS)
    return drive(RecordingHost(selector, shift=shift), LAW, [request])[0]


def replays(run: Run, views: list[StepView]) -> Iterator[tuple[StepView, Ints]]:
    """Yield each view with the text that it was drawn on, the mask at holes."""
    text = list(PROMPT)
    for view in views:
        text = text[: view.start] + view.block_tokens.tolist()
        yield view, np.array([LAW.mask_id if token == UNSEEN else token for token in text])
        text = [*text[: view.start], *run.text[view.start : view.stop]]


def plain_laws(view: StepView, shown: Ints, *, shift: bool = False) -> NDArray[np.float64]:
    """Return the model's own law [h, vocab] at the holes."""
    rows = []
    for hole in view.positions.tolist():
        seen = shown[: view.start] if shift and hole == view.start else shown
        rows.append(LAW.logits(np.array([hole]), seen)[0])
    return softmax(np.array(rows, np.float64))


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


@pytest.mark.parametrize("shift", [False, True])
def test_statistics_are_those_of_the_law(shift: bool) -> None:
    selector = Recorder(frozenset({"p2", "entropy", "top", "block_p"}))
    run = run_one(selector, SamplingParams(temperature=1.0, seed=4), shift=shift)
    assert {view.start for view in selector.views} >= {8, 16}
    for view, shown in replays(run, selector.views):
        laws = plain_laws(view, shown, shift=shift)
        at = np.arange(len(laws))
        assert view.p == pytest.approx(laws[at, view.tokens], rel=1e-5)
        others = laws.copy()
        others[at, view.tokens] = 0.0
        assert view.p2 == pytest.approx(others.max(axis=1), rel=1e-5)
        entropy = -(laws * np.log(np.where(laws > 0, laws, 1.0))).sum(axis=1)
        assert view.entropy == pytest.approx(entropy, rel=1e-4)
        assert view.top is not None
        assert np.array_equal(view.top[0][:, 0], laws.argmax(axis=1))
        assert view.top[1][:, :49] == pytest.approx(-np.sort(-laws, axis=1)[:, :49], rel=1e-5)
        assert view.block_p is not None
        assert view.block_p[view.positions - view.start] == pytest.approx(
            laws.max(axis=1), rel=1e-5
        )
        assert view.is_end.tolist() == [token in STOPS for token in view.tokens.tolist()]


def test_only_what_is_needed_is_computed() -> None:
    for name in sorted(STATISTICS - {"leave_one_out"}):
        selector = Recorder(frozenset({name}))
        run_one(selector, SamplingParams(temperature=0.0), max_tokens=3)
        for other in STATISTICS - {"leave_one_out"}:
            assert all((getattr(v, other) is None) == (other != name) for v in selector.views)


EDITS = {
    "bias": SamplingParams(logit_bias={5: 3.0, 6: -2.0}, seed=1),
    "allowed": SamplingParams(allowed_token_ids=tuple(range(20)), seed=2),
    "min tokens": SamplingParams(min_tokens=5, logit_bias={7: 9.0}, seed=3),
    "repetition": SamplingParams(repetition_penalty=1.4, seed=4),
    "presence": SamplingParams(presence_penalty=0.8, frequency_penalty=0.3, seed=5),
    "bad words": SamplingParams(bad_words=((9,), (5, 3), (3, 11)), seed=6),
    "heat": SamplingParams(temperature=1.7, logit_bias={5: 3.0}, seed=7),
    "greedy": SamplingParams(temperature=0.0, logit_bias={5: 3.0}, seed=8),
}


@pytest.mark.parametrize("name", EDITS)
def test_draws_follow_the_requests_law(name: str) -> None:
    """Each hole has its own position, left context and counts; p is before the temperature."""
    params, selector = EDITS[name], Recorder()
    run = run_one(selector, params)
    for view, shown in replays(run, selector.views):
        scores = np.array([LAW.logits(np.array([h]), shown)[0] for h in view.positions], np.float64)
        for row, hole in zip(scores, view.positions.tolist(), strict=True):
            edit(row, hole, shown, params)
        laws = softmax(scores)
        assert view.p == pytest.approx(laws[np.arange(len(laws)), view.tokens], rel=1e-4)
        keys = torch.tensor([noise.key(params.seed, 0, hole) for hole in view.positions.tolist()])
        heat = params.temperature
        if heat > 0.0:
            scores = scores / heat + REFERENCE.gumbel(keys, LAW.vocab).numpy()
        assert view.tokens.tolist() == scores.argmax(axis=1).tolist()


def edit(row: NDArray[np.float64], hole: int, shown: Ints, params: SamplingParams) -> None:
    """Apply a request's parameters as docs/api.md lists them."""
    output = [int(t) for t in shown[len(PROMPT) :] if t != LAW.mask_id]
    if params.allowed_token_ids:
        row[[t for t in range(LAW.vocab) if t not in params.allowed_token_ids]] = -np.inf
    for word in params.bad_words:
        left = shown[hole - len(word) + 1 : hole].tolist()
        if left == list(word[:-1]):
            row[word[-1]] = -np.inf
    if hole - len(PROMPT) < params.min_tokens:
        row[list(STOPS)] = -np.inf
    for token, bias in params.logit_bias.items():
        row[token] += bias
    if params.repetition_penalty != 1.0:
        for token in {*PROMPT, *output}:
            factor = params.repetition_penalty
            row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    for token in set(output):
        row[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)


def test_logprobs_are_the_models_own_when_settled() -> None:
    """Whatever the request edits; and the best alternatives beside them."""
    params = SamplingParams(temperature=0.8, logit_bias={5: 3.0}, logprobs=3, seed=3)
    selector = Recorder()
    run = run_one(selector, params)
    entries = [entry for outcome in run.outcomes for entry in outcome.logprobs]
    assert [entry.token_id for entry in entries] == run.answer
    settled = {}
    for view, shown in replays(run, selector.views):
        at = int(view.p.argmax())
        settled[int(view.positions[at])] = plain_laws(view, shown)[at]
    for position, entry in enumerate(entries, len(PROMPT)):
        law = settled[position]
        assert entry.logprob == pytest.approx(np.log(law[entry.token_id]), rel=1e-4)
        assert [token for token, _ in entry.top] == (-law).argsort(kind="stable")[:3].tolist()


def test_truncation_leaves_p_alone() -> None:
    """top_k 1 draws the best token; its p is still that of the whole law."""
    selector = Recorder()
    run = run_one(selector, SamplingParams(temperature=1.0, top_k=1, seed=3))
    for view, shown in replays(run, selector.views):
        laws = plain_laws(view, shown)
        assert view.tokens.tolist() == laws.argmax(axis=1).tolist()
        assert view.p == pytest.approx(laws.max(axis=1), rel=1e-5)


def test_shadow_rows_see_all_but_their_own_token() -> None:
    selector = Recorder(frozenset({"leave_one_out"}))
    run = run_one(selector, SamplingParams(temperature=0.0))
    seen = 0
    for view, shown in replays(run, selector.views):
        assert view.leave_one_out is not None
        for i, token in enumerate(view.block_tokens.tolist()):
            position = view.start + i
            if token == UNSEEN or position < len(PROMPT):
                assert np.isnan(view.leave_one_out[i])
                continue
            without = shown.copy()
            without[position] = LAW.mask_id
            law = softmax(LAW.logits(np.array([position]), without).astype(np.float64))[0]
            assert view.leave_one_out[i] == pytest.approx(law[token], rel=1e-5)
            seen += 1
    assert seen > 10


def test_drafts_that_come_true_have_logprobs_of_their_own() -> None:
    params = SamplingParams(temperature=0.0, logprobs=2)
    decoder = DiffusionDecoder(DiffusionSpec(LAW.mask_id, (7,), "block", BLOCK), LAW.vocab)
    plain, eager = (
        drive(decoder, LAW, [decode_request(PROMPT, 30, {"unmasker": way}, params=params)], room=99)
        for way in (["static"], ["static", "free-dave"])
    )
    assert eager[0].state.num_accepted > 0
    have, want = ([e for o in run.outcomes for e in o.logprobs] for (run,) in (eager, plain))
    assert have == want


def test_sequences_of_one_request_have_noise_of_their_own() -> None:
    decoder = DiffusionDecoder(DiffusionSpec(LAW.mask_id, (7,), "block", BLOCK), LAW.vocab)
    request = decode_request(PROMPT, 20, params=SamplingParams(temperature=2.0, seed=1))
    other = replace(request, text=Text(PROMPT, NoiseKey(1, 1)))
    first, second = drive(decoder, LAW, [request, other])
    assert first.answer != second.answer


@pytest.mark.parametrize("attention", ["block", "full"])
def test_a_block_begins_without_a_memory(attention: Attention) -> None:
    selector = Counter()
    request = decode_request(PROMPT, 30, params=SamplingParams(temperature=0.0))
    drive(RecordingHost(selector, attention=attention), LAW, [request])
    assert all(step == memory for step, memory in selector.counts)
    assert sum(step == 0 for step, _ in selector.counts) == 4


def test_what_may_be_reopened_is_not_emitted() -> None:
    """With shadow rows a block leaves as a whole; without, from its left end as it is settled."""
    plain = run_one(Recorder(), SamplingParams(temperature=0.0))
    held = run_one(Recorder(frozenset({"leave_one_out"})), SamplingParams(temperature=0.0))
    assert held.answer == plain.answer
    assert [len(o.emit) for o in held.outcomes if o.emit] == [6, len(held.answer) - 6]
    assert len([o for o in plain.outcomes if o.emit]) > 2


def test_logits_that_are_no_numbers_fail_one_request() -> None:
    host = DiffusionDecoder(DiffusionSpec(LAW.mask_id, (7,), "block", BLOCK), LAW.vocab)
    states = [start(host, decode_request(PROMPT, 9)) for _ in range(2)]
    proposals = host.propose(states, DraftBudget(0))
    rows = [len(p.read or ()) for p in proposals]
    logits = torch.randn(sum(rows), LAW.vocab)
    logits[rows[0] + 1] = torch.nan
    good, bad = host.accept(states, Forward(logits, [0, rows[0], sum(rows)]))
    assert not good.fault
    assert "not numbers" in bad.fault


@pytest.mark.parametrize("unmasker", ["nonesuch", "learn2pd"])
def test_a_request_that_can_not_be_is_refused(unmasker: str) -> None:
    """The front end refuses most of them before; a file that is missing only the worker sees."""
    host = DiffusionDecoder(DiffusionSpec(LAW.mask_id, (7,), "block", BLOCK), LAW.vocab)
    with pytest.raises(MethodError, match=unmasker):
        start(host, decode_request(PROMPT, 9, {"unmasker": unmasker}))


def test_no_tokens_are_asked_for() -> None:
    host = DiffusionDecoder(DiffusionSpec(LAW.mask_id, (7,), "block", BLOCK), LAW.vocab)
    (run,) = drive(host, LAW, [decode_request(PROMPT, 0)])
    assert (run.answer, run.finish) == ([], "length")


def test_a_batch_changes_nothing() -> None:
    """Every kind of sequence side by side: blocks, full attention, single tokens, drafts, edits."""
    spec = DiffusionSpec(
        LAW.mask_id, (7,), "block", 8, (1, 4, 8, 16, 32), also_full=True, canvas=16
    )
    options: list[dict[str, Any]] = [
        {},
        {"unmasker": "off"},
        {"unmasker": "wino"},
        {"unmasker": "wino", "canvas": {"attention": "full"}},
        {"unmasker": ["threshold", "credit"], "canvas": {"block_size": 32}},
        {"unmasker": ["klass", "eotp"], "canvas": {"block_size": 4}},
        {"unmasker": ["factor", "dual-cache"], "canvas": {"attention": "full"}},
        {"unmasker": "auto", "canvas": {"attention": "full", "block_size": 5}},
        {"unmasker": "hierarchy", "suffix_token_ids": [1, 2, 3]},
    ]
    rng = random.Random(7)
    params = [*EDITS.values(), SamplingParams(temperature=0.0), SamplingParams(seed=9, logprobs=2)]
    requests = [
        decode_request(
            [rng.randrange(LAW.vocab) for _ in range(rng.randint(1, 40))],
            rng.randint(0, 40),
            rng.choice(options),
            params=rng.choice(params),
            stops=STOPS,
        )
        for _ in range(40)
    ]
    alone = [drive(DiffusionDecoder(spec, LAW.vocab), LAW, [each])[0] for each in requests]
    together = drive(
        DiffusionDecoder(spec, LAW.vocab), LAW, requests, room=200, evict=frozenset({2, 5, 6, 17})
    )
    for each, want, have in zip(requests, alone, together, strict=True):
        assert (have.answer, have.finish) == (want.answer, want.finish), each
        assert have.state.emitted_steps == want.state.emitted_steps, each
