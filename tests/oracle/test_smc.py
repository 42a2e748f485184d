"""smc through the engine: weights, evidence and texts against exact laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import comb, exp, log, sqrt
from statistics import mean, stdev
from typing import Any

import pytest
from msgspec.structs import replace

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.decoding import DecodingSpec, MethodSpec
from plait.decoders.contract.search import MemberOutcome, SearchRequest
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.search.faithful.smc import Smc, SmcOptions
from plait.server.engine.engine import Engine
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Delta, Failed, GenerateRequest
from tests.fixtures.engines import Answer, request, run, table_engine
from tests.fixtures.law_model import PROMPT, TRAP_WORDS, LawModel, joint, trap
from tests.fixtures.table_model import TableModel, text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, Checked, WordConstraint

VOCAB = 6
COMPILED = CompiledConstraint("words", b"", 0)
SCHEMES = ["stratified", "systematic", "multinomial", "residual"]


def table_law(output: tuple[int, ...]) -> Sequence[float]:
    found: list[float] = text_logits([*PROMPT, *output], VOCAB).double().softmax(0).tolist()
    return found


def engine(
    words: Sequence[tuple[int, ...]], model: TableModel | None = None, **settings: Any
) -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    settings = {"max_num_seqs": 1024, **settings}
    return table_engine(
        {host.name: host},
        model=model,
        num_blocks=settings.pop("num_blocks", 4096),
        settings=EngineSettings(**settings),
        load_constraint=lambda compiled: WordConstraint(words, END),
    )


def asked(seed: int, *, n: int = 1, max_tokens: int = 9, **options: Any) -> GenerateRequest:
    return request(
        f"r{seed}",
        PROMPT,
        max_tokens,
        n=n,
        sampling=SamplingParams(seed=seed),
        constraint=COMPILED,
        stop_token_ids=[END],
        decoding=DecodingSpec(search=MethodSpec("smc", options), trace=True),
    )


def trace_of(answer: Answer) -> dict[str, Any]:
    assert answer.deltas[-1].trace is not None
    return answer.deltas[-1].trace


def words_of(answers: dict[tuple[str, int], Answer]) -> list[tuple[int, ...]]:
    return [tuple(answer.tokens) for answer in answers.values()]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("case", ["words", "trap"])
def test_texts_and_evidence_are_properly_weighted(case: str, scheme: str, threshold: float) -> None:
    """E[exp(log_evidence) 1[choice = word]] == P(word), whatever the number of particles.

    Within 4 standard errors; summed over the words: exp(log_evidence) is unbiased (card 1.8 iii).
    """
    runs, law = 250, trap if case == "trap" else table_law
    words = TRAP_WORDS if case == "trap" else LANGUAGE
    options: dict[str, Any] = {"num_particles": 4, "ess_threshold": threshold, "resampling": scheme}
    model = LawModel(trap, 2) if case == "trap" else None
    answers = run(engine(words, model), [asked(seed, **options) for seed in range(runs)])
    found = [(tuple(a.tokens), exp(trace_of(a)["log_evidence"])) for a in answers.values()]
    for word, want in joint(law, words).items():
        values = [weight * (text == word) for text, weight in found]
        assert abs(mean(values) - want) <= 4 * stdev(values) / sqrt(runs) + 1e-6
    evidence = [weight for _, weight in found]
    want = sum(joint(law, words).values())
    assert abs(mean(evidence) - want) <= 4 * stdev(evidence) / sqrt(runs)
    num_resamplings = sum(trace_of(answer)["resamplings"] for answer in answers.values())
    assert (num_resamplings > runs / 10) == (case == "words")  # the trap shows at the last token


def test_one_particle_is_a_weighted_masked_draw() -> None:
    """Fixture F1: W(a) = .01, W(b) = .9, by chances .9 and .1; E[W 1[text]] = P(text) (1.8 iv)."""
    answers = run(
        engine(TRAP_WORDS, LawModel(trap, 2)), [asked(s, num_particles=1) for s in range(600)]
    )
    weights: dict[tuple[int, ...], float] = {(0, 2): log(0.01), (1, 2): log(0.9)}
    for answer in answers.values():
        trace = trace_of(answer)
        assert trace["log_evidence"] == pytest.approx(weights[tuple(answer.tokens)], abs=1e-5)
        assert (trace["weight"], trace["ess"]) == (1.0, 1.0)
    have = Counter(words_of(answers))
    assert abs(have[0, 2] / 600 - 0.9) <= 4 * sqrt(0.09 / 600)


def test_many_particles_leave_the_trap() -> None:
    """Masking ends in a 9 times of 10, the conditional law 1 time of 11, and 16 particles near."""
    runs = 150
    answers = run(
        engine(TRAP_WORDS, LawModel(trap, 2)), [asked(s, num_particles=16) for s in range(runs)]
    )
    share = Counter(words_of(answers))[0, 2] / runs
    # 0.1915: of all particles at a, .9 ** 16 of the runs, and of the weights elsewhere
    want = sum(
        comb(16, k) * 0.9**k * 0.1 ** (16 - k) * 0.01 * k / (0.01 * k + 0.9 * (16 - k))
        for k in range(17)
    )
    assert abs(share - want) <= 4 * sqrt(want * (1 - want) / runs)


def test_choices_are_drawn_by_weight() -> None:
    """n choices are no ranking: a heavy text comes more than once, and weights are reported."""
    answers = run(engine(LANGUAGE), [asked(s, n=8, num_particles=8) for s in range(40)])
    repeated = 0
    for seed in range(40):
        texts = [tuple(answers[f"r{seed}", i].tokens) for i in range(8)]
        repeated += len(set(texts)) < 8
        for i in range(8):
            result = answers[f"r{seed}", i].deltas[-1].search
            assert result is not None
            assert 0 < result.score <= 1 + 1e-9
            assert result.log_weight == pytest.approx(log(result.score))
            assert trace_of(answers[f"r{seed}", i])["weight"] == result.score
    assert repeated == 40  # six words


def test_the_same_request_gives_the_same_in_any_company() -> None:
    requests = [asked(s, n=2, num_particles=5) for s in range(12)]

    def texts(**settings: Any) -> list[Any]:
        running = engine(LANGUAGE, **settings)
        found = [(k, a.tokens, a.finish) for k, a in sorted(run(running, requests).items())]
        if "num_blocks" in settings:
            assert running.stats().counters.num_preemptions > 0
        return found

    want = texts(max_num_seqs=1)
    assert texts() == want
    assert texts(max_step_tokens=8) == want
    assert texts(prefix_caching=False) == want
    assert texts(num_blocks=10, max_num_seqs=64) == want


def test_what_is_streamed_is_what_all_share() -> None:
    """Words with a common beginning: it is sent before the end."""
    words = [(2, 3, 4), (2, 3, 0, 1), (2, 3, 1, 1)]
    answers = run(engine(words), [asked(0, num_particles=6)])
    deltas = answers["r0", 0].deltas
    assert deltas[0].token_ids == [2]
    assert [t for delta in deltas for t in delta.token_ids][:2] == [2, 3]
    assert deltas[0].finish_reason is None


def test_dead_particles_have_no_weight() -> None:
    """Texts at dead ends are dropped while others live; if none lives, the request says so."""

    class Stuck(Checked):
        def accept_token(self, token_id: int) -> bool:
            return self.text[-1:] != (4,) and super().accept_token(token_id)

    host = AutoregressiveDecoder(VOCAB)
    for words, want in ((LANGUAGE, "stop"), ([(4, 4, 4)], "dead_end")):
        running = table_engine({host.name: host}, load_constraint=partial(_stuck, Stuck, words))
        answers = run(running, [asked(s, n=2, num_particles=6) for s in range(20)])
        assert {answer.finish for answer in answers.values()} == {want}
        evidence = [trace_of(answer)["log_evidence"] for answer in answers.values()]
        assert all((value is None) == (want == "dead_end") for value in evidence)


def _stuck(
    kind: type[Checked], words: Sequence[tuple[int, ...]], compiled: CompiledConstraint
) -> Checked:
    return kind(words, END)


def test_texts_stay_legal_where_truncation_leaves_nothing() -> None:
    """top_k=1 and words that the model does not prefer: no weight is left, texts are words."""
    each = replace(asked(1, n=2, num_particles=4), sampling=SamplingParams(seed=1, top_k=1))
    answers = run(engine([(3, 3), (4, 0)]), [each])
    assert any(trace_of(answer)["untruncated"] for answer in answers.values())
    for answer in answers.values():
        assert tuple(answer.tokens) in {(3, 3), (4, 0)}
        trace = trace_of(answer)
        if trace["untruncated"]:
            assert (trace["weight"], trace["log_evidence"]) == (0.0, None)


def test_no_block_is_lost_when_it_is_aborted() -> None:
    running = engine(LANGUAGE)
    for seed in range(6):
        running.add(asked(seed, num_particles=8, n=2))
    for _ in range(3):
        running.step()
    for seed in range(5):
        running.abort(f"r{seed}")
    reports = [report for _ in range(20) for report in running.step()]
    assert {report.request_id for report in reports if isinstance(report, Delta)} == {"r5"}
    running.check_integrity()
    assert not running.has_work
    assert running.stats().kv_blocks_used == 0


def test_fewer_particles_than_choices_are_refused() -> None:
    running = engine(LANGUAGE)
    running.add(asked(0, n=3, num_particles=2))
    failed = [report for _ in range(50) for report in running.step()]
    assert isinstance(failed[0], Failed)
    assert (failed[0].error, failed[0].param) == ("BadRequest", "decoding.search.num_particles")


def test_equal_weights_are_left_alone() -> None:
    """Without a constraint there is nothing to weigh: no particle is ever replaced."""
    search = Smc(SmcOptions(num_particles=3, ess_threshold=0.9))
    state, num = search.start(SearchRequest(1, 5, 0))
    outcomes = [MemberOutcome(i, 1, [0], (), (), 0.0, None) for i in range(num)]
    assert search.step(state, outcomes) == []
    report = search.report(state)
    assert report["log_evidence"] == pytest.approx(0.0)
    assert report["ess"] == pytest.approx(3.0)
