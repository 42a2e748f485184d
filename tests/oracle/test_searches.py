"""best-of and beam through the engine: exact, whatever else the engine does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.contract.decoding import DecodingSpec, MethodSpec
from plait.decoders.contract.search import SearchRequest
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.search.beam import BeamOptions, BeamSearch
from plait.server.engine.engine import Engine
from plait.server.settings import EngineSettings
from plait.server.wire.messages import CompiledConstraint, Failed, GenerateRequest
from tests.fixtures.engines import (
    Answer,
    check_seed_stable,
    request,
    run,
    table_engine,
    tiny,
)
from tests.fixtures.random_requests import random_requests
from tests.fixtures.search_driver import Found, SearchDriver, exhaustive, naive_beam
from tests.fixtures.table_model import text_logits
from tests.fixtures.word_constraint import END, LANGUAGE, WordConstraint

VOCAB = 6
COMPILED = CompiledConstraint("words", b"", 0)
DISTURBANCES: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1},
    "chunks": {"max_step_tokens": 8},
    "no prefix cache": {"prefix_caching": False},
    "few blocks": {"num_blocks": 10},
}


def make(*, words: Sequence[Sequence[int]] = LANGUAGE, **settings: Any) -> Engine:
    host = AutoregressiveDecoder(VOCAB)
    num_blocks = settings.pop("num_blocks", 128)
    return table_engine(
        {host.name: host},
        num_blocks=num_blocks,
        settings=EngineSettings(**settings),
        load_constraint=lambda compiled: WordConstraint(words, END),
    )


def searching(name: str, **options: Any) -> DecodingSpec:
    return DecodingSpec(search=MethodSpec(name, options))


def beam_request(name: str, seed: int, n: int, max_tokens: int, **fields: Any) -> GenerateRequest:
    options = {"beam_width": fields.pop("beam_width", n)}
    options["length_penalty"] = fields.pop("length_penalty", 1.0)
    prompt = prompt_of(seed, fields.pop("length", 40))
    decoding = searching("beam", **options)
    return request(name, prompt, max_tokens, n=n, stop_token_ids=[END], decoding=decoding, **fields)


def prompt_of(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(END) for _ in range(length)]


def driver_of(each: GenerateRequest) -> tuple[SearchDriver, int, float]:
    """Return a driver over the same law, the beam's width and the length penalty."""
    assert each.decoding.search is not None
    options = BeamOptions(**each.decoding.search.options)
    prompt = each.prompt_token_ids

    def law(output: tuple[int, ...]) -> Sequence[float]:
        logits = text_logits([*prompt, *output], VOCAB).double()
        found: list[float] = logits.log_softmax(0).tolist()
        return found

    asked = SearchRequest(each.n, each.max_tokens, 0)
    driver = SearchDriver(BeamSearch(options), law, frozenset({END}), asked, random.Random(0))
    return driver, options.beam_width, options.length_penalty


def found_in(answers: dict[tuple[str, int], Answer], each: GenerateRequest) -> list[Found]:
    choices = [answers[each.request_id, i] for i in range(each.n)]
    results = [choice.deltas[-1].search for choice in choices]
    assert all(result is not None for result in results)
    return [
        Found(tuple(choice.tokens), choice.finish, result.score if result else 0.0)  # type: ignore[arg-type]
        for choice, result in zip(choices, results, strict=True)
    ]


def check(have: Sequence[Found], want: Sequence[Found]) -> None:
    assert [(f.tokens, f.finish) for f in have] == [(f.tokens, f.finish) for f in want]
    assert [f.score for f in have] == pytest.approx([f.score for f in want], abs=1e-4)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0])
def test_a_beam_as_wide_as_the_tree_is_exhaustive(penalty: float) -> None:
    requests = [
        beam_request(f"r{i}", i, 4, 3, beam_width=25, length_penalty=penalty) for i in range(4)
    ]
    answers = run(make(), requests)
    for each in requests:
        driver, _, _ = driver_of(each)
        check(found_in(answers, each), exhaustive(driver, penalty))


@pytest.mark.parametrize("settings", DISTURBANCES.values(), ids=DISTURBANCES.keys())
def test_narrow_beams_in_one_batch(settings: dict[str, Any]) -> None:
    rng = random.Random(3)
    requests = [
        beam_request(
            f"r{i}",
            i % 4,
            width := rng.randint(1, 4),
            rng.randint(1, 20),
            beam_width=width + rng.randint(0, 1),
            length_penalty=rng.choice([0.0, 0.7, 1.0]),
            arrived=float(i),
            sampling=SamplingParams(temperature=rng.choice([0.0, 1.0, 3.0]), seed=i),
        )
        for i in range(10)
    ]
    engine = make(**settings)
    answers = run(engine, requests)
    for each in requests:
        driver, width, penalty = driver_of(each)
        check(found_in(answers, each), naive_beam(driver, width, penalty))
    if "num_blocks" in settings:
        assert engine.stats().counters.num_preemptions > 0


def test_beams_of_constrained_texts() -> None:
    """The texts are words that fit the budget; a beam that is wide enough finds the best ones."""
    for max_tokens in range(1, 8):
        fitting = [word for word in LANGUAGE if len(word) <= max_tokens]
        n = min(3, len(fitting))
        each = beam_request("r", max_tokens, n, max_tokens, beam_width=8, constraint=COMPILED)
        found = found_in(run(make(), [each]), each)
        assert {f.tokens for f in found} <= set(fitting)
        assert len({f.tokens for f in found}) == n
        assert {f.finish for f in found} == {"stop"}
        assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)


def test_fewer_texts_than_choices() -> None:
    each = beam_request("r", 0, 3, 5, constraint=COMPILED)
    found = found_in(run(make(words=[(2, 3)]), [each]), each)
    assert [f.tokens for f in found] == [(2, 3)] * 3


def test_beams_obey_bans() -> None:
    sampling = SamplingParams(min_tokens=3, bad_words=((2,), (0, 1)))
    each = beam_request("r", 5, 4, 6, sampling=sampling)
    for found in found_in(run(make(), [each]), each):
        assert len(found.tokens) >= 3
        assert 2 not in found.tokens
        assert (0, 1) not in zip(found.tokens, found.tokens[1:], strict=False)


def best_of(each: GenerateRequest, num_samples: int) -> GenerateRequest:
    return replace_fields(each, decoding=searching("best-of", num_samples=num_samples))


def replace_fields(each: GenerateRequest, **fields: Any) -> GenerateRequest:
    return msgspec.structs.replace(each, **fields)


@pytest.mark.parametrize("words", [(), LANGUAGE], ids=["free", "constrained"])
def test_best_of_ranks_what_n_draws(words: Sequence[Sequence[int]]) -> None:
    """Penalties and all: its samples are those of the request with n = num_samples."""
    for seed in range(12):
        sampling = SamplingParams(
            seed=seed, temperature=1.3, presence_penalty=0.4, logprobs=0, top_k=5
        )
        fields: dict[str, Any] = {"constraint": COMPILED} if words else {}
        plain = request(
            "r", prompt_of(seed, 20), 7, n=6, sampling=sampling, stop_token_ids=[END], **fields
        )
        drawn = run(make(), [plain])
        ranked = sorted(range(6), key=lambda i: -mean_logprob(drawn["r", i]))
        have = run(make(), [best_of(replace_fields(plain, n=2), 6)])
        for choice in range(2):
            want = drawn["r", ranked[choice]]
            assert have["r", choice].tokens == want.tokens
            assert have["r", choice].finish == want.finish
            result = have["r", choice].deltas[-1].search
            assert result is not None
            assert result.score == pytest.approx(mean_logprob(want))
            assert result.num_sequences == 6
            assert result.num_tokens == sum(num_drawn(drawn["r", i]) for i in range(6))


def num_drawn(answer: Answer) -> int:
    """Return how many tokens were drawn, the stop token among them."""
    return len(answer.tokens) + (answer.deltas[-1].stop_token is not None)


def mean_logprob(answer: Answer) -> float:
    entries = [entry for delta in answer.deltas for entry in delta.logprobs or ()]
    return sum(entry.logprob for entry in entries) / len(entries) if entries else float("-inf")


def test_logprobs_of_what_is_returned() -> None:
    """A beam's entries tell of its own tokens, and best-of's are hidden unless asked for."""
    each = beam_request("r", 2, 2, 6, sampling=SamplingParams(logprobs=2), beam_width=3)
    answers = run(make(), [each])
    for i in range(2):
        entries = [entry for delta in answers["r", i].deltas for entry in delta.logprobs or ()]
        tokens = answers["r", i].tokens
        assert [entry.token_id for entry in entries] == tokens
        for place, entry in enumerate(entries):
            row = text_logits([*each.prompt_token_ids, *tokens[:place]], VOCAB).log_softmax(0)
            assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-5)
            top = sorted(range(VOCAB), key=lambda token: -float(row[token]))[:2]
            assert [token for token, _ in entry.top] == top
    hidden = run(make(), [best_of(request("r", [1, 2], 3), 2)])
    assert all(delta.logprobs is None for delta in hidden["r", 0].deltas)


def test_searches_on_a_transformer_are_seed_stable(tmp_path: Path) -> None:
    """Random requests with a search each: alone, in company, chunked, preempted."""
    model, rng = tiny(tmp_path, "fp32"), random.Random(8)
    requests = []
    for each in random_requests(40, model.vocab_size, seed=8):
        spec = rng.choice(
            [
                searching("beam", beam_width=each.n + rng.randint(0, 2)),
                searching("best-of", num_samples=each.n + rng.randint(0, 3)),
                DecodingSpec(),
            ]
        )
        requests.append(replace_fields(each, decoding=spec))
    check_seed_stable(
        model,
        requests,
        {
            "batch": {"max_num_seqs": 32},
            "chunks": {"max_num_seqs": 32, "max_step_tokens": 24},
            "preemption": {"max_num_seqs": 32, "num_blocks": 14},
        },
    )


def test_nothing_is_left_behind() -> None:
    """Aborted, late or over: every block comes back."""
    engine = make()
    for i in range(6):
        engine.add(beam_request(f"r{i}", i, 3, 30, beam_width=4))
    for _ in range(5):
        engine.step()
    for i in range(5):
        engine.abort(f"r{i}")
    engine.abort("r5", 1)
    while engine.has_work:
        engine.step()
    engine.check_integrity()
    assert engine.stats().kv_blocks_used == 0


def test_a_late_beam_returns_what_it_has() -> None:
    engine = make()
    each = beam_request("r", 1, 2, 30)
    engine.add(replace_fields(each, deadline=0.0))
    reports = [report for _ in range(3) for report in engine.step()]
    assert {getattr(report, "finish_reason", None) for report in reports} == {"deadline"}
    assert not engine.has_work


def test_a_search_that_is_narrower_than_n_is_refused() -> None:
    for spec, param in (
        (searching("beam", beam_width=2), "beam_width"),
        (searching("best-of", num_samples=2), "num_samples"),
    ):
        engine = make()
        engine.add(request("r", [1], 3, n=3, decoding=spec))
        (failed,) = engine.step()
        assert isinstance(failed, Failed)
        assert (failed.error, failed.param) == ("BadRequest", f"decoding.search.{param}")
