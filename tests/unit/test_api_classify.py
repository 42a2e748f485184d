"""/v1/classify: scores are teacher-forced log-probabilities, combined as the request says."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import httpx
import msgspec
import pytest

from plait.server.api.app import create_app
from plait.server.api.classify.run import num_shared
from plait.server.api.interfaces import PoolLike
from plait.server.settings import ApiSettings, LimitSettings
from plait.server.telemetry.telemetry import Telemetry
from tests.fixtures.engine_pool import EnginePool, engine_pool
from tests.fixtures.running_server import QUIET
from tests.fixtures.stub_pool import INFO, StubModel, StubPool
from tests.fixtures.tiny_models import write_tiny_model

CLASSES = {"good": [" great", " not bad at all"], "bad": [" terrible"], "x": " no"}
LONG = "These are reviews of films, with what their authors thought of them. "
TEMPLATES = ["Review: {input}\nIt is", LONG + '{"text": "{input}"}\nThe film is']
INPUTS = ["A fine film.", "", "I <|im_end|> left early, and so did all the others in the room."]
BODY: dict[str, Any] = {"input": INPUTS, "classes": CLASSES, "template": TEMPLATES, "trace": True}


@dataclass
class Fixture:
    """A tiny real model behind the route."""

    pool: EnginePool

    async def classify(self, **changes: Any) -> dict[str, Any]:
        async with client_of(self.pool) as client:
            have = await client.post("/v1/classify", json=BODY | changes)
            assert have.status_code == 200, have.text
            answer: dict[str, Any] = have.json()
            return answer

    async def teacher_forced(self, template: str, text: str, word: str) -> float:
        """Return the sum of the logprobs of a word's tokens, by echo of /v1/completions."""
        tokenizer = self.pool.tokenizer
        prompt = tokenizer.encode(
            template.replace("{input}", tokenizer.quote(text)), special=True, prefix=True
        )
        ids = tokenizer.encode_inside(word)
        body = {"prompt": [*prompt, *ids], "max_tokens": 1, "prompt_logprobs": 0}
        async with client_of(self.pool) as client:
            have = (await client.post("/v1/completions", json=body)).json()
        entries = have["choices"][0]["prompt_logprobs"][len(prompt) :]
        return math.fsum(entry[str(i)]["logprob"] for entry, i in zip(entries, ids, strict=True))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return Fixture(engine_pool(write_tiny_model(tmp_path_factory.mktemp("tiny"))))


@asynccontextmanager
async def client_of(pool: PoolLike, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ApiSettings(**settings), pool, Telemetry(QUIET))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


def class_scores_of(answer: dict[str, Any]) -> list[list[float]]:
    return [list(each["scores"].values()) for each in answer["data"]]


async def test_every_word_has_its_teacher_forced_logprob(tiny: Fixture) -> None:
    answer = await tiny.classify()
    for i, text in enumerate(INPUTS):
        for t, template in enumerate(TEMPLATES):
            have = answer["data"][i]["templates"][t]
            for name, words in CLASSES.items():
                listed = [words] if isinstance(words, str) else words
                want = [await tiny.teacher_forced(template, text, word) for word in listed]
                assert have["logprobs"][name] == pytest.approx(want, abs=2e-5)
                empty = [await tiny.teacher_forced(template, "", word) for word in listed]
                assert have["empty_logprobs"][name] == pytest.approx(empty, abs=2e-5)


async def test_calibration_subtracts_what_the_empty_input_gives(tiny: Fixture) -> None:
    answer = await tiny.classify()
    for each in answer["data"]:
        for name in CLASSES:
            want = [
                fmean(t["logprobs"][name]) - fmean(t["empty_logprobs"][name])
                for t in each["templates"]
            ]
            assert each["scores"][name] == pytest.approx(fmean(want), abs=1e-12)
    assert answer["data"][1]["scores"] == dict.fromkeys(CLASSES, 0.0)  # the empty input itself
    plain = await tiny.classify(calibrate=False)
    assert "empty_logprobs" not in plain["data"][0]["templates"][0]
    template = plain["data"][0]["templates"][0]
    assert template["scores"]["good"] == pytest.approx(fmean(template["logprobs"]["good"]))


async def test_words_are_combined_as_the_request_says(tiny: Fixture) -> None:
    words = (await tiny.classify(calibrate=False))["data"][0]["templates"][0]["logprobs"]
    want = {
        "mean": fmean(words["good"]),
        "max": max(words["good"]),
        "sum": math.log(sum(math.exp(value) for value in words["good"])),
    }
    for combine, value in want.items():
        answer = await tiny.classify(calibrate=False, combine=combine)
        have = answer["data"][0]["templates"][0]["scores"]
        assert have["good"] == pytest.approx(value, abs=1e-12)
        assert have["x"] == words["x"][0]


async def test_the_class_is_the_likeliest_and_probabilities_are_its_softmax(tiny: Fixture) -> None:
    answer = await tiny.classify()
    for each in answer["data"]:
        scores, chances = each["scores"], each["probabilities"]
        assert scores[each["class"]] == max(scores.values())
        assert sum(chances.values()) == pytest.approx(1.0)
        odds = math.log(chances["good"] / chances["bad"])
        assert odds == pytest.approx(scores["good"] - scores["bad"])
    assert answer["data"][1]["class"] == "good"  # all are equal: the first


async def test_order_batching_and_the_prefix_cache_change_nothing(tiny: Fixture) -> None:
    want = class_scores_of(await tiny.classify())
    assert class_scores_of(await tiny.classify(cache_salt="cold")) == want
    turned = await tiny.classify(input=INPUTS[::-1], cache_salt="cold2")
    assert class_scores_of(turned)[::-1] == want
    alone = [await tiny.classify(input=text, cache_salt=f"alone {text}") for text in INPUTS]
    assert [class_scores_of(each)[0] for each in alone] == want


async def test_inputs_share_the_beginning_of_their_template(tiny: Fixture) -> None:
    template = LONG + "{input} It is"
    body = {"template": template, "cache_salt": "shared", "calibrate": False}
    usage = (await tiny.classify(**body))["usage"]
    shared = len(tiny.pool.tokenizer.encode(LONG, special=True, prefix=True)) // 16 * 16
    assert shared >= 32
    assert usage["prompt_tokens_details"]["cached_tokens"] >= shared * (len(INPUTS) - 1)
    assert usage["completion_tokens"] == 0
    assert usage["total_tokens"] == usage["prompt_tokens"]


async def test_an_input_can_not_write_special_tokens(tiny: Fixture) -> None:
    tokenizer = tiny.pool.tokenizer
    plain = len(tokenizer.encode("<|im_end|>", prefix=False))
    assert plain > 1
    one = {"template": "<|im_start|>{input}", "calibrate": False}
    counts = [
        (await tiny.classify(input=text, **one))["usage"]["prompt_tokens"]
        for text in ("a", "a<|im_end|>")
    ]
    assert counts[1] - counts[0] == plain


def test_shared_beginnings() -> None:
    assert num_shared([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert num_shared([[1, 2, 3]]) == num_shared([]) == num_shared([[1], [2]]) == 0


BAD = [
    ({"classes": {}}, "classes"),
    ({"classes": {"a": " a"}}, "classes"),
    ({"classes": {"a": " a", "b": []}}, "classes.b"),
    ({"classes": {"a": " a", "b": ""}}, "classes.b"),
    ({"classes": {"a": " a", "b": [" b", " "]}}, "classes.b[1]"),
    ({"classes": {"a": [" a", " c"], "b": [" b", " c"]}}, "classes.b[1]"),
    ({"classes": {"a": [" a", " a"], "b": " b"}}, "classes.a[1]"),
    ({"classes": {"a": ["a" * 600], "b": ["b" * 600]}}, "classes"),
    ({"classes": {"a": ["a" * 5000], "b": ["b"]}}, "classes"),
    ({"template": "no place"}, "template"),
    ({"template": ["{input}?", "{inputs}?"]}, "template[1]"),
    ({"template": []}, "template"),
    ({"template": "{input}"}, "template"),  # an empty prompt, to calibrate with
    ({"template": "{input}" + "a" * 3000}, "template"),
    ({"input": []}, "input"),
    ({"input": "a" * 3000}, "input"),
    ({"input": ["a", "a" * 2044]}, "input[1]"),
    ({"input": ["a"] * 200}, "input"),
    ({"input": 3}, "input"),
    ({"combine": "product"}, "combine"),
    ({"model": "other"}, "model"),
    ({"cache_salt": "x" * 200}, "cache_salt"),
    ({"labels": ["a"]}, "labels"),
    ({"deadline_ms": 0}, "deadline_ms"),
]


@pytest.mark.parametrize(("change", "param"), BAD)
async def test_what_can_not_be_classified_is_named(change: dict[str, Any], param: str) -> None:
    body = {"input": "a", "classes": {"a": " a", "b": " b"}, "template": ["{input}:", "a {input}:"]}
    async with client_of(StubPool()) as client:
        have = await client.post("/v1/classify", json=body | change)
    assert have.status_code == (404 if param == "model" else 400), have.text
    assert have.json()["error"]["param"] == param


async def test_a_prompt_that_the_operator_does_not_allow_is_refused() -> None:
    body = {"input": ["a", "b"], "classes": {"a": "a", "b": "b"}, "template": "{input}:"}
    limits = LimitSettings(max_sequences_per_request=2)
    async with client_of(StubPool(), limits=limits) as client:
        have = await client.post("/v1/classify", json=body)
        assert (have.status_code, have.json()["error"]["param"]) == (400, "input")
        have = await client.post("/v1/classify", json=body | {"calibrate": False})
        assert have.status_code == 200


async def test_a_model_that_scores_nothing_is_refused() -> None:
    info = msgspec.structs.replace(INFO, capabilities=["canvas"])
    body = {"input": "a", "classes": {"a": "a", "b": "b"}, "template": "{input}:"}
    async with client_of(StubPool(served=[StubModel(info=info)])) as client:
        have = await client.post("/v1/classify", json=body)
    assert (have.status_code, have.json()["error"]["param"]) == (400, "model")


async def test_one_prompt_goes_first_where_all_begin_alike() -> None:
    pool = StubPool()
    body = {"input": ["a", "b"], "classes": {"a": "a", "b": "b"}, "template": LONG + "{input}:"}
    async with client_of(pool) as client:
        await client.post("/v1/classify", json=body)
    assert [each.extras.continuations for each in pool.requests] == [[[97], [98]]] * 3
    assert all(each.max_tokens == 1 for each in pool.requests)


async def test_an_error_of_the_worker_ends_the_request() -> None:
    pool = StubPool()
    pool.readiness = type(pool.readiness)(ok=False, reason="draining")
    body = {"input": ["a", "b"], "classes": {"a": "a", "b": "b"}, "template": "{input}:"}
    async with client_of(pool) as client:
        have = await client.post("/v1/classify", json=body)
    assert have.status_code == 503
    assert pool.running == 0
