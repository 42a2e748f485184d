"""Whatever raises within a step ends the request at fault; the others get the texts they would."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture
from torch import Tensor

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.decoder import DecodeRequest, DraftBudget, Forward, Outcome, Proposal
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.sampling.sampler import Draws, OrdinarySampler
from plait.decoders.sampling.state import SamplingState
from plait.kernels.kv_cache import KVCache
from plait.kernels.paged_attention import AttentionMetadata
from plait.server.engine.engine import Engine
from plait.server.errors import BadRequest
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Delta, Failed, GenerateRequest
from tests.fixtures.engines import request, table_engine
from tests.fixtures.table_model import TableModel
from tests.fixtures.word_constraint import WordConstraint

VOCAB = 8
BAD, SEED = 7, 666  # a token, and a seed, that only the hostile request has


class Fault(Exception):
    """What no code of the engine's expects."""


@dataclass(frozen=True)
class FussySampler(OrdinarySampler):
    """Raises for a batch with a certain seed in it."""

    def sample(
        self,
        logits: Tensor,
        states: Sequence[SamplingState],
        bitmask: Tensor | None = None,
        banned: Sequence[Collection[int]] | None = None,
    ) -> Draws:
        if any(state.params.seed == SEED for state in states):
            raise Fault("sampler")
        return super().sample(logits, states, bitmask, banned)


class Host(AutoregressiveDecoder):
    """The host, with one thing wrong in what it does for the hostile request."""

    def __init__(self, wrong: str) -> None:
        super().__init__(VOCAB)
        self.wrong = wrong

    def start(self, request: DecodeRequest) -> AutoregressiveState:
        state = super().start(request)
        if self.wrong == "start" and request.sampling.seed == SEED:
            raise Fault("start")
        if self.wrong == "sampler":
            state.sampler = FussySampler()
        return state

    def propose(
        self, states: Sequence[AutoregressiveState], room: DraftBudget
    ) -> Sequence[Proposal]:
        if self.wrong == "propose" and _hostile(states):
            raise Fault("propose")
        return super().propose(states, room)

    def accept(self, states: Sequence[AutoregressiveState], forward: Forward) -> Sequence[Outcome]:
        made = list(super().accept(states, forward))
        for i, state in enumerate(states):
            if self.wrong == "outcome" and _hostile([state]):
                made[i] = Outcome(emit=made[i].emit, keep=[3])  # a row that was never fed
        return made

    def finish(self, state: AutoregressiveState) -> None:
        if self.wrong == "finish" and _hostile([state]):
            raise Fault("finish")


def _hostile(states: Sequence[AutoregressiveState]) -> bool:
    return any(state.sampling.params.seed == SEED for state in states)


class FussyModel(TableModel):
    """Can't compute a pass in which a certain token is fed; or, broken, none."""

    is_broken = False

    def forward(
        self,
        token_ids: Tensor,
        metadata: AttentionMetadata,
        kv: KVCache,
        read: Tensor | None = None,
    ) -> Tensor:
        if self.is_broken or bool((token_ids == BAD).any()):
            raise Fault("forward")
        return super().forward(token_ids, metadata, kv, read)


class Explosive(WordConstraint):
    """Raises when it is asked about the text behind its first token."""

    def fill_bitmask(self, bitmask: Tensor, row: int) -> bool:
        if self.text:
            raise Fault("constraint")
        return super().fill_bitmask(bitmask, row)


def load(compiled: CompiledConstraint) -> Constraint:
    return Explosive([(0, 1, 2)], 5)


def good(name: str, start: int) -> GenerateRequest:
    sampling = SamplingParams(seed=start, logit_bias={BAD: -100.0}, temperature=0.8, logprobs=1)
    return request(name, [start, 2, 3], 12, sampling=sampling, n=2)


def hostile(wrong: str) -> GenerateRequest:
    prompt = [BAD] if wrong == "forward" else [1, 2]
    compiled = CompiledConstraint("x", b"", 1) if wrong == "constraint" else None
    sampling = SamplingParams(seed=SEED, logit_bias={BAD: -100.0})
    return request("bad", prompt, 12, sampling=sampling, constraint=compiled)


def engine_with(wrong: str) -> Engine:
    return table_engine(
        {"plain": Host(wrong)},
        model=FussyModel(VOCAB),
        settings=EngineSettings(max_num_seqs=8),
        load_constraint=load,
    )


def collect(engine: Engine, after: Callable[[int], None] = lambda step: None) -> list[Any]:
    reports: list[Any] = []
    step = 0
    while engine.has_work:
        reports += engine.step()
        after(step)
        step += 1
    engine.check_integrity()
    return reports


def texts_of(reports: Sequence[Any]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for each in reports:
        if isinstance(each, Delta):
            found.setdefault((each.request_id, each.index), []).extend(each.token_ids)
    return found


@pytest.fixture
def logged() -> Iterator[LogCapture]:
    before, capture = structlog.get_config(), LogCapture()
    structlog.configure(processors=[capture])
    yield capture
    structlog.configure(**before)


WRONG = ("start", "propose", "forward", "sampler", "constraint", "outcome")


@pytest.mark.parametrize("wrong", WRONG)
def test_the_request_at_fault_ends_alone(wrong: str, logged: LogCapture) -> None:
    others = [good("a", 0), good("b", 1)]
    quiet = engine_with("nothing")
    for each in others:
        quiet.add(each)
    want = texts_of(collect(quiet))

    engine = engine_with(wrong)
    for each in (others[0], hostile(wrong), others[1]):
        engine.add(each)
    reports = collect(engine)

    failed = [each for each in reports if isinstance(each, Failed)]
    assert [(each.request_id, each.error) for each in failed] == [("bad", "Internal")]
    assert "Fault" not in failed[0].message
    have = {key: text for key, text in texts_of(reports).items() if key[0] != "bad"}
    assert have == want
    entry = next(e for e in logged.entries if e["event"] == "a request failed")
    assert entry["request_id"] == "bad" and isinstance(entry["exc_info"], Exception)


def test_a_decoder_that_can_not_let_go_keeps_nothing(logged: LogCapture) -> None:
    engine = engine_with("finish")
    engine.add(hostile("finish"))
    reports = collect(engine)
    assert reports[-1].finish_reason == "length"
    assert [entry["request_id"] for entry in logged.entries] == ["bad"]


def test_a_fault_comes_alone_and_the_engine_goes_on(logged: LogCapture) -> None:
    engine = engine_with("forward")
    for _ in range(3):
        engine.add(hostile("forward"))
        assert [type(each) for each in collect(engine)][-1] is Failed
    engine.add(good("a", 0))
    assert all(not isinstance(each, Failed) for each in collect(engine))


def test_an_engine_that_computes_nothing_any_more_says_so(logged: LogCapture) -> None:
    model = FussyModel(VOCAB)
    engine = table_engine({"plain": Host("nothing")}, model=model)
    engine.add(good("a", 0))
    engine.step()
    model.is_broken = True
    with pytest.raises(Fault):
        engine.step()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"sampling": SamplingParams(allowed_token_ids=(1, 99))}, "allowed_token_ids"),
        ({"sampling": SamplingParams(logit_bias={99: 1.0})}, "logit_bias"),
        ({"sampling": SamplingParams(bad_words=((1, 2), (3, 99)))}, "bad_words"),
        ({"stop_token_ids": [99]}, "stop_token_ids"),
        ({"sampling": SamplingParams(logprob_token_ids=(99,))}, "logprob_token_ids"),
        ({"extras": PromptExtras(suffix_token_ids=[-1])}, "suffix"),
    ],
)
def test_no_id_that_the_model_has_no_row_for_gets_in(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        engine_with("nothing").add(request("x", [1], 4, **fields))
    assert caught.value.param == param
