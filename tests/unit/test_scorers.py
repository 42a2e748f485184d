"""Scorers: what they find in texts, how a request names them, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from plait.decoders.constrained.compile import compile_constraint
from plait.decoders.constrained.spec import ConstraintLimits, ConstraintSpec
from plait.decoders.constrained.vocabulary import make_vocabulary
from plait.decoders.contract import registry
from plait.decoders.contract.decoding import MethodSpec
from plait.decoders.contract.registry import Method, MethodError, choose, from_spec
from plait.decoders.contract.scorer import ScoredText, ScorerContext, ScorerOptions
from plait.decoders.resolve import resolve_decoding
from plait.decoders.scorers.form import FormOptions
from plait.server.api.requests.completions import lower_completion
from plait.server.api.requests.constraints import ANY_SPELLING
from plait.server.api.requests.job import RequestContext
from plait.server.api.schemas.completions import CompletionRequest
from plait.server.engine.constraints import LazyForms
from plait.server.engine.group.scoring import ScorerPool
from plait.server.errors import BadRequest
from plait.server.settings import LimitSettings
from plait.server.wire.messages import CompiledConstraint
from tests.fixtures.stub_pool import StubPool


def score(name: str, text: str, *, is_complete: bool = True, **options: Any) -> float:
    found = choose({"scorer": {"name": name, **options}}, "scorer")
    assert found is not None
    scorer = found.method.make(found.options, context=ScorerContext())
    (value,) = scorer.score([ScoredText("a prompt", text, is_complete)])
    return float(value)


@pytest.mark.parametrize(
    ("text", "options", "want"),
    [
        ("The Dog runs.", {}, 1.0),
        ("a hotdog runs", {}, 0.5),
        ("a hotdog runs", {"whole_words": False}, 1.0),
        ("dogs run", {}, 0.0),
        ("dog", {"ignore_case": False, "keywords": ["Dog", "dog"]}, 0.5),
        ("dog", {"keywords": ["dog", "dog"]}, 1.0),
        ("dogma dog", {"keywords": ["dog"]}, 1.0),
        ("C++ code", {"keywords": ["c++", "code"]}, 1.0),
        ("", {}, 0.0),
    ],
)
def test_keywords(text: str, options: dict[str, Any], want: float) -> None:
    assert score("keywords", text, **{"keywords": ["dog", "runs"], **options}) == want


@pytest.mark.parametrize(
    ("text", "is_complete", "options", "want"),
    [
        ("one two", True, {"most": 2}, 1.0),
        ("one two three four", True, {"most": 2}, 0.5),
        ("one", True, {"least": 2, "most": 4}, 0.5),
        ("one", False, {"least": 2, "most": 4}, 1.0),
        ("abcd", True, {"most": 1, "unit": "characters"}, 0.25),
        ("", True, {"most": 1}, 1.0),
    ],
)
def test_length(text: str, is_complete: bool, options: dict[str, Any], want: float) -> None:
    assert score("length", text, is_complete=is_complete, **options) == want


def compiled(kind: Any, text: str) -> CompiledConstraint:
    spec = ConstraintSpec(kind, text, style=ANY_SPELLING)
    vocabulary = make_vocabulary((bytes([i]) for i in range(256)), ())
    table = compile_constraint(spec, vocabulary, ConstraintLimits()).table
    return CompiledConstraint(f"{kind} {text}", table, 0)


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
}


@pytest.mark.parametrize(
    ("options", "text", "is_complete", "want"),
    [
        ({"regex": "[a-z]+-[0-9]{2}"}, "abc-12", True, 1.0),
        ({"regex": "[a-z]+-[0-9]{2}"}, "abc-1", False, 1.0),
        ({"regex": "[a-z]+-[0-9]{2}"}, "abc-1", True, 0.5),
        ({"regex": "[a-z]+-[0-9]{2}"}, "abc-x", False, 0.4),
        ({"regex": "[a-z]+-[0-9]{2}"}, "abc-123", True, 0.5 * 6 / 7),
        ({"regex": "[a-z]+"}, "", True, 0.5),
        ({"regex": "é+"}, "éé", True, 1.0),
        ({"json_schema": PERSON}, '{"age":3 , "name":\n"é", "x": [1.0]}', True, 1.0),
        ({"json_schema": PERSON}, '{"na', False, 1.0),
        ({"json_schema": PERSON}, '{"age": 3}', True, 0.5 * 9 / 10),
        ({"json_schema": PERSON}, "Sure! {}", True, 0.0),
    ],
)
def test_form(options: dict[str, Any], text: str, is_complete: bool, want: float) -> None:
    found = choose({"scorer": {"name": "form", **options}}, "scorer")
    assert found is not None
    assert isinstance(found.options, FormOptions)
    check = LazyForms(2**20)(compiled(*found.options.form))
    scorer = found.method.make(found.options, context=ScorerContext(check_form=check))
    assert scorer.score([ScoredText("", text, is_complete)] * 2) == pytest.approx([want] * 2)


async def test_forms_are_compiled_with_the_constraints() -> None:
    """In the compile service, which has limits; the table travels with the request."""
    scorers = [{"name": "length", "most": 3}, {"name": "form", "regex": "a+"}]
    decoding = {"search": "deal", "scorer": scorers}
    request = CompletionRequest.model_validate(
        {"model": "stub", "prompt": "hi", "decoding": decoding}
    )
    pool = StubPool()
    context = RequestContext("tenant", time.monotonic())
    job = await lower_completion(pool, LimitSettings(), request, context)
    assert [(spec.kind, spec.text) for spec in pool.specs] == [("regex", "a+")]
    assert pool.compiling_tenants == ["tenant"]
    assert list(job.requests[0].scorer_forms) == [1]
    one = ScorerPool(load_form=lambda form: lambda text: (0, False))
    spec = job.requests[0].decoding.scorers[1]
    form = job.requests[0].scorer_forms[1]
    assert one.make(spec, form).scorer is one.make(spec, form).scorer


@pytest.mark.parametrize(
    ("decoding", "param", "complaint"),
    [
        ({"search": {"name": "deal"}}, "decoding.scorer", "deal needs a scorer"),
        ({"scorer": {"name": "length", "most": 3}}, "decoding.scorer", "ask it: .*deal"),
        (
            {"search": "independent", "scorer": {"name": "length", "most": 3}},
            "decoding.scorer",
            "searches that ask it",
        ),
        (
            {"search": "deal", "scorer": [{"name": "length", "most": 3}, {"name": "wit"}]},
            "decoding.scorer.1",
            "no scorer 'wit'; there is: form, http, keywords, length",
        ),
        (
            {"search": "deal", "scorer": {"name": "form", "regex": "a", "json_schema": {}}},
            "decoding.scorer",
            "json_schema or regex, one of them",
        ),
        (
            {"search": "deal", "scorer": {"name": "keywords", "keywords": []}},
            "decoding.scorer.keywords",
            "at least 1",
        ),
        (
            {"search": "deal", "scorer": {"name": "length", "least": 4, "most": 3}},
            "decoding.scorer",
            "least is larger than most",
        ),
        (
            {"search": "deal", "scorer": {"name": "http", "endpoint": "x", "url": "http://x"}},
            "decoding.scorer.url",
            "http has no option 'url'",
        ),
    ],
)
async def test_what_does_not_fit_is_refused(
    decoding: dict[str, Any], param: str, complaint: str
) -> None:
    with pytest.raises(MethodError, match=complaint) as caught:
        resolve_decoding(decoding)
    assert caught.value.param == param
    request = CompletionRequest.model_validate(
        {"model": "stub", "prompt": "hi", "decoding": decoding}
    )
    with pytest.raises(BadRequest) as refused:
        await lower_completion(
            StubPool(), LimitSettings(), request, RequestContext("", time.monotonic())
        )
    assert refused.value.param == param


async def test_several_scorers_travel_with_the_request() -> None:
    scorers = [
        {"name": "keywords", "keywords": ["a"], "weight": 2.0},
        {"name": "length", "most": 3},
    ]
    request = CompletionRequest.model_validate(
        {
            "model": "stub",
            "prompt": "hi",
            "decoding": {"search": {"name": "deal", "beams": 2}, "scorer": scorers},
        }
    )
    context = RequestContext("", time.monotonic())
    job = await lower_completion(StubPool(), LimitSettings(), request, context)
    assert job.requests[0].decoding.search == MethodSpec("deal", {"beams": 2})
    assert job.requests[0].decoding.scorers == (
        MethodSpec("keywords", {"keywords": ["a"], "weight": 2.0}),
        MethodSpec("length", {"most": 3}),
    )


def test_equal_scorers_are_one_object_whatever_their_weight() -> None:
    pool = ScorerPool()
    one = pool.make(MethodSpec("length", {"most": 3, "weight": 2.0}))
    other = pool.make(MethodSpec("length", {"most": 3}))
    third = pool.make(MethodSpec("length", {"most": 4}))
    assert one.scorer is other.scorer
    assert third.scorer is not one.scorer
    assert (one.weight, other.weight) == (2.0, 1.0)
    for most in range(5, 200):
        pool.make(MethodSpec("length", {"most": most}))
    assert pool.make(MethodSpec("length", {"most": 3})).scorer is not one.scorer


class Shout:
    """A scorer of a package: the share of capital letters."""

    def __init__(self, options: ScorerOptions, context: ScorerContext) -> None: ...

    def score(self, texts: Sequence[ScoredText]) -> Sequence[float]:
        return [sum(c.isupper() for c in each.text) / len(each.text) for each in texts]


SHOUT = Method("scorer", "shout", "", "", "tests.unit.test_scorers:Shout", options=ScorerOptions)


def test_a_package_adds_a_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("shout", "tests.unit.test_scorers:SHOUT", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: SHOUT)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    registry.methods.cache_clear()
    try:
        named = {"search": "deal", "scorer": {"name": "shout", "weight": 2}}
        (spec,) = resolve_decoding(named).scorers
        made = ScorerPool().make(spec)
        assert made.weight == 2
        assert made.scorer.score([ScoredText("", "ABcd", False)]) == [0.5]
    finally:
        registry.methods.cache_clear()


def test_every_built_in_scorer_has_a_weight_and_a_description() -> None:
    for name, options in EXAMPLES.items():
        method: Method = from_spec("scorer", MethodSpec(name, options)).method
        assert issubclass(method.options, ScorerOptions)
        assert all(field.description for field in method.options.model_fields.values())


EXAMPLES: dict[str, dict[str, Any]] = {
    "keywords": {"keywords": ["a"]},
    "length": {"most": 1},
    "http": {"endpoint": "a"},
    "form": {"regex": "a"},
}
