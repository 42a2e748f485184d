"""Shapes of log-probabilities, on whatever server conftest names: every kind of worker is alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.fixtures.capability_probes import CHAT, COMPLETIONS, Client
from tests.fixtures.prompts import text_options_of

ROUNDING = 1e-3  # of a sum of probabilities


@pytest.fixture
def target(http: httpx.Client, model: str) -> Client:
    return Client(http, model)


@pytest.fixture
def scoring(http: httpx.Client, scoring_model: str) -> Client:
    """A server that tells of prompts."""
    return Client(http, scoring_model)


@pytest.fixture
def lawful(http: httpx.Client, scoring_model: str) -> Client:
    """A server whose logprobs are a model's, greedy tokens its likeliest."""
    if scoring_model == "stub":
        pytest.skip("a stub has no distribution")
    return Client(http, scoring_model)


def chat_entries(target: Client, **fields: Any) -> list[dict[str, Any]]:
    """Return the entries of a chat's first choice."""
    (choice,) = target.ask(CHAT, {"logprobs": True, **fields})["choices"]
    entries: list[dict[str, Any]] = choice["logprobs"]["content"]
    assert entries
    return entries


def complete(target: Client, **fields: Any) -> dict[str, Any]:
    """Return the first choice of a completion."""
    asked = text_options_of(target.model) | {"return_token_ids": True} | fields
    choice: dict[str, Any] = target.ask(COMPLETIONS, asked)["choices"][0]
    return choice


def is_ranked(values: Sequence[float]) -> bool:
    return all(a >= b for a, b in pairwise(values))


def mass(logprobs: Sequence[float]) -> float:
    return math.fsum(map(math.exp, logprobs))


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_chats_have_as_many_alternatives_as_asked(target: Client, count: int) -> None:
    for entry in chat_entries(target, top_logprobs=count):
        top = entry["top_logprobs"]
        assert len(top) == count
        assert is_ranked([each["logprob"] for each in top])
        assert all(each["logprob"] <= 0 for each in (entry, *top))
        for each in (entry, *top):
            spelled = bytes(each["bytes"])
            escaped = "".join(f"\\x{byte:02x}" for byte in spelled)
            assert each["token"] == escaped or each["token"].encode() == spelled


@pytest.mark.parametrize("count", [1, 5, 20])
def test_alternatives_are_a_part_of_the_distribution(lawful: Client, count: int) -> None:
    for entry in chat_entries(lawful, top_logprobs=count, temperature=1):
        shown = {(tuple(e["bytes"]), e["logprob"]) for e in (entry, *entry["top_logprobs"])}
        assert len(shown) in (count, count + 1), "a token stands twice, with two logprobs"
        assert mass([logprob for _, logprob in shown]) <= 1 + ROUNDING
        least = entry["top_logprobs"][-1]["logprob"]
        is_among = (tuple(entry["bytes"]), entry["logprob"]) in {
            (tuple(e["bytes"]), e["logprob"]) for e in entry["top_logprobs"]
        }
        assert is_among or entry["logprob"] <= least


def test_a_greedy_token_is_the_first_alternative(lawful: Client) -> None:
    for entry in chat_entries(lawful, top_logprobs=1, temperature=0):
        assert entry["top_logprobs"] == [{k: entry[k] for k in ("token", "logprob", "bytes")}]


def test_fewer_alternatives_are_the_first_of_more(lawful: Client) -> None:
    many, few = (chat_entries(lawful, top_logprobs=k, temperature=1) for k in (20, 5))
    for one, other in zip(many, few, strict=True):
        assert one["top_logprobs"][:5] == other["top_logprobs"]


@pytest.mark.parametrize("count", range(6))
def test_completions_have_the_token_and_its_alternatives(target: Client, count: int) -> None:
    choice = complete(target, logprobs=count)
    shown = choice["logprobs"]
    assert "".join(shown["tokens"]) == choice["text"] or "bytes:" in "".join(shown["tokens"])
    lists = shown["tokens"], shown["token_logprobs"], shown["top_logprobs"], shown["text_offset"]
    for token, logprob, top, _ in zip(*lists, strict=True):
        assert token in top
        assert 1 <= len(top) <= count + 1  # of tokens that are spelled alike one is shown
        assert is_ranked([*top.values()][:count])
        assert logprob <= 0
        assert top[token] >= logprob


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_prompt_has_its_tokens_and_their_alternatives(
    scoring: Client, path: str, count: int
) -> None:
    have = scoring.ask(path, {"prompt_logprobs": count, "return_token_ids": True, "max_tokens": 2})
    told = have if path == CHAT else have["choices"][0]
    tokens, scores = told["prompt_token_ids"], told["prompt_logprobs"]
    assert scores[0] is None
    for token, entry in zip(tokens[1:], scores[1:], strict=True):
        own = entry[str(token)]
        best = sorted((e for e in entry.values() if e["rank"]), key=lambda e: e["rank"])
        assert [each["rank"] for each in best] == [*range(1, count + 1)]
        assert len(entry) == count + (own["rank"] is None)
        assert is_ranked([each["logprob"] for each in best])
        assert all(isinstance(each["decoded_token"], str) for each in entry.values())
        if scoring.model != "stub":
            assert mass([each["logprob"] for each in entry.values()]) <= 1 + ROUNDING
            assert own["rank"] or not best or own["logprob"] <= best[-1]["logprob"]


@pytest.mark.parametrize("counts", [(1, 5), (5, 1), (0, 3), (3, 0)])
def test_an_echo_has_its_own_number_of_alternatives(
    scoring: Client, counts: tuple[int, int]
) -> None:
    echoed, scored = counts
    choice = complete(scoring, echo=True, logprobs=echoed, prompt_logprobs=scored, max_tokens=2)
    num_tokens = len(choice["prompt_token_ids"])
    shown = choice["logprobs"]
    alternatives = shown["top_logprobs"][1:num_tokens]
    assert all(len(top) <= echoed + 1 for top in alternatives)
    assert any(len(top) >= echoed for top in alternatives)
    entries = choice["prompt_logprobs"][1:]
    assert {len([e for e in each.values() if e["rank"]]) for each in entries} == {scored}
    own = [
        entry[str(token)]["logprob"]
        for token, entry in zip(choice["prompt_token_ids"][1:], entries, strict=True)
    ]
    assert shown["token_logprobs"][:num_tokens] == [None, *own]


@pytest.mark.parametrize("n", [1, 3])
def test_each_choice_has_its_own(target: Client, n: int) -> None:
    have = target.ask(CHAT, {"logprobs": True, "top_logprobs": 2, "n": n, "temperature": 1})
    for choice in have["choices"]:
        entries = choice["logprobs"]["content"]
        spelled = b"".join(bytes(entry["bytes"]) for entry in entries)
        assert spelled.decode(errors="replace") == choice["message"]["content"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"top_logprobs": 1}, "top_logprobs"),
        (COMPLETIONS, {"logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt_logprobs": 21}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
def test_what_is_too_much_is_refused(
    target: Client, path: str, fields: dict[str, Any], param: str
) -> None:
    have = target.send(path, fields)
    assert (have.status_code, have.json()["error"]["param"]) == (400, param)
