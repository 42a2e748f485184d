"""Laws 1 and 2 in the engine: whatever drafts, however many, beside whom: the same reports.

Every drafter of the registry that can run on the table model, those that are added later, too, and
drafters that are wrong in every way. The reference is the engine without drafts.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.autoregressive.state import AutoregressiveState
from plait.decoders.contract import registry
from plait.decoders.contract.constraint import Constraint
from plait.decoders.contract.costs import CostCurve
from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.decoding import PromptExtras
from plait.decoders.contract.drafter import Draft, Drafter, DraftRequest, VerificationResult
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.speculator import Speculator
from plait.server.engine.engine import Engine
from plait.server.engine.sequence import Sequence as Running
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Failed, GenerateRequest, Started
from tests.fixtures.adversaries import KINDS, WRONG, adversaries, on_stage  # noqa: F401, a fixture
from tests.fixtures.drafting import speculating
from tests.fixtures.engines import Answer, drain, request, run, table_engine
from tests.fixtures.random_requests import random_requests
from tests.fixtures.table_model import TableModel
from tests.fixtures.word_constraint import WordConstraint

VOCAB, END = 6, 2
PROVIDED = frozenset({"tree", "constraint"})  # what the table model can give to drafters
SETTINGS: tuple[tuple[int, dict[str, Any]], ...] = (  # tokens of a draft, and the engine
    (1, {"max_num_seqs": 16}),
    (4, {"max_num_seqs": 1}),
    (8, {"max_num_seqs": 16, "max_step_tokens": 24}),
    (16, {"max_num_seqs": 16, "num_blocks": 14}),
)
COMPILED = CompiledConstraint("words", b"", 0)
FORCED = (1, 1, 3, 4, 1, 0, 3)
WORDS = [
    FORCED,
    (*FORCED, 5, 5, 5, 5),
    (*FORCED, 0, 0, 1),
    (0, 4, 4, 4, 4, 4, 4, 4, 4, 1),
    (0, 4, 4, 4, 0),
    (3,),
    (4, 0, 1),
]

Seen = dict[tuple[str, int], tuple[Any, ...]]


def words(compiled: CompiledConstraint) -> Constraint:
    return WordConstraint(WORDS, END)


@cache
def requests() -> tuple[GenerateRequest, ...]:
    """Requests with every parameter, many siblings, constraints that fit and that hardly do."""
    plain = random_requests(14, VOCAB, seed=11, longest=40, max_tokens=20)
    rng, bound = random.Random(3), list[GenerateRequest]()
    for i, each in enumerate(random_requests(12, VOCAB, seed=12, longest=20, max_tokens=12)):
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 0.3, 1.0, 3.0)),
            seed=each.sampling.seed,
            frequency_penalty=rng.choice((0.0, 0.5)),
            top_k=rng.choice((0, 3)),
            logprobs=rng.choice((None, 2)),
        )
        more: dict[str, Any] = {"constraint": COMPILED} if i % 4 else {"prompt_logprobs": 1}
        bound.append(replace(each, request_id=f"c{i}", sampling=sampling, **more))
    narrow = SamplingParams(temperature=0.3, allowed_token_ids=(0, 3, 5), seed=5, min_tokens=8)
    bound.append(replace(plain[0], request_id="narrow", sampling=narrow, max_tokens=16))
    return (*plain, *bound)


def named(drafter: Any) -> list[GenerateRequest]:
    """Return the requests with a drafter, and a prediction for those that go by one."""
    expected = [4, 3, 5, 3, 4, 0, 1, 1, 3, 4, 1, 0, 3]
    decoding, extras = resolve_decoding({"drafter": drafter}), PromptExtras(expected)
    return [replace(each, decoding=decoding, extras=extras) for each in requests()]


def seen(answers: dict[tuple[str, int], Answer]) -> Seen:
    """Return all that a client gets to see but the pace."""
    return {
        name: (
            answer.tokens,
            answer.finish,
            answer.deltas[-1].stop_token,
            [rounded(entry) for delta in answer.deltas for entry in delta.logprobs or ()],
            [rounded(e) for d in answer.deltas for e in d.prompt_logprobs or () if e is not None],
        )
        for name, answer in answers.items()
    }


def rounded(entry: Any) -> tuple[Any, ...]:
    top = tuple((token, round(logprob, 5)) for token, logprob in entry.top)
    return entry.token_id, round(entry.logprob, 5), top


@cache
def plain() -> Seen:
    return seen(run(engine(max_num_seqs=1), named("off")))


def engine(**settings: Any) -> Engine:
    return speculating(DrafterContext(VOCAB), load_constraint=words, **settings)


def hosted() -> list[str]:
    """Return the drafters that keep the law and run on the table model."""
    return sorted(
        method.name
        for (kind, _), method in registry.methods().items()
        if kind == "drafter" and not method.lossy and method.needs <= PROVIDED
    )


@pytest.mark.parametrize("drafter", [*hosted(), "auto"])
def test_no_drafter_changes_a_report(drafter: str) -> None:
    for k, settings in SETTINGS:
        running = engine(**settings)
        chosen = drafter if drafter == "auto" else {"name": drafter, "max_draft": k, "always": True}
        assert seen(run(running, named(chosen))) == plain(), (k, settings)
        if "num_blocks" in settings:
            assert running.stats().counters.num_preemptions > 0
        assert seen(run(running, named(chosen))) == plain(), (k, settings, "prefix cache hot")


def test_drafters_in_company_change_no_report() -> None:
    chosen = [{"name": name, "max_draft": 5, "always": True} for name in hosted()]
    assert seen(run(engine(max_num_seqs=16), named(chosen))) == plain()


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("kind", KINDS)
def test_no_adversary_changes_a_report(kind: str) -> None:
    for k, settings in SETTINGS[-1:] if kind in WRONG else SETTINGS:
        running = engine(**settings)
        chosen = {"name": "adversary", "kind": kind, "max_draft": k, "always": True}
        assert seen(run(running, named(chosen))) == plain(), (k, settings)
        drafted = running.stats().counters.speculation.draft_tokens.get("adversary", 0)
        assert k == 1 or (drafted == 0) == (kind in WRONG)
    again = {"name": "adversary", "kind": kind}  # where it must pay, it is asked now and then
    assert seen(run(running, named(again))) == plain()


@pytest.mark.usefixtures("adversaries")
def test_a_malformed_draft_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    run(engine(), named({"name": "adversary", "kind": "few-chances", "always": True}))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "adversary" in warnings[0]


def test_costs_are_learnt_of_passes_whose_rows_are_all_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of a prompt have no logits and no draw: they would make drafts look cheap."""
    seen: list[int] = []
    monkeypatch.setattr(CostCurve, "observe", lambda self, rows, seconds: seen.append(rows))
    asked = [
        request(f"r{i}", [1] * (9 + i), 5, decoding=resolve_decoding({"drafter": "off"}))
        for i in range(3)
    ]
    run(table_engine({"plain": AutoregressiveDecoder(TableModel().vocab_size)}), asked)
    assert seen == [3, 3, 3, 3]


@pytest.mark.usefixtures("adversaries")
def test_drafts_are_accepted_at_all() -> None:
    """Random trees over six tokens are right now and then: the tests above do verify something."""
    for kind in ("tree", "fan", "random"):
        running = engine(max_num_seqs=4)
        run(running, named({"name": "adversary", "kind": kind, "max_draft": 8, "always": True}))
        counters = running.stats().counters
        assert counters.speculation.accepted_tokens["adversary"] > counters.generation_tokens / 10


class Silent(Drafter[int]):
    """Counts how often each sequence is begun, asked and ended; drafts what it is told to."""

    name: ClassVar[str] = "staged"

    def __init__(self, width: int = 0) -> None:
        self.begun = 0
        self.ended: Counter[int] = Counter()
        self.most = 0
        self._width = width

    def start(self, request: DecodeRequest) -> int:
        self.begun += 1
        return self.begun

    def propose(self, requests: Sequence[DraftRequest[int]]) -> Sequence[Draft]:
        assert all(ask.max_tokens >= 1 for ask in requests)
        self.most = max([self.most, *(ask.max_tokens for ask in requests)])
        return [Draft([0] * self._width, [1.0] * self._width) for _ in requests]

    def observe(self, state: int, text: Sequence[int], result: VerificationResult) -> None:
        assert not self.ended[state], "a sequence goes on that has ended"

    def finish(self, state: int, text: Sequence[int]) -> None:
        self.ended[state] += 1

    def check(self) -> None:
        assert self.ended == Counter(range(1, self.begun + 1))


def staged(drafter: Silent, **settings: Any) -> Engine:
    """Return an engine whose drafter `staged` this is."""
    found = engine(**settings)
    with on_stage(drafter):
        found.add(each("first", max_tokens=1))
        drain(found)
    return found


def each(name: str, *, max_tokens: int = 30, **fields: Any) -> GenerateRequest:
    decoding = resolve_decoding({"drafter": {"name": "staged", "always": True}})
    return GenerateRequest(
        name, [3, 4, 5], SamplingParams(seed=1), max_tokens, decoding=decoding, **fields
    )


@pytest.mark.usefixtures("adversaries")
def test_every_way_of_ending_ends_once() -> None:
    drafter = Silent(3)
    running = staged(drafter, max_num_seqs=6)
    running.add(each("length", n=2, max_tokens=4))
    running.add(each("stop", constraint=COMPILED, stop_token_ids=[END]))
    running.add(each("aborted", n=2))
    running.add(each("one of two", n=2))
    running.add(each("waits", n=3))  # there are six places
    for _ in range(3):
        running.step()
    running.abort("aborted")
    running.abort("aborted")
    running.abort("one of two", 1)
    running.add(each("late", deadline=0.0, n=2))
    running.add(each("not begun", n=2))
    running.abort("not begun")
    running.add(each("half begun", n=2))
    running.abort("half begun", 0)
    answers = drain(running)
    assert answers["late", 1].finish == "deadline"
    assert ("half begun", 0) not in answers
    drafter.check()
    assert drafter.begun == 1 + 2 + 1 + 2 + 2 + 3 + 2 + 1


@pytest.mark.usefixtures("adversaries")
def test_a_fault_ends_its_sequences_once() -> None:
    class Broken(WordConstraint):
        def accept_token(self, token_id: int) -> bool:
            return len(self.text) < 2 and super().accept_token(token_id)

        def fork(self) -> WordConstraint:
            return Broken(self.words, self.end)

    drafter = Silent()
    host = AutoregressiveDecoder(VOCAB, speculator=Speculator(DrafterContext(VOCAB), CostCurve()))
    running = table_engine(
        {host.name: host}, load_constraint=lambda compiled: Broken([(0, 1, 3, 4)], END)
    )
    with on_stage(drafter):
        running.add(each("broken", n=3, constraint=COMPILED))
        running.add(each("fine", max_tokens=5))
        reports = [report for _ in range(6) for report in running.step()]
    assert [r.request_id for r in reports if isinstance(r, Failed)] == ["broken"]
    running.check_integrity()
    drafter.check()


@pytest.mark.usefixtures("adversaries")
def test_preemption_is_no_end() -> None:
    drafter = Silent(2)
    running = staged(drafter, max_num_seqs=8, num_blocks=10)
    answers = run(running, [each(f"r{i}", max_tokens=40) for i in range(6)])
    assert running.stats().counters.num_preemptions > 0
    assert all(answer.finish == "length" for answer in answers.values())
    drafter.check()


@pytest.mark.usefixtures("adversaries")
def test_nobody_is_asked_for_what_is_of_no_use() -> None:
    """The last token is always drawn; a text of one or none has no use for drafts."""
    drafter = Silent(64)
    running = staged(drafter)
    run(running, [each("none", max_tokens=0), each("one", max_tokens=1)])
    assert drafter.most == 0
    run(running, [each("six", max_tokens=6)])
    assert drafter.most == 5
    assert running.stats().counters.speculation.draft_tokens["staged"] <= 5 + 4 + 3 + 2 + 1


class Watched(AutoregressiveDecoder):
    """Counts what the engine tells the decoder of its sequences."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.states: list[AutoregressiveState] = []
        self.finished: list[AutoregressiveState] = []

    def start(self, request: DecodeRequest) -> AutoregressiveState:
        self.states.append(super().start(request))
        return self.states[-1]

    def attention_block_size(self, state: AutoregressiveState) -> int:
        return 5  # no block size that the engine runs

    def finish(self, state: AutoregressiveState) -> None:
        self.finished.append(state)


def test_what_is_turned_away_at_the_door_is_finished() -> None:
    host = Watched()
    running = table_engine({host.name: host})
    running.add(GenerateRequest("a", [1], SamplingParams(), 3, n=3))
    assert [type(report) for report in running.step()] == [Failed]
    assert list(map(id, host.finished)) == list(map(id, host.states))
    assert len(host.states) == 3


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("kind", ["random", "tree", "twins"])
def test_the_cache_holds_the_text(kind: str) -> None:
    """After every step, slot i holds token i at position i: for rows of trees that moved, too."""
    chosen = {"name": "adversary", "kind": kind, "max_draft": 12, "always": True}
    model = TableModel(VOCAB)
    host = AutoregressiveDecoder(VOCAB, speculator=Speculator(DrafterContext(VOCAB), CostCurve()))
    running = table_engine(
        {host.name: host},
        model=model,
        settings=EngineSettings(max_num_seqs=6),
        load_constraint=words,
    )
    for each in named(chosen):
        running.add(each)
    checked = 0
    while running.has_work:
        running.step()
        for sequence in (s for group in running._groups.values() for s in group.members.values()):
            assert (
                cached(running, sequence)
                == list(enumerate(sequence.text))[: sequence.num_computed_tokens]
            )
            checked += sequence.num_computed_tokens
    assert checked > 1000


def cached(running: Engine, sequence: Running) -> list[tuple[int, int]]:
    """Return what the cache has of a sequence: (position, token)."""
    found, kv = [], running._runner.kv
    for i in range(sequence.num_computed_tokens):
        block, offset = sequence.block_table.block_ids[i // 16], i % 16
        position, token = kv.k[0, block, 0, 0, offset], kv.v[0, block, 0, offset, 0]
        found.append((int(position), int(token)))
    return found


@pytest.mark.usefixtures("adversaries")
@pytest.mark.parametrize("kind", ["same", "fan"])
def test_drafts_never_make_a_sequence_wait(kind: str) -> None:
    """They take rows and blocks that nobody else needs, and give them back."""
    chosen = {"name": "adversary", "kind": kind, "max_draft": 64, "always": True}
    begun = []
    for drafter in ("off", chosen):
        running, reports = engine(num_blocks=9, prefix_caching=False), list[Any]()
        drafts = SamplingParams(temperature=3.0, seed=4)
        running.add(
            GenerateRequest("a", [3], drafts, 100, decoding=resolve_decoding({"drafter": drafter}))
        )
        for _ in range(2):
            running.step()
        for i in range(2):
            running.add(GenerateRequest(f"b{i}", [4] * 40, SamplingParams(), 5))
        for _ in range(3):
            reports.append([r.request_id for r in running.step() if isinstance(r, Started)])
        begun.append(reports)
        drain(running)
        assert running.stats().counters.num_preemptions == 0
    assert begun == [[["b0", "b1"], [], []]] * 2
