"""AdaDec through the engine: the naive algorithm's text, whatever else the engine does."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plait.decoders.contract.search import SearchRequest
from plait.decoders.resolve import resolve_decoding
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.search.lookahead.ada_dec import AdaDec, AdaDecOptions
from plait.decoders.speculative.context import DrafterContext
from plait.server.engine.engine import Engine
from plait.server.wire.messages import CompiledConstraint, GenerateRequest
from tests.fixtures.drafting import speculating
from tests.fixtures.engines import Answer, check_seed_stable, request, run, tiny
from tests.fixtures.random_requests import random_requests
from tests.fixtures.search_driver import Found, SearchDriver, naive_ada_dec
from tests.fixtures.table_model import text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

VOCAB = 6
DISTURBANCES: dict[str, dict[str, Any]] = {
    "batch": {},
    "alone": {"max_num_seqs": 1},
    "two": {"max_num_seqs": 2},
    "chunks": {"max_step_tokens": 8},
    "no prefix cache": {"prefix_caching": False},
    "few blocks": {"num_blocks": 8},
}


def engine(**settings: Any) -> Engine:
    return speculating(
        DrafterContext(VOCAB), load_constraint=lambda _: WordConstraint(LANGUAGE, END), **settings
    )


def ada_dec(name: str, seed: int, max_tokens: int, **options: Any) -> GenerateRequest:
    rng = random.Random(seed)
    prompt = [rng.randrange(END) for _ in range(20)]
    drafter = options.pop("drafter", "off")
    found = resolve_decoding(
        {"search": {"name": "ada-dec", **options}, "drafter": drafter, "trace": True}
    )
    return request(
        name,
        prompt,
        max_tokens,
        stop_token_ids=[END],
        decoding=found,
        sampling=SamplingParams(temperature=rng.choice([0.0, 1.0, 2.0]), seed=seed),
    )


def naive(each: GenerateRequest) -> Found:
    assert each.decoding.search is not None
    options = AdaDecOptions(**each.decoding.search.options)

    def law(output: tuple[int, ...]) -> Sequence[float]:
        logits = text_logits([*each.prompt_token_ids, *output], VOCAB).double()
        found: list[float] = logits.log_softmax(0).tolist()
        return found

    asked = SearchRequest(1, each.max_tokens, 0)
    driver = SearchDriver(AdaDec(options), law, frozenset({END}), asked)
    return naive_ada_dec(driver, options.tau, options.num_candidates, options.lookahead)


def requests(drafter: Any) -> list[GenerateRequest]:
    rng = random.Random(5)
    return [
        ada_dec(
            f"r{i}",
            i,
            rng.randint(1, 30),
            tau=rng.choice([0.0, 0.5, 1.0]),
            num_candidates=rng.randint(2, 4),
            lookahead=rng.randint(0, 6),
            drafter=drafter,
        )
        for i in range(12)
    ]


@pytest.mark.parametrize(
    "drafter", ["off", {"name": "n-gram", "always": True, "min_n": 1}], ids=str
)
@pytest.mark.parametrize("settings", DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_the_text_is_the_naive_one(settings: dict[str, Any], drafter: Any) -> None:
    asked = requests(drafter)
    running = engine(**settings)
    have = run(running, asked)
    for each in asked:
        want = naive(each)
        answer = have[each.request_id, 0]
        assert (tuple(answer.tokens), answer.finish) == (want.tokens, want.finish)
    counters = running.stats().counters
    if drafter != "off" and settings != {"max_step_tokens": 8}:
        assert counters.speculation.accepted_tokens["n-gram"] > 0
    if "num_blocks" in settings:
        assert counters.num_preemptions > 0


def test_it_is_greedy_where_it_never_pauses_and_batch_mates_are_unaffected() -> None:
    """tau = infinity at any temperature; a sampled request in the batch draws what it draws."""
    never = [ada_dec(f"never{i}", i, 20, tau=math.inf) for i in range(4)]
    plain = [
        msgspec.structs.replace(
            each,
            request_id=f"plain{i}",
            decoding=resolve_decoding({}),
            sampling=SamplingParams(0.0),
        )
        for i, each in enumerate(never)
    ]
    mate = request("mate", [1, 2, 3], 20, n=3, sampling=SamplingParams(seed=7))
    alone = run(engine(), [mate])
    have = run(engine(), [*never, *plain, *requests("off"), mate])
    for i in range(4):
        assert have[f"never{i}", 0].tokens == have[f"plain{i}", 0].tokens
    for i in range(3):
        assert have["mate", i].tokens == alone["mate", i].tokens


def test_what_was_drawn_is_counted_and_told() -> None:
    """The report counts the pauses; the usage counts the losing continuations, too."""
    answer: Answer = run(engine(), [ada_dec("r", 1, 12, tau=0, num_candidates=3, lookahead=2)])[
        "r", 0
    ]
    result, trace = answer.deltas[-1].search, answer.deltas[-1].trace
    assert result is not None
    assert trace is not None
    assert trace["pauses"] == len(answer.tokens) + (answer.finish == "stop")
    assert result.num_sequences > trace["pauses"]
    assert result.num_tokens > len(answer.tokens)


@pytest.mark.parametrize("max_tokens", range(1, 8))
def test_constrained_texts_are_of_the_language(max_tokens: int) -> None:
    fitting = [word for word in LANGUAGE if len(word) <= max_tokens]
    for seed in range(6):
        each = ada_dec("r", seed, max_tokens, tau=0)
        each = msgspec.structs.replace(each, constraint=CompiledConstraint("words", b"", 0))
        answer = run(engine(), [each])["r", 0]
        assert tuple(answer.tokens) in fitting
        assert answer.finish == "stop"


def test_the_entropies_are_the_models_own() -> None:
    """Of every row, drafted ones too, and untouched by temperature and bans."""
    seen: list[tuple[int, float]] = []

    class Watched(AdaDec):
        def step(self, state: Any, outcomes: Any) -> Any:
            for outcome in outcomes:
                start = outcome.num_output - len(outcome.emitted)
                seen.extend((start + i, value) for i, value in enumerate(outcome.entropies))
            return super().step(state, outcomes)

    each = ada_dec("r", 2, 12, tau=math.inf, drafter={"name": "n-gram", "always": True})
    running = engine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "plait.server.engine.group.group.make_search",
            lambda _: Watched(AdaDecOptions(tau=math.inf)),
        )
        answer = run(running, [each])["r", 0]
    for place, value in seen:
        logits = text_logits([*each.prompt_token_ids, *answer.tokens[:place]], VOCAB)
        logprobs = logits.double().log_softmax(0)
        want = -float((logprobs.exp() * logprobs).sum())
        assert value == pytest.approx(want, abs=1e-5)
    assert [place for place, _ in seen] == list(
        range(len(answer.tokens) + (answer.finish == "stop"))
    )


def test_it_is_seed_stable_on_a_transformer(tmp_path: Path) -> None:
    model = tiny(tmp_path, "fp32")
    spec = resolve_decoding({"search": {"name": "ada-dec", "tau": 3.0}})
    asked = [
        msgspec.structs.replace(each, n=1, decoding=spec)
        for each in random_requests(16, model.vocab_size, seed=4)
    ]
    check_seed_stable(
        model,
        asked,
        {
            "batch": {"max_num_seqs": 32},
            "chunks": {"max_num_seqs": 32, "max_step_tokens": 24},
            "preemption": {"max_num_seqs": 32, "num_blocks": 14},
        },
    )
