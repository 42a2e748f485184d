"""The searches that sample given a constraint, in the engine: laws, streams, company, memory."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from typing import Any

import pytest
from msgspec.structs import replace

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.decoding import DecodingSpec, MethodSpec
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.search.faithful.futures import FutureTrie
from plait.server.engine.engine import Engine
from plait.server.engine.group.memory import SearchMemory
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Failed, GenerateRequest
from tests.fixtures.engines import Answer, note, request, run, table_engine
from tests.fixtures.law_model import (
    PROMPT,
    TRAP_WORDS,
    LawModel,
    NextToken,
    masked,
    posterior,
    trap,
)
from tests.fixtures.table_model import text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, Checked, WordConstraint

VOCAB = 6
HEAT = 2.5  # temperature at which no word is rare
COLD = {"temperature": 1.0}
COMPILED = CompiledConstraint("words", b"", 0)
SEARCHES: list[tuple[str, dict[str, Any]]] = [
    ("cars", {"share": False}),
    ("cars", {"share": False, "num_parallel": 1}),
    ("asap", {"share": False, "num_samples": 4}),
    ("mcmc", {"num_steps": 4}),
    ("mcmc", {"num_steps": 4, "cut": "uniform"}),
    ("mcmc", {"num_steps": 4, "cut": "priority"}),
    ("smc", {"num_particles": 4}),
]


def table_law(output: tuple[int, ...]) -> list[float]:
    logits = text_logits([*PROMPT, *output], VOCAB).double() / HEAT
    found: list[float] = logits.softmax(0).tolist()
    return found


def engine(words: Any = LANGUAGE, law: NextToken | None = None, **settings: Any) -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    num_blocks = settings.pop("num_blocks", 2048)
    constraint = settings.pop("constraint", WordConstraint(words, END))
    return table_engine(
        {host.name: host},
        model=None if law is None else LawModel(law, 2),
        num_blocks=num_blocks,
        settings=EngineSettings(**{"max_num_seqs": 512, **settings}),
        load_constraint=lambda compiled: constraint.fork(),
    )


def asked(name: str, seed: int, options: dict[str, Any], **fields: Any) -> GenerateRequest:
    made = request(
        f"r{seed}",
        fields.pop("prompt", PROMPT),
        9,
        n=fields.pop("n", 1),
        sampling=SamplingParams(seed=seed, **{"temperature": HEAT, **fields.pop("sampling", {})}),
        constraint=COMPILED,
        stop_token_ids=[END],
        decoding=DecodingSpec(search=MethodSpec(name, options), trace=True),
    )
    return replace(made, **fields)


def trace_of(answer: Answer) -> dict[str, Any]:
    assert answer.deltas[-1].trace is not None
    return answer.deltas[-1].trace


def check_law(have: Counter[tuple[int, ...]], want: dict[tuple[int, ...], float]) -> None:
    """Compare frequencies with a law: 4 standard errors each, and a text of those that are rare."""
    draws = have.total()
    assert set(have) <= set(want)
    for text, mass in want.items():
        assert abs(have[text] / draws - mass) <= 4 * sqrt(mass * (1 - mass) / draws) + 1 / draws, (
            text
        )


@pytest.mark.parametrize("num_parallel", [1, 3])
def test_cars_is_exact(num_parallel: int) -> None:
    options = {"share": False, "num_parallel": num_parallel}
    answers = run(engine(), [asked("cars", seed, options, n=4) for seed in range(60)])
    have = Counter(tuple(answer.tokens) for answer in answers.values())
    check_law(have, posterior(table_law, LANGUAGE))
    assert all(trace_of(answer)["accepted"] for answer in answers.values())


def test_cars_of_the_trap_learns_from_request_to_request() -> None:
    """F1: of attempts one in ten is accepted at first, then nearly all; the law stays exact."""
    running, rejected = engine(TRAP_WORDS, trap), []
    have: Counter[tuple[int, ...]] = Counter()
    for seed in range(150):
        answers = run(running, [asked("cars", seed, {"num_parallel": 1}, n=2, sampling=COLD)])
        have.update(tuple(answer.tokens) for answer in answers.values())
        rejected.append(trace_of(answers[f"r{seed}", 0])["rejected"])
    check_law(have, posterior(trap, TRAP_WORDS))
    assert sum(rejected[:1]) > 0
    assert sum(rejected[20:]) == 0
    last = trace_of(answers["r149", 0])
    assert last["legal_bound"] == pytest.approx(0.099, abs=1e-5)


def test_asap_of_the_trap_comes_to_the_law() -> None:
    """Its first sample is a masked draw; once all has been seen, samples follow the law."""
    first: Counter[tuple[int, ...]] = Counter()
    answers = run(
        engine(TRAP_WORDS, trap),
        [asked("asap", s, {"share": False}, sampling=COLD) for s in range(200)],
    )
    first.update(tuple(answer.tokens) for answer in answers.values())
    check_law(first, masked(trap, TRAP_WORDS))
    running, later = engine(TRAP_WORDS, trap), Counter[tuple[int, ...]]()
    for seed in range(300):
        answers = run(running, [asked("asap", seed, {}, sampling=COLD)])
        if seed >= 60:
            later.update(tuple(answer.tokens) for answer in answers.values())
    check_law(later, posterior(trap, TRAP_WORDS))


@pytest.mark.parametrize("cut", ["restart", "uniform", "priority"])
def test_long_chains_come_to_the_law(cut: str) -> None:
    options = {"num_steps": 20, "cut": cut}
    answers = run(engine(), [asked("mcmc", seed, options, n=4) for seed in range(60)])
    have = Counter(tuple(answer.tokens) for answer in answers.values())
    check_law(have, posterior(table_law, LANGUAGE))
    assert 0 < trace_of(answers["r0", 0])["acceptance"] <= 1


def test_a_chain_without_steps_is_a_masked_draw() -> None:
    answers = run(engine(), [asked("mcmc", seed, {"num_steps": 0}, n=4) for seed in range(60)])
    have = Counter(tuple(answer.tokens) for answer in answers.values())
    check_law(have, masked(table_law, LANGUAGE))


@pytest.mark.parametrize(("name", "options"), SEARCHES)
def test_no_company_changes_a_result(name: str, options: dict[str, Any]) -> None:
    requests = [asked(name, seed, options, n=2, prompt=[1, 2, 3] * 8) for seed in range(8)]

    def texts(**settings: Any) -> list[Any]:
        running = engine(**settings)
        found = [(k, a.tokens, a.finish) for k, a in sorted(run(running, requests).items())]
        is_alone = name == "asap" or options.get("num_parallel") == 1  # one at a time
        if "num_blocks" in settings and not is_alone:
            assert running.stats().counters.num_preemptions > 0
        return found

    want = texts(max_num_seqs=1)
    assert texts() == want
    assert texts(max_step_tokens=8) == want
    assert texts(prefix_caching=False) == want
    assert texts(num_blocks=5, max_num_seqs=64) == want


@pytest.mark.parametrize(("name", "options"), SEARCHES)
def test_nothing_is_lost_after_aborts(name: str, options: dict[str, Any]) -> None:
    running = engine(max_num_seqs=32)
    for seed in range(6):
        running.add(asked(name, seed, options, n=2, prompt=[1, 2, 3] * 8))
    for step in range(4):
        running.step()
        running.abort(f"r{step}")
    running.abort("r4", 0)
    running.abort("r4", 1)
    answers: dict[tuple[str, int], Answer] = {("r5", i): Answer() for i in range(2)}
    for _ in range(300):
        if running.has_work:
            note(answers, [r for r in running.step() if getattr(r, "request_id", "") == "r5"])
    running.check_integrity()
    assert running.stats().kv_blocks_used == 0
    assert {tuple(answer.tokens) for answer in answers.values()} <= set(LANGUAGE)


@pytest.mark.parametrize("name", ["cars", "asap", "mcmc"])
def test_nothing_is_streamed_before_it_is_decided(name: str) -> None:
    answers = run(engine([(2, 3, 4), (2, 3, 0)]), [asked(name, 0, {})])
    assert [delta.token_ids[:2] for delta in answers["r0", 0].deltas] == [[2, 3]]


@pytest.mark.parametrize("name", ["cars", "asap", "mcmc", "smc"])
def test_temperature_0_is_refused(name: str) -> None:
    running = engine()
    running.add(asked(name, 0, {}, sampling={"temperature": 0.0}))
    failed = [report for _ in range(50) for report in running.step()]
    assert isinstance(failed[0], Failed)
    assert (failed[0].error, failed[0].param) == ("BadRequest", "temperature")


def test_a_deadline_returns_what_there_is() -> None:
    for name in ("cars", "asap", "mcmc", "smc"):
        running = engine()
        running.add(asked(name, 0, {}, n=2, deadline=0.0))
        answers: dict[tuple[str, int], Answer] = {("r0", i): Answer() for i in range(2)}
        for _ in range(50):
            note(answers, running.step())
        assert {answer.finish for answer in answers.values()} == {"deadline"}
        assert not running.has_work


def test_cars_is_exact_for_checks_beside_the_mask() -> None:
    """A bitmask that shows everything: what is refused rejects the attempt, and is learnt."""
    running = engine(constraint=Checked(LANGUAGE, END))
    answers = run(running, [asked("cars", seed, {}, n=4) for seed in range(60)])
    have = Counter(tuple(answer.tokens) for answer in answers.values())
    check_law(have, posterior(table_law, LANGUAGE))


def test_cars_is_exact_within_a_budget() -> None:
    """Texts that are too long are not legal: the law is that of words that fit."""
    fitting = [word for word in LANGUAGE if len(word) <= 4]
    requests = [asked("cars", seed, {}, n=4, max_tokens=4) for seed in range(60)]
    have = Counter(tuple(answer.tokens) for answer in run(engine(), requests).values())
    whole = posterior(table_law, LANGUAGE)
    total = sum(whole[word] for word in fitting)
    check_law(have, {word: whole[word] / total for word in fitting})


def test_the_memory_is_of_like_requests_only() -> None:
    """Another namespace, prompt, constraint or temperature begins anew; another seed does not."""
    first = asked("cars", 0, {})
    others = [
        replace(first, cache_salt="other"),
        replace(first, prompt_token_ids=[1, 2]),
        replace(first, constraint=CompiledConstraint("other", b"", 0)),
        replace(first, sampling=SamplingParams(temperature=0.5)),
        replace(first, max_tokens=8),
    ]
    memory = SearchMemory()
    kept = memory.of(first)("futures", FutureTrie)
    assert memory.of(asked("asap", 5, {}))("futures", FutureTrie) is kept
    found = [memory.of(other)("futures", FutureTrie) for other in others]
    assert len({id(trie) for trie in [kept, *found]}) == 6


def test_the_memory_forgets_what_was_used_least_recently() -> None:
    memory = SearchMemory(max_bytes=3 * FutureTrie().num_bytes)
    requests = [asked("cars", i, {}, prompt=[i]) for i in range(4)]
    tries = [memory.of(each)("futures", FutureTrie) for each in requests[:3]]
    assert memory.of(requests[0])("futures", FutureTrie) is tries[0]
    memory.of(requests[3])("futures", FutureTrie)
    assert memory.num_bytes <= 3 * FutureTrie().num_bytes
    assert memory.of(requests[0])("futures", FutureTrie) is tries[0]
    assert memory.of(requests[1])("futures", FutureTrie) is not tries[1]
