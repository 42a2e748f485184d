"""Searches: by name, and by the fields that OpenAI and vLLM have for them; whom errors name."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import UNSET, structs
from pydantic import Field

from plait.decoders.contract import registry
from plait.decoders.contract.decoding import AutoregressiveMethods, MethodSpec
from plait.decoders.contract.registry import Method, Options
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.api.requests.chat import lower_chat
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.decoding import client_field
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.responses.outputs import GenerationOutput
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings
from plait.server.wire.messages import Delta, GenerateRequest, SearchResult
from tests.fixtures.stub_pool import INFO, Event, StubModel, StubPool

LIMITS = LimitSettings(max_n=8, max_sequences_per_request=12)
CHAT = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}


class BestOfOptions(Options):
    num_samples: int = Field(ge=1, le=6)


class BeamOptions(Options):
    beam_width: int = Field(ge=1)
    length_penalty: float = 1.0


@pytest.fixture(autouse=True)
def searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods of the two names, whatever is built in."""
    best_of = Method("search", "best-of", "", "", "", options=BestOfOptions)
    beam = Method("search", "beam", "", "", "", options=BeamOptions, num_sequences="beam_width")
    known = {
        **registry.methods(),
        ("search", "best-of"): best_of,
        ("search", "beam"): beam,
    }
    monkeypatch.setattr(registry, "methods", lambda: known)


async def complete(pool: StubPool | None = None, **fields: Any) -> GenerationJob:
    request = CompletionRequest.model_validate({"model": "stub", "prompt": "hi"} | fields)
    context = RequestContext("", time.monotonic())
    return await lower_completion(pool or StubPool(), LIMITS, request, context)


async def chat(pool: StubPool | None = None, **fields: Any) -> GenerationJob:
    request = ChatRequest.model_validate(CHAT | fields)
    return await lower_chat(
        pool or StubPool(), LIMITS, request, RequestContext("", time.monotonic())
    )


def best_of(num_samples: int) -> MethodSpec:
    return MethodSpec("best-of", {"num_samples": num_samples})


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"best_of": 4}, best_of(4)),
        ({"n": 2, "best_of": 3}, best_of(3)),
        ({"n": 2, "decoding": {"search": {"name": "best-of", "num_samples": 5}}}, best_of(5)),
        ({"use_beam_search": True, "n": 3}, MethodSpec("beam", {"beam_width": 3})),
        (
            {"use_beam_search": True, "length_penalty": 0.5, "stream": True},
            MethodSpec("beam", {"beam_width": 1, "length_penalty": 0.5}),
        ),
    ],
)
async def test_a_search_travels_resolved(fields: dict[str, Any], want: MethodSpec) -> None:
    request = (await complete(**fields)).requests[0]
    assert (request.decoding.search, request.n) == (want, fields.get("n", 1))
    if "best_of" not in fields:
        assert (await chat(**fields)).requests[0].decoding.search == want


async def test_what_asks_for_no_search_has_that_of_silence() -> None:
    silent = (await complete()).requests[0].decoding
    silence: list[dict[str, Any]] = [
        {"best_of": 1},
        {"use_beam_search": False, "length_penalty": 1},
    ]
    for fields in silence:
        assert (await complete(**fields)).requests[0].decoding == silent
    assert (await complete(n=2, best_of=2)).requests[0].decoding == silent


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"n": 3, "best_of": 2}, "best_of", "at least n"),
        ({"best_of": 9}, "best_of", "at most 8"),
        ({"best_of": 7}, "best_of", "less than or equal to 6"),
        ({"best_of": 2, "stream": True}, "best_of", "stream"),
        ({"best_of": 2, "use_beam_search": True}, "best_of", "use_beam_search"),
        ({"prompt": ["a", "b", "c"], "best_of": 5}, "best_of", "prompts x best_of"),
        (
            {"decoding": {"search": {"name": "beam", "beam_width": 9}}},
            "decoding.search.beam_width",
            "at most 8",
        ),
        (
            {"prompt": ["a", "b"], "decoding": {"search": {"name": "beam", "beam_width": 7}}},
            "decoding.search.beam_width",
            "at most 12",
        ),
        ({"best_of": 2, "decoding": {"search": "beam"}}, "best_of", "decoding.search"),
        ({"length_penalty": 2}, "length_penalty", "use_beam_search"),
        (
            {"decoding": {"search": {"name": "best-of", "num_samples": 7}}},
            "decoding.search.num_samples",
            "less than or equal to 6",
        ),
    ],
)
async def test_errors_name_the_field_that_was_used(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(BadRequest, match=words) as caught:
        await complete(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("param", "fields", "want"),
    [
        ("prompt", {}, "prompt"),
        ("max_tokens", {"max_tokens": 3}, "max_tokens"),
        ("decoding.search.num_samples", {"best_of": 2}, "best_of"),
        ("decoding.search", {"use_beam_search": True}, "use_beam_search"),
        ("decoding.search", {"decoding": {"search": "off"}}, "decoding.search"),
        ("decoding.unmasker", {"best_of": 2}, "decoding.unmasker"),
    ],
)
async def test_a_workers_refusal_names_the_field_that_was_used(
    several: bool, param: str, fields: dict[str, Any], want: str
) -> None:
    prompt = ["a", "b"] if several else "a"
    assert await refused(param, await complete(prompt=prompt, **fields)) == want


async def test_a_workers_refusal_of_a_chat_names_its_fields() -> None:
    assert await refused("prompt", await chat()) == "messages"
    assert await refused("max_tokens", await chat(max_tokens=3)) == "max_tokens"
    both = await chat(max_tokens=3, max_completion_tokens=4)
    assert await refused("max_tokens", both) == "max_completion_tokens"


async def refused(param: str, job: GenerationJob) -> str | None:
    """Return the field that the client is told when a worker refuses the job for `param`."""

    async def refuse(request: GenerateRequest) -> AsyncIterator[Event]:
        raise BadRequest("no", param=param)
        yield

    pool = StubPool()
    pool.scripts.extend([refuse] * len(job.requests))
    with pytest.raises(BadRequest) as caught:
        async for _ in GenerationOutput(pool, job).deltas():
            pass
    return caught.value.param


async def test_a_dead_end_is_an_error_that_says_so() -> None:
    """A text that its constraint's checks let nothing follow is never passed off as complete."""

    async def stuck(request: GenerateRequest) -> AsyncIterator[Event]:
        yield Delta(request.request_id, 0, [97])
        yield Delta(request.request_id, 0, [], finish_reason="dead_end")

    pool = StubPool()
    pool.scripts.append(stuck)
    with pytest.raises(BadRequest, match="refuse every token") as caught:
        async for _ in GenerationOutput(pool, await complete()).deltas():
            pass
    assert caught.value.code == "dead_end"


async def test_usage_counts_what_was_searched_beside_what_is_returned() -> None:
    async def searched(request: GenerateRequest) -> AsyncIterator[Event]:
        for index in range(request.n):
            result = SearchResult(-0.5, 0.0, 6, 40)
            yield Delta(request.request_id, index, [97, 98], finish_reason="length", search=result)

    pool = StubPool()
    pool.scripts.extend([searched] * 2)
    output = GenerationOutput(pool, await complete(prompt=["a", "b"], n=2, best_of=6))
    async for _ in output.deltas():
        pass
    usage = output.usage()
    assert usage.completion_tokens == 8
    assert usage.completion_tokens_details.searched_tokens == 80
    plain = GenerationOutput(StubPool(), await complete())
    async for _ in plain.deltas():
        pass
    assert plain.usage().completion_tokens_details.searched_tokens is UNSET


async def test_a_diffusion_model_may_be_searched() -> None:
    spec = DiffusionSpec(mask_id=258, eos_ids=(255,), attention="block", block_size=32)
    info = structs.replace(INFO, capabilities=["canvas", "search"], diffusion=spec)
    job = await complete(StubPool([StubModel(info=info)]), best_of=4)
    assert job.requests[0].decoding.search == best_of(4)
    with pytest.raises(BadRequest, match="smc is a search of models that write one") as caught:
        await complete(StubPool([StubModel(info=info)]), decoding={"search": "smc"})
    assert caught.value.param == "decoding.search"


async def test_samples_of_structured_output_are_named_with_their_sampler() -> None:
    decoding = {
        "search": {"name": "smc", "num_particles": 6},
        "sampler": {"name": "awrs", "preset": "genlm", "max_accepts": 3},
    }
    spec = (await complete(decoding=decoding)).requests[0].decoding
    assert spec.search == MethodSpec("smc", {"num_particles": 6})
    methods = spec.methods
    assert isinstance(methods, AutoregressiveMethods)
    assert methods.sampler == MethodSpec("awrs", {"estimator": "genlm", "max_accepts": 3})


@pytest.mark.parametrize(
    ("search", "param"),
    [
        ({"name": "smc", "num_particles": 9}, "decoding.search.num_particles"),
        ({"name": "smc", "resampling": "best"}, "decoding.search.resampling"),
        ({"name": "cars", "num_parallel": 9}, "decoding.search.num_parallel"),
        ({"name": "mcmc", "cut": "middle"}, "decoding.search.cut"),
        ({"name": "asap", "num_samples": 0}, "decoding.search.num_samples"),
    ],
)
async def test_samples_that_are_too_many_or_unknown_are_refused(
    search: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        await complete(decoding={"search": search})
    assert caught.value.param == param


def test_fields_are_renamed_with_all_that_is_within_them() -> None:
    fields = {"prompt": "messages"}
    for param, want in {
        "prompt": "messages",
        "prompt.x": "messages",
        "prompt_logprobs": "prompt_logprobs",
        None: None,
    }.items():
        assert client_field(fields, param) == want
