"""Fields that the built-in searches can't honour, and those that they can."""

from __future__ import annotations

import time
from typing import Any

import pytest

from plait.decoders.contract.decoding import MethodSpec
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings
from tests.fixtures.stub_pool import StubPool


async def complete(**fields: Any) -> GenerationJob:
    request = CompletionRequest.model_validate({"model": "stub", "prompt": "hi"} | fields)
    context = RequestContext("", time.monotonic())
    return await lower_completion(StubPool(), LimitSettings(), request, context)


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1.0},
        {"repetition_penalty": 1.2},
        {"logit_bias": {"5": 1}},
    ],
    ids=str,
)
async def test_beam_search_refuses_what_it_would_ignore(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="beam can't honour") as caught:
        await complete(use_beam_search=True, **fields)
    assert caught.value.param == next(iter(fields))
    sampled = (await complete(best_of=2, **fields)).requests[0]
    assert sampled.decoding.search == MethodSpec("best-of", {"num_samples": 2})


async def test_neutral_values_pass() -> None:
    job = await complete(
        use_beam_search=True,
        n=2,
        presence_penalty=0,
        repetition_penalty=1,
        logit_bias={},
        temperature=0.5,
    )
    assert job.requests[0].decoding.search == MethodSpec("beam", {"beam_width": 2})


async def test_unknown_options_are_refused() -> None:
    with pytest.raises(BadRequest, match="beam has no option 'width'") as caught:
        await complete(decoding={"search": {"name": "beam", "beam_width": 2, "width": 2}})
    assert caught.value.param == "decoding.search.width"
