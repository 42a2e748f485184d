"""Methods are found by name, their options are checked, and a package can add some."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from plait.decoders.contract import registry
from plait.decoders.contract.registry import (
    GROUP,
    Choice,
    Method,
    MethodError,
    Options,
    check_needs,
    choose,
)


class ExampleOptions(Options):
    width: int = 4


EXAMPLE = Method(
    kind="drafter",
    name="example",
    summary="",
    source="",
    target="builtins:repr",
    options=ExampleOptions,
    needs=frozenset({"tree"}),
)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entry = EntryPoint("example", "tests.unit.test_registry:EXAMPLE", GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: EXAMPLE)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    registry.methods.cache_clear()
    yield
    registry.methods.cache_clear()


def test_the_default_sampler_is_there() -> None:
    for value in (
        {},
        {"sampler": "auto"},
        {"sampler": "ordinary"},
        {"sampler": {"name": "ordinary"}},
    ):
        found = choose(value, "sampler")
        assert found is not None
        assert found.method.name == "ordinary"
    assert choose({}, "drafter") is None
    assert choose({"drafter": "off"}, "drafter") is None


@pytest.mark.parametrize(
    ("decoding", "kind", "param", "message"),
    [
        ({"search": "nonesuch"}, "search", "decoding.search", "there is: .*independent"),
        ({"sampler": "off"}, "sampler", "decoding.sampler", "there is: awrs, ordinary"),
        (
            {"sampler": {"name": "ordinary", "colour": 1}},
            "sampler",
            "decoding.sampler.colour",
            "ordinary has no option .colour.; its options are: none",
        ),
    ],
)
def test_what_is_not_there_is_refused(
    decoding: dict[str, Any], kind: registry.Kind, param: str, message: str
) -> None:
    with pytest.raises(MethodError, match=message) as caught:
        choose(decoding, kind)
    assert caught.value.param == param


@pytest.mark.usefixtures("plugin")
def test_a_package_adds_a_method() -> None:
    found = choose({"drafter": {"name": "example", "width": 9}}, "drafter")
    assert found is not None
    assert found.method.make(found.options) == "ExampleOptions(width=9)"
    with pytest.raises(MethodError, match="example needs attention to trees"):
        check_needs(found, ["fork"])
    check_needs(found, ["tree"])


@pytest.mark.parametrize(
    ("needs", "have", "why"),
    [
        ({"canvas", "shadow"}, ["tree"], "x works on diffusion models only; this model writes one"),
        ({"canvas", "full_attention"}, ["canvas"], "x needs a diffusion model with full attention"),
        ({"draft_model"}, ["tree"], "which the server gets by --draft-model"),
        ({"tree", "eagle"}, ["tree"], "weights trained for this model, which has none: eagle"),
    ],
)
def test_what_a_worker_lacks_is_said_in_words(needs: set[str], have: list[str], why: str) -> None:
    method = Method("unmasker", "x", "", "", "a:b", needs=frozenset(needs))
    with pytest.raises(MethodError) as caught:
        check_needs(Choice(method, Options()), have)
    assert why in str(caught.value)
    assert caught.value.param == "decoding.unmasker"
