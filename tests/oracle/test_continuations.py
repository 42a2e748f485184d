"""The law of the scores of continuations: teacher-forced, exact, whatever else is in the batch."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plait.decoders.autoregressive.decoder import AutoregressiveDecoder
from plait.decoders.continuations.decoder import ContinuationDecoder, continuation_tree
from plait.decoders.contract.decoder import Decoder
from plait.decoders.contract.decoding import PromptExtras
from plait.server.settings import EngineSettings
from plait.server.wire.messages import Delta, Failed, GenerateRequest
from tests.fixtures.engine_pool import engine_pool
from tests.fixtures.engines import Answer, drain, note, request, run, table_engine
from tests.fixtures.table_model import text_logits
from tests.fixtures.tiny_models import write_tiny_model

VOCAB = 6
ALL_OF_THREE = [list(p) for n in (1, 2, 3) for p in itertools.product(range(VOCAB), repeat=n)]


def teacher_forced(prompt: list[int], continuation: list[int]) -> float:
    """Return the log-probability of a continuation, token after token, off the table."""
    total = 0.0
    for i, token in enumerate(continuation):
        row = text_logits([*prompt, *continuation[:i]], VOCAB).double()
        total += float(row.log_softmax(0)[token])
    return total


def scored(name: str, prompt: list[int], continuations: list[list[int]]) -> GenerateRequest:
    longest = max(map(len, continuations))
    extras = PromptExtras(continuations=continuations)
    return request(name, prompt, longest, extras=extras, affinity="continuations")


def engine(**settings: Any) -> Any:
    decoders: dict[str, Decoder[Any]] = {
        "plain": AutoregressiveDecoder(VOCAB),
        "continuations": ContinuationDecoder(),
    }
    return table_engine(
        decoders,
        num_blocks=settings.pop("num_blocks", 256),
        settings=EngineSettings(**settings),
    )


def scores_of(answer: Answer) -> list[float]:
    (delta,) = answer.deltas
    assert (delta.finish_reason, delta.token_ids) == ("stop", [])
    assert delta.scores is not None
    return delta.scores.logprobs


def test_equal_beginnings_are_one_row_and_last_tokens_none() -> None:
    tree = continuation_tree([[1], [2, 3], [2, 4, 5], [2, 3, 1]])
    assert (tree.token_ids, tree.parents) == ([2, 4, 3], [-1, 0, 0])
    assert tree.paths[2] == [(-1, 2), (0, 4), (1, 5)]


def test_every_continuation_has_its_teacher_forced_logprob() -> None:
    prompt = [1, 2, 3, 4, 5, 0, 1]
    have = scores_of(run(engine(), [scored("a", prompt, ALL_OF_THREE)])["a", 0])
    want = [teacher_forced(prompt, each) for each in ALL_OF_THREE]
    assert have == pytest.approx(want, abs=1e-9)
    triples = [x for x, each in zip(have, ALL_OF_THREE, strict=True) if len(each) == 3]
    assert np.exp(triples).sum() == pytest.approx(1.0)


DISTURBANCES: dict[str, dict[str, Any]] = {
    "alone": {"max_num_seqs": 1, "prefix_caching": False},
    "together": {},
    "cached": {"prefix_caching": True},
    "small steps": {"max_step_tokens": 8},
    "few blocks": {"num_blocks": 16, "max_num_seqs": 8},
}


@pytest.mark.parametrize("settings", DISTURBANCES.values(), ids=DISTURBANCES)
def test_nothing_else_in_the_engine_changes_a_score(settings: dict[str, Any]) -> None:
    rng = random.Random(3)
    shared = [rng.randrange(VOCAB) for _ in range(40)]
    prompts = [[*shared[: rng.randrange(1, 41)], i % VOCAB] for i in range(12)]
    words = rng.sample(ALL_OF_THREE, 9)
    wanted = {f"s{i}": [teacher_forced(p, w) for w in words] for i, p in enumerate(prompts)}
    requests = [scored(f"s{i}", prompt, words) for i, prompt in enumerate(prompts)]
    plain = [request(f"p{i}", prompt, 9, affinity="plain") for i, prompt in enumerate(prompts)]
    mixed = [each for pair in zip(requests, plain, strict=True) for each in pair]
    rng.shuffle(mixed)
    made = engine(**settings)
    for _ in range(2):  # the second time the prefix cache is hot
        answers = run(made, mixed)
        for name, want in wanted.items():
            assert scores_of(answers[name, 0]) == pytest.approx(want, abs=1e-9), name


def test_preemption_changes_no_score() -> None:
    made = engine(num_blocks=9, max_step_tokens=16, prefix_caching=False)
    prompts = [[i % VOCAB] * 50 for i in range(4)]
    answers = run(made, [scored(f"s{i}", p, ALL_OF_THREE[:50]) for i, p in enumerate(prompts)])
    for i, prompt in enumerate(prompts):
        want = [teacher_forced(prompt, each) for each in ALL_OF_THREE[:50]]
        assert scores_of(answers[f"s{i}", 0]) == pytest.approx(want, abs=1e-9)


def test_one_that_can_not_be_scored_fails_alone() -> None:
    good, bad = scored("good", [1, 2], [[3]]), scored("bad", [1, 2], [[3]])
    made = engine()
    made.add(good)
    made.add(bad)
    bad.extras.continuations[0][0] = VOCAB  # behind the check of admission
    reports = made.step()
    (failed,) = [each for each in reports if isinstance(each, Failed)]
    assert (failed.request_id, failed.error) == ("bad", "Internal")
    (delta,) = [each for each in reports if isinstance(each, Delta)]
    assert delta.scores is not None
    assert delta.scores.logprobs == pytest.approx([teacher_forced([1, 2], [3])])


def test_one_pass_scores_a_short_prompt() -> None:
    made = engine()
    made.add(scored("a", [1, 2, 3], ALL_OF_THREE))
    answers: dict[tuple[str, int], Answer] = {("a", 0): Answer()}
    note(answers, made.step())
    assert len(scores_of(answers["a", 0])) == len(ALL_OF_THREE)
    assert drain(made) == {}


def test_the_hidden_state_is_what_the_logits_are_made_of(tmp_path: Path) -> None:
    pool = engine_pool(write_tiny_model(tmp_path / "model"))
    prompt = [5, 6, 7, 8]
    extras = PromptExtras(continuations=[[9], [10, 11]], wants_hidden=True)
    (delta,) = run(pool.engine, [request("a", prompt, 2, extras=extras)])["a", 0].deltas
    assert delta.scores is not None
    model = pool.engine._runner.model
    hidden = torch.frombuffer(bytearray(delta.scores.hidden), dtype=torch.float32)
    row = model.logits(hidden[None])[0].double().log_softmax(0)
    assert delta.scores.logprobs[0] == pytest.approx(float(row[9]), abs=1e-4)
