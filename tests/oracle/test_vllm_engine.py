"""A vLLM worker's engine gives the native engine's tokens, whatever vLLM does around it."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.costs import CostCurve
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.server.engine.admission import Admission, EngineCapacity
from plait.server.engine.draft_store.keeper import StoreKeeper
from plait.server.engine.sequence import Sequence as Sequence_
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed, GenerateRequest, Started
from plait.server.workers.vllm.engine import VllmEngine
from plait.server.workers.vllm.sampler import DecoderSampler, FollowerSampler
from tests.fixtures.drafting import speculating
from tests.fixtures.engines import Answer, Texts, no_constraints, note, request, texts
from tests.fixtures.fake_vllm import FakeCore
from tests.fixtures.random_requests import random_requests

VOCAB = 6
DISTURBANCES: dict[str, dict[str, Any]] = {
    "alone": {"max_seqs": 1, "num_drafts": 0},
    "a batch": {"num_drafts": 0},
    "drafts": {},
    "chunks, and drafts cut short": {"max_tokens": 7},
    "preemption": {"preempts": 0.6},
    "preemption without drafts": {"preempts": 0.2, "num_drafts": 0},
}


def vllm_engine(
    core: FakeCore, *, drafts: bool = True, share: Callable[[object], None] | None = None
) -> VllmEngine:
    context = DrafterContext(VOCAB)
    speculator = Speculator(context, context.costs) if drafts else None
    decoder = AutoregressiveDecoder(VOCAB, speculator=speculator)
    admission = Admission(
        EngineCapacity(4096, VOCAB, "table"), lambda request: decoder, no_constraints
    )
    room = 4 if drafts else 0
    sampler = DecoderSampler(decoder, core.runner, lambda tokens: tokens, room, share)
    keeper = StoreKeeper(context.stores)
    return VllmEngine(core, sampler, admission, EngineSettings(), CostCurve(), keeper)


def run(engine: VllmEngine, requests: Sequence[GenerateRequest]) -> dict[tuple[str, int], Answer]:
    for each in requests:
        engine.add(each)
    answers: dict[tuple[str, int], Answer] = defaultdict(Answer)
    for _ in range(10_000):
        if not engine.has_work:
            return answers
        note(answers, engine.step())
    raise AssertionError("the engine does not come to an end")


@pytest.fixture(scope="module")
def requests() -> list[GenerateRequest]:
    """Random requests that draft wherever something can be drafted; some prompts are one token."""
    decoding = resolve_decoding({"drafter": {"name": "n-gram", "always": True}})
    made = random_requests(24, VOCAB, seed=5)
    made[::3] = [replace(each, prompt_token_ids=[3 + i % 3]) for i, each in enumerate(made[::3])]
    return [replace(each, decoding=decoding) for each in made]


@pytest.fixture(scope="module")
def want(requests: list[GenerateRequest]) -> Texts:
    return texts(speculating(DrafterContext(VOCAB), max_num_seqs=1), requests)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_tokens_are_those_of_the_native_engine(
    disturbance: str, requests: list[GenerateRequest], want: Texts
) -> None:
    settings = DISTURBANCES[disturbance]
    has_drafts, is_preempted = settings.get("num_drafts", 4) > 0, "preempts" in settings
    core = FakeCore(VOCAB, **settings)
    engine = vllm_engine(core, drafts=has_drafts)
    answers = run(engine, requests)
    assert {name: (each.tokens, each.finish) for name, each in answers.items()} == want
    assert not core.requests, "vLLM holds requests that have ended"
    assert not engine._sampler.states, "the sampler holds states that nobody needs"
    counters = engine.stats().counters
    assert (counters.num_preemptions > 0) == is_preempted
    assert (counters.speculation.accepted_tokens.get("n-gram", 0) > 0) == has_drafts
    assert (core.num_padded > 0) == has_drafts, "no step was filled up with drafts that are none"
    assert counters.generation_tokens == sum(len(each.tokens) for each in answers.values())


class BothSamplers:
    """The samplers of two devices: the second one has to say what the first one does."""

    def __init__(self, leader: Any, follower: Any) -> None:
        self._leader = leader
        self._follower = follower

    def __call__(self, logits: Tensor, sampling_metadata: object) -> Tensor:
        tokens = self._leader.sampler(logits, sampling_metadata)
        assert torch.equal(self._follower.sampler(logits, sampling_metadata), tokens)
        return torch.as_tensor(tokens)

    def verify(self, *told: Any) -> Tensor:
        tokens = self._leader.rejection_sampler(*told)
        assert torch.equal(self._follower.rejection_sampler(*told), tokens)
        return torch.as_tensor(tokens)

    def propose(self, sampled: Sequence[Sequence[int]]) -> list[list[int]]:
        drafts: list[list[int]] = self._leader.sampler.propose(sampled)
        assert self._follower.sampler.propose(sampled) == drafts
        return drafts


@pytest.mark.parametrize("disturbance", ["a batch", "drafts", "preemption"])
def test_another_device_is_told_the_same_tokens_and_drafts(
    disturbance: str, requests: list[GenerateRequest], want: Texts
) -> None:
    settings = DISTURBANCES[disturbance]
    core = FakeCore(VOCAB, **settings)
    shared: deque[Any] = deque()
    engine = vllm_engine(core, drafts=settings.get("num_drafts", 4) > 0, share=shared.append)
    leader = SimpleNamespace(**vars(core.runner))
    other = SimpleNamespace(sampler=FakeCore(VOCAB).runner.sampler)
    FollowerSampler(other, shared.popleft, lambda tokens: tokens)
    both = BothSamplers(leader, other)
    core.runner.sampler, core.runner.rejection_sampler = both, both.verify
    answers = run(engine, requests)
    assert {name: (each.tokens, each.finish) for name, each in answers.items()} == want
    assert not shared, "something was shared that nobody has waited for"


def test_what_a_request_is_told_of_its_prompt() -> None:
    core = FakeCore(VOCAB)
    engine = vllm_engine(core)
    prompt = [3, 4, 5, 3]
    engine.add(request("r", prompt, 2, n=2, prompt_logprobs=1))
    reports = [report for _ in range(8) for report in engine.step()]
    started = [each for each in reports if isinstance(each, Started)]
    assert [(each.request_id, each.cached_tokens) for each in started] == [("r", 0)] * 2
    told = [each for each in reports if isinstance(each, Delta) and each.prompt_logprobs]
    assert [each.index for each in told] == [0], "the first choice alone tells of the prompt"
    entries = told[0].prompt_logprobs or []
    assert [entry and entry.token_id for entry in entries] == [None, *prompt[1:]]
    assert engine.stats().counters.prompt_tokens == 2 * len(prompt)


def test_one_sequence_or_all_can_be_aborted() -> None:
    core = FakeCore(VOCAB)
    engine = vllm_engine(core)
    engine.add(request("r", [3, 4], 50, n=3))
    engine.add(request("gone", [3], 50))
    engine.step()
    engine.abort("r", 1)
    engine.abort("gone")
    engine.abort("unknown")
    assert sorted(each.sequence.index for each in core.requests.values()) == [0, 2]
    indices = {r.index for _ in range(5) for r in engine.step() if isinstance(r, Delta)}
    assert indices == {0, 2}
    engine.abort("r")
    assert not engine.has_work and not core.requests


def test_a_deadline_ends_a_request_and_no_other() -> None:
    engine = vllm_engine(FakeCore(VOCAB))
    engine.add(request("late", [3], 50, deadline=time.monotonic()))
    engine.add(request("other", [3], 3))
    reports = [report for _ in range(6) for report in engine.step()]
    ends = {
        r.request_id: r.finish_reason for r in reports if isinstance(r, Delta) if r.finish_reason
    }
    assert ends["late"] == "deadline" and ends["other"] in ("stop", "length")


def test_a_request_that_contradicts_itself_fails_alone() -> None:
    """It allows no token at all, which is found when the first is drawn."""
    engine = vllm_engine(FakeCore(VOCAB))
    banned = tuple((token,) for token in range(VOCAB))
    engine.add(request("banned", [3], 5, n=2, sampling=SamplingParams(bad_words=banned)))
    engine.add(request("other", [3], 3))
    reports = [report for _ in range(6) for report in engine.step()]
    (failed,) = [each for each in reports if isinstance(each, Failed)]
    assert (failed.request_id, failed.error) == ("banned", "BadRequest")
    assert any(
        isinstance(r, Delta) and r.request_id == "other" and r.finish_reason for r in reports
    )
    assert not engine.has_work


def test_a_sequence_that_vllm_refuses_fails_alone() -> None:
    class Full(FakeCore):
        def add(self, sequence: Sequence_) -> str:
            if sequence.request.request_id == "refused" and sequence.index == 1:
                raise ValueError("no such thing")
            return super().add(sequence)

    core = Full(VOCAB)
    engine = vllm_engine(core)
    engine.add(request("refused", [3], 5, n=2))
    engine.add(request("other", [3], 3))
    reports = [report for _ in range(6) for report in engine.step()]
    (failed,) = [each for each in reports if isinstance(each, Failed)]
    assert (failed.request_id, failed.error) == ("refused", "Internal")
    assert not engine.has_work and not core.requests
