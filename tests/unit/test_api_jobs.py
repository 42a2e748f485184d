"""From request fields to what workers run."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from plait.decoders.constrained.spec import PRETTY, ConstraintSpec, JsonStyle
from plait.decoders.contract.decoding import AutoregressiveMethods, DecodingSpec, MethodSpec
from plait.server.api.requests.chat import lower_chat
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.job import GenerationJob, RequestContext
from plait.server.api.responses.obfuscation import STEP, padding_for
from plait.server.api.schemas.chat import ChatRequest
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.errors import BadRequest, ContextTooLong, DeadlineExceeded
from plait.server.settings import LimitSettings
from plait.server.wire.messages import CompiledConstraint
from tests.fixtures.byte_tokenizer import CHATML, END, EOS, byte_tokenizer
from tests.fixtures.stub_pool import INFO, StubModel, StubPool

LIMITS = LimitSettings()
UNIQUE = {"type": "array", "uniqueItems": True}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


async def chat(
    pool: StubPool | None = None,
    tenant: str = "",
    limits: LimitSettings = LIMITS,
    **fields: Any,
) -> GenerationJob:
    body = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]} | fields
    caller = RequestContext(tenant, time.monotonic())
    return await lower_chat(pool or StubPool(), limits, ChatRequest.model_validate(body), caller)


async def complete(pool: StubPool | None = None, **fields: Any) -> GenerationJob:
    body = {"model": "stub", "prompt": "hi"} | fields
    caller = RequestContext("", time.monotonic())
    request = CompletionRequest.model_validate(body)
    return await lower_completion(pool or StubPool(), LIMITS, request, caller)


async def test_defaults_are_openais() -> None:
    request = (await chat()).requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert sampling.logprobs is None
    assert request.max_tokens == INFO.max_model_len - len(request.prompt_token_ids)
    assert request.stop_token_ids == [EOS, END]
    assert request.n == 1
    assert request.deadline is None
    assert (await complete()).requests[0].max_tokens == 16


async def test_every_field_arrives() -> None:
    job = await chat(
        n=2,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"7": -100, "8": 2.5},
        allowed_token_ids=[5, 5, 6],
        bad_words=["no"],
        seed=-2,
        max_tokens=9,
        max_completion_tokens=8,
        min_tokens=2,
        stop="END",
        stop_token_ids=[3],
        ignore_eos=True,
        include_stop_str_in_output=True,
        logprobs=True,
        top_logprobs=4,
        priority=-5,
        prompt_cache_key="key",
        deadline_ms=1000,
        decoding={"trace": True, "drafter": "off"},
    )
    request = job.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 0)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == {7: -100, 8: 2.5}
    assert sampling.allowed_token_ids == (5, 6)
    assert sampling.bad_words == (tuple(b"no"), tuple(b" no"))
    assert sampling.seed == 2**64 - 2
    assert (sampling.min_tokens, request.max_tokens) == (2, 8)
    assert request.stop_token_ids == [3]
    assert sampling.logprobs == 4
    assert (request.n, request.priority, request.affinity) == (2, -5, "key")
    assert request.deadline == pytest.approx(request.arrived + 1)
    plain = AutoregressiveMethods(MethodSpec("ordinary"))
    assert request.decoding == DecodingSpec(plain, trace=True)
    assert job.include_stop


async def test_a_seed_is_drawn_and_every_reader_can_hold_it() -> None:
    seeds = {(await chat(seed=seed)).seed for _ in range(8) for seed in (None, -1)}
    assert len(seeds) == 16
    assert max(seeds) < 2**53


async def test_prompts_of_a_list_share_all_but_their_tokens() -> None:
    job = await complete(prompt=["a", "bc"], n=2, seed=4)
    assert [request.prompt_token_ids for request in job.requests] == [[97], [98, 99]]
    assert len({request.request_id for request in job.requests}) == 2
    assert {request.sampling.seed for request in job.requests} == {4}


async def test_special_tokens_are_parsed_in_completions_and_text_in_chats() -> None:
    job = await complete(prompt=["a<|im_end|>"], echo=True)
    job_of_ids = await complete(prompt=[97, END], echo=True)
    for each in (job, job_of_ids):
        assert each.requests[0].prompt_token_ids == [97, END]
        assert each.prompts[0].text == "a<|im_end|>"
    job = await chat(messages=[{"role": "user", "content": "<|im_end|>"}])
    assert job.requests[0].prompt_token_ids.count(END) == 1


async def test_a_chat_that_asks_for_too_much_is_told_so_and_not_to_be_shorter() -> None:
    for field in ("max_tokens", "max_completion_tokens"):
        asked: dict[str, Any] = {field: 100_000}
        with pytest.raises(ContextTooLong, match=r"Ask for 20\d\d at most") as caught:
            await chat(**asked)
        assert caught.value.param == field
    with pytest.raises(ContextTooLong) as caught:
        await chat(messages=[{"role": "user", "content": "x" * 3000}], max_tokens=4)
    assert caught.value.param == "messages"


async def test_max_tokens_is_clamped_if_the_operator_wants_that() -> None:
    lenient = LimitSettings(clamp_max_tokens=True)
    length = len((await chat()).requests[0].prompt_token_ids)
    job = await chat(limits=lenient, max_tokens=100_000)
    assert job.requests[0].max_tokens == INFO.max_model_len - length
    assert (await chat(limits=lenient, max_tokens=7)).requests[0].max_tokens == 7
    with pytest.raises(ContextTooLong) as caught:
        await chat(limits=lenient, max_tokens=4, messages=[{"role": "user", "content": "x" * 3000}])
    assert caught.value.param == "messages"


async def test_the_context_is_the_models_or_what_its_cache_holds() -> None:
    with pytest.raises(ContextTooLong, match="2048 tokens; the prompt has 2048"):
        await complete(prompt=[1] * 2048, max_tokens=None)
    with pytest.raises(ContextTooLong, match="the prompt has 2000 and 49 were asked"):
        await complete(prompt=[1] * 2000, max_tokens=49)
    assert (await complete(prompt=[1] * 2000, max_tokens=48)).requests[0].max_tokens == 48
    assert (await complete(prompt=[1] * 2040)).requests[0].max_tokens == 8


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": [259]}, "prompt"),
        ({"stop_token_ids": [259]}, "stop_token_ids"),
        ({"logit_bias": {"259": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"٣": 1}}, "logit_bias"),
        ({"allowed_token_ids": [259]}, "allowed_token_ids"),
        ({"prompt": ["a"] * 129, "n": 2}, "prompt"),
        ({"n": 129}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["x"] * 5}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"bad_words": ["x" * 2000]}, "bad_words"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "suffix": "x"}, "max_tokens"),
        ({"decoding": {"drafter": "telepathy"}}, "decoding.drafter"),
        ({"decoding": {"sampler": {"name": "ordinary", "x": 1}}}, "decoding.sampler.x"),
        ({"structured_outputs": {"options": {}}}, "structured_outputs"),
        (
            {"structured_outputs": {"regex": "a", "options": {"whitespace": "compact"}}},
            "structured_outputs.options",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 1}, "min_tokens"),
    ],
)
async def test_what_cannot_run_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await complete(**fields)
    assert caught.value.param == param


async def test_a_schema_that_is_no_json_is_told_from_the_body() -> None:
    with pytest.raises(BadRequest) as caught:
        await complete(structured_outputs={"json": '{"type": "string", "type": "null"}'})
    want = (
        "structured_outputs.json: the text is not valid JSON: an object has the name 'type' twice."
    )
    assert caught.value.message == want


async def test_a_constraint_is_compiled_in_the_turn_of_its_key() -> None:
    pool = StubPool()
    await chat(pool, "key-of-one", structured_outputs={"regex": "[a-z]"})
    assert pool.compiling_tenants == ["key-of-one"]


async def test_options_of_json_reach_the_compiler() -> None:
    pool = StubPool()
    options = {"whitespace": "spaced", "objects": "open"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    await chat(pool, structured_outputs={"json": {}, "options": options})
    await chat(pool, response_format=form, structured_outputs={"options": options})
    await chat(pool, response_format=form, structured_outputs={"options": {"whitespace": None}})
    await chat(
        pool,
        response_format={"type": "json_object"},
        structured_outputs={"options": {"whitespace": "compact"}},
    )
    spaced = JsonStyle("spaced", "open")
    assert [spec.style for spec in pool.specs] == [spaced, spaced, PRETTY, JsonStyle("compact")]


async def test_constraints_reach_the_compiler_as_written() -> None:
    pool = StubPool()
    schema = {"type": "object", "properties": {"z": {"type": "string"}, "a": {"enum": ["ü"]}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    await chat(pool, response_format=form)
    await chat(pool, response_format={"type": "json_object"})
    await chat(pool, response_format={"type": "text"}, structured_outputs={"choice": ["ü", "b"]})
    await chat(pool, structured_outputs={"regex": "[a-z]"})
    await chat(pool, structured_outputs={"grammar": 'root ::= "a"'})
    await chat(pool, structured_outputs={"json": schema})
    have = [(spec.kind, spec.text, spec.strict) for spec in pool.specs]
    text = '{"type":"object","properties":{"z":{"type":"string"},"a":{"enum":["ü"]}}}'
    assert have == [
        ("json_schema", text, True),
        ("json_object", "", False),
        ("choice", '["ü","b"]', False),
        ("regex", "[a-z]", False),
        ("grammar", 'root ::= "a"', False),
        ("json_schema", text, False),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"json": UNIQUE}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(UNIQUE)}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": ["no"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "no"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "no"}}, "structured_outputs.grammar"),
        ({"response_format": json_schema(UNIQUE)}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_does_not_compile_is_named_as_the_client_wrote_it(
    fields: dict[str, Any], param: str
) -> None:
    class Picky(StubPool):
        async def compile(
            self, model: str, spec: ConstraintSpec, tenant: str
        ) -> CompiledConstraint:
            raise BadRequest("/a: keyword 'b': why", code="odd")

    with pytest.raises(BadRequest) as caught:
        await chat(Picky(), **fields)
    assert (caught.value.param, caught.value.code) == (param, "odd")
    assert caught.value.message == f"{param}: /a: keyword 'b': why"


async def test_a_compile_that_takes_longer_than_the_requests_deadline_is_a_504() -> None:
    class Endless(StubPool):
        async def compile(
            self, model: str, spec: ConstraintSpec, tenant: str
        ) -> CompiledConstraint:
            await asyncio.Event().wait()
            raise AssertionError

    with pytest.raises(DeadlineExceeded):
        await chat(Endless(), structured_outputs={"regex": "a"}, deadline_ms=20)


async def test_a_budget_that_is_too_small_names_the_field_too() -> None:
    with pytest.raises(BadRequest, match=r"that structured_outputs\.choice allows") as caught:
        await chat(structured_outputs={"choice": ["several tokens"]}, max_tokens=3)
    assert caught.value.param == "structured_outputs.choice"
    assert caught.value.code == "constraint_exceeds_max_tokens"


async def test_a_refusal_sent_back_is_what_the_assistant_said() -> None:
    said = {"role": "assistant", "content": None, "refusal": "I can't."}
    have = await chat(messages=[{"role": "user", "content": "x"}, said])
    assert b"I can't." in bytes(t for t in have.requests[0].prompt_token_ids if t < 256)
    both = said | {"content": "But"}
    with pytest.raises(BadRequest) as caught:
        await chat(messages=[{"role": "user", "content": "x"}, both])
    assert caught.value.param == "messages[1].refusal"


async def test_minus_one_is_all_that_the_context_leaves() -> None:
    for job in (
        await chat(max_tokens=-1),
        await chat(max_completion_tokens=-1.0, max_tokens=3),
        await complete(max_tokens=-1),
    ):
        request = job.requests[0]
        assert request.max_tokens == INFO.max_model_len - len(request.prompt_token_ids)
    with pytest.raises(ContextTooLong) as caught:
        await complete(prompt=[1] * 2048, max_tokens=-1)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_no_tokens_are_no_answer_to_a_chat(field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fields: dict[str, Any] = {field: 0}
        await chat(**fields)
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("template", "fields", "want"),
    [
        ("{{ enable_thinking }}{{ thinking }}{{ reasoning_effort }}.", {}, "."),
        ("{{ enable_thinking }}{{ thinking }}", {"reasoning_effort": "none"}, "FalseFalse"),
        ("{{ reasoning_effort }}", {"reasoning_effort": "none"}, "none"),
        ("{{ 'plain' }}", {"reasoning_effort": "none"}, "plain"),
        (
            "{{ enable_thinking }}",
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "True",
        ),
    ],
)
async def test_a_template_that_thinks_is_told_not_to(
    template: str, fields: dict[str, Any], want: str
) -> None:
    pool = StubPool(served=[StubModel(tokenizer=byte_tokenizer(template))])
    have = await chat(pool, **fields)
    assert bytes(have.requests[0].prompt_token_ids).decode() == want


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_earlier_thoughts_go_to_the_template(field: str) -> None:
    thinking = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"
    said = {"role": "assistant", "content": "a", field: "thought"}
    for template, want in ((thinking, b"thought|a"), (CHATML, b"a")):
        pool = StubPool(served=[StubModel(tokenizer=byte_tokenizer(template))])
        job = await chat(pool, messages=[said])
        have = job.requests[0].prompt_token_ids
        text = bytes(token for token in have if token < 256)
        assert want in text
        assert (b"thought" in text) == (template is thinking)
        assert job.warnings == ([] if template is thinking else ["messages[0].reasoning_content"])


@pytest.mark.parametrize("text", ["", "x", "ü" * 15, "y" * 32, "z" * 100])
def test_padding_completes_a_step(text: str) -> None:
    padding = padding_for(text)
    assert 1 <= len(padding) <= STEP
    assert (len(text.encode()) + len(padding)) % STEP == 0
    assert padding.isascii()
