"""Prompt lookup against a search through the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plait.decoders.contract.decoder import DecodeRequest
from plait.decoders.contract.drafter import Draft, DraftRequest
from plait.decoders.contract.registry import compose
from plait.decoders.contract.text import Text
from plait.decoders.sampling.params import SamplingParams
from plait.decoders.speculative.context import DrafterContext
from plait.decoders.speculative.drafters import n_gram
from plait.decoders.speculative.drafters.n_gram import NGramDrafter, NGramOptions
from tests.fixtures.drafting import drafted_by, speculating, texts
from tests.fixtures.engines import request

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=60)


def drafter(**options: Any) -> NGramDrafter:
    choice = compose({"drafter": {"name": "n-gram", **options}}, "drafter")[0]
    made: NGramDrafter = choice.method.make(choice.options, context=DrafterContext(100))
    return made


def drafts(
    made: NGramDrafter, text: Sequence[int], draft_prefix: Sequence[int], max_tokens: int
) -> Draft:
    """Return the draft behind a text that grew token by token, and was asked about throughout."""
    state = made.start(DecodeRequest(Text(text[:1]), SamplingParams(), 1, frozenset(), None))
    for stop in range(1, len(text)):
        made.propose([DraftRequest(state, text[:stop], [], max_tokens, None)])
    return made.propose([DraftRequest(state, text, draft_prefix, max_tokens, None)])[0]


def occurrences(text: Sequence[int], run: Sequence[int]) -> list[int]:
    """Return where a run ended with a token behind it."""
    return [
        stop for stop in range(len(run), len(text)) if text[stop - len(run) : stop] == list(run)
    ]


def searched(
    options: NGramOptions, text: list[int], draft_prefix: list[int], max_tokens: int
) -> tuple[list[int], list[float]]:
    """Return (tokens, share of the votes for each), by searching the text from its beginning."""
    whole = text + draft_prefix
    for size in range(options.max_n, options.min_n - 1, -1):
        places = occurrences(text, whole[-size:]) if size <= len(whole) else []
        if options.prefer == "latest":
            places.reverse()
        places = places[: options.occurrences]
        if places:
            break
    else:
        return [], []
    tokens: list[int] = []
    shares: list[float] = []
    while len(tokens) < max_tokens:
        known = whole + tokens if options.overlap else text
        following = [known[p + len(tokens)] for p in places if p + len(tokens) < len(known)]
        if not following:
            break
        best = max(following, key=following.count)
        share = following.count(best) / len(following)
        if share < options.agreement:
            break
        shares.append(share)
        places = [p for p in places if known[p + len(tokens) : p + len(tokens) + 1] == [best]]
        tokens.append(best)
    return tokens, shares


@given(TOKENS, st.lists(st.integers(0, 2), max_size=4), st.integers(1, 9), st.integers(1, 5))
@example([0] * 30, [], 9, 5)
@pytest.mark.parametrize("preset", [None, "vllm"])
@pytest.mark.parametrize("overlap", [True, False])
def test_drafts_are_those_of_a_search(
    preset: str | None,
    overlap: bool,
    text: list[int],
    draft_prefix: list[int],
    max_tokens: int,
    count: int,
) -> None:
    options: dict[str, Any] = {"min_n": 1, "max_n": 4, "overlap": overlap, "occurrences": count}
    if preset is not None:
        options = {"preset": preset}
    choice = compose({"drafter": {"name": "n-gram", **options}}, "drafter")[0]
    assert isinstance(choice.options, NGramOptions)
    have = drafts(drafter(**options), text, draft_prefix, max_tokens)
    want, shares = searched(choice.options, text, draft_prefix, max_tokens)
    assert list(have.token_ids) == want
    assert len(have.acceptance_probs) == len(want)
    assert all(
        0 < acceptance_prob < share + 1e-9
        for acceptance_prob, share in zip(have.acceptance_probs, shares, strict=True)
    )


def test_vllm_takes_the_earliest_and_stops_at_the_end_of_the_text() -> None:
    text = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 4, 5, 7, 1, 2, 3, 4, 5]
    assert list(drafts(drafter(preset="vllm"), text, [], 3).token_ids) == [6, 9, 1]
    assert list(drafts(drafter(), text, [], 2).token_ids) == [7, 1]
    assert list(drafts(drafter(preset="vllm"), [1] * 6, [], 4).token_ids) == [1]
    assert list(drafts(drafter(), [1] * 6, [], 4).token_ids) == [1] * 4


def test_votes_and_disagreement() -> None:
    text = [1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 4, 0, 1, 2]
    made = drafter(min_n=2, max_n=2)
    assert list(drafts(made, text, [], 2).token_ids) == [3, 0]  # two against the latest one
    split = [1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2]
    assert list(drafts(made, split, [], 2).token_ids) == []  # a third of the votes is too few
    assert list(drafts(drafter(min_n=2, max_n=2, occurrences=1), split, [], 1).token_ids) == [5]


def test_longer_matches_and_more_votes_are_surer() -> None:
    short = drafts(drafter(), [1, 2, 3, 4, 1, 2], [], 1).acceptance_probs[0]
    long = drafts(drafter(), [1, 2, 3, 4, 1, 2, 3], [], 1).acceptance_probs[0]
    often = drafts(drafter(), [1, 2, 3, 1, 2, 3, 1, 2], [], 1).acceptance_probs[0]
    assert short < long and short < often


def test_goes_on_behind_what_others_have_drafted() -> None:
    text = [1, 2, 3, 4, 5, 6, 1]
    assert list(drafts(drafter(), text, [2, 3], 3).token_ids) == [4, 5, 6]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(n_gram, "WINDOW", 50)
    made = drafter(min_n=2, max_n=3)
    state = made.start(DecodeRequest(Text([]), SamplingParams(), 1, frozenset(), None))
    text: list[int] = []
    for token in range(1_000):
        text.append(token)
        made.propose([DraftRequest(state, text, [], 4, None)])
        assert max(len(table.ends) for table in state.index.tables) <= 100
        assert max(len(table.before) for table in state.index.tables) <= 100
    text += text[-20:-10]
    assert list(made.propose([DraftRequest(state, text, [], 3, None)])[0].token_ids) == [
        990,
        991,
        992,
    ]


@pytest.mark.parametrize("options", [{"min_n": 3, "max_n": 2}, {"prefer": "earliest"}])
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="n-gram"):
        drafter(**options)


def test_sequences_of_a_request_share_the_prompt_and_nothing_else() -> None:
    made, prompt = drafter(), [1, 2, 3, 4, 1, 2]
    asked = DecodeRequest(Text(prompt), SamplingParams(), 1, frozenset(), None)
    states = [made.start(asked) for _ in range(4)]
    made.finish(states.pop(), prompt)
    for i, state in enumerate(states):  # the first one has copied when the second goes on
        text = [*prompt, 20 + i, 8, 20 + i]
        assert list(made.propose([DraftRequest(state, prompt, [], 1, None)])[0].token_ids) == [3]
        assert list(made.propose([DraftRequest(state, text, [], 1, None)])[0].token_ids) == []
        assert list(made.propose([DraftRequest(state, [*text, 8], [], 1, None)])[0].token_ids) == [
            20 + i
        ]
    assert made._prompt_cache._latest is None


def test_text_is_the_one_without_drafts() -> None:
    sampling = SamplingParams(temperature=0.3, seed=3)
    asked = [request(f"r{i}", [1, 2, 3, 1, 2, i], 30, sampling=sampling) for i in range(4)]
    plain = texts(speculating(DrafterContext(6)), drafted_by(asked, "off"))
    always = {"name": "n-gram", "always": True, "min_n": 1}
    assert texts(speculating(DrafterContext(6)), drafted_by(asked, always)) == plain
