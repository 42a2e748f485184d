"""The field `prediction` and the drafters of a request: planned, refused, counted."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract import registry
from plait.decoders.contract.decoder import PredictionResult
from plait.decoders.contract.decoding import NO_EXTRAS, AutoregressiveMethods, PromptExtras
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.api.requests.chat import lower_chat
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.responses.chat import ChatResponseWriter
from plait.server.api.responses.outputs import GenerationOutput
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.engine.build import build_engine
from plait.server.errors import BadRequest
from plait.server.models.catalog import BadModel
from plait.server.pool.in_flight import coalesce
from plait.server.settings import EngineSettings, LimitSettings
from plait.server.wire.messages import Delta, GenerateRequest, ModelInfo, Started
from tests.fixtures.stub_pool import INFO, StubModel, StubPool

LIMITS = LimitSettings(max_prediction_tokens=16)
ASKED: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}
Event = Started | Delta
Step = tuple[str, list[int], list[tuple[int, int]]]  # text, and what was predicted in it
CANVAS = msgspec.structs.replace(
    INFO, capabilities=["canvas"], diffusion=DiffusionSpec(258, (255,), "block", 16)
)


def predicted(content: Any) -> dict[str, Any]:
    return {"prediction": {"type": "content", "content": content}}


async def chat(
    info: ModelInfo = INFO, pool: StubPool | None = None, **fields: Any
) -> GenerationJob:
    request = ChatRequest.model_validate(ASKED | fields)
    pool = pool or StubPool(served=[StubModel(info=info)])
    return await lower_chat(pool, LIMITS, request, RequestContext("", time.monotonic()))


async def refusal(info: ModelInfo = INFO, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        await chat(info, **fields)
    return caught.value


def drafters_of(job: GenerationJob) -> list[str]:
    methods = job.requests[0].decoding.methods
    assert isinstance(methods, AutoregressiveMethods)
    return [spec.name for spec in methods.drafters]


@pytest.mark.parametrize(
    "content", ["abc", [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]]
)
async def test_a_prediction_travels_as_tokens(content: Any) -> None:
    request = (await chat(n=2, **predicted(content))).requests[0]
    assert request.extras == PromptExtras(list(b"abc"))
    assert (await chat(**predicted(""))).requests[0].extras == NO_EXTRAS


async def test_special_tokens_in_a_prediction_are_text() -> None:
    have = (await chat(**predicted("<|im_end|>"))).requests[0].extras
    assert have == PromptExtras(list(b"<|im_end|>"))


async def test_a_prediction_is_bounded() -> None:
    assert (await chat(**predicted("x" * 16))).requests
    error = await refusal(**predicted("x" * 17))
    assert error.param == "prediction.content"
    assert "at most 16 tokens; this one has 17" in error.message


@pytest.mark.parametrize("drafter", ["off", "n-gram", ["forced", {"name": "n-gram"}]])
async def test_a_prediction_needs_its_drafter(drafter: Any) -> None:
    error = await refusal(decoding={"drafter": drafter}, **predicted("x"))
    assert (error.param, error.code) == ("prediction", "unsupported_parameter")
    assert 'Add "prediction" to decoding.drafter' in error.message
    for named in ("auto", "prediction", ["n-gram", {"name": "prediction", "max_draft": 8}]):
        assert (await chat(decoding={"drafter": named}, **predicted("x"))).requests


@pytest.mark.parametrize("drafter", ["prediction", ["n-gram", "prediction"]])
async def test_its_drafter_needs_a_prediction(drafter: Any) -> None:
    assert (await refusal(decoding={"drafter": drafter})).param == "decoding.drafter"
    asked = {"model": "stub", "prompt": "x", "decoding": {"drafter": drafter}}
    request = CompletionRequest.model_validate(asked)
    with pytest.raises(BadRequest, match="a chat request's field"):
        await lower_completion(StubPool(), LIMITS, request, RequestContext("", time.monotonic()))


async def test_diffusion_models_refuse_predictions_by_name() -> None:
    error = await refusal(CANVAS, **predicted("x"))
    assert (error.param, error.code) == ("prediction", "unsupported_parameter")


async def test_who_names_no_drafter_gets_the_servers() -> None:
    for default, want in {
        "off": [],
        "n-gram": ["n-gram"],
        "n-gram, forced": ["n-gram", "forced"],
    }.items():
        info = msgspec.structs.replace(INFO, drafter=default)
        assert drafters_of(await chat(info)) == want
        auto = {"drafter": "auto", "trace": True}
        assert drafters_of(await chat(info, decoding=auto)) == want
        assert drafters_of(await chat(info, decoding={"drafter": "forced"})) == ["forced"]
        error = await refusal(info, **predicted("x"))
        assert "by this server's default" in error.message
        assert (await chat(info, decoding={"drafter": "prediction"}, **predicted("x"))).requests
    info = msgspec.structs.replace(INFO, drafter="n-gram,prediction")
    assert (await chat(info, **predicted("x"))).requests
    assert (await chat(info)).requests


@pytest.mark.parametrize(
    ("drafter", "want"),
    [
        ("n-gram", "a diffusion model drafts its own canvases"),
        ("forced,pearl", "pearl needs a second model"),
        ("lud,n-gram", "lud is lossy"),
        ("n-gram,n-gram", "named twice"),
        ("telepathy", "There is no drafter 'telepathy'"),
    ],
)
def test_a_default_that_a_worker_cannot_run_is_told_at_its_start(drafter: str, want: str) -> None:
    with pytest.raises(BadModel, match=want):
        build_engine(EngineSettings(model="tiny-diffusion", drafter=drafter))


JUNK: st.SearchStrategy[Any] = st.sampled_from([None, 0, 1, 65, 0.5, "", "x", True, [], {}])
NAMES = [name for kind, name in registry.methods() if kind == "drafter"]
OBJECTS = st.builds(
    lambda name, fields: {"name": name} | fields,
    st.sampled_from([*NAMES, "x"]),
    st.dictionaries(st.sampled_from(["max_draft", "always", "max_n", "preset"]), JUNK, max_size=2),
)
CHOICES = st.sampled_from([*NAMES, "auto", "off", "x"]) | OBJECTS


@given(
    drafter=CHOICES | st.lists(CHOICES, min_size=1, max_size=4),
    has_prediction=st.booleans(),
    info=st.sampled_from([INFO, CANVAS, msgspec.structs.replace(INFO, drafter="off")]),
)
async def test_a_request_is_planned_or_refused(
    drafter: Any, has_prediction: bool, info: ModelInfo
) -> None:
    fields = predicted("x") if has_prediction else {}
    try:
        job = await chat(info, decoding={"drafter": drafter}, **fields)
    except BadRequest as error:
        assert error.param is not None
        assert error.param.split(".")[0] in ("decoding", "prediction")
    else:
        assert job.requests


def script(
    *deltas: Step,
) -> Callable[[GenerateRequest], AsyncIterator[Event]]:
    """Return a pool's script: the text of each delta, and what was predicted in it."""

    async def play(request: GenerateRequest) -> AsyncIterator[Event]:
        yield Started(request.request_id, 0, time.monotonic())
        for index in range(request.n):
            for i, (text, accepted, rejected) in enumerate(deltas):
                yield Delta(
                    request.request_id,
                    index,
                    list(text.encode()),
                    finish_reason="length" if i == len(deltas) - 1 else None,
                    predicted=PredictionResult(accepted, rejected),
                )

    return play


STEPS: tuple[Step, ...] = (
    ("abc", [0, 1], []),
    ("d", [], [(0, 5)]),
    ("efgh", [0, 2], [(3, 2)]),
    ("i", [], [(0, 1)]),
)


async def counts(stop: str | None = None, n: int = 1) -> tuple[int, int, int]:
    pool = StubPool()
    pool.scripts.append(script(*STEPS))
    fields: dict[str, Any] = {"n": n} | ({} if stop is None else {"stop": stop})
    job = await chat(pool=pool, **fields, **predicted("x"))
    outputs = GenerationOutput(pool, job)
    request = ChatRequest.model_validate(ASKED | fields)
    await ChatResponseWriter(job, request, outputs).body()
    usage = outputs.usage()
    details = usage.completion_tokens_details
    return (
        usage.completion_tokens,
        details.accepted_prediction_tokens,
        details.rejected_prediction_tokens,
    )


async def test_usage_counts_predicted_tokens() -> None:
    assert await counts() == (9, 4, 8)
    assert await counts(n=3) == (27, 12, 24)


@pytest.mark.parametrize(
    ("stop", "want"),
    [("a", (1, 1, 0)), ("c", (3, 2, 0)), ("d", (4, 2, 5)), ("e", (5, 3, 5)), ("i", (9, 4, 8))],
)
async def test_what_is_behind_a_stop_string_is_not_counted(
    stop: str, want: tuple[int, int, int]
) -> None:
    assert await counts(stop) == want


def test_joined_deltas_count_the_same() -> None:
    deltas = [
        Delta("r", 0, list(text.encode()), predicted=PredictionResult(accepted, rejected))
        for text, accepted, rejected in STEPS
    ]
    deltas.insert(1, Delta("r", 0, [7, 7]))
    (have,) = coalesce(deltas)
    assert isinstance(have, Delta)
    assert have.predicted == PredictionResult([0, 1, 6, 8], [(5, 5), (9, 2), (10, 1)])
