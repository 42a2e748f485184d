"""What requests may ask of a diffusion model, and what they are told where they can't have it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.decoders.contract import registry
from plait.decoders.contract.decoding import (
    NO_EXTRAS,
    DecodingSpec,
    DiffusionMethods,
    MethodSpec,
    PromptExtras,
)
from plait.decoders.contract.registry import Method
from plait.decoders.diffusion.spec import DiffusionSpec
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.routes.models import model_of
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, ContextTooLong
from plait.server.settings import LimitSettings
from plait.server.wire.messages import ModelInfo
from tests.fixtures.byte_tokenizer import END, EOS
from tests.fixtures.stub_pool import INFO, StubModel, StubPool

SPEC = DiffusionSpec(
    mask_id=258,
    eos_ids=(255,),
    attention="block",
    block_size=32,
    block_sizes=(1, 4, 8, 16, 32),
    also_full=True,
)

DEFAULT = DiffusionMethods((MethodSpec("static"), MethodSpec("free-dave")), "block", 32)


def decoded(*unmasker: MethodSpec, **fields: Any) -> DecodingSpec:
    """Return the default with these fields in place of its own."""
    methods = msgspec.structs.replace(DEFAULT, **fields)
    if unmasker:
        methods = msgspec.structs.replace(methods, unmasker=unmasker)
    return DecodingSpec(methods)


def info_of(spec: DiffusionSpec | None = SPEC, **fields: Any) -> ModelInfo:
    capabilities = ["canvas"]
    return msgspec.structs.replace(INFO, capabilities=capabilities, diffusion=spec, **fields)


def pool_of(info: ModelInfo) -> StubPool:
    return StubPool([StubModel(info=info)])


async def complete(info: ModelInfo | None = None, **fields: Any) -> GenerationJob:
    body = {"model": "stub", "prompt": "hi"} | fields
    request = CompletionRequest.model_validate(body)
    caller = RequestContext("", time.monotonic())
    return await lower_completion(pool_of(info or info_of()), LimitSettings(), request, caller)


async def refusal(info: ModelInfo | None = None, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        await complete(info, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("decoding", "want"),
    [
        ({}, decoded()),
        ({"unmasker": "auto", "drafter": "auto", "search": "off"}, decoded()),
        ({"unmasker": "off"}, decoded(MethodSpec("static"), block_size=1)),
        ({"unmasker": "threshold"}, decoded(MethodSpec("threshold"))),
        (
            {"unmasker": {"name": "threshold", "threshold": 0.8}},
            decoded(MethodSpec("threshold", {"threshold": 0.8})),
        ),
        ({"unmasker": ["static", "free-dave"], "canvas": {"block_size": 8}}, decoded(block_size=8)),
        (
            {"canvas": {"attention": "full", "block_size": 24}},
            decoded(attention="full", block_size=24),
        ),
        ({"sampler": "ordinary", "trace": True}, DecodingSpec(DEFAULT, trace=True)),
    ],
)
async def test_what_can_run_reaches_the_worker_resolved(
    decoding: dict[str, Any], want: DecodingSpec
) -> None:
    assert (await complete(decoding=decoding)).requests[0].decoding == want


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        ({"unmasker": "telepathy"}, "decoding.unmasker", "no unmasker 'telepathy'"),
        ({"unmasker": {"name": "threshold", "x": 1}}, "decoding.unmasker.x", "threshold"),
        ({"unmasker": {"name": "threshold", "preset": []}}, "decoding.unmasker.preset", "preset"),
        ({"unmasker": ["static", "threshold"]}, "decoding.unmasker.1", "static and threshold"),
        ({"unmasker": ["static", "dual-cache"]}, "decoding.unmasker", "dual-cache"),
        ({"canvas": {"block_size": 5}}, "decoding.canvas.block_size", "1, 4, 8, 16, 32, not 5"),
        ({"unmasker": "off", "canvas": {"block_size": 8}}, "decoding.canvas.block_size", "off"),
        ({"unmasker": ["static", "scaffold"]}, "decoding.unmasker", "scaffold is for structured"),
        ({"unmasker": "cfg-intersection"}, "decoding.unmasker", "cfg-intersection is for struct"),
    ],
)
async def test_what_cannot_run_is_named(decoding: dict[str, Any], param: str, words: str) -> None:
    error = await refusal(decoding=decoding)
    assert (error.param, error.code) == (param, "unsupported_parameter")
    assert words in error.message


@pytest.mark.parametrize("name", ["scaffold", "lookahead", "cfg-intersection", "dingo"])
async def test_methods_for_forms_go_with_structured_output(name: str) -> None:
    job = await complete(
        decoding={"unmasker": [name]}, structured_outputs={"choice": ["yes", "no"]}
    )
    assert job.requests[0].decoding == decoded(MethodSpec("static"), MethodSpec(name))


async def test_a_model_without_full_attention_says_so() -> None:
    info = info_of(replace(SPEC, also_full=False))
    error = await refusal(info, decoding={"canvas": {"attention": "full"}})
    assert error.param == "decoding.canvas.attention"
    assert (await refusal(info, suffix="x")).param == "suffix"
    infill = {"hole": "_", "lengths": [2]}
    assert (await refusal(info, prompt="a_b", infill=infill)).param == "infill"
    blocks = {"canvas": {"attention": "block"}}
    assert (await refusal(suffix="x", decoding=blocks)).param == "decoding.canvas.attention"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"decoding": {"unmasker": "static"}}, "decoding.unmasker"),
        ({"decoding": {"unmasker": ["threshold", "credit"]}}, "decoding.unmasker"),
        ({"decoding": {"canvas": {"block_size": 8}}}, "decoding.canvas"),
        ({"suffix": "."}, "suffix"),
        ({"prompt": "a_", "infill": {"hole": "_", "lengths": [1]}}, "infill"),
    ],
)
async def test_an_autoregressive_model_has_no_canvas(fields: dict[str, Any], param: str) -> None:
    error = await refusal(INFO, **fields)
    assert (error.param, error.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize("unmasker", ["auto", "off"])
async def test_what_asks_for_nothing_is_fine_everywhere(unmasker: str) -> None:
    assert (await complete(INFO, decoding={"unmasker": unmasker})).requests


@pytest.mark.parametrize("kind", ["drafter", "sampler"])
async def test_methods_of_autoregressive_models_are_refused(
    kind: registry.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Method(kind=kind, name="x-ray", summary="", source="", target="")
    known = {**registry.methods(), (kind, "x-ray"): planted}
    monkeypatch.setattr(registry, "methods", lambda: known)
    error = await refusal(decoding={kind: "x-ray"})
    assert error.param == f"decoding.{kind}"
    assert "x-ray" in error.message
    assert (await complete(INFO, decoding={kind: "x-ray"})).requests


async def test_prompts_are_not_scored() -> None:
    error = await refusal(echo=True, logprobs=1)
    assert (error.param, error.code) == ("logprobs", "unsupported_parameter")
    assert (await complete(echo=True)).requests
    assert (await complete(logprobs=1)).requests


async def test_the_mask_token_is_no_answer() -> None:
    error = await refusal(allowed_token_ids=[258, 258])
    assert (error.param, error.code) == ("allowed_token_ids", "unsupported_parameter")
    assert (await complete(allowed_token_ids=[258, 3])).requests
    assert (await complete(INFO, allowed_token_ids=[258])).requests


async def test_the_models_own_ends_count() -> None:
    assert (await complete()).requests[0].stop_token_ids == [255, EOS, END]
    assert (await complete(ignore_eos=True)).requests[0].stop_token_ids == []


async def test_a_text_takes_whole_blocks_of_the_context() -> None:
    info = info_of(max_model_len=100)
    with pytest.raises(ContextTooLong, match=r"100 tokens \(96 in whole blocks\)"):
        await complete(info, prompt=[1] * 90, max_tokens=7)
    assert (await complete(info, prompt=[1] * 90, max_tokens=6)).requests[0].max_tokens == 6
    for decoding in ({"unmasker": "off"}, {"canvas": {"attention": "full"}}):
        assert (await complete(info, prompt=[1] * 90, max_tokens=10, decoding=decoding)).requests


async def test_a_suffix_is_text_behind_the_answer() -> None:
    request = (await complete(prompt="ab", suffix="cd", max_tokens=3, seed=1)).requests[0]
    assert request.extras == PromptExtras(suffix_token_ids=list(b"cd"))
    assert request.decoding == decoded(attention="full")
    assert (request.prompt_token_ids, request.max_tokens) == (list(b"ab"), 3)
    assert (await complete(suffix="")).requests[0].extras == NO_EXTRAS
    with pytest.raises(ContextTooLong, match="the suffix 2000 and 47 were asked"):
        await complete(prompt="ab", suffix="x" * 2000, max_tokens=47)
    assert (await complete(prompt="ab", suffix="x" * 2000, max_tokens=46)).requests


async def test_a_template_has_its_holes_among_its_tokens() -> None:
    infill = {"hole": "<hole>", "lengths": [2, 3]}
    job = await complete(prompt=["ab<hole>c<hole>", "<hole><hole>"], infill=infill)
    have = [request.extras.holes for request in job.requests]
    assert have == [[(2, 4), (5, 8)], [(0, 2), (2, 5)]]
    assert [len(request.prompt_token_ids) for request in job.requests] == [8, 5]
    assert [request.max_tokens for request in job.requests] == [0, 0]
    assert [prompt.num_given for prompt in job.prompts] == [3, 0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "a_b_"}, "infill.lengths"),
        ({"prompt": "ab"}, "infill.lengths"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "_", "infill": {"hole": "_", "lengths": [2**31 - 1]}}, "infill.lengths"),
        ({"prompt": "a" * 2048 + "_"}, "prompt"),
        ({"prompt": "a_", "max_tokens": 3}, "infill"),
        ({"prompt": "a_", "suffix": "x"}, "infill"),
        ({"prompt": "a_", "echo": True}, "infill"),
        ({"prompt": "a_", "stop": "x"}, "infill"),
        ({"prompt": "a_", "stop_token_ids": [3]}, "infill"),
    ],
)
async def test_a_bad_template_is_refused(fields: dict[str, Any], param: str) -> None:
    asked: dict[str, Any] = {"infill": {"hole": "_", "lengths": [1]}} | fields
    error = await refusal(**asked)
    assert error.param == param


async def test_a_template_may_have_a_form() -> None:
    """Its length is the template's own: max_tokens does not bound it."""
    infill = {"hole": "_", "lengths": [1]}
    job = await complete(prompt="a_c", infill=infill, structured_outputs={"regex": "abc"})
    assert job.requests[0].constraint is not None
    assert job.requests[0].max_tokens == 0


@pytest.mark.parametrize("name", ["stop_token_ids", "structured_outputs"])
async def test_nothing_ends_an_answer_before_its_suffix(name: str) -> None:
    value = {"stop_token_ids": [3], "structured_outputs": {"regex": "a"}}[name]
    fields: dict[str, Any] = {"suffix": "x", name: value}
    assert (await refusal(**fields)).param == "suffix"


def test_models_show_what_they_were_trained_for() -> None:
    shown = msgspec.to_builtins(model_of(StubModel(info=info_of())))
    assert shown["diffusion"]["block_sizes"] == (1, 4, 8, 16, 32)
    assert "diffusion" not in msgspec.to_builtins(model_of(StubModel()))
    assert msgspec.convert(msgspec.to_builtins(info_of()), ModelInfo) == info_of()


IDS = sorted(name for kind, name in registry.methods() if kind == "unmasker")
JUNK = st.sampled_from([None, -1, 0, 1, 0.5, "", "x", True, [], {}, [1], {"a": 1}])
FIELDS = st.sampled_from(["preset", "threshold", "tokens_per_step", "x"])
OBJECTS = st.builds(
    lambda name, fields: {"name": name} | fields,
    st.sampled_from([*IDS, "x"]),
    st.dictionaries(FIELDS, JUNK, max_size=2),
)
CHOICES = st.sampled_from([*IDS, "auto", "off", "x"]) | OBJECTS
CANVASES = st.fixed_dictionaries(
    {},
    optional={
        "attention": st.sampled_from(["block", "full", None]),
        "block_size": st.sampled_from([None, 1, 3, 8, 64, 2**31 - 1]),
    },
)


@given(
    unmasker=CHOICES | st.lists(CHOICES, min_size=1, max_size=4),
    canvas=CANVASES,
    other=st.sampled_from([{}, {"suffix": "x"}, {"infill": {"hole": "i", "lengths": [2]}}]),
    has_canvas=st.booleans(),
)
@settings(max_examples=300)
def test_a_request_is_planned_or_refused(
    unmasker: Any, canvas: dict[str, Any], other: dict[str, Any], has_canvas: bool
) -> None:
    decoding = {"unmasker": unmasker, "canvas": canvas}
    info = info_of() if has_canvas else INFO
    try:
        job = asyncio.run(complete(info, decoding=decoding, **other))
    except BadRequest as error:
        assert error.param is not None
        assert error.message
    else:
        assert has_canvas or unmasker in ("auto", "off")
        assert job.requests
