"""Random requests of all kinds, as a client sends them; the same seed gives the same requests.

The ids of methods stand here as text, because requests go to builds that may know others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.prompts import PERSON

Body = dict[str, Any]

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
CAUSAL, DIFFUSION = "smollm2-135m-instruct", "tiny-diffusion"
VOCABULARY = {CAUSAL: 49_152, DIFFUSION: 522}
TOPICS = ("a cat", "the sea", "an oak", "moss", "rain", "a crow", "salt", "ferns", "bread")
TASKS = (
    "Describe {0}.",
    "Repeat after me: {0}, {0}, {0}, {0} and {0}, {0}, {0}.",
    "Count from one to ten, then say {0} three times.",
    "Write a Python function that prints {0} in a loop.",
    "Give me a JSON object about {0} with name, kind and size.",
)
# Drafters whose drafts can't change a text, and those that can.
EXACT_DRAFTERS = (
    *("n-gram", "suffix", "prediction", "forced", "aded", "jacobi", "ppd"),
    *("draft-model", "pearl", "superposed-tree"),
)
LOSSY_DRAFTERS = ("typical", "lud", "superposed")
UNMASKERS = (
    *("static", "random", "threshold", "dynamic", "factor", "entropy-bound", "d-parallel"),
    *("local-leap", "hierarchy", "klass", "learn2pd", "wino", "off", "auto"),
)
UNMASKING_PARTS = ("credit", "ada-block", "eotp", "free-dave")
CANVAS_CACHES = ("prefix-cache", "dual-cache", "dkv-cache", "recap")
KIND = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "kind", "size"],
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["animal", "plant"]},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    },
}
DATED = {
    "type": "object",
    "additionalProperties": False,
    "required": ["on", "tags"],
    "properties": {
        "on": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"pattern": "^[a-z]{2,5}$"}, "maxItems": 2},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 8}]},
    },
}
GRAMMAR = 'root ::= word (" " word){0,3} "."\nword ::= [a-z]{2,6}'
FORMS: tuple[Body, ...] = (
    {"structured_outputs": {"json": KIND}},
    {"structured_outputs": {"json": DATED}},
    {"structured_outputs": {"json": PERSON}},
    {"structured_outputs": {"regex": r"(yes|no), \d{1,3}\.\d{2}"}},
    {"structured_outputs": {"regex": "[A-Z][a-z]{1,8}( [a-z]{2,8}){1,4}"}},
    {"structured_outputs": {"choice": ["a cat", "a crow", "a cow and a crow", "none"]}},
    {"structured_outputs": {"grammar": GRAMMAR}},
)
CHAT_FORMS: tuple[Body, ...] = (
    {"response_format": {"type": "json_object"}},
    *(
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "form", "schema": schema, "strict": strict},
            }
        }
        for schema, strict in ((KIND, True), (PERSON, True), (DATED, False))
    ),
)
# Bodies that are refused: what is compared is the error.
REFUSED: tuple[Body, ...] = (
    {"max_tokens": 0},
    {"max_tokens": 100_000},
    {"temperature": 9},
    {"tools": [{"type": "function"}]},
    {"unheard_of": 1},
    {"structured_outputs": {"regex": "(a"}},
    {"structured_outputs": {"json": {"type": "object", "dependentRequired": 3}}},
    {"structured_outputs": {"json": {"enum": ["a"], "type": "integer"}}},
    {"structured_outputs": {"grammar": "root ::= unknown"}},
    {"decoding": {"drafter": "no-such-drafter"}},
    {"decoding": {"drafter": {"name": "n-gram", "no_such_option": 1}}},
    {"decoding": {"unmasker": ["threshold", "factor"]}},
    {"decoding": {"unmasker": "threshold", "canvas": {"block_size": 7}}},
    {"logit_bias": {"999999": 1}},
    {"stop": ["a"] * 9},
    {"top_logprobs": 3},
    {"n": 1000},
    {"suffix": "behind"},
    {"best_of": 3},
    {"response_format": {"type": "json_schema"}},
    {"prediction": {"type": "content", "content": [{"type": "image_url"}]}},
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `is_exact`: its counts of passes and drafts depend on nothing but itself."""

    name: str
    endpoint: str
    body: Body
    is_alone: bool  # sent when nothing else runs
    is_exact: bool


def random_requests(model: str, count: int, *, seed: int = 0) -> list[Request]:
    """Return requests to a model: the first half is sent alone, the rest several at once."""
    rng = random.Random(f"{model} {seed}")
    make = _diffusion if model == DIFFUSION else _causal
    return [make(rng, f"{i}", is_alone=2 * i < count) for i in range(count)]


def _causal(rng: random.Random, name: str, *, is_alone: bool) -> Request:
    endpoint = rng.choice((CHAT, CHAT, COMPLETION))
    body: Body = {"model": CAUSAL, "max_tokens": rng.randint(1, 24)} | _sampling(
        rng, endpoint, CAUSAL
    )
    body |= _causal_prompt(rng, endpoint)
    kind = rng.choice(
        ("plain", "plain", "drafted", "drafted", "drafted", "form", "form", "refused")
    )
    if kind == "refused":
        return Request(name, endpoint, body | rng.choice(REFUSED), is_alone, is_exact=False)
    if kind == "form" or (kind == "drafted" and rng.random() < 0.3):
        body = _formed(rng, body, CHAT_FORMS + FORMS if endpoint == CHAT else FORMS)
    is_exact = is_alone
    if kind == "drafted":
        body["decoding"] = _drafting(rng, is_alone=is_alone)
    elif rng.random() < 0.5:
        body["decoding"] = {"drafter": "off"}
    else:
        is_exact = False  # how many drafts `auto` feeds follows the measured cost of a pass
    drafter = str(body.get("decoding", {}).get("drafter", ""))
    if endpoint == CHAT and ("prediction" in drafter or (not drafter and rng.random() < 0.5)):
        body["prediction"] = {"type": "content", "content": body["messages"][-1]["content"]}
    return Request(name, endpoint, _traced(rng, body), is_alone, is_exact)


def _formed(rng: random.Random, body: Body, forms: Sequence[Body]) -> Body:
    """Return a request for an answer of some form, without what excludes one."""
    excluded = {"min_tokens", "ignore_eos"} if rng.random() < 0.95 else {}
    kept = {key: value for key, value in body.items() if key not in excluded}
    return kept | rng.choice(forms) | {"max_tokens": 64}


def _causal_prompt(rng: random.Random, endpoint: str) -> Body:
    text = rng.choice(TASKS).format(rng.choice(TOPICS))
    if endpoint == CHAT:
        return {"messages": [{"role": "user", "content": text}]}
    token_ids = [rng.randrange(100, 40_000) for _ in range(rng.randint(1, 40))]
    prompts = (text, text, token_ids, [text, "Once upon a time"], [token_ids, token_ids[:3]])
    fields: Body = {"prompt": rng.choice(prompts)}
    if rng.random() < 0.2:
        fields["echo"] = True
    return fields


def _sampling(rng: random.Random, endpoint: str, model: str) -> Body:
    """Return fields of which most are left out."""
    token_ids = [rng.randrange(3, VOCABULARY[model]) for _ in range(2)]
    choices: dict[str, Callable[[], Any]] = {
        "n": lambda: rng.choice((2, 3)),
        "top_k": lambda: rng.randint(1, 50),
        "top_p": lambda: rng.uniform(0.3, 1.0),
        "min_p": lambda: rng.uniform(0.0, 0.2),
        "repetition_penalty": lambda: 1.2,
        "presence_penalty": lambda: 0.7,
        "frequency_penalty": lambda: 0.4,
        "logit_bias": lambda: {str(token_ids[0]): 2.5, str(token_ids[1]): -100},
        "min_tokens": lambda: 1,
        "stop": lambda: rng.choice((["."], [" the", "\n"], ["e"])),
        "include_stop_str_in_output": lambda: True,
        "bad_words": lambda: [" cat", " the sea"],
        "ignore_eos": lambda: True,
        "return_token_ids": lambda: True,
        "skip_special_tokens": lambda: False,
        "stream": lambda: True,
    }
    fields = {name: choose() for name, choose in choices.items() if rng.random() < 0.18}
    fields |= {"temperature": rng.choice((0, 0.3, 1, 1, 1.5)), "seed": rng.getrandbits(32)}
    if fields.get("stream"):
        fields["stream_options"] = {"include_usage": rng.random() < 0.8}
    if rng.random() < 0.35:
        chat: Body = {"logprobs": True, "top_logprobs": rng.randint(0, 4)}
        fields |= chat if endpoint == CHAT else {"logprobs": rng.randint(0, 4)}
    elif rng.random() < 0.1:
        fields |= {"prompt_logprobs": 2, "stream": False}
        fields.pop("stream_options", None)
    return fields


def _drafting(rng: random.Random, *, is_alone: bool) -> Body:
    """Return what drafts: several drafters or one, lossy ones only where nothing else runs."""
    if is_alone and rng.random() < 0.15:
        lossy = rng.choice(LOSSY_DRAFTERS)
        if lossy == "typical":
            return {"drafter": [_always(rng, "ppd"), lossy]}
        return {"drafter": {"name": lossy, "always": True}}
    names = rng.sample(EXACT_DRAFTERS, rng.choice((1, 1, 2, 3)))
    return {"drafter": [_always(rng, name) for name in names]}


def _always(rng: random.Random, name: str) -> Body:
    """Return a drafter whose drafts are fed whether they pay or not: no clock has a say."""
    return {"name": name, "always": True, "max_draft": rng.choice((1, 4, 8, 16))}


def _traced(rng: random.Random, body: Body) -> Body:
    if rng.random() < 0.5:
        body["decoding"] = {**body.get("decoding", {}), "trace": True}
    return body


def _diffusion(rng: random.Random, name: str, *, is_alone: bool) -> Request:
    endpoint = rng.choice((CHAT, CHAT, COMPLETION))
    body: Body = {"model": DIFFUSION, "max_tokens": rng.randint(1, 40)} | _sampling(
        rng, endpoint, DIFFUSION
    )
    kind = rng.choice(("plain", "plain", "plain", "form", "cached", "refused"))
    if endpoint == COMPLETION:
        return Request(name, endpoint, _traced(rng, _filling(rng, body)), is_alone, is_alone)
    body["messages"] = [{"role": "user", "content": _list_task(rng)}]
    if kind == "refused":
        return Request(name, endpoint, body | rng.choice(REFUSED), is_alone, is_exact=False)
    body["decoding"] = _unmasking(rng, is_cached=kind == "cached")
    if kind == "form":
        body = _formed(rng, body, CHAT_FORMS + FORMS)
    body.pop("prompt_logprobs", None)
    return Request(name, endpoint, _traced(rng, body), is_alone, is_alone)


def _list_task(rng: random.Random) -> str:
    names = rng.sample(("Ada Hale", "Leo Frost", "Mira Baker", "Otto Price", "Uma Novak"), 3)
    listed = ", ".join(f'"{name}"' for name in names)
    task = rng.choice(("shuffle", "reverse", "copy", "sort"))
    person = f"json name, age\nname is {names[0].split()[0]}, age is {rng.randrange(18, 90)}"
    return rng.choice((f"[{listed}] -> {task}", person))


def _unmasking(rng: random.Random, *, is_cached: bool) -> Body:
    unmaskers = [rng.choice(UNMASKERS)]
    if unmaskers[0] not in ("off", "auto"):
        unmaskers += [name for name in UNMASKING_PARTS if rng.random() < 0.15]
        unmaskers += [rng.choice(CANVAS_CACHES)] if is_cached else []
    decoding: Body = {"unmasker": unmaskers if len(unmaskers) > 1 else unmaskers[0]}
    if is_cached:
        decoding["canvas"] = {"attention": "full"}
    elif rng.random() < 0.5:
        decoding["canvas"] = {"attention": "block", "block_size": rng.choice((1, 4, 8, 16, 32))}
    return decoding


def _filling(rng: random.Random, body: Body) -> Body:
    """Return a completion, with text behind the gap or holes in a template where it may have."""
    before = '<|user|>json name, age\nname is Ada, age is 36<|assistant|>{"name": "'
    kind = rng.choice(("plain", "suffix", "infill"))
    body.pop("prompt_logprobs", None)
    if kind == "plain":
        return body | {"prompt": before}
    left_out = {"min_tokens", "stop", "include_stop_str_in_output"}
    body = {key: value for key, value in body.items() if key not in left_out}
    if kind == "suffix":
        return body | {"prompt": before, "suffix": "}", "max_tokens": rng.randint(1, 12)}
    del body["max_tokens"]
    lengths = [rng.randint(1, 4), rng.randint(1, 3)]
    infill = {"hole": "<hole>", "lengths": lengths}
    return body | {"prompt": before + '<hole>", "age": <hole>}', "infill": infill}
