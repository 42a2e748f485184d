"""What only a diffusion model has, through the official client: methods, canvases, infilling."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from plait.decoders.contract.registry import Method, methods
from plait.decoders.diffusion.pipeline import NEEDS_CONSTRAINT
from tests.e2e.conftest import DIFFUSION
from tests.fixtures.completion_pieces import streamed, texts
from tests.fixtures.prompts import NAMES, chat_of
from tests.fixtures.real_server import RealServer
from tests.fixtures.source_tree import ROOT

UNMASKERS = {name: method for (kind, name), method in methods().items() if kind == "unmasker"}
WANT_A_FORM = sorted(name for name, each in UNMASKERS.items() if each.part in NEEDS_CONSTRAINT)
FULL = {"attention": "full"}


@pytest.fixture(scope="module")
def client(diffusion_server: RealServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{diffusion_server.url}/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    ) as made:
        yield made


def _examples() -> list[dict[str, Any]]:
    """Return the requests that docs/api.md shows for text between text."""
    section = (ROOT / "docs" / "api.md").read_text().split("### Text between text")[1]
    section = section.split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", section, re.M)
    return [json.loads(block) for block in blocks]


def test_the_examples_of_the_docs_fill_what_they_say(client: openai.OpenAI) -> None:
    bodies = _examples()
    have = [client.post("/completions", body=body, cast_to=Completion) for body in bodies]
    between, filled = (answer.choices[0].text for answer in have)
    assert between == "36"
    assert filled.endswith('{"name": "Ada", "age": 36}')


def ask(client: openai.OpenAI, decoding: dict[str, Any], **options: Any) -> ChatCompletion:
    fields: dict[str, Any] = {"max_tokens": 21, "seed": 1, "temperature": 0} | options
    goes_on = "response_format" not in fields  # whose end is the text's
    answer: ChatCompletion = client.chat.completions.create(
        model=DIFFUSION,
        messages=chat_of(DIFFUSION),
        extra_body={"decoding": decoding | {"trace": True}, "ignore_eos": goes_on},
        **fields,
    )
    return answer


def trace_of(answer: ChatCompletion) -> dict[str, Any]:
    trace: dict[str, Any] = (answer.model_extra or {})["decoding"]
    return trace


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def decoding_of(method: Method) -> dict[str, Any]:
    """Return a request for one method with its own defaults."""
    if method.part == "cache":
        return {"unmasker": method.name, "canvas": FULL}
    return {"unmasker": method.name}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("name", sorted(UNMASKERS.keys() - set(WANT_A_FORM)))
def test_every_method_answers_exactly_as_long_as_asked(
    client: openai.OpenAI, name: str, temperature: int
) -> None:
    have = ask(client, decoding_of(UNMASKERS[name]), temperature=temperature)
    assert have.usage is not None
    assert have.usage.completion_tokens == 21
    assert have.choices[0].finish_reason == "length"
    trace = trace_of(have)
    assert name in trace["unmasker"]
    assert len(trace["steps"]) == 21
    assert max(trace["steps"]) <= trace["forwards"]


@pytest.mark.parametrize("name", WANT_A_FORM)
def test_methods_for_forms_stand_beside_a_schema(client: openai.OpenAI, name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    have = ask(client, {"unmasker": ["static", name]}, response_format=form)
    assert json.loads(text_of(have))["a"] in (True, False)
    assert name in trace_of(have)["unmasker"]


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_default_is_one_token_a_step_in_fewer_passes(
    client: openai.OpenAI, temperature: int
) -> None:
    plain = ask(client, {"unmasker": "static"}, temperature=temperature, max_tokens=40)
    have = ask(client, {}, temperature=temperature, max_tokens=40)
    assert text_of(have) == text_of(plain)
    assert trace_of(have)["unmasker"] == ["static", "free-dave"]
    assert trace_of(have)["forwards"] <= trace_of(plain)["forwards"]


def test_off_is_one_token_after_the_other(client: openai.OpenAI) -> None:
    off = ask(client, {"unmasker": "off"})
    ones = ask(client, {"unmasker": "static", "canvas": {"block_size": 1}})
    assert text_of(off) == text_of(ones)
    steps = trace_of(off)["steps"]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("size", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("max_tokens", [1, 5, 33])
def test_block_sizes_share_a_server(client: openai.OpenAI, size: int, max_tokens: int) -> None:
    decoding = {"unmasker": "threshold", "canvas": {"block_size": size}}
    have = ask(client, decoding, max_tokens=max_tokens)
    assert trace_of(have)["block_size"] == size
    assert len(trace_of(have)["steps"]) == max_tokens


async def test_methods_in_one_batch_are_as_each_alone(
    client: openai.OpenAI, diffusion_server: RealServer
) -> None:
    wanted: list[dict[str, Any]] = [
        {},
        {"unmasker": "off"},
        {"unmasker": "threshold", "canvas": {"block_size": 8}},
        {"unmasker": ["threshold", "credit"]},
        {"unmasker": "static", "canvas": FULL},
        {"unmasker": ["static", "dual-cache"], "canvas": FULL},
    ]
    alone = [text_of(ask(client, decoding, temperature=1)) for decoding in wanted]
    answers = await asyncio.gather(
        *(asyncio.to_thread(ask, client, decoding, temperature=1) for decoding in wanted * 3)
    )
    assert [text_of(answer) for answer in answers] == alone * 3
    assert trace_of(answers[0])["forwards"] > 0
    await asyncio.to_thread(diffusion_server.wait_until, diffusion_server.is_idle)


def complete(client: openai.OpenAI, prompt: str, **options: Any) -> Completion:
    answer: Completion = client.completions.create(**body(prompt), **options)
    return answer


def body(prompt: str) -> dict[str, Any]:
    return {"model": DIFFUSION, "prompt": prompt, "seed": 1, "temperature": 1}


def test_a_suffix_leaves_a_gap_of_max_tokens(client: openai.OpenAI) -> None:
    prompt = NAMES[:14]
    options: dict[str, Any] = {"suffix": NAMES[28:], "max_tokens": 7, "echo": True}
    have = complete(client, prompt, **options)
    assert have.usage is not None
    assert have.usage.completion_tokens == 7
    assert have.choices[0].finish_reason == "length"
    assert have.choices[0].text.startswith(prompt)
    assert texts(streamed(client, body(prompt) | options)) == [have.choices[0].text]


def test_what_follows_a_gap_is_read(client: openai.OpenAI) -> None:
    laws = set()
    for suffix in (' Frost", "Leo Frost"]', "9 8 7 6 5"):
        answer = complete(client, '["Ada', suffix=suffix, max_tokens=1, logprobs=5)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.top_logprobs is not None
        laws.add(repr(logprobs.top_logprobs[0]))
    assert len(laws) == 2


def test_a_template_comes_back_filled(client: openai.OpenAI) -> None:
    template = '{"name": "<hole>", "age": <hole>}'
    extra = {"infill": {"hole": "<hole>", "lengths": [6, 3]}}
    have = complete(client, template, extra_body=extra, n=2)
    assert have.usage is not None
    assert have.usage.completion_tokens == 2 * 9
    filled = [choice.text for choice in have.choices]
    assert texts(streamed(client, body(template) | extra | {"n": 2}), 2) == filled
    for text in filled:
        assert text.startswith('{"name": "')
        assert '", "age": ' in text
        assert text.endswith("}")


def test_a_template_is_filled_as_its_form_asks(client: openai.OpenAI) -> None:
    """Three holes, one of them over a key, a colon and a value; then one that nothing can fill."""
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"structured_outputs": {"json": schema}}
    template = (
        '<|user|>json name, age\nname is Ada, age is 36<|assistant|>{"n<hole>"<hole>: <hole>}'
    )
    extra = {"infill": {"hole": "<hole>", "lengths": [5, 8, 4]}} | form
    have = complete(client, template, extra_body=extra, n=4)
    for choice in have.choices:
        answer = json.loads(choice.text.rpartition("<|assistant|>")[2])
        assert set(answer) == {"name", "age"}
        assert isinstance(answer["age"], int)
    extra["infill"] = {"hole": "<hole>", "lengths": [1, 1, 1]}
    with pytest.raises(openai.BadRequestError, match="No tokens in the holes") as refused:
        complete(client, template, extra_body=extra)
    assert refused.value.param == "infill"


def test_holes_have_logprobs_where_they_stand(client: openai.OpenAI) -> None:
    extra = {"infill": {"hole": "_", "lengths": [3]}}
    choice = complete(client, "[ _ ]", extra_body=extra, logprobs=2).choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset is not None
    assert len(choice.logprobs.text_offset) == 3
    assert choice.logprobs.text_offset[0] == 2


def test_canvases_are_counted(client: openai.OpenAI, diffusion_server: RealServer) -> None:
    names = ("denoising_steps", "canvas_positions", "committed_tokens")

    def counters() -> list[float]:
        diffusion_server.wait_until(diffusion_server.is_idle)
        return [diffusion_server.metric(f"vllm:diffusion_num_{name}_total") for name in names]

    before = counters()
    forwards = trace_of(ask(client, {"unmasker": "static"}))["forwards"]
    after = counters()
    steps, rows, tokens = (new - old for new, old in zip(after, before, strict=True))
    assert (steps, tokens) == (forwards, 21)
    assert rows >= steps


def test_the_model_says_what_it_was_trained_for(client: openai.OpenAI) -> None:
    spec = (client.models.retrieve(DIFFUSION).model_extra or {})["diffusion"]
    assert spec["attention"] == "block"
    assert spec["also_full"]
    assert {1, 4, 8, 16, 32} <= set(spec["block_sizes"])
