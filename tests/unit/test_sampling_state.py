"""What a sequence's sampling state remembers, bans and shares."""

from __future__ import annotations

import torch

from plait.decoders.sampling.counts import TokenCounts
from plait.decoders.sampling.params import SamplingParams
from tests.fixtures.sampling_states import grow, sampling_state


def counted(counts: TokenCounts) -> dict[int, float]:
    ids, occurrences = counts.tensors(torch.device("cpu"))
    return dict(zip(ids.tolist(), occurrences.tolist(), strict=True))


def test_counts_tell_output_from_prompt() -> None:
    counts = TokenCounts([5, 3, 5])
    for token in (3, 8, 8):
        counts.add(token)
    assert counted(counts) == {5: 0.0, 3: 1.0, 8: 2.0}


def test_counts_handed_out_are_snapshots() -> None:
    counts = TokenCounts([1])
    ids, occurrences = counts.tensors(torch.device("cpu"))
    for token in range(1000):
        counts.add(token)
    assert (ids.tolist(), occurrences.tolist()) == ([1], [0.0])


def test_penalties_count_what_they_are_about() -> None:
    prompt = [4, 4, 9]
    repetition = sampling_state(SamplingParams(repetition_penalty=1.1), prompt)
    presence = sampling_state(SamplingParams(presence_penalty=1.1), prompt)
    plain = sampling_state(SamplingParams(), prompt)
    for state in (repetition, presence, plain):
        grow(state, 7)
    assert repetition.counts is not None
    assert counted(repetition.counts) == {4: 0.0, 9: 0.0, 7: 1.0}
    assert presence.counts is not None
    assert counted(presence.counts) == {7: 1.0}
    assert plain.counts is None


def test_the_key_is_seed_sequence_and_absolute_position() -> None:
    state = sampling_state(SamplingParams(seed=2**64 - 1), [1, 2, 3], stream=5)
    assert state.key == (-1, 5, 3)
    grow(state, 0)
    assert state.key == (-1, 5, 4)


def test_a_fork_goes_its_own_way() -> None:
    state = sampling_state(SamplingParams(frequency_penalty=1.0), [1])
    grow(state, 2)
    twin = state.fork(state.text.fork(3))
    grow(twin, 6)
    grow(state, 2)
    assert (state.text.output, twin.text.output) == ([2, 2], [2, 6])
    assert state.key[1] == 0 and twin.key[1] not in range(2**32)
    assert state.counts is not None and counted(state.counts) == {2: 2.0}
    assert twin.counts is not None and counted(twin.counts) == {2: 1.0, 6: 1.0}
    assert twin.text.prompt is state.text.prompt


def test_bad_words_are_banned_at_their_last_token() -> None:
    words = ((7,), (1, 2), (9, 1, 3), (5, 9, 1, 4))
    state = sampling_state(SamplingParams(bad_words=words), [8, 9])
    assert state.bans() == {7}
    grow(state, 1)
    # 9 1 straddles prompt and output; 5 9 1 would begin before the text
    assert state.bans() == {7, 2, 3}
    grow(state, 0)
    assert state.bans() == {7}


def test_a_bad_word_longer_than_the_text_bans_nothing() -> None:
    state = sampling_state(SamplingParams(bad_words=((1, 2, 3, 4),)), [2, 3])
    assert state.bans() == set()


def test_stop_tokens_are_banned_until_min_tokens() -> None:
    state = sampling_state(SamplingParams(min_tokens=2), [0], stop_token_ids=[2, 5])
    for _ in range(2):
        assert state.bans() == {2, 5}
        assert state.edits
        grow(state, 1)
    assert state.bans() == set()
    assert not state.edits


def test_only_rows_that_need_more_say_so() -> None:
    plain = sampling_state(SamplingParams(temperature=0.7, logprobs=3), [1])
    assert not plain.edits and not plain.truncates
    greedy = sampling_state(SamplingParams(temperature=0.0, top_p=0.5, top_k=4), [1])
    assert greedy.greedy and not greedy.truncates
    presence = sampling_state(SamplingParams(presence_penalty=1.0), [1])
    assert not presence.edits
    grow(presence, 3)
    assert presence.edits
