"""Draft stores in the engine: what one namespace has learnt never shows in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.stores.namespaces import DraftStores
from plait.server.engine.engine import Engine
from plait.server.wire.messages import DraftStoreTask, GenerateRequest
from tests.fixtures.drafting import drafted_by, speculating
from tests.fixtures.engines import request, run

VOCAB = 50
PROMPT, LENGTH = [1, 2, 3, 4], 24
DRAFTERS = [
    {"name": "suffix", "always": True},
    {"name": "aded", "always": True},
    {"name": "aded", "preset": "paper", "always": True},
]


def asked(name: str, namespace: str, drafter: Any, prompt: Sequence[int] = PROMPT) -> Any:
    """Return a greedy request of a namespace."""
    greedy = SamplingParams(temperature=0)
    made = request(name, prompt, LENGTH, sampling=greedy, cache_salt=namespace)
    return drafted_by([made], drafter)[0]


def drafts_of(engine: Engine, each: GenerateRequest) -> tuple[dict[str, int], dict[str, int]]:
    """Run one request; return what was drafted for it, and what of that came true."""
    trace = run(engine, [each])[each.request_id, 0].deltas[-1].trace
    assert trace is not None
    return dict(trace["drafted"]), dict(trace["accepted"])


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_namespace_sees_its_own_answers_and_nobody_elses(drafter: dict[str, Any]) -> None:
    name = drafter["name"]
    first = drafts_of(speculating(DrafterContext(VOCAB)), asked("r", "b", drafter))
    engine = speculating(DrafterContext(VOCAB))
    for i in range(3):
        drafts_of(engine, asked(f"a{i}", "a", drafter))
    _, learnt = drafts_of(engine, asked("a", "a", drafter))
    assert learnt[name] > first[1].get(name, 0)
    assert drafts_of(engine, asked("b", "b", drafter)) == first  # as if "a" had never been


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_who_does_not_want_to_be_learnt_from_leaves_nothing(drafter: dict[str, Any]) -> None:
    stores = DraftStores()
    engine = speculating(DrafterContext(VOCAB, stores=stores))
    run(engine, [asked("r", "a", drafter | {"learn": False})])
    run(engine, [asked("s", "a", "off"), asked("t", "a", "n-gram")])
    assert not list(stores.spaces())
    run(engine, [asked("u", "a", drafter)])
    assert [name for name, _ in stores.spaces()] == ["a"]


def test_only_what_was_emitted_is_kept() -> None:
    stores = DraftStores()
    engine = speculating(DrafterContext(VOCAB, stores=stores))
    answer = run(engine, [asked("r", "a", DRAFTERS[0])])["r", 0].tokens
    space = stores.find("a")
    assert space is not None
    assert [list(text.token_ids) for text in space.texts()] == [answer]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_an_import_is_drafted_from_and_clearing_ends_that(drafter: dict[str, Any]) -> None:
    name = drafter["name"]
    text = run(speculating(DrafterContext(VOCAB)), [asked("r", "", "off")])["r", 0].tokens
    first = drafts_of(speculating(DrafterContext(VOCAB)), asked("r", "a", drafter))
    engine = speculating(DrafterContext(VOCAB))
    engine.draft_store(DraftStoreTask("t", "import", "a", [[*PROMPT, *text]] * 5))
    _, right = drafts_of(engine, asked("r1", "a", drafter))
    assert right[name] > first[1].get(name, 0)
    assert drafts_of(engine, asked("b", "b", drafter)) == first
    engine.draft_store(DraftStoreTask("t", "clear", "a"))
    assert drafts_of(engine, asked("r2", "a", drafter)) == first
    counters = engine.stats().counters
    assert counters.draft_store.tokens_added >= 5 * (LENGTH + len(PROMPT))


def test_nothing_is_kept_with_a_store_of_no_tokens() -> None:
    stores = DraftStores(max_tokens=0)
    engine = speculating(DrafterContext(VOCAB, stores=stores))
    for i, drafter in enumerate(DRAFTERS):
        run(engine, [asked(f"r{i}", "a", drafter)])
    assert not list(stores.spaces())
