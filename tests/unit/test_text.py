"""The one copy of a sequence's tokens, and the streams of its noise."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plait.decoders.contract.text import WORD, NoiseKey, Text
from plait.kernels import noise
from tests.fixtures.backends import REFERENCE, KernelBackend, both_backends

TOKENS = st.lists(st.integers(0, 5), max_size=12)


@given(TOKENS, TOKENS, TOKENS)
def test_a_text_is_its_prompt_and_its_output(
    prompt: list[int], one: list[int], two: list[int]
) -> None:
    text = Text(prompt, NoiseKey(3, 1), one)
    text.extend(two)
    text.append(7)
    want = [*prompt, *one, *two, 7]
    assert (list(text), len(text), text[-1], text[1:]) == (want, len(want), 7, want[1:])
    assert (text.output, text.num_output) == ([*one, *two, 7], len(one) + len(two) + 1)
    text.truncate(len(prompt) + len(one))
    assert text.output == one
    assert text.prompt is prompt


def test_a_prompt_can_not_be_cut() -> None:
    with pytest.raises(AssertionError):
        Text([1, 2, 3], output=[4]).truncate(2)


def test_a_fork_and_its_parent_go_their_own_ways() -> None:
    parent = Text([1, 2], NoiseKey(9, 3), [4])
    child = parent.fork(5)
    child.append(8)
    parent.append(6)
    assert (parent.output, child.output) == ([4, 6], [4, 8])
    assert child.prompt is parent.prompt
    assert child.noise == NoiseKey(9, 3).fork(5) != parent.noise


@given(TOKENS, TOKENS, TOKENS)
def test_what_two_texts_share_is_counted(start: list[int], one: list[int], two: list[int]) -> None:
    have = Text([], output=[*start, *one]).num_shared(Text([], output=[*start, *two]))
    pairs = zip([*start, *one], [*start, *two], strict=False)
    want = next(
        (i for i, (a, b) in enumerate(pairs) if a != b), len(start) + min(len(one), len(two))
    )
    assert have == want


def test_forks_have_streams_of_their_own() -> None:
    """No fork shares its stream with another, nor with those that a request starts with."""
    first = [NoiseKey(1, stream) for stream in range(20)]
    forks = [key.fork(child) for key in first for child in range(100)]
    forks += [key.fork(child) for key in forks[:20] for child in range(100)]
    streams = {key.stream for key in forks}
    assert len(streams) == len(forks)
    assert all(WORD <= stream < WORD**2 for stream in streams)
    assert {key.seed for key in forks} == {1}


@both_backends
def test_the_streams_that_requests_start_with_have_the_noise_of_ever(
    backend: KernelBackend,
) -> None:
    """Recorded when a stream was one 32-bit word: every seed's text stays what it was."""
    rows = [(12345, 0, 40), (2**64 - 1, 3, 0), (2**63, 2**32 - 1, 2**31), (7, 127, 4095)]
    keys = torch.tensor([noise.key(*row) for row in rows])
    have = hashlib.sha256(backend.gumbel(keys, 9001).numpy().tobytes()).hexdigest()
    assert have == "2de70ae5a7091f53de3d9f03c7a48e86f53e58f82b948eca492c0446a879cdb8"


@both_backends
def test_both_words_of_a_stream_count(backend: KernelBackend) -> None:
    streams = [5, WORD + 5, 2 * WORD + 5, 2**63 + 5]
    keys = torch.tensor([noise.key(1, stream, 9) for stream in streams])
    rows = backend.gumbel(keys, 64)
    assert len({tuple(row) for row in rows.tolist()}) == len(streams)
    assert torch.equal(rows, REFERENCE.gumbel(keys, 64))
